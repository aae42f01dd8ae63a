"""A comparison, as an outbox entry for the usage database."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gateway.quality.tally import SCALE

OUTBOX = "(comparisons)"
"""The name, in place of a tenant, of the outbox for all tenants' comparisons. Earlier versions do not read it: they
would reject comparisons as unreadable receipts. No tenant's name contains parentheses."""

_Agreement = Annotated[int, msgspec.Meta(ge=0, le=SCALE)]


class Comparison(msgspec.Struct, frozen=True):
    """The agreement of the guided answer and of the student's answer with the teacher's. It contains no texts.

    Attributes:
        id: the request's id. Each answer is compared once.
        created: the arrival of the request in Unix seconds.
        compare: the kind of comparison (policy/schema.py).
        length: the bucket of the guidance's length (`length_of`).
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
        """Decode a comparison. Raises msgspec.MsgspecError where `raw` is not a comparison."""
        return msgspec.json.decode(raw, type=cls)
