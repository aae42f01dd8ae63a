"""The fields `prompt` and `input`: one text or several, each as a string or as token ids.

Long lists of token ids are decoded piece by piece. One C call for all of a list, a copy of the body included, would
hold the interpreter lock for up to 50 ms.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct

from gateway.errors import InvalidRequest
from gateway.protocol.structure import MAX_VALUES, check_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.protocol.body import Json

MAX_ID = 2**31 - 1
TokenId = Annotated[int, Meta(ge=0, le=MAX_ID)]
Text = str | list[int]

_ID: Json = {"type": "integer", "minimum": 0, "maximum": MAX_ID}


def _of_one_kind(text: Json) -> Json:
    """Return the JSON schema of what `each_text` requires of a list beyond its types."""
    return {"anyOf": [{"items": text}, {"items": _ID}, {"items": {"type": "array", "items": _ID, "minItems": 1}}]}


_NOT_EMPTY: Json = {"type": "string", "minLength": 1}
_List = list[str | TokenId | list[TokenId]]
Texts = str | Annotated[_List, Meta(min_length=1, extra_json_schema=_of_one_kind({"type": "string"}))]
"""Texts that may be empty."""
FilledTexts = (
    Annotated[str, Meta(extra_json_schema={"minLength": 1})]
    | Annotated[_List, Meta(min_length=1, extra_json_schema=_of_one_kind(_NOT_EMPTY))]
)


def each_text(texts: str | Sequence[str | int | list[int]], field: str, *, may_be_empty: bool = False) -> list[Text]:
    """Return the texts as a list. Raises InvalidRequest if a text is of another kind than the first, or empty."""
    if isinstance(texts, str):
        return [texts if may_be_empty else _filled(texts, field)]
    kind = type(texts[0])
    for index, text in enumerate(texts):
        if type(text) is not kind:
            at = f"{field}[{index}]"
            raise InvalidRequest(f"'{at}': send strings, token ids or lists of token ids, and one kind only.", param=at)
    if kind is int:
        return [_filled(texts, field)]  # type: ignore[arg-type]
    if kind is str and may_be_empty:
        return list(texts)  # type: ignore[arg-type]
    return [_filled(text, f"{field}[{index}]") for index, text in enumerate(texts)]  # type: ignore[arg-type]


def _filled(text: Text, at: str) -> Text:
    if not text:
        part = "character" if isinstance(text, str) else "token id"
        raise InvalidRequest(f"'{at}' is empty. Send at least one {part}.", param=at)
    return text


MAX_IDS = 1_000_000
"""Largest number of token ids in one body. orjson encodes this number in 6 ms, and Python frees them in 15 ms."""
_MAX_LISTS = 4096
_PIECE_BYTES = 1 << 17
_SHORT_BYTES = 1 << 14  # shorter lists are decoded with the body
_IDS_DECODER = msgspec.json.Decoder(list[TokenId])
_OPENING = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*\[")


class _Fields(Struct, frozen=True):
    prompt: Raw = Raw()
    input: Raw = Raw()


_FIELDS = msgspec.json.Decoder(_Fields)
FIELDS = frozenset(_Fields.__struct_fields__)
"""Names of the fields that may hold token ids."""


class TokenIds(NamedTuple):
    """Token ids that were removed from a body."""

    rest: bytes  # the body with a short list in their place
    brackets: int  # an upper bound of the opening brackets in `rest`
    name: str  # the name of their field
    ids: list[int] | list[list[int]]


def take_token_ids(raw: bytes) -> TokenIds | None:
    """Remove the token ids from a body; None if it has no long list of them.

    Raises InvalidRequest if the list contains other values or too many, or the rest has too many values.
    """
    if (found := _find_list(raw)) is None:
        return None
    name, start, end = found
    nested = raw.find(b"[", start + 1, end) >= 0
    marks = (b"[[0]]", b"[[1]]") if nested else (b"[0]", b"[1]")
    rest, other = (raw[:start] + mark + raw[end:] for mark in marks)
    brackets = check_values(rest)
    if (_read(rest, name), _read(other, name)) != marks:  # the list is in another object, or a later field overrides it
        return None
    try:
        ids = _lists(raw, start + 1, end - 1) if nested else _flat(raw, start + 1, end - 1, MAX_IDS)
    except msgspec.DecodeError:
        raise InvalidRequest(
            f"'{name}': a list of more than {MAX_VALUES} entries can only hold token ids from 0 to {MAX_ID}.",
            param=name,
        ) from None
    except OverflowError:
        raise InvalidRequest(
            f"'{name}' holds more than {MAX_IDS} token ids or {_MAX_LISTS} lists of them, the limits.", param=name
        ) from None
    return TokenIds(rest, brackets, name, ids)


def _find_list(raw: bytes) -> tuple[str, int, int] | None:
    """Return the field, start and end of the first long list that holds no text and no object."""
    for name in _Fields.__struct_fields__:
        key = b'"%b"' % name.encode()
        at = raw.find(key)
        while at >= 0:
            at += len(key)
            if bracket := _OPENING.match(raw, at):
                start = bracket.end() - 1
                stop = raw.find(b'"', start)
                stop = len(raw) if stop < 0 else stop
                brace = raw.find(b"}", start, stop)
                end = raw.rfind(b"]", start, stop if brace < 0 else brace) + 1
                if end - start > _SHORT_BYTES:
                    return name, start, end
            at = raw.find(key, at)
    return None


def _read(raw: bytes, name: str) -> bytes | None:
    try:
        return bytes(getattr(_FIELDS.decode(raw), name))
    except (msgspec.DecodeError, RecursionError):
        return None


def _lists(raw: bytes, start: int, end: int) -> list[list[int]]:
    lists: list[list[int]] = []
    room = MAX_IDS
    while (bracket := raw.find(b"[", start, end)) >= 0:
        closing = raw.find(b"]", bracket, end)
        if closing < 0 or raw[start:bracket].strip() != (b"," if lists else b""):
            raise msgspec.DecodeError
        if len(lists) == _MAX_LISTS:
            raise OverflowError
        lists.append(_flat(raw, bracket + 1, closing, room))
        room -= len(lists[-1])
        start = closing + 1
    if raw[start:end].strip():
        raise msgspec.DecodeError
    return lists


def _flat(raw: bytes, start: int, end: int, limit: int) -> list[int]:
    """Decode the entries of a list. Raises OverflowError for more than `limit`."""
    ids: list[int] = []
    while True:
        comma = raw.find(b",", start + _PIECE_BYTES, end)
        ids += _IDS_DECODER.decode(b"[%b]" % raw[start : end if comma < 0 else comma])
        if len(ids) > limit:
            raise OverflowError
        if comma < 0:
            return ids
        start = comma + 1
        if not raw[start : min(end, start + _PIECE_BYTES)].strip():
            raise msgspec.DecodeError
