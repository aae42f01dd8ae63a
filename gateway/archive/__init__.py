"""Receipts for good, in SQL: `archiver.py` fills it from the outboxes, `archive.py` is what others ask."""
