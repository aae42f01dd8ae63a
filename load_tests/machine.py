"""Describe the machine of a measurement in one line."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path


def machine() -> str:
    """Return date, cores, processor and Python version."""
    return f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, Python {platform.python_version()}."


def processor() -> str:
    """Return the number of cores and the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} cores of {cpu}"
