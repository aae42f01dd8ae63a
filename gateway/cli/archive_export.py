"""What `gkt-gateway archive export` writes: receipts as CSV or as JSON lines, in a stream."""

from __future__ import annotations

import csv
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.archive.tables import RECEIPTS
from gateway.errors import StartupError
from gateway.ledger.receipt import Receipt
from gateway.ledger.savings import class_of, savings_of
from gateway.rollups.rollup import usd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

_INTERNAL = {"entry_ms", "entry_seq", "instead", "instead_ms", "instead_seq", "receipt"}
_COLUMNS = tuple(column.name for column in RECEIPTS.columns if column.name not in _INTERNAL)
_ADDED = ("savings_error_usd", "savings_class")
"""Columns behind those of the table, which has no place for them."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal; call what it gives with how many are done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


async def export(
    rows: AsyncIterator[Sequence[Any]], form: str, output: Path | None, on_progress: Callable[[int], None]
) -> int:
    """Write all rows: how many. Raises StartupError where they cannot be written."""
    count = 0
    try:
        with _opened(output) as file:
            write = _csv(file) if form == "csv" else _jsonl(file)
            async for some in rows:
                write(some)
                count += len(some)
                on_progress(count)
            file.flush()
    except BrokenPipeError:
        raise StartupError("Nobody reads what is exported any more.") from None
    except OSError as error:
        if output is None or error.filename is None:
            raise
        raise StartupError(f"{output} cannot be written: {error.strerror}.") from None
    return count


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[str]]:
    if output is None:
        yield sys.stdout
    else:
        with output.open("w", encoding="utf-8", newline="") as file:
            yield file


def _jsonl(file: IO[str]) -> Callable[[Sequence[Any]], None]:
    """Receipts as GET /v1/receipts/{id} shows them, with what they cost."""

    def write(rows: Sequence[Any]) -> None:
        for row in rows:
            receipt = Receipt.from_json(row.receipt.encode())
            file.write(msgspec.json.encode(receipt.as_dict()).decode() + "\n")

    return write


def _csv(file: IO[str]) -> Callable[[Sequence[Any]], None]:
    """Return a writer of the table's columns, then `_ADDED`, with money in USD and times as ISO 8601.

    The savings come from the receipt itself: rows of earlier versions hold the difference that was not yet classified.
    """
    lines = csv.writer(file)
    lines.writerow([*(name.replace("_pico", "_usd") for name in _COLUMNS), *_ADDED])

    def write(rows: Sequence[Any]) -> None:
        for row in rows:
            receipt = Receipt.from_json(row.receipt.encode())
            saved = savings_of(receipt)
            cells = {name: _cell(name, getattr(row, name)) for name in _COLUMNS}
            cells["savings_pico"] = f"{saved.usd:f}"
            lines.writerow([*cells.values(), f"{saved.error_usd:f}", class_of(receipt)])

    return write


def _cell(name: str, value: Any) -> Any:
    if name.endswith("_pico"):
        return f"{usd(value):f}"
    if name == "created":
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, bool):
        return "true" if value else "false"
    # A spreadsheet would run it.
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
