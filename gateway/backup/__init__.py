"""Back up callers' keys, budgets and receipts to one file, and restore them."""
