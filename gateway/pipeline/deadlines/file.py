"""Measured guidance times in a file. A new process starts from them, and `gkt-gateway check` compares policies to them.

The file is a hint. The last process that writes it wins. A file that cannot be read or written loses only the hint.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.pipeline.deadlines.times import MeasuredTime

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.pipeline.deadlines.times import GuidanceTimes

log = structlog.get_logger()

NAME = "guidance-times.json"
_WRITE_EVERY_S = 60.0
_MAX_BYTES = 1_000_000


class _File(msgspec.Struct, frozen=True):
    measured: tuple[MeasuredTime, ...]


def read_times(folder: Path) -> tuple[MeasuredTime, ...]:
    """Return the times that were written last; an empty tuple if the file is missing or cannot be read."""
    try:
        with (folder / NAME).open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=_File).measured
    except (OSError, msgspec.MsgspecError):
        return ()


def write_times(folder: Path, measured: tuple[MeasuredTime, ...]) -> None:
    """Replace the file. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{NAME}.new"
    unfinished.write_bytes(msgspec.json.encode(_File(measured)))
    unfinished.replace(folder / NAME)


async def keep_written(folder: Path, times: GuidanceTimes) -> None:
    """Write the file once a minute while the times change. Never returns."""
    written = times.measured()
    while True:
        await asyncio.sleep(_WRITE_EVERY_S)
        measured = times.measured()
        if measured == written:
            continue
        try:
            await asyncio.to_thread(write_times, folder, measured)
        except OSError as error:
            log.warning("guidance_times_not_written", folder=str(folder), error=type(error).__name__)
        written = measured
