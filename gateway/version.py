"""The version of the gateway, and the start time of this process."""

import time

__version__ = "0.1.0"

STARTED = int(time.time())
"""The start time of this process in Unix seconds."""
