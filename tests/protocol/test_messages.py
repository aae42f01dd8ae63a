from __future__ import annotations

from typing import Any

import pytest

from gateway.protocol.messages import generated_text, only_text, text_of, with_text

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
TEXT = {"type": "text", "text": "Why?"}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("content", "before", "after"),
    [
        ("Why?", "X Why?", "Why?\n\nX"),
        ("", "X", "X"),
        (None, "X", "X"),
        ([TEXT, IMAGE], [{**TEXT, "text": "X Why?"}, IMAGE], [{**TEXT, "text": "Why?\n\nX"}, IMAGE]),
        ([IMAGE], [{"type": "text", "text": "X"}, IMAGE], [IMAGE, {"type": "text", "text": "X"}]),
    ],
)
def test_text_is_added_to_the_last_user_message(content: Any, before: Any, after: Any) -> None:
    """Before or after its text, in the text part nearest to that end."""
    chat = [user("Hi"), user(content), {"role": "tool", "content": "42", "tool_call_id": "t"}]
    assert with_text(chat, before="X") == [chat[0], user(before), chat[2]]
    assert with_text(chat, after="X") == [chat[0], user(after), chat[2]]
    assert chat[1] == user(content)


def test_a_chat_without_a_user_message_gets_one() -> None:
    """There is no other place for the text."""
    system = {"role": "system", "content": "Be brief."}
    assert with_text([system], after="X") == [system, user("X")]


@pytest.mark.parametrize(
    ("content", "only"),
    [("Why?", True), (None, True), ([TEXT], True), ([], True), ([TEXT, IMAGE], False), (["Why?"], False)],
)
def test_a_chat_is_only_text_when_all_of_its_parts_are(content: Any, *, only: bool) -> None:
    """An unknown part does not count as text."""
    assert only_text([user("Hi"), user(content)]) is only


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Why?", "Why?"),
        ("", ""),
        (None, None),
        (7, None),
        ([], None),
        ([IMAGE, {"type": "thinking", "text": "hm"}, {"type": "text"}, "?"], None),
        ([TEXT, IMAGE, TEXT], "Why?Why?"),
    ],
)
def test_text_of_content(content: Any, text: str | None) -> None:
    """In one part or several; other parts are skipped."""
    assert text_of(content) == text


@pytest.mark.parametrize("arguments", ['{"a":1}', {"a": 1}])
def test_all_generated_text_is_charged(arguments: Any) -> None:
    """Arguments of a call too, which some engines send as an object. Other types are no text."""
    call = {"function": {"name": "f", "arguments": arguments}}
    message = {"content": "a", "reasoning": "b", "refusal": "c", "tool_calls": [call, "g"], "function_call": None}
    assert generated_text(message) == 'abcf{"a":1}'
    assert generated_text({"content": "a", "reasoning": ["b"], "tool_calls": {}}) == "a"
