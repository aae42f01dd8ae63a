"""Write receipts as CSV or as JSON lines, as a stream."""

from __future__ import annotations

import csv
import json
import sys
from contextlib import contextmanager, nullcontext
from decimal import Decimal
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.accounting.receipt import Receipt, class_of, savings_of
from gateway.errors import StartupError
from gateway.usage.counters import FIXED_STAGES
from gateway.usage.span import rfc3339
from gateway.usage.usage import escape_formula

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from gateway.accounting.receipt import EngineShare

_Column: TypeAlias = "Callable[[Receipt], Any]"


def _shares(receipt: Receipt, role: str) -> list[EngineShare]:
    found = (receipt.teacher,) if role == "teacher" else (receipt.student, receipt.warmup)
    return [share for share in found if share is not None]


def _tokens(role: str, name: str) -> _Column:
    """Return a column of tokens. Those that another request paid for are not counted."""
    of = attrgetter(name)
    return lambda receipt: sum(of(share) for share in _shares(receipt, role) if not share.shared)


def _of_engine(role: str) -> dict[str, _Column]:
    return {
        role: lambda receipt: share.model if (share := getattr(receipt, role)) is not None else None,
        f"{role}_input_tokens": _tokens(role, "fresh_input_tokens"),
        f"{role}_cached_tokens": _tokens(role, "cached_input_tokens"),
        f"{role}_output_tokens": _tokens(role, "output_tokens"),
        f"{role}_cost_usd": lambda receipt: sum((share.cost_usd for share in _shares(receipt, role)), Decimal(0)),
    }


def _replaced_usd(receipt: Receipt) -> Decimal:
    shares = (attempt.share for attempt in receipt.attempts)
    return sum((share.cost_usd for share in shares if share is not None), Decimal(0))


_COLUMNS: dict[str, _Column] = {
    "id": attrgetter("id"),
    "created": lambda one: rfc3339(one.created),
    **{name: attrgetter(name) for name in ("tenant", "key", "route", "mode", "status", "stream", "finish_reason")},
    **{name: attrgetter(name) for name in ("unguided", "shadow_of", "budget")},
    **_of_engine("teacher"),
    **_of_engine("student"),
    "replaced_cost_usd": _replaced_usd,
    "kept_tokens": lambda one: one.guidance.kept_tokens if one.guidance is not None else 0,
    "batch_size": lambda one: one.batch.size if one.batch is not None else None,
    **{name: attrgetter(name) for name in ("cost_usd", "baseline_model")},
    # A shadow spares nothing: its request was answered and paid for as well.
    "baseline_usd": lambda one: one.baseline_usd if one.shadow_of is None else Decimal(0),
    "baseline_estimated": attrgetter("baseline_estimated"),
    "savings_usd": lambda one: savings_of(one).usd,
    **{f"{stage}_ms": attrgetter(f"timings.{stage}_ms") for stage in FIXED_STAGES},
    "savings_error_usd": lambda one: savings_of(one).error_usd,
    "savings_class": class_of,
    **{f"{role}_cache_write_tokens": _tokens(role, "cache_write_input_tokens") for role in ("teacher", "student")},
    "handover_ms": attrgetter("timings.handover_ms"),
    "tags": lambda one: ",".join(one.tags),
    "labels": lambda one: json.dumps(dict(one.labels), ensure_ascii=False) if one.labels else "",
}


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error, where that is a terminal. Call the function that it yields with the number done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


async def write_receipts(
    receipts: AsyncIterator[Sequence[bytes]], form: str, output: Path | None, on_progress: Callable[[int], None]
) -> int:
    """Write all receipts, given as JSON, and return their number. Raises StartupError where they cannot be written.

    A line of `csv` is a receipt with money in USD and times as ISO 8601. A line of any other `form` is the JSON of
    GET /v1/receipts/{id}, with prices.
    """
    count = 0
    try:
        with nullcontext(sys.stdout) if output is None else output.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            if form == "csv":
                lines.writerow(_COLUMNS)
            async for some in receipts:
                for raw in some:
                    receipt = Receipt.from_json(raw)
                    if form == "csv":
                        lines.writerow(map(_cell, columns_of(receipt).values()))
                    else:
                        file.write(msgspec.json.encode(receipt.as_dict()).decode() + "\n")
                count += len(some)
                on_progress(count)
            file.flush()
    except BrokenPipeError:
        raise StartupError("The output pipe was closed.") from None
    except OSError as error:
        if output is None or error.filename is None:
            raise
        raise StartupError(f"{output} cannot be written: {error.strerror}.") from None
    return count


def columns_of(receipt: Receipt) -> dict[str, Any]:
    """Return the columns of a receipt by name, with money in USD."""
    return {name: value_of(receipt) for name, value_of in _COLUMNS.items()}


def _cell(value: Any) -> Any:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return escape_formula(value) if isinstance(value, str) else value
