"""What receipts add up to in Redis: `adder.py` writes rows, `rollups.py` reads them, `roller.py` keeps adding."""
