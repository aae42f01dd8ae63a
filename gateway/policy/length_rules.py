"""Schema of a guidance length chosen per request: `tokens: auto` and its `auto:` section."""

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

from gateway.config.scalars import Duration, InvalidValue, Number, Whole, duration_between
from gateway.config.yaml_source import StrictModel
from gateway.policy.conditions import RouteCondition
from gateway.policy.length_model import LengthModel
from gateway.policy.question_features import PromptClass

MAX_TOKENS = 4096
StopAt = Literal["step", "sentence", "none"]

Length: TypeAlias = Annotated[Whole, Field(ge=1, le=MAX_TOKENS)]
"""Tokens of guidance."""


def _tokens(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, str) and value.isdigit():
        raise InvalidValue("must be a whole number, without quotes")
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidValue("must be a whole number, or auto")
    if value < 1:
        raise InvalidValue("must be at least 1")
    if value > MAX_TOKENS:
        raise InvalidValue(f"must be at most {MAX_TOKENS}")
    return value


Tokens: TypeAlias = Annotated[
    int | Literal["auto"], PlainValidator(_tokens, json_schema_input_type=Length | Literal["auto"])
]
"""Tokens of guidance, or `auto`."""


class LengthRule(StrictModel):
    """A rule of `auto`. All given conditions must hold; the first matching rule decides."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Name of the rule in receipts."""
    prompt: PromptClass | None = None
    """Class of the question by cheap features: choice, code, maths, list, trivial or other."""
    when: RouteCondition | None = None
    """Conditions as of a route; `contains` and `matches` read only the first 2,000 characters of the question."""
    tokens: Annotated[Whole, Field(ge=0, le=MAX_TOKENS)]
    """Length of the guidance, between min and max; 0: no guidance."""

    @model_validator(mode="after")
    def _has_a_condition(self) -> LengthRule:
        if self.prompt is None and self.when is None:
            raise InvalidValue("holds for every request: name `prompt` or `when`, or set `default`")
        return self


class ProbeRule(StrictModel):
    """Confidence probe: the student generates its first token before the teacher is called. If it is confident, the
    teacher is skipped."""

    confident: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """At this probability of its most likely first token or above, the student answers alone."""
    entropy: Annotated[Number, Field(ge=0, le=10)] | None = None
    """At this entropy or below, in nats over the returned tokens, the student answers alone. Unset: not used."""
    top_logprobs: Annotated[Whole, Field(ge=1, le=20)] = 5
    """Number of most likely tokens to request. Some servers return at most 5."""
    deadline_s: Annotated[Duration, duration_between("1ms", "10s")] = Field(0.5, alias="deadline")
    """Longest time of the probe, within the guidance's deadline; then the teacher is called."""


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
"""Rules of a policy without rules. The paper uses 30 for choices and 40 for maths (section 4.1); current teachers write
more text before they calculate."""


class AutoRule(StrictModel):
    """Choice of the length if `tokens` is auto: first rules, then a learned model, else the default."""

    min: Length = 16
    """Shortest guidance; a request that would get less gets none. Guidance steers an answer from 8 to 16 tokens on."""
    max: Length = Field(default_factory=lambda data: _at_least(80, data), validate_default=True)
    """Longest guidance."""
    default: Length = Field(default_factory=lambda data: _within(40, data), validate_default=True)
    """Length if no rule matches and there is no model."""
    rules: Annotated[tuple[LengthRule, ...], Field(max_length=50)] | None = None
    """Rules; the first matching rule decides. None: trivial 0, choice 30, maths 60, unless there is a model."""
    stop_at: StopAt = "none"
    """End the guidance and the teacher's call after `min` tokens at the first end of a sentence or line (sentence), or
    of a line (step)."""
    probe: Probe = None
    """Probe the student's first token, and skip the teacher if the student is confident."""
    model: str | None = None
    """A file of `gkt-gateway eval fit` in the policies folder, such as lengths/chat.json; used if no rule matches."""
    _length_model: LengthModel | None = PrivateAttr(None)

    @property
    def length_model(self) -> LengthModel | None:
        """Return the content of the file `model`; None: no file is named."""
        return self._length_model

    def with_length_model(self, model: LengthModel) -> AutoRule:
        """Return a copy with a loaded model."""
        rule = self.model_copy()
        rule._length_model = model  # noqa: SLF001  same class
        return rule

    @field_validator("max", "default")
    @classmethod
    def _in_range(cls, value: int, info: ValidationInfo) -> int:
        lower, upper = info.data.get("min"), info.data.get("max", value)
        if lower is not None and value < lower:
            raise InvalidValue(f"must be at least min, {lower}")
        if value > upper:
            raise InvalidValue(f"must be at most max, {upper}")
        return value

    @field_validator("rules")
    @classmethod
    def _within_range(cls, rules: tuple[LengthRule, ...] | None, info: ValidationInfo) -> tuple[LengthRule, ...] | None:
        lower, upper = info.data.get("min"), info.data.get("max")
        for index, rule in enumerate(rules or ()):
            if lower is not None and upper is not None and rule.tokens and not lower <= rule.tokens <= upper:
                raise InvalidValue(f"{rule.name} (the {index + 1}. rule): tokens must be 0, or from {lower} to {upper}")
        names = [rule.name for rule in rules or ()]
        if len(set(names)) < len(names):
            raise InvalidValue("two rules have one name: receipts could not tell them apart")
        return rules


def _at_least(value: int, data: dict[str, int]) -> int:
    return max(value, data.get("min", value))


def _within(value: int, data: dict[str, int]) -> int:
    return max(data.get("min", value), min(data.get("max", value), value))
