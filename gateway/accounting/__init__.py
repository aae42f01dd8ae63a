"""Receipts: what each request used, cost and took. `draft.py` gathers, `receipt.py` is the result, `store.py` keeps."""
