"""Bodies and query parameters of the admin API, with the field names of policy files. Unknown fields are rejected."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationInfo, field_validator

from gateway.admin.roles import OPERATOR
from gateway.api.body import read_body
from gateway.config.limits import BudgetRule, LimitsRule
from gateway.config.scalars import (
    Duration,
    InvalidValue,
    Label,
    Moment,
    Number,
    RouteName,
    Whole,
    duration_between,
    duration_s,
)
from gateway.config.yaml_messages import suggestion
from gateway.config.yaml_source import StrictModel, YamlSource
from gateway.errors import InvalidRequest
from gateway.keys.redis_keyring import NEVER, KeyExpiry
from gateway.policy.guidance_rule import MAX_GUIDANCE_TOKENS
from gateway.policy.key_entry import PLAYGROUND
from gateway.policy.labels import KeyLabels
from gateway.policy.projections import PROJECTIONS, Placement
from gateway.policy.routing import RouteOverride
from gateway.policy.schema import OverrideMode
from gateway.protocol.body import MAX_TOKENS
from gateway.protocol.chat import ChatRequest, parse_chat

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.policy.projections import Projection

MAX_ID_CHARS = 56
"""Rotation appends `.1`, `.2`, ... to the id of the replaced key."""
_MAX_REASON_CHARS = 500
_MAX_SEED = 2**63 - 1
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


def _one_line(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_REASON_CHARS:
        raise InvalidValue(f"must be one line of at most {_MAX_REASON_CHARS} characters")
    return value


KeyId: TypeAlias = Annotated[Label, BeforeValidator(lambda value: _key_id(value) if isinstance(value, str) else value)]
ExpiryText: TypeAlias = Annotated[KeyExpiry, BeforeValidator(_expiry)]
ReasonText: TypeAlias = Annotated[str, BeforeValidator(_one_line)]
"""A reason for the audit trail."""


class NewKey(StrictModel):
    """POST /keys: the key to create."""

    tenant: Label
    id: KeyId
    expires: ExpiryText = NEVER
    models: Annotated[tuple[RouteName, ...], Field(min_length=1, max_length=1000)] | None = None
    limits: LimitsRule | None = None
    budget: BudgetRule | None = None
    labels: KeyLabels = Field({})
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


class GuidanceOverride(StrictModel):
    """Overrides of the guidance. An absent field keeps the route's setting."""

    tokens: Annotated[Whole, Field(ge=1, le=MAX_GUIDANCE_TOKENS)] | None = None
    projection: Label | None = None
    placement: Placement | None = None


class PlaygroundRun(StrictModel):
    """POST /playground/run. The question is a `prompt` with an optional `system` message, or `messages`."""

    tenant: Label
    model: RouteName
    mode: OverrideMode
    system: str | None = None
    messages: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] | None = None
    prompt: str | None = Field(None, validate_default=True)
    guidance: GuidanceOverride = GuidanceOverride()
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[Whole, Field(ge=1, le=MAX_TOKENS)] | None = None
    seed: Annotated[Whole, Field(ge=-_MAX_SEED, le=_MAX_SEED)] | None = None

    @field_validator("prompt")
    @classmethod
    def _one_question(cls, prompt: str | None, info: ValidationInfo) -> str | None:
        messages = info.data.get("messages")
        if "messages" in info.data and prompt is None and messages is None:
            raise InvalidValue("missing: send prompt or messages")
        if prompt is not None and messages is not None:
            raise InvalidValue("conflicts with messages: send one of the two")
        if prompt is not None and not prompt.strip():
            raise InvalidValue("must not be empty")
        if messages is not None and info.data.get("system") is not None:
            raise InvalidValue("system requires a prompt: put it into messages")
        return prompt

    def route_override(self, projections: Mapping[str, Projection] = PROJECTIONS) -> RouteOverride:
        """Return the override of the route. Raises InvalidRequest if no projection has that name."""
        guidance, name = self.guidance, self.guidance.projection
        if name is not None and name not in projections:
            message = f"There is no projection '{name}'.{suggestion(name, projections)}"
            raise InvalidRequest(message, param="guidance.projection")
        projection = projections[name] if name is not None else None
        return RouteOverride(self.mode, guidance.tokens, projection, guidance.placement)

    def chat(self) -> ChatRequest:
        """Return the question as a chat request. Raises InvalidRequest, which names the field."""
        messages = list(self.messages or ())
        if self.prompt is not None:
            system = [{"role": "system", "content": self.system}] if self.system else []
            messages = [*system, {"role": "user", "content": self.prompt}]
        names = ("temperature", "top_p", "max_tokens", "seed")
        body = {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name in names if (value := getattr(self, name)) is not None},
        }
        # read_shape decodes fractions as Decimal; content parts may contain some.
        return parse_chat(orjson.dumps(body, default=float))


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
    """Return the actor for the audit trail. Raises InvalidRequest.

    A person has the name and role of the login. With the admin key, the header x-gkt-actor sets an unverified name.
    """
    operator = request[OPERATOR]
    if operator.is_person:
        return operator.actor
    name = request.headers.get("x-gkt-actor", operator.actor)
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
    """Raise InvalidRequest if the query has an unknown parameter, or a NUL character, which PostgreSQL refuses."""
    for name, value in request.query.items():
        if name not in known:
            raise InvalidRequest(
                f"'{name}': unknown parameter; known parameters: {', '.join(known) or 'none'}.", param=name
            )
        if "\0" in value:
            raise InvalidRequest(f"'{name}': contains a NUL character. Remove it.", param=name)
