"""Store receipts in the usage database, add them up, and answer queries about usage, costs and savings."""
