"""Choose the length of a request's guidance for `tokens: auto`. Pure.

The paper (section 5) leaves the length open and sets it by hand for each data set. The gateway uses cheap rules, or a
model fitted to a route's own records. A small max_tokens gives short guidance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from gateway.policy.conditions import RequestFacts
from gateway.policy.length_rules import DEFAULT_RULES
from gateway.policy.question_features import features_of, question_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.length_model import LengthModel
    from gateway.policy.length_rules import AutoRule, LengthRule, ProbeRule, StopAt
    from gateway.policy.question_features import QuestionFeatures
    from gateway.protocol.requests import CompletionRequest

# Guidance longer than half of the answer leaves too little for the student to be worth a call.
_SHARE_OF_ANSWER = 2

ChosenBy = Literal["rule", "model", "default"]
TOO_SHORT, BY_RULE, BY_MODEL = "auto_short", "auto_rule", "auto_model"
"""Reasons for no guidance: the answer is too short; a rule chose 0; a model chose 0."""


@dataclass(frozen=True, slots=True)
class LengthChoice:
    """The chosen length of one request's guidance.

    Attributes:
        tokens: m; 0: no guidance, for the reason `unguided`.
        by: whether a rule, a model or the default chose the length.
        prompt: the class of the question.
        least: the minimum length before `stop_at` applies, in tokens.
        stop_at: where the guidance, and the teacher's call, may end after that.
        probe: the confidence probe of the student; None: no probe.
        rule: the name of the rule.
        model, score: the name of the model and its predicted score.
    """

    tokens: int
    by: ChosenBy
    prompt: str
    least: int
    stop_at: StopAt
    probe: ProbeRule | None
    rule: str | None = None
    model: str | None = None
    score: float | None = None
    unguided: str | None = None


class _QuestionFacts(RequestFacts):
    """The text of the question alone, short enough to be matched in the event loop."""

    @cached_property
    def text(self) -> str:
        return question_of(self._request)  # type: ignore[arg-type]


def choose_length(
    rule: AutoRule, request: CompletionRequest, max_tokens: int | None, headers: Mapping[str, str]
) -> LengthChoice:
    """Return the length that the rule chooses for this request.

    Args:
        max_tokens: the limit on the answer: the caller's, else the route's; None: no limit.
    """
    features = features_of(request, max_tokens)
    chosen = _chosen(rule, features, _QuestionFacts(request, headers), max_tokens)
    return _limited(rule, chosen, max_tokens)


def of_model(model: LengthModel, features: QuestionFeatures, rule: AutoRule) -> LengthChoice:
    """Return the length that a learned model predicts, within the rule's bounds."""
    predicted = model.predict(features.numbers)
    return _choice(rule, features, predicted.tokens, "model", model=model.name, score=round(predicted.score, 4))


def _chosen(rule: AutoRule, features: QuestionFeatures, facts: RequestFacts, max_tokens: int | None) -> LengthChoice:
    model = rule.length_model
    rules = rule.rules if rule.rules is not None else () if model is not None else DEFAULT_RULES
    for one in rules:
        if _holds(one, features, facts, max_tokens):
            return _choice(rule, features, one.tokens, "rule", name=one.name)
    if model is not None:
        return of_model(model, features, rule)
    return _choice(rule, features, rule.default, "default")


def _holds(one: LengthRule, features: QuestionFeatures, facts: RequestFacts, max_tokens: int | None) -> bool:
    if one.prompt is not None and one.prompt != features.prompt:
        return False
    return one.when is None or one.when.mismatch(facts, max_tokens) is None


def _choice(
    rule: AutoRule,
    features: QuestionFeatures,
    tokens: int,
    by: ChosenBy,
    *,
    name: str | None = None,
    model: str | None = None,
    score: float | None = None,
) -> LengthChoice:
    unguided = None
    if not tokens:
        unguided = BY_MODEL if by == "model" else BY_RULE
    return LengthChoice(
        tokens=max(rule.min, min(rule.max, tokens)) if tokens else 0,
        by=by,
        prompt=features.prompt,
        least=rule.min,
        stop_at=rule.stop_at,
        probe=rule.probe,
        rule=name,
        model=model,
        score=score,
        unguided=unguided,
    )


def _limited(rule: AutoRule, chosen: LengthChoice, max_tokens: int | None) -> LengthChoice:
    """Limit the guidance to half of the answer; return none if that is below the minimum."""
    if max_tokens is None or not chosen.tokens or chosen.tokens <= max_tokens // _SHARE_OF_ANSWER:
        return chosen
    tokens = max_tokens // _SHARE_OF_ANSWER
    if tokens < rule.min:
        return replace(chosen, tokens=0, unguided=TOO_SHORT)
    return replace(chosen, tokens=tokens)


def longest(rule: AutoRule, max_tokens: int) -> int:
    """Return the most tokens that the rule chooses for an answer of `max_tokens`."""
    return min(rule.max, max_tokens // _SHARE_OF_ANSWER)
