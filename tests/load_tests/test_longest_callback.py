"""load_tests/longest_callback.py reads the callbacks that block the event loop from the log of a timed gateway."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from load_tests.longest_callback import longest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, time
from tests import timed_gateway

timed_gateway.install()

def blocks(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

async def task():
    blocks(0.2)

async def main():
    loop = asyncio.get_running_loop()
    loop.call_soon(blocks, 0.1)
    await loop.create_task(task(), name="slow")

asyncio.run(main())
"""


def test_slow_callbacks_of_a_timed_gateway_are_named_with_their_cpu_time_the_longest_first() -> None:
    bounds = {"CALLBACK_BOUND_MS": "50", "CALL_BOUND_MS": "inf"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | bounds, capture_output=True, text=True, check=True)
    found = longest(f"another line\n{done.stderr}")
    assert [name for _, name in found] == ["task slow: task", "blocks"]
    assert 200 <= found[0][0] < 1000
    assert 100 <= found[1][0] < 1000
