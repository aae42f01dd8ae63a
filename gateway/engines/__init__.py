"""Clients of model servers. `base.py` defines the protocol `Engine`; `build.py` constructs its implementations."""
