"""The base class of immutable values that are created for each request."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True):
    """An immutable value. Creating one takes a tenth of the time of a frozen dataclass.

    Copy it with changes by `msgspec.structs.replace`. Annotations are not evaluated, so they may name types that are
    imported for type checkers only.
    """
