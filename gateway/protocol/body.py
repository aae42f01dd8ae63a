"""Decode a body to a JSON object whose known fields are valid, or raise an InvalidRequest that names the field."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
import msgspec.inspect
import orjson
from msgspec import Meta, Struct

from gateway.errors import InvalidRequest
from gateway.protocol.field_names import check_names, forbidden_field
from gateway.protocol.other_endpoint import missing_content
from gateway.protocol.structure import MAX_DEPTH, check_values, escape_safe_chunks
from gateway.protocol.texts import FIELDS, take_token_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

Json = dict[str, Any]
_KnownFields = TypeVar("_KnownFields", bound=Struct)

_MAX_STOPS = 4
MAX_STOP_CHARS = 1000
"""Longest stop text. For some engines the gateway searches the generated text for it."""
_MAX_EXACT_FLOAT = 2.0**53  # larger floats represent several integers
_SURROGATE = "surrogate"  # in orjson's error for a surrogate without its other half

BOM = b"\xef\xbb\xbf"
"""The byte order mark that some editors and clients write before UTF-8."""

# An escaped backslash. A zero byte occurs in no JSON document.
_BACKSLASH, _MARK = b"\\\\", b"\0\0"
_LOW = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HIGH = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LONE = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_IS_HIGH = re.compile(_HIGH)
_ESCAPE_BYTES = 6

MAX_CHOICES = 1024
"""Largest number of answers to one request.

Each is kept in memory until its stream ends. A reply with this number of answers takes 10 ms to read.
"""

MAX_TOKENS = 2**31 - 1
"""Larger than any answer, and small enough that sums are exact in JSON."""

Penalty = Annotated[float, Meta(ge=-2, le=2)]
# The decoder converts longer integers to floats.
DecodedInt = Annotated[int, Meta(extra_json_schema={"minimum": -(2**63), "maximum": 2**64 - 1})]
Choices = Annotated[int, Meta(ge=1, le=128)]
_StopText = Annotated[str, Meta(max_length=MAX_STOP_CHARS)]
Stop = _StopText | Annotated[list[_StopText], Meta(max_length=_MAX_STOPS)]


class StreamOptions(Struct, frozen=True):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None


class SamplingBody(Struct, frozen=True, kw_only=True):
    """The fields that chats and text completions share, with OpenAI's ranges."""

    model: Annotated[str, Meta(min_length=1)]
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: DecodedInt | None = None
    n: Choices | None = None
    stop: Stop | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def read_body(raw: bytes, fields_type: type[_KnownFields], needs: str) -> tuple[Json, _KnownFields]:
    """Decode a body. Return it as it was sent, and its known fields, checked. Raises InvalidRequest with the field.

    A byte order mark is dropped, a lone surrogate becomes U+FFFD, and 5.0 becomes 5 in an integer field. For a long
    list of token ids the struct has a short one: read the ids from the body. Errors name the required fields (`needs`).
    """
    raw = raw.removeprefix(BOM)
    token_ids = None
    try:
        brackets = check_values(raw)
    except InvalidRequest:
        if FIELDS.isdisjoint(fields_type.__struct_fields__) or (token_ids := take_token_ids(raw)) is None:
            raise
        raw, brackets = token_ids.rest, token_ids.brackets
    body = _object(raw, brackets, needs)
    if (field := forbidden_field(body)) is not None:
        raise InvalidRequest(
            f"'{field}' is not accepted: only the gateway's configuration sets destinations and credentials of calls.",
            param=field,
        )
    try:
        check_names(body, fields_type.__struct_fields__)
    except InvalidRequest as error:
        raise missing_content(body, fields_type.__struct_fields__) or error from None
    fields = _convert(body, fields_type)
    if token_ids is not None:
        body[token_ids.name] = token_ids.ids
    return body, fields


def read_known_fields(raw: bytes, fields_type: type[_KnownFields], needs: str) -> tuple[Json, _KnownFields]:
    """Decode a body of an API whose other fields are not forwarded, so that they may have any name; see `read_body`.

    In the chat that the body becomes, tools have one level more.
    """
    raw = raw.removeprefix(BOM)
    body = _object(raw, check_values(raw), needs, added_levels=1)
    return body, _convert(body, fields_type)


def _object(raw: bytes, brackets: int, needs: str, added_levels: Literal[0, 1] = 0) -> Json:
    """Decode a JSON object with at most this number of opening brackets, which remains encodable with added levels."""
    body = _decode(raw, needs)
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object with {needs}.")
    limit = MAX_DEPTH - added_levels
    if brackets > limit and not _is_encodable([body] if added_levels else body):
        raise InvalidRequest(f"The body is nested more than {limit} levels deep, the limit. Flatten it.")
    return body


def _convert(body: Json, fields_type: type[_KnownFields]) -> _KnownFields:
    try:
        return msgspec.convert(body, fields_type)
    except msgspec.ValidationError as error:
        problem = error
    if _drop_points(body, fields_type):
        try:
            return msgspec.convert(body, fields_type)
        except msgspec.ValidationError as error:
            problem = error
    raise missing_content(body, fields_type.__struct_fields__) or _explain(problem) from None


def _drop_points(body: Json, fields_type: type[Struct]) -> bool:
    """Convert 5.0 to 5 in integer fields. Return whether a field was converted."""
    converted = False
    for name in _integer_fields(fields_type):
        value = body.get(name)
        if type(value) is float and abs(value) <= _MAX_EXACT_FLOAT and value.is_integer():
            body[name] = int(value)
            converted = True
    return converted


def _decode(raw: bytes, needs: str) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    if _SURROGATE in reason:
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(replace_lone_surrogates(raw))
    if (where := locate_invalid_utf8(raw)) is not None:
        raise InvalidRequest(f"The body is not valid UTF-8 ({where}). Send a JSON object with {needs} in UTF-8.")
    raise InvalidRequest(f"The body is not valid JSON ({reason}). Send a JSON object with {needs}.")


def replace_lone_surrogates(raw: bytes) -> bytes:
    """Replace each escaped surrogate without its other half by U+FFFD, as UTF-8 decoders do.

    A client that cuts text between UTF-16 units sends such escapes. UTF-8, which engines read, cannot encode them.
    """
    repaired: list[bytes] = []
    held = b""
    for chunk in escape_safe_chunks(raw):
        text = held + chunk.replace(_BACKSLASH, _MARK)
        # Do not cut an escape or a pair of them.
        cut = text.rfind(b"\\", max(0, len(text) - _ESCAPE_BYTES + 1))
        cut = len(text) if cut < 0 else cut
        if _IS_HIGH.match(text, max(0, cut - _ESCAPE_BYTES), cut):
            cut -= _ESCAPE_BYTES
        repaired.append(_repaired(text[:cut]))
        held = text[cut:]
    return b"".join((*repaired, _repaired(held)))


def _repaired(text: bytes) -> bytes:
    return _LONE.sub(rb"\\ufffd", text).replace(_MARK, _BACKSLASH)


def locate_invalid_utf8(raw: bytes) -> str | None:
    """Return the position of the first byte that is not UTF-8, as text; None if there is none."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        at = error.start
        line = raw.count(b"\n", 0, at) + 1
        column = at - raw.rfind(b"\n", 0, at)
        return f"byte 0x{raw[at]:02x} at line {line}, byte {column}"
    return None


@cache
def _integer_fields(fields_type: type[Struct]) -> tuple[str, ...]:
    struct = msgspec.inspect.type_info(fields_type)
    assert isinstance(struct, msgspec.inspect.StructType)
    return tuple(field.name for field in struct.fields if _has_integers(field.type))


def _has_integers(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _has_integers(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return any(map(_has_integers, kind.types))
    return isinstance(kind, msgspec.inspect.IntType)


def stop_texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the caller's stop texts. Empty ones are dropped."""
    if not stop:
        return ()
    return tuple(filter(None, (stop,) if isinstance(stop, str) else stop))


def wants_usage(options: StreamOptions | None, *, stream: bool | None) -> bool:
    """Return whether a stream ends with a usage chunk. Raises InvalidRequest for options without a stream."""
    if options is not None and not stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    return bool(options and options.include_usage)


def too_deep(raw: bytes, body: Any) -> bool:
    """Return whether JSON, and the value that was decoded from it, is nested too deep to be encoded again."""
    return raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and not _is_encodable(body)


def _is_encodable(body: Any) -> bool:
    try:
        orjson.dumps(body)
    except orjson.JSONEncodeError:
        return False
    return True


_EXPLAINED = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.+)`")
_TYPES = re.compile(r"`([a-z]+(?: \| [a-z]+)*)`")
_PLAIN = {"int": "an integer", "float": "a number", "str": "a string", "bool": "true or false",
          "array": "a list", "object": "an object", "null": "null"}  # fmt: skip


def _explain(error: msgspec.ValidationError) -> InvalidRequest:
    """Return msgspec's error in plain words, with OpenAI's name of the field."""
    match = _EXPLAINED.match(str(error))
    what, where = (match["what"], match["where"] or "") if match else (str(error), "")
    if missing := _MISSING.fullmatch(what):
        param = f"{where}.{missing[1]}" if where else missing[1]
        return InvalidRequest(f"'{param}' is required.", param=param)
    what = _TYPES.sub(lambda match: " or ".join(_PLAIN.get(name, name) for name in match[1].split(" | ")), what)
    param = where.replace("[...]", "") or None  # msgspec does not name an object's key
    text = what[:1].lower() + what[1:]
    return InvalidRequest(f"'{param}': {text}." if param else f"{what}.", param=param)
