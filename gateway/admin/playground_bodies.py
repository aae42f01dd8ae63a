"""The body of POST /playground/run: a question, a tenant's route, and settings of the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import Field, ValidationInfo, field_validator

from gateway.admin.bodies import suggestion
from gateway.config.scalars import InvalidValue, Name, Number, Whole
from gateway.config.yaml_source import StrictModel
from gateway.errors import InvalidRequest
from gateway.policy.length_rules import Tokens
from gateway.policy.overrides import RouteOverride
from gateway.policy.projections import PROJECTIONS, Placement
from gateway.policy.schema import Label, OverrideMode
from gateway.protocol.body import MAX_TOKENS
from gateway.protocol.chat import ChatRequest, parse_chat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.projections import Projection

_MAX_SEED = 2**63 - 1


class GuidanceOverride(StrictModel):
    """Overrides of the guidance. An absent field keeps the route's setting."""

    tokens: Tokens | None = None
    """A number, or `auto` if the route has `auto`."""
    projection: Label | None = None
    placement: Placement | None = None


class PlaygroundRun(StrictModel):
    """POST /playground/run. The question is a `prompt` with an optional `system` message, or `messages`."""

    tenant: Label
    model: Name
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
            message = f"There is no projection '{name}'.{suggestion(name, list(projections))}"
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
