"""The request that a student gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.student_request import build_student_request
from gateway.policy.plan import StudentPlan
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
        (False, {"max_tokens": 100_000, "max_completion_tokens": 7}, "max_completion_tokens"),
        (True, {"max_tokens": 7, "max_completion_tokens": 100_000}, "max_tokens"),
        (True, {}, "max_tokens"),
    ],
)
def test_the_request_contains_only_the_reserved_token_limit(raw: bool, limits: dict[str, int], field: str) -> None:
    request = _request(raw=raw, **limits)
    body = build_student_request(plan("student"), StudentPlan("small", None), request, UNGUIDED).body
    assert {name: body[name] for name in body if name not in {"model", "messages", "prompt"}} == {field: 100}
