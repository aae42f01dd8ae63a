"""The probabilities of a first token, in the formats of the engines."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pipeline.confidence_probe import FirstToken, probe_body, read_first
from gateway.policy.length import ProbeRule
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion

HALF = math.log(0.5)


def chat(*logprobs: Any, own: Any = HALF) -> dict[str, Any]:
    """Return logprobs in the format of chats, of the sampled token alone if there are no others."""
    top = [{"token": str(index), "logprob": one} for index, one in enumerate(logprobs)]
    return {"content": [{"token": "0", "logprob": own, "top_logprobs": top}]}


@pytest.mark.parametrize(
    ("logprobs", "p1"),
    [
        (chat(HALF, math.log(0.3)), 0.5),
        (chat(math.log(0.3), HALF), 0.5),
        (chat(0.0001), 1.0),
        (chat(own=math.log(0.9)), 0.9),
        ({"tokens": ["a"], "token_logprobs": [HALF], "top_logprobs": [{"a": HALF, "b": math.log(0.1)}]}, 0.5),
        ({"tokens": ["a"], "token_logprobs": [HALF], "top_logprobs": None}, 0.5),
    ],
)
def test_the_most_likely_token_is_read_from_every_format(logprobs: Any, p1: float) -> None:
    first = read_first(logprobs)
    assert first is not None
    assert first.p1 == pytest.approx(p1)


@pytest.mark.parametrize(
    "logprobs",
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
def test_logprobs_without_a_probability_are_ignored(logprobs: Any) -> None:
    assert read_first(logprobs) is None


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=5))
def test_the_entropy_is_within_its_bounds(weights: list[float]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    first = read_first(chat(*map(math.log, shares)))
    assert first is not None
    assert first.p1 == pytest.approx(max(shares))
    assert -1e-9 <= first.entropy <= math.log(len(weights) + 1) + 1e-9


def test_confidence_depends_on_the_probability_or_the_entropy() -> None:
    assert FirstToken(0.9, 1.0).is_confident(ProbeRule())
    assert not FirstToken(0.89, 0.1).is_confident(ProbeRule())
    assert FirstToken(0.5, 0.3).is_confident(ProbeRule(entropy=0.3))


def test_the_probe_requests_one_token_of_the_callers_question() -> None:
    """The probe is not streamed, sampled or repeated. The other fields that matter are the caller's."""
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
    request = parse_chat(orjson.dumps(body))
    assert probe_body(request, "none", 5) == {
        "model": "chat",
        "messages": body["messages"],
        "user": "ann",
        "max_completion_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 5,
    }
    assert request.body == body
    raw = parse_text_completion(orjson.dumps({"model": "chat", "prompt": "Q: Why?\nA:", "max_tokens": 9}))
    assert probe_body(raw, "none", 3) == {
        "model": "chat",
        "prompt": "Q: Why?\nA:",
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 3,
    }
