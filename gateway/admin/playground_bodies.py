"""What the playground is sent: a question, for which tenant's route, and how it is to be answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import Field, ValidationInfo, field_validator

from gateway.admin.bodies import meant
from gateway.config.scalars import InvalidValue, Name, Number, Whole
from gateway.config.yaml_source import StrictModel
from gateway.errors import InvalidRequest
from gateway.policy.length_rules import Tokens
from gateway.policy.overrides import RouteOverride
from gateway.policy.projections import PROJECTIONS, Placement
from gateway.policy.schema import AskedMode, Label
from gateway.protocol.body import MAX_TOKENS
from gateway.protocol.chat import ChatRequest, parse_chat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.projections import Projection

_MOST_SEED = 2**63 - 1


class GuidanceOverride(StrictModel):
    """How the teacher is to open the answer; what is left out is as the route has it."""

    tokens: Tokens | None = None
    """A number; or auto, where the route has it: its own rule chooses."""
    projection: Label | None = None
    placement: Placement | None = None


class PlaygroundRun(StrictModel):
    """POST /playground/run: one answer. The question is a `prompt`, after a `system` message or not, or `messages`."""

    tenant: Label
    model: Name
    mode: AskedMode
    system: str | None = None
    messages: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] | None = None
    prompt: str | None = Field(None, validate_default=True)
    guidance: GuidanceOverride = GuidanceOverride()
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[Whole, Field(ge=1, le=MAX_TOKENS)] | None = None
    seed: Annotated[Whole, Field(ge=-_MOST_SEED, le=_MOST_SEED)] | None = None

    @field_validator("prompt")
    @classmethod
    def _one_question(cls, prompt: str | None, info: ValidationInfo) -> str | None:
        messages = info.data.get("messages")
        if "messages" in info.data and prompt is None and messages is None:
            raise InvalidValue("missing: send a prompt, or messages")
        if prompt is not None and messages is not None:
            raise InvalidValue("says what messages say: send one of the two")
        if prompt is not None and not prompt.strip():
            raise InvalidValue("is empty: ask something")
        if messages is not None and info.data.get("system") is not None:
            raise InvalidValue("system goes with a prompt: put it into messages")
        return prompt

    def wanted(self, projections: Mapping[str, Projection] = PROJECTIONS) -> RouteOverride:
        """Return the override of the route. Raises InvalidRequest if no projection has that name."""
        guidance, name = self.guidance, self.guidance.projection
        if name is not None and name not in projections:
            message = f"There is no projection '{name}'.{meant(name, list(projections))}"
            raise InvalidRequest(message, param="guidance.projection")
        projection = projections[name] if name is not None else None
        return RouteOverride(self.mode, guidance.tokens, projection, guidance.placement)

    def chat(self) -> ChatRequest:
        """The question as a caller would put it. Raises InvalidRequest, which names the field."""
        messages = list(self.messages or ())
        if self.prompt is not None:
            system = [{"role": "system", "content": self.system}] if self.system else []
            messages = [*system, {"role": "user", "content": self.prompt}]
        said = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens, "seed": self.seed}
        body = {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in said.items() if value is not None},
        }
        # Numbers with a point were read exactly, and a content part may have one.
        return parse_chat(orjson.dumps(body, default=float))
