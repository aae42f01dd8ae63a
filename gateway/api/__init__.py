"""The public HTTP listener. Handlers are thin and get their dependencies by the application keys in `keys.py`."""
