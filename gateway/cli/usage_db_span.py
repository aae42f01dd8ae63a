"""The options --since, --until and --tenant of commands that read receipts."""

from __future__ import annotations

import re
import time
from typing import Annotated, TypeAlias

import typer
from pydantic import TypeAdapter, ValidationError

from gateway.config.scalars import InvalidValue, duration_s
from gateway.policy.schema import Moment
from gateway.usage.receipts_reader import ReceiptFilter

_MOMENT: TypeAdapter[float] = TypeAdapter(Moment)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_DAY_S = 86_400

SinceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Start: a duration before now, a day in UTC, or a time. Default: the first receipt.",
                 metavar="7d|2026-11-01"),
]  # fmt: skip
UntilOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help="End: a duration before now, a day in UTC (inclusive), or a time. Default: now.",
                 metavar="1d|2026-11-30"),
]  # fmt: skip
TenantOption: TypeAlias = Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant.")]


def where_of(since: str | None, until: str | None, tenant: str | None) -> ReceiptFilter:
    """Return a filter of receipts. A day in `until` is inclusive. Raises BadParameter."""
    begin = None if since is None else _moment(since, "--since", whole_day=False)
    end = None if until is None else _moment(until, "--until", whole_day=True)
    if begin is not None and end is not None and begin >= end:
        raise typer.BadParameter("must be before --until", param_hint="--since")
    return ReceiptFilter(begin, end, tenant)


def _moment(text: str, option: str, *, whole_day: bool) -> float:
    try:
        if re.match(r"\d{4}-", text):
            at = _MOMENT.validate_python(f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text)
            return at + _DAY_S if whole_day and _DAY.fullmatch(text) else at
        return time.time() - duration_s(text)
    except (ValidationError, InvalidValue):
        raise typer.BadParameter(
            "must be a duration like 24h or 7d, a day like 2026-11-01, or a time like 2026-11-01T12:00:00Z",
            param_hint=option,
        ) from None
