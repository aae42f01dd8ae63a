"""Receipts on disk, for while Redis is away: they outlive their process there. All of it blocks: for threads alone.

Each process has one file, and holds a lock on it for as long as it lives: a file whose lock can be had is a dead one's.
A line is one settlement as JSON. The first byte of a line that was told to Redis is written over.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from gateway.accounting.intent import Intent
from gateway.accounting.receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

ENDING = ".jsonl"
_TOLD = b"-"
_LOCK_TIMES = 10


class SpoolEntry(msgspec.Struct, frozen=True):
    """One line: a receipt, what was reserved for it, and the process under whose name that stands in Redis."""

    owner: str
    receipt: Receipt
    intent: Intent | None = None

    def to_line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"


class SpoolLine(msgspec.Struct, frozen=True):
    """What stands at a place of a file. `spooled` is None where it cannot be read."""

    place: int
    size: int
    spooled: SpoolEntry | None


class Spool:
    """One file that is locked. Everything raises OSError."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.size_bytes = os.fstat(descriptor).st_size

    @classmethod
    def make(cls, path: Path) -> Spool:
        """A new one, this process's own."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(_LOCK_TIMES):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            # Somebody may have taken it for a dead one's, and removed it, before it was locked.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
                    os.fsync(folder)  # else the file itself could be gone after a power cut
                    os.close(folder)
                    return cls(path, descriptor)
            os.close(descriptor)
        raise OSError("the spool cannot be locked")

    @classmethod
    def of_the_dead(cls, path: Path) -> Spool | None:
        """One that was left behind; None where it is a living process's, or gone."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return cls(path, descriptor)
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(descriptor)
        return None

    def append(self, lines: Iterable[bytes], most_bytes: int) -> int:
        """Write as many as fit, in order: how many. They are on the disk when it returns."""
        fitting, size = [], self.size_bytes
        for line in lines:
            if size + len(line) > most_bytes:
                break
            fitting.append(line)
            size += len(line)
        if fitting:
            try:
                _write_all(self._descriptor, b"".join(fitting))
                os.fdatasync(self._descriptor)
            except OSError:
                # A half of a line must not stand before the next.
                os.ftruncate(self._descriptor, self.size_bytes)
                raise
            self.size_bytes = size
        return len(fitting)

    def lines(self) -> Iterator[SpoolLine]:
        """Those that were not told yet, from the beginning; an end without a line's end was never whole."""
        place = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                if not raw.startswith(_TOLD):
                    yield SpoolLine(place, len(raw), _read(raw))
                place += len(raw)

    def tick_off(self, lines: Sequence[SpoolLine]) -> None:
        """These were told. Another process that finds the file does not tell them again."""
        # Linux would append, wherever it is told to write, with the descriptor that appends.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for line in lines:
                os.pwrite(descriptor, _TOLD, line.place)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Forget all lines."""
        os.ftruncate(self._descriptor, 0)
        self.size_bytes = 0

    def set_aside(self) -> Path:
        """Keep it where nobody looks for spools, for somebody to look at: under which name."""
        path = self.path.with_suffix(".unreadable")
        self.path.rename(path)
        return path

    def close(self, *, remove: bool) -> None:
        """Let go of it."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


def left_behind(folder: Path, own: Path) -> list[Path]:
    """Spools that may be those of the dead."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix == ENDING and path != own)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _read(raw: bytes) -> SpoolEntry | None:
    try:
        spooled = msgspec.json.decode(raw, type=SpoolEntry)
        spooled.receipt.checked()
    except (msgspec.MsgspecError, UnicodeError):
        return None
    return spooled
