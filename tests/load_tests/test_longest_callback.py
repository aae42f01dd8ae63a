"""load_tests/longest_callback.py finds the callback that blocks the event loop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, os, signal, sys, time
from load_tests.longest_callback import CallbackTimes
from pathlib import Path

CallbackTimes(Path(sys.argv[1])).install()

def blocks(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

async def main():
    loop = asyncio.get_running_loop()
    loop.call_soon(blocks, 0.3)
    await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.call_soon(blocks, 0.05)
    await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGUSR2)

asyncio.run(main())
"""


def test_the_longest_callback_since_the_reset_is_reported_with_its_cpu_time(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-c", PROGRAM, str(report)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    found = json.loads(report.read_text())
    assert found["longest"][0]["callback"] == "blocks"
    assert 50 <= found["longest"][0]["cpu_ms"] < 300
    assert found["callbacks"] >= len(found["longest"]) > 1
