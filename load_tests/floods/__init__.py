"""The two clients of hostile.py, each a process of its own: a flood, and the victim that is measured beside it."""
