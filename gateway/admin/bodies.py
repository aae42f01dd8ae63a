"""Bodies and query parameters of the admin API, with the field names of policy files. Unknown fields are rejected."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter

from gateway.api.body import read_body
from gateway.config.limits import BudgetRule, LimitsRule
from gateway.config.scalars import Duration, InvalidValue, Name, duration_between, duration_s
from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import StrictModel, YamlSource
from gateway.errors import InvalidRequest
from gateway.keys.redis_keyring import NEVER, KeyExpiry
from gateway.policy.schema import PLAYGROUND, Label, Moment

if TYPE_CHECKING:
    from aiohttp import web

MAX_ID_CHARS = 56
"""Rotation appends `.1`, `.2`, ... to the id of the replaced key."""
_LONGEST_LIFE_S = 3660 * 86_400
_ACTOR = re.compile(r"[A-Za-z0-9@._+-]{1,64}", re.ASCII)
_MOMENT: TypeAdapter[float] = TypeAdapter(Moment)


def _key_id(value: str) -> str:
    if len(value) > MAX_ID_CHARS:
        raise InvalidValue(f"must be at most {MAX_ID_CHARS} characters long")
    if value == PLAYGROUND:
        raise InvalidValue("names the playground's requests in receipts: choose another id")
    return value


def _expiry(value: object) -> KeyExpiry:
    if isinstance(value, KeyExpiry):
        return value
    text = value if isinstance(value, str) else ""
    if not re.match(r"\d{4}-", text):
        try:
            in_s = duration_s(text)
        except InvalidValue:
            raise InvalidValue("must be a date like 2027-06-30, a time, or a duration like 90d or 12h") from None
        if not 0 < in_s <= _LONGEST_LIFE_S:
            raise InvalidValue("must be more than 0, and at most 3660d")
        return KeyExpiry(in_s=in_s)
    return KeyExpiry(at_s=_MOMENT.validate_python(text))


KeyId: TypeAlias = Annotated[Label, BeforeValidator(lambda value: _key_id(value) if isinstance(value, str) else value)]
ExpiryText: TypeAlias = Annotated[KeyExpiry, BeforeValidator(_expiry)]


class NewKey(StrictModel):
    """POST /keys: the key to create."""

    tenant: Label
    id: KeyId
    expires: ExpiryText = NEVER
    models: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1000)] | None = None
    limits: LimitsRule | None = None
    budget: BudgetRule | None = None
    key_hints: ClassVar[Mapping[str, str]] = {
        "key": "the gateway generates the key and returns it in the reply",
        "token": "the gateway generates the key and returns it in the reply",
        "sha256": "the gateway generates the key; put a key of your own into a policy file",
        "key_alias": "use id instead",
        "duration": "use expires instead",
        "created": "the gateway sets the time of creation",
        "created_by": "send it as the header x-gkt-actor",
        "revoked": "DELETE /keys/{tenant}/{id} revokes a key",
    }


class Rotation(StrictModel):
    """POST /keys/{tenant}/{id}/rotate: how long the old key stays valid, and when the new key expires."""

    grace_s: Annotated[Duration, duration_between("0s", "30d")] = Field(3600.0, alias="grace")
    expires: ExpiryText = NEVER


S = TypeVar("S", bound=BaseModel)


async def read_shape(request: web.Request, shape: type[S]) -> S:
    """Return the validated body of a request. An empty body means all defaults.

    Raises InvalidRequest, which lists every issue with its field.
    """
    raw = await read_body(request)
    try:
        data: Any = json.loads(raw, parse_float=Decimal, parse_constant=_no_number) if raw.strip() else {}
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not JSON.") from None
    if not isinstance(data, dict):
        raise InvalidRequest("The body must be a JSON object.")
    found, issues = YamlSource("body", data).check(shape)
    if found is None:
        message = "; ".join(
            f"'{one.field}': {one.message}" + (f". Did you mean '{one.suggestion}'?" if one.suggestion else "")
            for one in issues
        )
        raise InvalidRequest(message, param=issues[0].field if issues else None)
    return found


def _no_number(name: str) -> Any:
    raise ValueError(name)


def actor_of(request: web.Request) -> str:
    """Return the operator's name from the header x-gkt-actor, unverified. Raises InvalidRequest."""
    name = request.headers.get("x-gkt-actor", "admin")
    if not _ACTOR.fullmatch(name):
        raise InvalidRequest("'x-gkt-actor': expected 1 to 64 letters, digits or any of @ . _ + -", param="x-gkt-actor")
    return name


def number_of(request: web.Request, name: str, *, default: int, maximum: int) -> int:
    """Return a whole number of the query, from 1 to `maximum`. Raises InvalidRequest."""
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= maximum):
        raise InvalidRequest(f"'{name}': expected a whole number from 1 to {maximum}.", param=name)
    return int(text)


def only_query(request: web.Request, *known: str) -> None:
    """Raise InvalidRequest if the query has an unknown parameter."""
    for name in request.query:
        if name not in known:
            raise InvalidRequest(
                f"'{name}': unknown parameter; known parameters: {', '.join(known) or 'none'}.", param=name
            )


def suggestion(name: str, known: list[str]) -> str:
    """Return ` Did you mean 'X'?` for a misspelled name, or an empty text if no known name is close."""
    close = nearest(name, known)
    return f" Did you mean '{close}'?" if close else ""
