"""The task engine: its turns, and the requests that it rejects."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest

from tests.clients.task_engine import TaskEngine, ToolCall, Turn, objection_to
from tests.fakes import FakeEngine

USER = {"role": "user", "content": "Please do task 7 now."}
TOOL = {"type": "function", "function": {"name": "shell", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "shell", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "done"}


def test_the_turn_is_that_of_the_conversation_whole_and_streamed() -> None:
    """The first request gets the call, the second the answer, a repeated one the same reply."""
    tasks = TaskEngine()
    tasks.scripts["task 7"] = (Turn(calls=(ToolCall("shell", {"command": "ls -la"}),)), Turn("All done."))
    with FakeEngine(tasks.handler()).running() as engine, httpx.Client(base_url=f"{engine.url}/v1") as client:

        def ask(*messages: dict[str, Any], **more: Any) -> httpx.Response:
            body = {"model": "m", "messages": messages, "tools": [TOOL], **more}
            return client.post("/chat/completions", json=body)

        choice = ask(USER).json()["choices"][0]
        assert ask(USER).json()["choices"][0] == choice
        assert choice["finish_reason"] == "tool_calls"
        called = choice["message"]["tool_calls"]
        assert [call["function"] for call in called] == [{"name": "shell", "arguments": '{"command":"ls -la"}'}]
        streamed = _events(ask(USER, stream=True, stream_options={"include_usage": True}).text)
        pieces = [
            part for event in streamed for choice in event["choices"] for part in choice["delta"].get("tool_calls", [])
        ]
        assert "".join(part["function"]["arguments"] for part in pieces) == '{"command":"ls -la"}'
        assert [part["id"] for part in pieces if "id" in part] == [called[0]["id"]]
        assert streamed[-1]["usage"]["completion_tokens"] > 0
        answered = ask(USER, {**CALLING, "tool_calls": called}, {**RESULT, "tool_call_id": called[0]["id"]}).json()
        assert answered["choices"][0]["message"]["content"] == "All done."
        assert answered["choices"][0]["finish_reason"] == "stop"
        refused = ask(USER, RESULT)
        assert refused.status_code == 400
        assert tasks.rejections == [refused.json()["error"]["message"]]


def _events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [orjson.loads(line) for line in lines[:-1]]


def test_a_valid_conversation_with_tools_has_no_objection() -> None:
    """A call, its result, and a further question."""
    assert objection_to({"messages": [USER, CALLING, RESULT, USER], "tools": [TOOL], "tool_choice": "auto"}) is None


@pytest.mark.parametrize(
    ("body", "objection"),
    [
        ({"messages": [USER], "input": "text"}, "Unrecognized request arguments supplied: input"),
        ({"messages": [USER], "tools": [{"type": "custom", "name": "patch"}]}, r"Invalid 'tools\[0\]'"),
        ({"messages": [USER], "tools": [TOOL, TOOL]}, "Tool names must be unique"),
        ({"messages": [USER], "tool_choice": "auto"}, "only allowed when 'tools' are specified"),
        (
            {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "Tool choice 'x' not found",
        ),
        ({"messages": [{"role": "latest_reminder", "content": "x"}]}, r"Invalid value for 'messages\[0\].role'"),
        ({"messages": [USER, RESULT]}, r"'messages\[1\]' must be a response"),
        ({"messages": [USER, CALLING, USER]}, r"without a response before 'messages\[2\]': c1"),
        ({"messages": [USER, CALLING]}, "without a response: c1"),
        ({"messages": [{"role": "user", "content": None}]}, r"Invalid value for 'messages\[0\].content'"),
        (
            {"messages": [{**CALLING, "tool_calls": [{**CALL, "function": {"name": "x", "arguments": "*** Begin"}}]}]},
            r"Invalid 'messages\[0\].tool_calls'",
        ),
    ],
)
def test_an_invalid_request_has_an_objection(body: dict[str, Any], objection: str) -> None:
    """The objection names the field."""
    with pytest.raises(AssertionError, match=objection):
        assert objection_to(body) is None, objection_to(body)
