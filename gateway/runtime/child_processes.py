"""How a child process is ended."""

from __future__ import annotations

import asyncio


async def end(process: asyncio.subprocess.Process | None, limit_s: float) -> None:
    """Terminate, wait, and kill what has not ended after `limit_s` seconds. Nothing happens when it is not running."""
    if process is None or process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(limit_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
