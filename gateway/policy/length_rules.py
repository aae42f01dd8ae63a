"""What a policy may say of a guidance whose length is chosen per request: `tokens: auto`, and `auto:` beside it."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gateway.config.scalars import Duration, InvalidValue, Number, Whole, lasting
from gateway.config.yaml_source import StrictModel
from gateway.policy.conditions import RouteCondition
from gateway.policy.length_model import LengthModel
from gateway.policy.question_features import PromptClass

MOST_TOKENS = 4096
StopAt = Literal["step", "sentence", "none"]

Length: TypeAlias = Annotated[Whole, Field(ge=1, le=MOST_TOKENS)]
"""How many tokens of guidance."""


def _tokens(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, str) and value.isdigit():
        raise InvalidValue("must be a whole number, without quotes")
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidValue("must be a whole number, or auto")
    if value < 1:
        raise InvalidValue("must be at least 1")
    if value > MOST_TOKENS:
        raise InvalidValue(f"must be at most {MOST_TOKENS}")
    return value


Tokens: TypeAlias = Annotated[
    int | Literal["auto"], PlainValidator(_tokens, json_schema_input_type=Length | Literal["auto"])
]
"""How many tokens of guidance; or `auto`."""


class LengthRule(StrictModel):
    """One rule of `auto`. All that it names must hold; the first rule that does decides."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """How receipts call it."""
    prompt: PromptClass | None = None
    """What kind of question it is, as cheap features tell: choice, code, maths, list, trivial or other."""
    when: RouteCondition | None = None
    """Conditions as a route's; `contains` and `matches` look at the question alone, at its first 2,000 characters."""
    tokens: Annotated[Whole, Field(ge=0, le=MOST_TOKENS)]
    """How long the opening may be, within min and max; 0: no guidance."""

    @model_validator(mode="after")
    def _asks_something(self) -> LengthRule:
        if self.prompt is None and self.when is None:
            raise InvalidValue("holds for every request: name `prompt` or `when`, or set `default`")
        return self


class ProbeRule(StrictModel):
    """The student's first token, asked for before the teacher is: where it is sure of that, nobody need help it."""

    confident: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """From this probability of its likeliest first token on, the student answers alone."""
    entropy: Annotated[Number, Field(ge=0, le=10)] | None = None
    """Likewise up to this entropy, in nats, over the tokens it tells of. Unset: only `confident` counts."""
    top_logprobs: Annotated[Whole, Field(ge=1, le=20)] = 5
    """How many of its likeliest tokens are asked for. Some servers give no more than 5."""
    deadline_s: Annotated[Duration, lasting("1ms", "10s")] = Field(0.5, alias="deadline")
    """How long it may take, within the guidance's own deadline; then the teacher is asked."""


def _probe(value: object) -> object:
    if value in ("off", False):
        return None
    if value in ("on", True):
        return {}
    return value


Probe: TypeAlias = Annotated[
    ProbeRule | None, BeforeValidator(_probe, json_schema_input_type=Literal["off", "on"] | ProbeRule)
]
"""`off`, `on`, or a rule."""


DEFAULT_RULES = (
    LengthRule(name="trivial", prompt="trivial", tokens=0),
    LengthRule(name="choice", prompt="choice", tokens=30),
    LengthRule(name="maths", prompt="maths", tokens=60),
)
"""Where a policy gives none. For choices and maths the paper takes 30 and 40 (section 4.1); teachers of today talk more
before they calculate."""


class AutoRule(StrictModel):
    """How long the guidance is, where `tokens` is auto: rules first, then a learned model, else the default."""

    min: Length = 16
    """No guidance is shorter: from 8 to 16 tokens on an opening steers an answer. What would be, is left out."""
    max: Length = Field(default_factory=lambda data: _at_least(80, data), validate_default=True)
    """None is longer."""
    default: Length = Field(default_factory=lambda data: _within(40, data), validate_default=True)
    """Where no rule holds and there is no model."""
    rules: Annotated[tuple[LengthRule, ...], Field(max_length=50)] | None = None
    """The first that holds decides. None: trivial 0, choice 30, maths 60, unless there is a model."""
    stop_at: StopAt = "none"
    """End the opening, and the teacher's call, at the first end of a sentence or line (sentence), or of a line (step),
    after `min` tokens."""
    probe: Probe = None
    """Ask the student for its first token first, and leave the teacher out where it is sure of that."""
    model: str | None = None
    """A file of `gkt-gateway eval fit`, from the policies folder, like lengths/chat.json: it decides where no rule
    does."""
    _learned: LengthModel | None = PrivateAttr(None)

    @property
    def learned(self) -> LengthModel | None:
        """What the file of `model` holds; None: no file is named."""
        return self._learned

    def going_by(self, learned: LengthModel) -> AutoRule:
        """The same with a model that was read."""
        rule = self.model_copy()
        rule._learned = learned  # noqa: SLF001  its own kind
        return rule

    @field_validator("max", "default")
    @classmethod
    def _in_range(cls, value: int, info: ValidationInfo) -> int:
        least, most = info.data.get("min"), info.data.get("max", value)
        if least is not None and value < least:
            raise InvalidValue(f"must be at least min, {least}")
        if value > most:
            raise InvalidValue(f"must be at most max, {most}")
        return value

    @field_validator("rules")
    @classmethod
    def _within_range(cls, rules: tuple[LengthRule, ...] | None, info: ValidationInfo) -> tuple[LengthRule, ...] | None:
        least, most = info.data.get("min"), info.data.get("max")
        for index, rule in enumerate(rules or ()):
            if least is not None and most is not None and rule.tokens and not least <= rule.tokens <= most:
                raise InvalidValue(f"{rule.name} (the {index + 1}. rule): tokens must be 0, or from {least} to {most}")
        names = [rule.name for rule in rules or ()]
        if len(set(names)) < len(names):
            raise InvalidValue("two rules have one name: receipts could not tell them apart")
        return rules


def _at_least(wished: int, data: dict[str, int]) -> int:
    return max(wished, data.get("min", wished))


def _within(wished: int, data: dict[str, int]) -> int:
    return max(data.get("min", wished), min(data.get("max", wished), wished))
