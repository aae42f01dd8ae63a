"""Choose the length of a request's guidance for `tokens: auto`. Pure.

The paper (section 5) leaves the length open and sets it by hand for each data set. The gateway uses cheap rules, or a
model fitted to a route's own records. A small max_tokens gives short guidance.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, TypeAlias

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
from gateway.policy.conditions import RequestFacts, RouteCondition
from gateway.policy.length_model import FittedLengths
from gateway.policy.question_features import PromptClass, features_of, question_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.question_features import QuestionFeatures
    from gateway.protocol.requests import CompletionRequest

MAX_TOKENS = 4096
StopAt = Literal["step", "sentence", "none"]
# Guidance longer than half of the answer leaves too little for the student to be worth a call.
_SHARE_OF_ANSWER = 2

ChosenBy = Literal["rule", "model", "default"]
TOO_SHORT, BY_RULE, BY_MODEL = "auto_short", "auto_rule", "auto_model"
"""Reasons for no guidance: the answer is too short; a rule chose 0; a model chose 0."""

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
            raise InvalidValue("matches every request: add `prompt` or `when`, or set `default` instead")
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
    max: Length = Field(default_factory=lambda data: max(80, data.get("min", 80)), validate_default=True)
    """Longest guidance."""
    default: Length = Field(
        default_factory=lambda data: max(data.get("min", 40), min(data.get("max", 40), 40)), validate_default=True
    )
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
    _length_model: FittedLengths | None = PrivateAttr(None)

    @property
    def length_model(self) -> FittedLengths | None:
        """Return the content of the file `model`; None: no file is named."""
        return self._length_model

    def with_length_model(self, model: FittedLengths) -> AutoRule:
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
        for rule in rules or ():
            if lower is not None and upper is not None and rule.tokens and not lower <= rule.tokens <= upper:
                raise InvalidValue(f"the tokens of rule {rule.name} must be 0, or from {lower} to {upper}")
        names = [rule.name for rule in rules or ()]
        if len(set(names)) < len(names):
            raise InvalidValue("rule names must be unique, since receipts contain them: rename one rule")
        return rules


class LengthChoice(NamedTuple):
    """The chosen length of one request's guidance."""

    tokens: int  # m; 0: no guidance, for the reason `unguided`
    by: ChosenBy  # whether a rule, a model or the default chose the length
    prompt: str
    least: int  # the minimum length before `stop_at` applies, in tokens
    stop_at: StopAt  # where the guidance, and the teacher's call, may end after that
    probe: ProbeRule | None  # the confidence probe of the student; None: no probe
    rule: str | None = None
    model: str | None = None
    score: float | None = None  # the model's prediction
    unguided: str | None = None


class _QuestionFacts(RequestFacts):
    """The text of the question alone, short enough to be matched in the event loop."""

    @cached_property
    def text(self) -> str:
        return question_of(self._request)  # type: ignore[arg-type]


def choose_length(
    rule: AutoRule, request: CompletionRequest, max_tokens: int | None, headers: Mapping[str, str]
) -> LengthChoice:
    """Return the length that the rule chooses for this request: at most half of the answer, and at least the minimum.
    `max_tokens` is the limit on the answer, the caller's or else the route's; None: no limit."""
    chosen = _chosen(rule, features_of(request, max_tokens), _QuestionFacts(request, headers), max_tokens)
    limit = None if max_tokens is None else max_tokens // _SHARE_OF_ANSWER
    if limit is None or not chosen.tokens or chosen.tokens <= limit:
        return chosen
    return chosen._replace(tokens=0, unguided=TOO_SHORT) if limit < rule.min else chosen._replace(tokens=limit)


def of_model(model: FittedLengths, features: QuestionFeatures, rule: AutoRule) -> LengthChoice:
    """Return the length that a learned model predicts, within the rule's bounds."""
    predicted = model.predict(features.numbers)
    choice = _choice(rule, features, predicted.tokens, "model")
    return choice._replace(model=model.name, score=round(predicted.score, 4))


def _chosen(rule: AutoRule, features: QuestionFeatures, facts: RequestFacts, max_tokens: int | None) -> LengthChoice:
    model = rule.length_model
    rules = rule.rules if rule.rules is not None else () if model is not None else DEFAULT_RULES
    for one in rules:
        matches = one.prompt is None or one.prompt == features.prompt
        if matches and (one.when is None or one.when.mismatch(facts, max_tokens) is None):
            return _choice(rule, features, one.tokens, "rule")._replace(rule=one.name)
    if model is not None:
        return of_model(model, features, rule)
    return _choice(rule, features, rule.default, "default")


def _choice(rule: AutoRule, features: QuestionFeatures, tokens: int, by: ChosenBy) -> LengthChoice:
    unguided = None if tokens else BY_MODEL if by == "model" else BY_RULE
    tokens = max(rule.min, min(rule.max, tokens)) if tokens else 0
    return LengthChoice(tokens, by, features.prompt, rule.min, rule.stop_at, rule.probe, unguided=unguided)


def longest(rule: AutoRule, max_tokens: int) -> int:
    """Return the most tokens that the rule chooses for an answer of `max_tokens`."""
    return min(rule.max, max_tokens // _SHARE_OF_ANSWER)
