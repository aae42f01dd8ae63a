"""Guidance length per request: by rules or by a model, and within the caller's limit."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.capabilities.continuation import Continuation
from gateway.policy.length import BY_RULE, TOO_SHORT, AutoRule, choose_length
from gateway.policy.length_model import PredictedLength
from gateway.policy.plan import EngineSnapshot, Plan
from gateway.policy.question_features import FEATURES, features_of
from gateway.policy.resolve import resolve
from gateway.policy.schema import GuidanceRule, TenantPolicy
from gateway.protocol.chat import ChatRequest, parse_chat
from gateway.protocol.text import parse_text_completion

WORDS = "Tom buys 3 apples at $2 each. How much does he pay in total?"


def request(text: str = WORDS, **more: Any) -> ChatRequest:
    return parse_chat(orjson.dumps({"model": "chat", "messages": [{"role": "user", "content": text}], **more}))


def planned(chat: ChatRequest, headers: dict[str, str] | None = None, **auto: Any) -> Plan:
    route = {
        "model": "chat",
        "mode": "guided",
        "teacher": "big",
        "student": "small",
        "guidance": {"tokens": "auto", "auto": auto},
        "overrides": {"guidance_tokens": 100},
    }
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    snapshot = EngineSnapshot(Continuation("trailing"))
    return resolve(policy, policy.routes[0], chat, lambda _: snapshot, headers=headers or {})


@pytest.mark.parametrize(
    ("text", "prompt", "tokens"),
    [
        (WORDS, "maths", 60),
        ("Where do fish live?\nA) sea\nB) tree\nC) shelf", "choice", 30),
        ("Where do fish live? Choices: (a) sea (b) tree", "choice", 30),
        ("Why does this fail?\n```\nprint(1\n```", "code", 40),
        ("List three uses of salt.", "list", 40),
        ("Why is the sky blue?", "other", 40),
        ("Write a poem", "other", 40),
        ("Thanks a lot!", "trivial", 0),
    ],
)
def test_plain_auto_distinguishes_kinds_of_questions(text: str, prompt: str, tokens: int) -> None:
    chosen = choose_length(AutoRule(), request(text), None, {})
    assert (chosen.prompt, chosen.tokens) == (prompt, tokens)
    assert chosen.by == ("default" if chosen.rule is None else "rule")
    assert chosen.unguided == (None if tokens else BY_RULE)


@pytest.mark.parametrize(
    ("max_tokens", "tokens", "unguided"),
    [(None, 60, None), (120, 60, None), (119, 59, None), (32, 16, None), (31, 0, TOO_SHORT)],
)
def test_guidance_is_at_most_half_of_the_callers_limit(
    max_tokens: int | None, tokens: int, unguided: str | None
) -> None:
    """Below the minimum length there is no guidance: the teacher would generate the whole answer."""
    chosen = choose_length(AutoRule(), request(), max_tokens, {})
    assert (chosen.tokens, chosen.unguided) == (tokens, unguided)


@given(
    text=st.text(max_size=300).filter(str.strip) | st.sampled_from([WORDS, "Hi", "A) x B) y", "```"]),
    bounds=st.tuples(st.integers(1, 100), st.integers(0, 100)),
    max_tokens=st.none() | st.integers(1, 400),
)
def test_the_length_is_within_its_bounds_for_any_request(
    text: str, bounds: tuple[int, int], max_tokens: int | None
) -> None:
    least, most = bounds[0], bounds[0] + bounds[1]
    chosen = choose_length(AutoRule(min=least, max=most), request(text), max_tokens, {})
    assert chosen.tokens == 0 or least <= chosen.tokens <= most
    assert max_tokens is None or chosen.tokens <= max_tokens // 2
    assert (chosen.unguided is None) == (chosen.tokens > 0)
    assert choose_length(AutoRule(min=least, max=most), request(text), max_tokens, {}) == chosen


@given(text=st.text(max_size=5000).filter(str.strip), max_tokens=st.none() | st.integers(1, 10**6))
def test_every_text_has_as_many_finite_features(text: str, max_tokens: int | None) -> None:
    numbers = features_of(request(text), max_tokens).numbers
    assert len(numbers) == len(FEATURES)
    assert all(0 <= number <= 20 for number in numbers)


def test_only_the_last_question_determines_the_length() -> None:
    """Earlier messages do not count, since they do not show how hard the question is."""
    before = [{"role": "user", "content": WORDS}, {"role": "assistant", "content": "6"}]
    chat = parse_chat(orjson.dumps({"model": "x", "messages": [*before, {"role": "user", "content": "Thanks!"}]}))
    assert features_of(chat, None).prompt == "trivial"
    raw = parse_text_completion(orjson.dumps({"model": "x", "prompt": f"Q: {WORDS}\nA: 6\n\nQ: Why so?\nA:"}))
    assert features_of(raw, None).prompt == "other"


def test_rules_of_a_policy_come_in_their_order_and_read_the_question_and_headers() -> None:
    own = [
        {"name": "team", "when": {"header": {"x-team": "blue"}}, "tokens": 20},
        {"name": "apples", "when": {"contains": "APPLES"}, "tokens": 50},
        {"name": "rest", "prompt": "maths", "tokens": 0},
    ]
    plan = planned(request(), {"x-team": "blue"}, rules=own)
    assert plan.length is not None
    assert plan.guidance is not None
    assert (plan.length.rule, plan.guidance.tokens) == ("team", 20)
    plan = planned(request(), rules=own)
    assert plan.length is not None
    assert plan.length.rule == "apples"
    plan = planned(request("What is 3 plus 4 in total?"), rules=own)
    assert (plan.guidance, plan.unguided) == (None, BY_RULE)
    system = [{"role": "system", "content": "Apples."}, {"role": "user", "content": "Why?"}]
    chat = parse_chat(orjson.dumps({"model": "chat", "messages": system}))
    plan = planned(chat, rules=own)
    assert plan.length is not None
    assert plan.length.by == "default", "what stands before the question is not looked at"


def test_a_callers_number_overrides_auto() -> None:
    plan = planned(request(max_tokens=200), {"x-gkt-guidance-tokens": "90"})
    assert plan.guidance is not None
    assert (plan.guidance.tokens, plan.length) == (90, None)


def test_the_route_promises_no_more_than_its_most() -> None:
    """Engines and queues are configured for the longest possible guidance."""
    assert GuidanceRule().max_tokens == 40
    assert GuidanceRule.model_validate({"tokens": "auto"}).max_tokens == 80
    assert GuidanceRule.model_validate({"tokens": "auto", "auto": {"max": 30}}).auto.default == 30


class ConstantLength:
    """A length model with a constant prediction."""

    name = "constant.1"

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def predict(self, numbers: Any) -> PredictedLength:
        assert len(numbers) == len(FEATURES)
        return PredictedLength(self.tokens, 0.75)


@pytest.mark.parametrize(("prediction", "tokens"), [(0, 0), (8, 16), (40, 40), (400, 80)])
def test_a_models_prediction_is_limited_to_the_bounds(prediction: int, tokens: int) -> None:
    chosen = choose_length(AutoRule().with_length_model(ConstantLength(prediction)), request(), None, {})
    assert (chosen.tokens, chosen.by, chosen.model, chosen.score) == (tokens, "model", "constant.1", 0.75)


def test_a_policys_rules_go_before_a_model_and_the_built_in_ones_do_not() -> None:
    assert choose_length(AutoRule().with_length_model(ConstantLength(40)), request("Hi"), None, {}).by == "model"
    own = AutoRule.model_validate({"rules": [{"name": "hi", "prompt": "trivial", "tokens": 0}]}).with_length_model(
        ConstantLength(40)
    )
    assert choose_length(own, request("Hi"), None, {}).rule == "hi"
    assert choose_length(own, request(), None, {}).by == "model"
