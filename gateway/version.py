"""Which gateway this is."""

import time

__version__ = "0.1.0"

STARTED = int(time.time())
"""When this process came to be, in Unix seconds."""
