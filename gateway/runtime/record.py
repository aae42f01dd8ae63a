"""The base class of immutable values that each request makes."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True):
    """An immutable value. To make one costs a tenth of what a frozen dataclass costs.

    Copy one with changes by `msgspec.structs.replace`. Annotations are not evaluated, so they may name types that are
    imported for type checkers alone.
    """
