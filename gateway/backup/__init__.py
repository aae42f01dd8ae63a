"""One file with what must outlive Redis and the archive: callers' keys, budgets, sums, receipts. And the way back."""
