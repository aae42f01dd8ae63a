"""Engines: model servers spoken to over HTTP. `base.py` says what one is; each other file is one noun of it."""
