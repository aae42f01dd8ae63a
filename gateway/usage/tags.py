"""Sums of receipts by the callers' tags. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.usage.usage import usd_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.protocol.body import Json

TAG = "tag"
GROUPS = ("tenant", "key", "route", "mode", TAG)
"""Dimensions by which sums by tag can be grouped."""
SUMS = ("requests", "errors", "input_tokens", "output_tokens", "cost_pico", "baseline_pico", "savings_pico")
"""The sums, by their columns in the database."""


class TagSum(NamedTuple):
    """The sums of the receipts with a tag. A receipt with several tags is in the sums of each."""

    names: tuple[str, ...]  # values of the dimensions
    sums: tuple[int, ...]  # in the order of `SUMS`

    def as_json(self, by: Sequence[str]) -> Json:
        """Return the sums by name, after the dimensions `by`. Money is text in USD."""
        figures: Json = dict(zip(by, self.names, strict=True))
        for name, value in zip(SUMS, self.sums, strict=True):
            kind, _, unit = name.rpartition("_")
            figures |= {f"{kind}_usd": usd_text(value)} if unit == "pico" else {name: value}
        return figures
