"""Stop child processes."""

from __future__ import annotations

import asyncio


async def end(process: asyncio.subprocess.Process | None, limit_s: float) -> None:
    """Terminate a process. Kill it when it has not ended after `limit_s` seconds. An ended process is ignored."""
    if process is None or process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(limit_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
