"""Receipts: tokens, cost and times of each request.

`receipt_builder.py` gathers the figures, `receipt.py` is the result, `store.py` sends it to Redis.
"""
