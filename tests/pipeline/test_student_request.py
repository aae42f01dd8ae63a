"""The request that a student gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from msgspec import structs

from gateway.pipeline.guidance_request import UNGUIDED, Guidance
from gateway.pipeline.student_request import build_student_request
from gateway.policy.plan import StudentPlan
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion
from tests.accounting.receipt_builders import plan

if TYPE_CHECKING:
    from gateway.protocol.requests import CompletionRequest


def _request(*, raw: bool, **limits: int) -> CompletionRequest:
    if raw:
        return parse_text_completion(orjson.dumps({"model": "chat", "prompt": "Hello", **limits}))
    messages = [{"role": "user", "content": "Hello"}]
    return parse_chat(orjson.dumps({"model": "chat", "messages": messages, **limits}))


@pytest.mark.parametrize(
    ("raw", "limits", "field"),
    [
        (False, {}, "max_tokens"),
        (False, {"max_completion_tokens": 7}, "max_completion_tokens"),
        (True, {"max_tokens": 7, "max_completion_tokens": 100_000}, "max_tokens"),
        (True, {}, "max_tokens"),
    ],
)
def test_the_request_contains_only_the_reserved_token_limit(raw: bool, limits: dict[str, int], field: str) -> None:
    request = _request(raw=raw, **limits)
    body = build_student_request(plan("student"), StudentPlan("small", None), request, UNGUIDED).body
    assert {name: body[name] for name in body if name not in {"model", "messages", "prompt"}} == {field: 100}


@pytest.mark.parametrize(
    ("guidance", "mode", "least"),
    [
        (Guidance("So the", tokens=5), "vllm", 25),
        (Guidance("So the", tokens=40), "vllm", 0),
        (Guidance("So the", tokens=5), "instruct", 30),  # the student writes the guidance again
        (UNGUIDED, "vllm", 30),
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_the_tokens_of_the_guidance_count_toward_min_tokens(
    guidance: Guidance, mode: Any, least: int, *, raw: bool
) -> None:
    request = _request(raw=raw, min_tokens=30)
    guided = plan()
    assert guided.guidance is not None
    guided = structs.replace(guided, guidance=structs.replace(guided.guidance, constraints={"min_tokens": 30}))
    student = StudentPlan("small", Continuation(mode))
    assert build_student_request(guided, student, request, guidance).body["min_tokens"] == least
    assert request.body["min_tokens"] == 30
