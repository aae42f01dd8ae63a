"""What a finisher is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.student_request import build_student_request
from gateway.policy.resolve import StudentPlan
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion
from tests.accounting.drafts import plan

if TYPE_CHECKING:
    from gateway.protocol.requests import CompletionRequest


def _asked(*, raw: bool, **limits: int) -> CompletionRequest:
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
def test_an_engine_is_told_of_one_limit_which_is_the_one_that_was_reserved_for(
    raw: bool, limits: dict[str, int], field: str
) -> None:
    asked = _asked(raw=raw, **limits)
    body = build_student_request(plan("student"), StudentPlan("small", None), asked, UNGUIDED).body
    assert {name: body[name] for name in body if name not in {"model", "messages", "prompt"}} == {field: 100}
