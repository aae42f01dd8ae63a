"""The format of a backup file: a header line, compressed records, and a checksum.

- `{"gkt_backup": 3, "gateway": "0.1.0", ...}\\n`
- gzip of all records; each is its length (4 bytes, big-endian) and the record as MessagePack
- SHA-256 of all bytes before it (32 bytes)
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.backup.records import BackupCounts, EndRecord, Record, count
from gateway.errors import StartupError
from gateway.redis.keys import KEYRING, LEDGER, TENANT
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FORMAT = 3
"""Version of the format. A file of another version is refused."""
LAYOUTS = {"keyring": KEYRING, "tenant": TENANT, "ledger": LEDGER}
"""Versions of the layouts in Redis."""

_SUM_BYTES = hashlib.sha256().digest_size
_MAX_HEADER_BYTES = 65_536
_MAX_RECORD_BYTES = 256 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


class BackupHeader(msgspec.Struct, frozen=True):
    """The first line."""

    gkt_backup: int
    gateway: str  # version of the gateway that created the backup
    made: int  # time of the backup, in Unix seconds by Redis' clock
    layouts: dict[str, int]
    receipts: bool = msgspec.field(name="archive")  # whether it contains the usage database


class VerifiedBackup(NamedTuple):
    """A complete backup: its header, its contents, and its number of records."""

    header: BackupHeader
    counts: BackupCounts
    records: int


class _ChecksumFile:
    """A writable file with a checksum of the written bytes. Raises StartupError with the final path."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path
        self.sum = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sum.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            raise StartupError(f"{self._path} cannot be written: {error.strerror}.") from None

    def flush(self) -> None:
        """Do nothing. GzipFile requires this method."""


class BackupWriter:
    """Write records, and count their contents in `counts`. Raises StartupError if writing fails."""

    def __init__(self, packed: gzip.GzipFile, *, receipts: bool) -> None:
        self._packed = packed
        self.counts = BackupCounts(receipts=0 if receipts else None)

    def put(self, record: Record) -> None:
        raw = _ENCODER.encode(record)
        self._packed.write(len(raw).to_bytes(4, "big") + raw)
        count(self.counts, record)


@contextmanager
def writing(path: Path, made: int, *, receipts: bool, overwrite: bool) -> Iterator[BackupWriter]:
    """Write a new backup that only its owner can read (0600). It appears at `path` only when complete and on disk.
    Raises StartupError if the file exists or cannot be written."""
    _check_free(path, overwrite=overwrite)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise StartupError(f"{path} cannot be written: {error.strerror}.") from None
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            summed = _ChecksumFile(file, path)
            summed.write(msgspec.json.encode(BackupHeader(FORMAT, __version__, made, LAYOUTS, receipts)) + b"\n")
            with gzip.GzipFile(filename="", mode="wb", fileobj=summed, mtime=0, compresslevel=6) as packed:
                writer = BackupWriter(packed, receipts=receipts)
                yield writer
                writer.put(EndRecord(writer.counts))
            summed.write(summed.sum.digest())
            file.flush()
            os.fsync(file.fileno())
        _check_free(path, overwrite=overwrite)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check_free(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise StartupError(f"{path} already exists. Use another path, or replace the file with --overwrite.")


def read_header(path: Path) -> BackupHeader:
    """Return the header of a backup. Raises StartupError if this version cannot read the backup."""
    try:
        with path.open("rb") as file:
            line = file.readline(_MAX_HEADER_BYTES)
    except OSError as error:
        raise StartupError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
        file_format, made_by = int(fields["gkt_backup"]), str(fields["gateway"])
    except (msgspec.MsgspecError, KeyError, ValueError, TypeError):
        raise StartupError(f"{path} is not a backup. `gkt-gateway backup` creates backups.") from None
    if file_format > FORMAT:
        raise _newer(path, made_by, f"its format is {file_format}, and this gateway reads {FORMAT}")
    if file_format < FORMAT:
        raise StartupError(
            f"{path} was created by gateway {made_by} in format {file_format}; this one reads {FORMAT}. "
            "Restore it with that version."
        )
    try:
        header = msgspec.json.decode(line, type=BackupHeader)
    except msgspec.MsgspecError:
        raise _damaged(path, "its first line is incomplete") from None
    for name, layout in header.layouts.items():
        known = LAYOUTS.get(name, 0)
        if layout > known:
            raise _newer(path, made_by, f"its layout of the {name} is {layout}, and this gateway supports {known}")
        if layout < known:
            raise StartupError(
                f"{path} was created by gateway {made_by} with layout {layout} of the {name}; this one needs {known}. "
                "Restore it with that version."
            )
    return header


def verify(path: Path, on_progress: Callable[[int], None]) -> VerifiedBackup:
    """Read a whole backup and check it. Call this before using its records. `on_progress` receives the number of bytes
    read. Raises the StartupErrors of `read_header`, and StartupError if the file is damaged."""
    header = read_header(path)
    summed, size = hashlib.sha256(), path.stat().st_size - _SUM_BYTES
    with path.open("rb") as file:
        done = 0
        while done < size and (data := file.read(min(_CHUNK_BYTES, size - done))):
            summed.update(data)
            done += len(data)
            on_progress(done)
        if size <= 0 or file.read() != summed.digest():
            raise _damaged(path, "its checksum is wrong")
    counts, number = BackupCounts(receipts=0 if header.receipts else None), 0
    for record in records(path):
        count(counts, record)
        number += 1
    return VerifiedBackup(header, counts, number)


def records(path: Path) -> Iterator[Record]:
    """Yield all records before the EndRecord. Raises StartupError if the file ends without one."""
    with path.open("rb") as file:
        file.readline(_MAX_HEADER_BYTES)
        try:
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                while not isinstance(record := _next(unpacked), EndRecord):
                    yield record
        except (EOFError, OSError, ValueError, msgspec.MsgspecError) as error:
            raise _damaged(path, f"a record cannot be read ({type(error).__name__})") from None


def _next(unpacked: gzip.GzipFile) -> Record:
    size = int.from_bytes(_read_exactly(unpacked, 4), "big")
    if size > _MAX_RECORD_BYTES:
        raise ValueError("a record is too long")
    return _DECODER.decode(_read_exactly(unpacked, size))


def _read_exactly(unpacked: gzip.GzipFile, size: int) -> bytes:
    data = unpacked.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _newer(path: Path, made_by: str, reason: str) -> StartupError:
    advice = "Restore it with that version or a later one."
    return StartupError(f"{path} was created by a newer gateway, {made_by}: {reason}. {advice}")


def _damaged(path: Path, reason: str) -> StartupError:
    advice = "Nothing was restored. Use another copy of the file, or another backup."
    return StartupError(f"{path} is damaged: {reason}. {advice}")
