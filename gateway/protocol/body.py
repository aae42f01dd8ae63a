"""A body's bytes -> a JSON object whose known fields fit, or an InvalidRequest that names the field."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cache
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
import msgspec.inspect
import orjson
from msgspec import Meta, Struct

from gateway.errors import InvalidRequest
from gateway.protocol.field_names import check_names
from gateway.protocol.forbidden_fields import forbidden_field
from gateway.protocol.structure import MAX_DEPTH, check_values
from gateway.protocol.token_ids import FIELDS, take_token_ids
from gateway.protocol.unicode import BOM, locate_invalid_utf8, replace_lone_surrogates

Json = dict[str, Any]
_KnownFields = TypeVar("_KnownFields", bound=Struct)

_MAX_STOPS = 4
MAX_STOP_CHARS = 1000
"""The longest stop text: some engines leave it to the gateway to find it in what they write."""
_MAX_EXACT_FLOAT = 2.0**53  # beyond it a float stands for several integers
_SURROGATE = "surrogate"  # in what orjson says of one without its other half

MAX_CHOICES = 1024
"""The most answers to one request. Each is kept in mind until its stream ends, and read from one reply in 10 ms."""

MAX_TOKENS = 2**31 - 1
"""More than any answer has, and few enough that sums of them stay numbers that JSON can carry."""

Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
# What the decoder reads as an integer: of more than 64 bits it makes a number.
Seed = Annotated[int, Meta(extra_json_schema={"minimum": -(2**63), "maximum": 2**64 - 1})]
Choices = Annotated[int, Meta(ge=1, le=128)]
_StopText = Annotated[str, Meta(max_length=MAX_STOP_CHARS)]
Stop = _StopText | Annotated[list[_StopText], Meta(max_length=_MAX_STOPS)]


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


class CallerRequest(Protocol):
    """What is known of every checked request.

    Attributes:
        body: what the caller sent, field by field.
        choices: how many answers it asks for.
        drafts: how many are written for that: of some, the best are taken.
        pictures: how many parts it has that are no text, and may be larger than their bytes here.
        size_bytes: how large its body came.
    """

    @property
    def body(self) -> Json: ...

    @property
    def choices(self) -> int: ...

    @property
    def generated_choices(self) -> int: ...

    @property
    def non_text_parts(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...


def read_body(raw: bytes, fields_type: type[_KnownFields], needs: str) -> tuple[Json, _KnownFields]:
    """Decode a body: as it came, and its known fields, checked.

    A byte order mark is dropped, a lone surrogate becomes U+FFFD, and 5.0 becomes 5 in a field that is an integer.

    Of a long list of token ids the struct has a short one: read it from the body.

    Args:
        needs: the fields that it must have, in words.

    Raises:
        InvalidRequest: with `param` naming the field.
    """
    raw = raw.removeprefix(BOM)
    token_ids = None
    try:
        openings = check_values(raw)
    except InvalidRequest:
        if FIELDS.isdisjoint(fields_type.__struct_fields__) or (token_ids := take_token_ids(raw)) is None:
            raise
        raw, openings = token_ids.rest, token_ids.openings
    body = _decode(raw, needs)
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object with {needs}.")
    if openings > MAX_DEPTH and not _is_encodable(body):
        raise InvalidRequest(f"The body is nested more than {MAX_DEPTH} levels deep, the limit. Flatten it.")
    if (field := forbidden_field(body)) is not None:
        raise InvalidRequest(
            f"'{field}' is not taken from callers: where the gateway calls, and as whom, its configuration says.",
            param=field,
        )
    check_names(body, fields_type.__struct_fields__)
    fields = _convert(body, fields_type)
    if token_ids is not None:
        body[token_ids.name] = token_ids.ids
    return body, fields


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
    raise _explain(problem) from None


def _drop_points(body: Json, fields_type: type[Struct]) -> bool:
    """Turn 5.0 into 5 in fields that are integers; return whether there was one."""
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


@cache
def _integer_fields(fields_type: type[Struct]) -> tuple[str, ...]:
    """The fields of a struct whose values are integers."""
    struct = msgspec.inspect.type_info(fields_type)
    assert isinstance(struct, msgspec.inspect.StructType)
    return tuple(field.name for field in struct.fields if _has_integers(field.type))


def _has_integers(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _has_integers(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return any(map(_has_integers, kind.types))
    return isinstance(kind, msgspec.inspect.IntType)


def stops(stop: str | list[str] | None) -> tuple[str, ...]:
    """The caller's stop texts, one by one; empty ones stop nothing."""
    return tuple(text for text in ((stop,) if isinstance(stop, str) else stop or ()) if text)


def wants_usage(options: StreamOptions | None, *, stream: bool | None) -> bool:
    """Whether a stream ends with a usage chunk. Raises InvalidRequest where there is no stream."""
    if options is not None and not stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    return bool(options and options.include_usage)


def too_deep(raw: bytes, body: Any) -> bool:
    """Whether JSON is nested too deep to be written again; `body` is what was read from `raw`."""
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
    """Say in plain words what msgspec found, and name the field the way OpenAI does."""
    match = _EXPLAINED.match(str(error))
    what, where = (match["what"], match["where"] or "") if match else (str(error), "")
    if missing := _MISSING.fullmatch(what):
        param = f"{where}.{missing[1]}" if where else missing[1]
        return InvalidRequest(f"'{param}' is required.", param=param)
    what = _TYPES.sub(lambda match: " or ".join(_PLAIN.get(name, name) for name in match[1].split(" | ")), what)
    param = where.replace("[...]", "") or None  # msgspec names no key of an object
    text = what[:1].lower() + what[1:]
    return InvalidRequest(f"'{param}': {text}." if param else f"{what}.", param=param)
