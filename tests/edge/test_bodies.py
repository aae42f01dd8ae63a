"""Request bodies for the gateway and for the student."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.edge import bodies
from gateway.edge.errors import GatewayAway
from gateway.edge.link import EdgeGuidance
from gateway.policy.constraints import placements
from gateway.protocol.capabilities.continuation import Continuation

MESSAGES = [{"role": "user", "content": "Why?"}]
TRAILING = Continuation("trailing", echo=False)


def test_only_fields_that_affect_guidance_leave_the_device() -> None:
    body = {
        "messages": MESSAGES,
        "stop": "X",
        "max_tokens": 9,
        "temperature": 1,
        "user": "me",
        "n": None,
        "logit_bias": {},
    }
    assert bodies.guidance_body(body, "chat", stream=False) == {
        "model": "chat", "messages": MESSAGES, "stop": "X", "max_tokens": 9,
    }  # fmt: skip


@pytest.mark.parametrize("tags", [["team:a", "b", "not a tag"], "team:a, b,not a tag"])
def test_the_gateway_gets_tags_and_no_other_metadata(tags: object) -> None:
    body = {"messages": [], "metadata": {"tags": tags, "user": "ann"}}
    assert bodies.guidance_body(body, "chat", stream=False)["metadata"] == {"tags": ["team:a", "b"]}
    assert "metadata" not in bodies.guidance_body({**body, "metadata": {"user": "ann"}}, "chat", stream=False)


def test_the_gateway_gets_constraints_and_the_presence_of_unknown_fields() -> None:
    """Without the constraint, the teacher could write guidance that violates it. Unknown names stay on the device."""
    body = {"messages": MESSAGES, "grammar": "g", "nvext": {"ignore_eos": True, "top_k": 5}, "secret": 1}
    body_sent = bodies.guidance_body(body, "chat", stream=False)
    assert body_sent == {
        "model": "chat", "messages": MESSAGES, "grammar": "g", "nvext": {"ignore_eos": True}, "unlisted_fields": True,
    }  # fmt: skip
    assert placements(body_sent, "chat") == placements(body, "chat")


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_students_limit_is_the_remaining_one_in_the_callers_field(field: str) -> None:
    guidance = EdgeGuidance("req_1", "Because", kept_tokens=5, most_output_tokens=7)
    sent = bodies.guided_request({"messages": MESSAGES, field: 12}, guidance, "none", TRAILING)
    assert ({name: sent.body[name] for name in sent.body if "tokens" in name}, sent.limit) == ({field: 7}, 7)


def test_a_student_that_repeats_the_guidance_has_tokens_for_it() -> None:
    guidance = EdgeGuidance("req_1", "Because", kept_tokens=5, most_output_tokens=7)
    sent = bodies.guided_request({"messages": MESSAGES, "max_tokens": 12}, guidance, "none", Continuation("instruct"))
    assert (sent.body["max_tokens"], sent.written_again, sent.limit) == (12, 5, 7)


def test_a_limit_of_the_routes_holds_for_an_answer_alone_too() -> None:
    assert bodies.unguided_request({"messages": MESSAGES}, 64).body["max_tokens"] == 64
    assert bodies.unguided_request({"messages": MESSAGES, "n": 2}, 64).body["max_tokens"] == 32
    assert "max_tokens" not in bodies.unguided_request({"messages": MESSAGES}).body


@pytest.mark.parametrize("broken", [None, [], {}, {"guidance": {}}, {"guidance": "text", "receipt": 1}])
def test_an_invalid_guidance_reply_is_no_guidance(broken: Any) -> None:
    with pytest.raises(GatewayAway) as away:
        EdgeGuidance.read(broken)
    assert away.value.reason == "gateway_garbled"


def test_the_plan_is_optional_without_guidance() -> None:
    guidance = {"text": "", "placement": None, "projection": None, "kept_tokens": 0, "finish_reason": None, "seam": {}}
    reply = {
        "guidance": guidance,
        "messages": None,
        "unguided": "tools",
        "receipt": "req_1",
        "close": {"by": 1, "most_output_tokens": None},
    }
    assert EdgeGuidance.read(reply).unguided == "tools"
