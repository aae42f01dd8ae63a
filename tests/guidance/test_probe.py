"""What engines tell of a first token, in the shapes in which they do."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.guidance.probe import FirstToken, probe_body, read_first
from gateway.policy.length_rules import ProbeRule
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion

HALF = math.log(0.5)


def chat(*logprobs: Any, own: Any = HALF) -> dict[str, Any]:
    """As chats tell it; without other tokens only the one that was taken."""
    top = [{"token": str(index), "logprob": one} for index, one in enumerate(logprobs)]
    return {"content": [{"token": "0", "logprob": own, "top_logprobs": top}]}


@pytest.mark.parametrize(
    ("told", "p1"),
    [
        (chat(HALF, math.log(0.3)), 0.5),
        (chat(math.log(0.3), HALF), 0.5),
        (chat(0.0001), 1.0),
        (chat(own=math.log(0.9)), 0.9),
        ({"tokens": ["a"], "token_logprobs": [HALF], "top_logprobs": [{"a": HALF, "b": math.log(0.1)}]}, 0.5),
        ({"tokens": ["a"], "token_logprobs": [HALF], "top_logprobs": None}, 0.5),
    ],
)
def test_the_likeliest_token_is_found_in_every_shape(told: Any, p1: float) -> None:
    found = read_first(told)
    assert found is not None
    assert found.p1 == pytest.approx(p1)


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        {},
        {"content": None},
        {"content": []},
        {"content": ["x"]},
        chat(None),
        chat("-0.1"),
        chat(True),
        chat(3.5),
        chat(-math.inf),
        chat(math.nan),
        chat(own=None),
        {"top_logprobs": [{}], "token_logprobs": []},
    ],
)
def test_what_tells_no_probability_is_no_word_of_the_student(told: Any) -> None:
    assert read_first(told) is None


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=5))
def test_probabilities_make_an_entropy_that_can_be(weights: list[float]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    found = read_first(chat(*map(math.log, shares)))
    assert found is not None
    assert found.p1 == pytest.approx(max(shares))
    assert -1e-9 <= found.entropy <= math.log(len(weights) + 1) + 1e-9


def test_sure_is_who_has_one_likely_token_or_where_the_rule_says_so_little_doubt() -> None:
    assert FirstToken(0.9, 1.0).is_confident(ProbeRule())
    assert not FirstToken(0.89, 0.1).is_confident(ProbeRule())
    assert FirstToken(0.5, 0.3).is_confident(ProbeRule(entropy=0.3))


def test_the_student_is_asked_the_callers_question_for_one_token() -> None:
    """Nothing of it is streamed, drawn or written in several ways; what is asked for is the caller's otherwise."""
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "Why?"}],
        "max_completion_tokens": 90,
        "temperature": 1.2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 2,
        "post_sampling_probs": True,
        "grammar": "root ::= x",
        "unknown": 1,
        "user": "ann",
    }
    asked = parse_chat(orjson.dumps(body))
    assert probe_body(asked, "none", 5) == {
        "model": "chat",
        "messages": body["messages"],
        "user": "ann",
        "max_completion_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 5,
    }
    assert asked.body == body
    raw = parse_text_completion(orjson.dumps({"model": "chat", "prompt": "Q: Why?\nA:", "max_tokens": 9}))
    assert probe_body(raw, "none", 3) == {
        "model": "chat",
        "prompt": "Q: Why?\nA:",
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 3,
    }
