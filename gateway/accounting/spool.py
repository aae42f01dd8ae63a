"""Store receipts in files while Redis is down, so that they survive their process. All calls block: use threads.

Each process has one file and locks it while it lives. A file that can be locked belongs to a dead process. Each line is
one settlement as JSON. After a line was sent to Redis, its first byte is overwritten.
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

SUFFIX = ".jsonl"
_SENT = b"-"
_LOCK_ATTEMPTS = 10


class SpoolEntry(msgspec.Struct, frozen=True):
    """A line of a spool: a receipt, its intent, and the id of the process that admitted the request."""

    process_id: str = msgspec.field(name="owner")
    receipt: Receipt
    intent: Intent | None = None

    def to_line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"


class SpoolLine(msgspec.Struct, frozen=True):
    """A line of the file with its offset. `entry` is None where the line cannot be decoded."""

    offset: int
    size: int
    entry: SpoolEntry | None


class Spool:
    """A locked spool file. All methods raise OSError."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.size_bytes = os.fstat(descriptor).st_size

    @classmethod
    def create(cls, path: Path) -> Spool:
        """Create and lock this process's own file."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(_LOCK_ATTEMPTS):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            # Another process may have removed the file as orphaned before it was locked.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
                    os.fsync(folder)  # so that the file survives a power failure
                    os.close(folder)
                    return cls(path, descriptor)
            os.close(descriptor)
        raise OSError(f"{path} cannot be locked: another process removes it again and again")

    @classmethod
    def open_orphaned(cls, path: Path) -> Spool | None:
        """Lock the file of a dead process. Return None where its process lives or the file is gone."""
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

    def append(self, lines: Iterable[bytes], max_bytes: int) -> int:
        """Append the first lines that fit within `max_bytes`, synced to disk. Return their number."""
        fitting, size = [], self.size_bytes
        for line in lines:
            if size + len(line) > max_bytes:
                break
            fitting.append(line)
            size += len(line)
        if fitting:
            try:
                _write_all(self._descriptor, b"".join(fitting))
                _sync(self._descriptor)
            except OSError:
                # Remove a partial line, so that the next line starts at a line start.
                os.ftruncate(self._descriptor, self.size_bytes)
                raise
            self.size_bytes = size
        return len(fitting)

    def lines(self) -> Iterator[SpoolLine]:
        """Yield the lines that were not sent yet, in order. Skip an incomplete last line."""
        offset = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                if not raw.startswith(_SENT):
                    yield SpoolLine(offset, len(raw), _read(raw))
                offset += len(raw)

    def mark_sent(self, lines: Sequence[SpoolLine]) -> None:
        """Mark lines as sent, so that no other process sends them again."""
        # pwrite on a descriptor with O_APPEND appends on Linux. So this needs a second descriptor.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for line in lines:
                os.pwrite(descriptor, _SENT, line.offset)
            _sync(descriptor)
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Remove all lines."""
        os.ftruncate(self._descriptor, 0)
        self.size_bytes = 0

    def quarantine(self) -> Path:
        """Rename the file, so that no process reads it again. Return its new path."""
        path = self.path.with_suffix(".unreadable")
        self.path.rename(path)
        return path

    def close(self, *, remove: bool) -> None:
        """Close and unlock the file."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


def other_spools(folder: Path, own: Path) -> list[Path]:
    """Return the spools of other processes. Their processes may be alive or dead."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX and path != own)


def _sync(descriptor: int) -> None:
    """Write the file's data to the disk. macOS has no fdatasync, and its fsync stops at the disk's cache."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        getattr(os, "fdatasync", os.fsync)(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


def _read(raw: bytes) -> SpoolEntry | None:
    try:
        entry = msgspec.json.decode(raw, type=SpoolEntry)
        entry.receipt.checked()
    except (msgspec.MsgspecError, UnicodeError):
        return None
    return entry
