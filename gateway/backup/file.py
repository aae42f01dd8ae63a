"""The file: one line that says what it is, the records, packed, and a checksum over all of it.

{"gkt_backup": 2, "gateway": "0.1.0", ...}\\n
gzip of, per record: its length in 4 bytes, big-endian, and itself as MessagePack
SHA-256 of all before, 32 bytes
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

FORMAT = 2
"""The version of the file. All earlier ones can be read."""
LAYOUTS = {"keyring": KEYRING, "tenant": TENANT, "ledger": LEDGER}
"""Those of what it holds, as this version has them in Redis."""

_SUM_BYTES = hashlib.sha256().digest_size
_MOST_HEADER_BYTES = 65_536
_MOST_RECORD_BYTES = 256 * 1024 * 1024
_AT_ONCE = 1024 * 1024
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


class BackupHeader(msgspec.Struct, frozen=True):
    """The first line.

    Attributes:
        gateway: the version that made it.
        made: when, in Unix seconds by Redis' clock.
        layouts: of what it holds.
        receipts: whether it holds receipts of the usage database.
    """

    gkt_backup: int
    gateway: str
    made: int
    layouts: dict[str, int]
    receipts: bool = msgspec.field(name="archive")  # the name in format 1


class VerifiedBackup(NamedTuple):
    """A backup that is whole: what it is, how much it holds, and how many records it has."""

    header: BackupHeader
    counts: BackupCounts
    records: int


class _Summed:
    """A file to write to that adds up what is written. Raises StartupError, with the name that it will have."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path
        self.sum = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sum.update(data)
        return self.plain(data)

    def plain(self, data: Any) -> int:
        """Write what is not to be added up."""
        try:
            return self._file.write(data)
        except OSError as error:
            raise StartupError(f"{self._path} cannot be written: {error.strerror}.") from None

    def flush(self) -> None:
        """Nothing: GzipFile asks for it."""


class BackupWriter:
    """Takes records, and raises StartupError where they cannot be written. `counts` is what they came to."""

    def __init__(self, packed: gzip.GzipFile, *, receipts: bool) -> None:
        self._packed = packed
        self.counts = BackupCounts(receipts=0 if receipts else None)

    def put(self, record: Record) -> None:
        """One more record."""
        raw = _ENCODER.encode(record)
        self._packed.write(len(raw).to_bytes(4, "big") + raw)
        count(self.counts, record)


@contextmanager
def writing(path: Path, made: int, *, receipts: bool, overwrite: bool) -> Iterator[BackupWriter]:
    """A new backup, for its owner alone (0600). It stands at `path` once it is whole and on disk, or not at all.

    Raises StartupError where there is a file already or none can be written.
    """
    _check_free(path, overwrite=overwrite)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise StartupError(f"{path} cannot be written: {error.strerror}.") from None
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield from _written(_Summed(file, path), made, receipts=receipts)
            file.flush()
            os.fsync(file.fileno())
        _check_free(path, overwrite=overwrite)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check_free(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise StartupError(f"{path} is there already. Name another file, or write over it with --overwrite.")


def _written(summed: _Summed, made: int, *, receipts: bool) -> Iterator[BackupWriter]:
    summed.write(msgspec.json.encode(BackupHeader(FORMAT, __version__, made, LAYOUTS, receipts)) + b"\n")
    with gzip.GzipFile(filename="", mode="wb", fileobj=summed, mtime=0, compresslevel=6) as packed:
        writer = BackupWriter(packed, receipts=receipts)
        yield writer
        writer.put(EndRecord(writer.counts))
    summed.plain(summed.sum.digest())


def read_header(path: Path) -> BackupHeader:
    """What a file says that it is. Raises StartupError where this version cannot read it, and says why."""
    try:
        with path.open("rb") as file:
            line = file.readline(_MOST_HEADER_BYTES)
    except OSError as error:
        raise StartupError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        said = msgspec.json.decode(line, type=dict[str, Any])
        form, made_by = int(said["gkt_backup"]), str(said["gateway"])
    except (msgspec.MsgspecError, KeyError, ValueError, TypeError):
        raise StartupError(f"{path} is no backup: `gkt-gateway backup` makes them.") from None
    if form > FORMAT:
        raise StartupError(_newer(path, made_by, f"its format is {form}, and this one reads {FORMAT}"))
    try:
        header = msgspec.json.decode(line, type=BackupHeader)
    except msgspec.MsgspecError:
        raise StartupError(_damaged(path, "its first line does not say what it holds")) from None
    for name, layout in header.layouts.items():
        known = LAYOUTS.get(name, 0)
        if layout > known:
            raise StartupError(_newer(path, made_by, f"its layout of the {name} is {layout}, and this one has {known}"))
        if layout < known:
            raise StartupError(
                f"{path} was made by gateway {made_by}, whose layout of the {name} is {layout}; this one has {known}. "
                "Restore it with that version, then upgrade: docs/upgrading.md."
            )
    return header


def verify(path: Path, on_progress: Callable[[int], None]) -> VerifiedBackup:
    """Read a whole file. Nothing of it may be used before.

    Args:
        on_progress: told how many bytes were looked at.

    Raises StartupError as `read_header` does, and where the file is damaged.
    """
    header = read_header(path)
    summed, size = hashlib.sha256(), path.stat().st_size - _SUM_BYTES
    with path.open("rb") as file:
        done = 0
        while done < size and (data := file.read(min(_AT_ONCE, size - done))):
            summed.update(data)
            done += len(data)
            on_progress(done)
        if size <= 0 or file.read() != summed.digest():
            raise StartupError(_damaged(path, "its checksum is another one"))
    counts, many = BackupCounts(receipts=0 if header.receipts else None), 0
    for record in records(path):
        count(counts, record)
        many += 1
    return VerifiedBackup(header, counts, many)


def records(path: Path) -> Iterator[Record]:
    """All records but the last, which says that they are all. Raises StartupError where they are not."""
    with path.open("rb") as file:
        file.readline(_MOST_HEADER_BYTES)
        packed = _Without(file, path.stat().st_size - _SUM_BYTES)
        try:
            with gzip.GzipFile(fileobj=packed, mode="rb") as unpacked:  # type: ignore[call-overload]
                while not isinstance(record := _next(unpacked), EndRecord):
                    yield record
        except (EOFError, OSError, ValueError, msgspec.MsgspecError) as error:
            raise StartupError(_damaged(path, f"a record cannot be read ({type(error).__name__})")) from None


def _next(unpacked: gzip.GzipFile) -> Record:
    size = int.from_bytes(_exactly(unpacked, 4), "big")
    if size > _MOST_RECORD_BYTES:
        raise ValueError("a record is too long")
    return _DECODER.decode(_exactly(unpacked, size))


def _exactly(unpacked: gzip.GzipFile, size: int) -> bytes:
    data = unpacked.read(size)
    if len(data) != size:
        raise EOFError
    return data


class _Without:
    """A file up to a place, so that what is behind it is not taken for more of the same."""

    def __init__(self, file: IO[bytes], end: int) -> None:
        self._file = file
        self._end = end

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._end - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))


def _newer(path: Path, made_by: str, why: str) -> str:
    return f"{path} was made by a newer gateway, {made_by}: {why}. Restore it with that version or a later one."


def _damaged(path: Path, why: str) -> str:
    return f"{path} is damaged: {why}. Nothing was restored from it. Use another copy of the file, or another backup."
