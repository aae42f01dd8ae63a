"""The public listener: HTTP in, HTTP out. Handlers are thin; what they need comes by the keys in `keys.py`."""
