"""What was used, by whom, and what it cost and saved: rows, as tenants, operators and finance ask for them."""
