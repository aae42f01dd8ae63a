"""Schema of `split`: variants of a route, each for a share of its callers or conversations, and their assignment.

The assignment is a hash, so every process computes the same variant without storage. A changed share moves callers or
conversations only from a variant whose share fell, or to one whose share grew. This is weighted rendezvous hashing: the
weighted order of Efraimidis and Spirakis (2006), with a hash instead of a random number.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import Field, PlainValidator, field_validator

from gateway.config.scalars import InvalidValue, Label
from gateway.config.yaml_messages import MUST_BE, yaml_loc
from gateway.config.yaml_source import StrictModel, issue_message
from gateway.policy.affinity import conversation_key
from gateway.policy.guidance_rule import GuidanceRule
from gateway.policy.plan import SplitFacts
from gateway.policy.route_rules import Part, Student

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pydantic import BaseModel
    from pydantic_core import InitErrorDetails

    from gateway.config.yaml_messages import Loc
    from gateway.protocol.requests import CompletionRequest

MAX_VARIANTS = 8
"""The number of variants is bounded, since each adds counters to the sums of usage."""
_MAX_ERROR = 1e-9
_ENGINES_OF = {"student": "students", "students": "student"}
_END_USER = ("safety_identifier", "user")
_MAX_USER = 1_000


def _own_keys(value: object) -> dict[str, Any]:
    if isinstance(value, GuidanceRule):
        return {name: getattr(value, name) for name in value.model_fields_set}
    if not isinstance(value, dict):
        raise InvalidValue(MUST_BE[dict])
    return value


GuidanceKeys: TypeAlias = Annotated[dict[str, Any], PlainValidator(_own_keys, json_schema_input_type=GuidanceRule)]
"""Some keys of `guidance`. They are checked together with those of the route."""


class VariantRule(StrictModel):
    """A variant of the route: its share, and the keys of the route that it replaces."""

    share: Part
    """Share of the callers or conversations: 0.5 or 50%."""
    mode: Literal["guided", "student", "teacher"] | None = None
    """Engines that answer; None: as in the route."""
    teacher: str | None = None
    """Model of config.yaml that begins answers, or generates them in mode teacher; None: as in the route."""
    students: Annotated[tuple[Student, ...], Field(min_length=1, max_length=8)] | None = None
    """Several students; None: as in the route."""
    student: str | None = None
    """The only student; None: as in the route."""
    guidance: GuidanceKeys | None = None
    """Keys of `guidance` that differ from the route's. The others are the route's."""


class SplitRule(StrictModel):
    """Shares of a route's requests for variants of the route, so that their outcomes can be compared."""

    by: Literal["caller", "conversation"] = "conversation"
    """Unit that keeps its variant: a conversation or a caller. The caller is the end user (`safety_identifier` or
    `user`), else the API key."""
    variants: Annotated[dict[Label, VariantRule], Field(min_length=2, max_length=MAX_VARIANTS)]
    """Variants by name. Their shares sum to 100 %. Reports compare the others with the first."""

    @field_validator("variants")
    @classmethod
    def _whole(cls, variants: dict[str, VariantRule]) -> dict[str, VariantRule]:
        total = math.fsum(one.share for one in variants.values())
        if abs(total - 1) > _MAX_ERROR:
            raise InvalidValue(f"the shares sum to {100 * total:.6g} %: they must sum to 100 %")
        return variants


class VariantKeys(NamedTuple):
    """The keys of a variant as a complete route."""

    name: str
    own: Mapping[str, Any]
    """The keys that the variant sets."""
    route: dict[str, Any]

    def loc(self, *loc: str | int) -> Loc:
        """Return the location, from the route, of a key of the complete route."""
        return ("split", "variants", self.name, *loc)

    def issue(self, detail: Any, model: type[BaseModel]) -> InitErrorDetails:
        """Return an issue of the complete route, which is a `model`, at the variant's key."""
        error = InvalidValue(*issue_message(detail, model))
        loc = self.loc(*yaml_loc(model, detail))
        return {"type": "value_error", "loc": loc, "input": detail["input"], "ctx": {"error": error}}


def complete_routes(route: Mapping[str, Any]) -> Iterator[VariantKeys]:
    """Yield the variants of a route as written in YAML, valid or not, each as a complete route."""
    split = route.get("split")
    variants = split.get("variants") if isinstance(split, dict) else split.variants if split is not None else None
    for name, rule in variants.items() if isinstance(variants, dict) else ():
        if isinstance(rule, VariantRule):
            own = {key: getattr(rule, key) for key in rule.model_fields_set if key != "share"}
        elif isinstance(rule, dict):
            own = {key: value for key, value in rule.items() if key != "share"}
        else:
            continue
        replaced = {*own, "split", *(_ENGINES_OF[key] for key in own if key in _ENGINES_OF)}
        complete = {key: value for key, value in route.items() if key not in replaced} | own
        guidance = [each.get("guidance") for each in (route, own)]
        if "guidance" in own and all(isinstance(each, dict | GuidanceRule) for each in guidance):
            complete["guidance"] = _own_keys(guidance[0]) | _own_keys(guidance[1])
        yield VariantKeys(name, own, complete)


def assign(
    by: Literal["caller", "conversation"],
    shares: Iterable[tuple[str, float]],
    tenant: str,
    route: str,
    key_id: str,
    request: CompletionRequest,
    headers: Mapping[str, str],
) -> SplitFacts:
    """Return the variant of a request.

    Args:
        by: the part that keeps its variant; without a conversation, as in a raw prompt, the caller keeps it.
        shares: names and shares of the variants.
        route: name of the route. Requests under its aliases have the same variant.
        key_id: the API key, which is the caller where the request names no end user.
        headers: the caller's headers, which may identify the conversation.
    """
    conversation = conversation_key(tenant, request, headers) if by == "conversation" else None
    if conversation is not None:
        identity = b"conversation:" + conversation
    else:
        users = (request.body.get(name) for name in _END_USER)
        user = next((user for user in users if isinstance(user, str) and user), None)
        # A long name is cut: hashing megabytes would block the event loop.
        caller = f"key:{key_id}" if user is None else f"user:{user[:_MAX_USER]}{user[_MAX_USER:][-_MAX_USER:]}"
        identity = caller.encode("utf-8", "replace")
    # A field of fixed size before each text: no two pairs of tenant, route and identity have the same bytes.
    hashed = blake2b(digest_size=16)
    for part in (tenant.encode(), route.encode(), identity):
        hashed.update(b"%d:" % len(part) + part)
    unit = hashed.digest()
    variant = min((_wait(unit, name) / share, name) for name, share in shares if share)[1]
    return SplitFacts(variant, unit[:8].hex())


def _wait(unit: bytes, name: str) -> float:
    """Return an exponentially distributed number that depends on the unit and the variant alone."""
    hashed = blake2b(name.encode(), key=unit, digest_size=8).digest()
    return -math.log((int.from_bytes(hashed, "big") + 1) / 2**64)
