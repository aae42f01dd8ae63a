"""The teacher's input for a plan, and the student's prompt with it."""

from __future__ import annotations

from typing import Any

from gateway.guidance.tool_plan import place_plan, plan_messages
from gateway.policy.projections import TOOL_PLAN
from gateway.policy.tool_plan import scope_of

FIND = {"name": "find", "description": "Find rows.", "parameters": {"type": "object"}, "strict": True}
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"name": "ham"}'}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
TASK = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "Find the ham."}]
TURN: list[dict[str, Any]] = [
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "Error: no such row"},
]


def read(messages: list[dict[str, Any]], **body: Any) -> Any:
    body = {"tools": [{"type": "function", "function": FIND}], "messages": messages, **body}
    found = plan_messages(TOOL_PLAN, body, scope_of(messages))
    assert [one["role"] for one in found] == ["user"]
    return found[0]["content"]


def test_the_teacher_reads_functions_and_the_chat_to_the_last_failure_as_text() -> None:
    later = [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {**TURN[1], "content": "one row"}]
    assert read([*TASK, *TURN, *later]) == (
        "Functions:\n"
        '{"name":"find","description":"Find rows.","parameters":{"type":"object"}}\n'
        "\nConversation:\n"
        "System: Be exact.\n"
        "User: Find the ham.\n"
        "Assistant: I look.\n"
        'Call: find {"name": "ham"}\n'
        "Result: Error: no such row\n"
        f"\n{TOOL_PLAN.instruction}"
    )


def test_later_turns_without_a_failure_do_not_change_what_the_teacher_reads() -> None:
    found = [*TURN[:1], {**TURN[1], "content": "one row"}]
    assert read(TASK) == read([*TASK, *found]) == read([*TASK, *found, *found])


def test_functions_of_the_earlier_api_and_unknown_tools_are_shown() -> None:
    called = {"role": "assistant", "content": None, "function_call": {"name": "find", "arguments": "{}"}}
    failed = {"role": "function", "name": "find", "content": "Error: x"}
    text = read([*TASK, called, failed], tools=None, functions=[FIND, {"type": "web_search"}])
    assert '{"name":"find","description":"Find rows.","parameters":{"type":"object"}}\n{"type":"web_search"}' in text
    assert "Call: find {}\nResult: Error: x" in text


def test_images_stay_in_their_place() -> None:
    content = [{"type": "text", "text": "Look:"}, IMAGE, {"type": "text", "text": "Find it."}]
    before, image, after = read([{"role": "user", "content": content}])
    assert before["text"].endswith("Conversation:\nUser: Look:")
    assert image == IMAGE
    assert after["text"].startswith("User: Find it.\n")


def test_the_plan_ends_the_message_that_begins_the_task_in_every_turn() -> None:
    messages = [*TASK, *TURN]
    placed = place_plan(TOOL_PLAN, messages, "1. find", scope_of(messages))
    assert placed[0] == TASK[0]
    assert placed[1]["content"] == "Find the ham.\n\n" + TOOL_PLAN.introduction.replace("{guidance}", "1. find")
    assert placed[2:] == TURN
    assert placed[:2] == place_plan(TOOL_PLAN, TASK, "1. find", scope_of(TASK))
    assert TASK[1]["content"] == "Find the ham."
