"""Bodies and parameters of the admin API: closed shapes, in the words of policy files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter

from gateway.api.body import read_body
from gateway.config.limits import BudgetRule, LimitsRule
from gateway.config.scalars import Duration, InvalidValue, Name, duration_s, lasting
from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import StrictModel, YamlSource
from gateway.errors import InvalidRequest
from gateway.keys.redis_keyring import NEVER, KeyExpiry
from gateway.policy.schema import PLAYGROUND, Label, Moment

if TYPE_CHECKING:
    from aiohttp import web

MOST_ID_CHARS = 56
"""A key that was rotated gets `.1`, `.2`, ... behind its id."""
_LONGEST_LIFE_S = 3660 * 86_400
_ACTOR = re.compile(r"[A-Za-z0-9@._+-]{1,64}", re.ASCII)
_MOMENT: TypeAdapter[float] = TypeAdapter(Moment)


def _a_keys(value: str) -> str:
    if len(value) > MOST_ID_CHARS:
        raise InvalidValue(f"must be at most {MOST_ID_CHARS} characters long")
    if value == PLAYGROUND:
        raise InvalidValue("is what the playground's requests are called in receipts: choose another")
    return value


def _expiry(value: object) -> KeyExpiry:
    if isinstance(value, KeyExpiry):
        return value
    text = value if isinstance(value, str) else ""
    if not re.match(r"\d{4}-", text):
        try:
            in_s = duration_s(text)
        except InvalidValue:
            raise InvalidValue(
                "must be a date like 2027-06-30, a time, or how long it holds, like 90d or 12h"
            ) from None
        if not 0 < in_s <= _LONGEST_LIFE_S:
            raise InvalidValue("must be more than 0, and at most 3660d")
        return KeyExpiry(in_s=in_s)
    return KeyExpiry(at_s=_MOMENT.validate_python(text))


KeyId: TypeAlias = Annotated[Label, BeforeValidator(lambda value: _a_keys(value) if isinstance(value, str) else value)]
ExpiryText: TypeAlias = Annotated[KeyExpiry, BeforeValidator(_expiry)]


class NewKey(StrictModel):
    """POST /keys: a key to be made."""

    tenant: Label
    id: KeyId
    expires: ExpiryText = NEVER
    models: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1000)] | None = None
    limits: LimitsRule | None = None
    budget: BudgetRule | None = None
    foreign: ClassVar[Mapping[str, str]] = {
        "key": "the gateway makes the key, and shows it in the reply",
        "token": "the gateway makes the key, and shows it in the reply",
        "sha256": "the gateway makes the key; one of your own goes into a policy file",
        "key_alias": "here it is called id",
        "duration": "here it is called expires",
        "created": "the gateway says when it was created",
        "created_by": "send it as the header x-gkt-actor",
        "revoked": "DELETE /keys/{tenant}/{id} revokes a key",
    }


class Rotation(StrictModel):
    """POST /keys/{tenant}/{id}/rotate: for how long the old key holds on, and for how long the new one."""

    grace_s: Annotated[Duration, lasting("0s", "30d")] = Field(3600.0, alias="grace")
    expires: ExpiryText = NEVER


S = TypeVar("S", bound=BaseModel)


async def read_shape(request: web.Request, shape: type[S]) -> S:
    """The body of a request; an empty one says nothing. Raises InvalidRequest with every mistake, and their fields."""
    raw = await read_body(request)
    try:
        data: Any = json.loads(raw, parse_float=Decimal, parse_constant=_no_number) if raw.strip() else {}
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not JSON.") from None
    if not isinstance(data, dict):
        raise InvalidRequest("The body must be a JSON object.")
    found, mistakes = YamlSource("body", data).check(shape)
    if found is None:
        words = "; ".join(
            f"'{one.field}': {one.message}" + (f". Did you mean '{one.suggestion}'?" if one.suggestion else "")
            for one in mistakes
        )
        raise InvalidRequest(words, param=mistakes[0].field if mistakes else None)
    return found


def _no_number(name: str) -> Any:
    raise ValueError(name)


def actor_of(request: web.Request) -> str:
    """Who says that he acts, by the header x-gkt-actor; nobody proves it. Raises InvalidRequest."""
    name = request.headers.get("x-gkt-actor", "admin")
    if not _ACTOR.fullmatch(name):
        raise InvalidRequest("'x-gkt-actor': expected 1 to 64 letters, digits or any of @ . _ + -", param="x-gkt-actor")
    return name


def number_of(request: web.Request, name: str, *, default: int, most: int) -> int:
    """A whole number out of the query. Raises InvalidRequest."""
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise InvalidRequest(f"'{name}': expected a whole number from 1 to {most}.", param=name)
    return int(text)


def only_query(request: web.Request, *known: str) -> None:
    """Refuse parameters that nobody reads. Raises InvalidRequest."""
    for name in request.query:
        if name not in known:
            raise InvalidRequest(f"'{name}': unknown parameter; known here: {', '.join(known) or 'none'}.", param=name)


def meant(name: str, known: list[str]) -> str:
    """What an error adds where a name was misspelt; empty if none is near."""
    close = nearest(name, known)
    return f" Did you mean '{close}'?" if close else ""
