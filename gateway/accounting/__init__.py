"""Admit requests within limits and budgets, and settle each with a receipt: tokens, cost, savings and times.

`receipt_builder.py` gathers the figures, `receipt.py` is the result, `store.py` sends it to Redis.
"""
