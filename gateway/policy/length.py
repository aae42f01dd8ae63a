"""How long this request's guidance may be, where a policy leaves that to the gateway, and why. Pure.

Paper, section 5: the length is left open there, and set by hand for each data set. Here cheap rules decide, or a model
that was fitted to a route's own records; and a caller who wants little gets little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from gateway.policy.conditions import RequestFacts
from gateway.policy.length_rules import DEFAULT_RULES
from gateway.policy.question_features import looks_of, question_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.length_model import LengthModel
    from gateway.policy.length_rules import AutoRule, LengthRule, ProbeRule, StopAt
    from gateway.policy.question_features import QuestionFeatures
    from gateway.protocol.requests import CompletionRequest

# An opening of more than half of what the caller wants leaves the student nothing to do that is worth a call.
_SHARE_OF_ANSWER = 2

ChosenBy = Literal["rule", "model", "default"]
TOO_SHORT, BY_RULE, BY_MODEL = "auto_short", "auto_rule", "auto_model"
"""Why a request goes without guidance: its answer is to be short; a rule says so; a model does."""


@dataclass(frozen=True, slots=True)
class LengthChoice:
    """How long the guidance of one request may be, and why.

    Attributes:
        tokens: m; 0: none, and `unguided` says why.
        by: what chose; `rule` its name, `model` and `score` likewise of a learned one.
        prompt: what kind of question it was taken for.
        least: the opening does not end before so many tokens.
        stop_at: where it may end after that, and the teacher's call with it.
        probe: whether the student is asked first.
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
    """The words of the question alone: few enough to be looked through while others wait."""

    @cached_property
    def text(self) -> str:
        return question_of(self._asked)  # type: ignore[arg-type]


def choose_length(
    rule: AutoRule, asked: CompletionRequest, max_tokens: int | None, headers: Mapping[str, str]
) -> LengthChoice:
    """What the rule says of this request.

    max_tokens: the limit on the answer, the route's where the caller sends none; None: there is none.
    """
    looks = looks_of(asked, max_tokens)
    chosen = _chosen(rule, looks, _QuestionFacts(asked, headers), max_tokens)
    return _fitted(rule, chosen, max_tokens)


def of_model(model: LengthModel, looks: QuestionFeatures, rule: AutoRule) -> LengthChoice:
    """What a learned model says, within the rule's bounds."""
    found = model.predict(looks.numbers)
    return _choice(rule, looks, found.tokens, "model", model=model.name, score=round(found.score, 4))


def _chosen(rule: AutoRule, looks: QuestionFeatures, facts: RequestFacts, max_tokens: int | None) -> LengthChoice:
    learned = rule.learned
    rules = rule.rules if rule.rules is not None else () if learned is not None else DEFAULT_RULES
    for one in rules:
        if _holds(one, looks, facts, max_tokens):
            return _choice(rule, looks, one.tokens, "rule", name=one.name)
    if learned is not None:
        return of_model(learned, looks, rule)
    return _choice(rule, looks, rule.default, "default")


def _holds(one: LengthRule, looks: QuestionFeatures, facts: RequestFacts, max_tokens: int | None) -> bool:
    if one.prompt is not None and one.prompt != looks.prompt:
        return False
    return one.when is None or one.when.why_not(facts, max_tokens) is None


def _choice(
    rule: AutoRule,
    looks: QuestionFeatures,
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
        prompt=looks.prompt,
        least=rule.min,
        stop_at=rule.stop_at,
        probe=rule.probe,
        rule=name,
        model=model,
        score=score,
        unguided=unguided,
    )


def _fitted(rule: AutoRule, chosen: LengthChoice, max_tokens: int | None) -> LengthChoice:
    """No more than half of the answer; and none where that would be too little to steer it."""
    if max_tokens is None or not chosen.tokens or chosen.tokens <= max_tokens // _SHARE_OF_ANSWER:
        return chosen
    tokens = max_tokens // _SHARE_OF_ANSWER
    if tokens < rule.min:
        return replace(chosen, tokens=0, unguided=TOO_SHORT)
    return replace(chosen, tokens=tokens)


def longest(rule: AutoRule, max_tokens: int) -> int:
    """More tokens than these the rule chooses for no request with this limit on its answer."""
    return min(rule.max, max_tokens // _SHARE_OF_ANSWER)
