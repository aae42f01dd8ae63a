"""Sums of receipts by the callers' tags, and by the labels of the tenants' policies. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.scalars import InvalidValue, label_name
from gateway.usage.span import rfc3339
from gateway.usage.usage import usd_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.protocol.body import Json
    from gateway.usage.usage import UsageQuery

TAG = "tag"
LABEL = "label:"
"""Prefix of the dimension of a label, such as label:team."""
COLUMNS = ("tenant", "key", "route", "mode")
"""Dimensions that have a column of their own in the tables of tags and labels."""
SUMS = ("requests", "errors", "input_tokens", "output_tokens", "cost_pico", "baseline_pico", "savings_pico")
"""The sums, by their columns in the database."""


def label_in(dimension: str) -> str | None:
    """Return the label of a dimension such as label:team; None for other dimensions, and for an invalid name."""
    if not dimension.startswith(LABEL):
        return None
    try:
        return label_name(dimension.removeprefix(LABEL))
    except InvalidValue:
        return None


def needs_receipt_sums(query: UsageQuery) -> bool:
    """Return whether a query names a tag or a label, so that the sums by key, route and engine cannot answer it."""
    return TAG in query.by or any(name.startswith(LABEL) for name in (*query.by, *query.only))


class ReceiptSum(NamedTuple):
    """The sums of the receipts with these values. A receipt with several tags is in the sums of each."""

    names: tuple[str, ...]  # values of the dimensions
    sums: tuple[int, ...]  # in the order of `SUMS`
    start: int | None = None  # of the period, in Unix seconds; None: the whole range

    def as_json(self, by: Sequence[str], *, money: bool = True) -> Json:
        """Return the sums by name, after the start of the period and the dimensions `by`. Money is text in USD."""
        figures: Json = {} if self.start is None else {"start": rfc3339(self.start)}
        figures |= zip(by, self.names, strict=True)
        for name, value in zip(SUMS, self.sums, strict=True):
            kind, _, unit = name.rpartition("_")
            if unit != "pico":
                figures[name] = value
            elif money:
                figures[f"{kind}_usd"] = usd_text(value)
        return figures


def total_of(rows: Iterable[ReceiptSum]) -> ReceiptSum:
    """Return the sum of rows. Do not add rows by tag: a receipt with several tags is in several rows."""
    sums: list[Any] = [0] * len(SUMS)
    for row in rows:
        sums = [one + other for one, other in zip(sums, row.sums, strict=True)]
    return ReceiptSum((), tuple(sums))
