"""Long lists of token ids in a body, decoded piece by piece: orjson would hold the interpreter lock for too long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct

from gateway.errors import InvalidRequest
from gateway.protocol.structure import MAX_VALUES

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ID = 2**31 - 1
_MAX_LISTS = 4096
_PIECE_BYTES = 1 << 17
_IDS = msgspec.json.Decoder(list[Annotated[int, Meta(ge=0, le=MAX_ID)]])


class _Fields(Struct, frozen=True):
    """The fields that may hold token ids."""

    prompt: Raw = Raw()
    input: Raw = Raw()


_FIELDS = msgspec.json.Decoder(_Fields)
FIELDS = frozenset(_Fields.__struct_fields__)
"""Names of these fields."""


class TokenIds(NamedTuple):
    """Token ids that were taken out of a body.

    Attributes:
        rest: the body with a short list in their place.
        name: their field.
        ids: one list of them, or several.
    """

    rest: bytes
    name: str
    ids: list[int] | list[list[int]]


def take_token_ids(raw: bytes) -> TokenIds | None:
    """Take the token ids out of a body; None where it has no list of them.

    Raises:
        InvalidRequest: the list holds something else; `param` names the field.
    """
    if b'"prompt"' not in raw and b'"input"' not in raw:
        return None
    try:
        fields = _FIELDS.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    name, text = max(
        (("prompt", bytes(fields.prompt)), ("input", bytes(fields.input))), key=lambda field: len(field[1])
    )
    if not text.startswith(b"[") or b'"' in text or b"{" in text or raw.count(text) != 1:
        return None
    lists = text.count(b"[") - 1
    if lists > _MAX_LISTS:
        return None
    try:
        ids = list(_lists(text[1:-1])) if lists else _flat(text[1:-1])
    except msgspec.DecodeError:
        raise InvalidRequest(
            f"'{name}': a list of more than {MAX_VALUES} entries can only hold token ids from 0 to {MAX_ID}.",
            param=name,
        ) from None
    return TokenIds(raw.replace(text, b"[[0]]" if lists else b"[0]"), name, ids)


def _lists(text: bytes) -> Iterator[list[int]]:
    *bodies, end = text.split(b"]")
    for index, body in enumerate(bodies):
        before, opening, within = body.partition(b"[")
        if before.strip() != (b"," if index else b"") or not opening:
            raise msgspec.DecodeError
        yield _flat(within)
    if end.strip():
        raise msgspec.DecodeError


def _flat(text: bytes) -> list[int]:
    ids: list[int] = []
    start = 0
    while True:
        end = text.find(b",", start + _PIECE_BYTES)
        piece = text[start:] if end < 0 else text[start:end]
        ids += _IDS.decode(b"[%b]" % piece)
        if end < 0:
            return ids
        start = end + 1
        if not text[start : start + _PIECE_BYTES].strip():
            raise msgspec.DecodeError
