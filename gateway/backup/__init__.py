"""Back up API keys, budgets and receipts to one file, and restore them."""
