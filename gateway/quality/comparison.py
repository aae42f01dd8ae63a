"""One comparison as an entry of an outbox carries it to the usage database. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gateway.quality.tally import SCALE

OUTBOX = "(comparisons)"
"""The outbox of all tenants' comparisons has this name in place of a tenant's. Earlier versions do not read it: they
would put comparisons aside as unreadable receipts. No tenant has parentheses in its name."""

_Agreement = Annotated[int, msgspec.Meta(ge=0, le=SCALE)]


class Comparison(msgspec.Struct, frozen=True):
    """The agreement of a guided answer, and of the student's alone, with the teacher's. It holds no texts.

    Attributes:
        id: the request's id: an answer is compared once.
        created: when the request came, in Unix seconds.
        compare: the kind of comparison (policy/schema.py).
        length: the bucket of the guidance (`length_of`).
        guided, student: agreement in units of 1/SCALE.
    """

    id: str
    created: int
    tenant: str
    compare: str
    length: str
    route: str
    guided: _Agreement
    student: _Agreement

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Comparison:
        """Raises msgspec.MsgspecError where `raw` is not a comparison."""
        return msgspec.json.decode(raw, type=cls)
