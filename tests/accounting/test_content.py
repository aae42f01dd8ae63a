"""The log contains the text of requests where the tenant enables it, up to a size limit."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.accounting.content import MAX_BYTES, LoggedContent


def content(**body: Any) -> LoggedContent:
    return LoggedContent(SimpleNamespace(body=body))  # type: ignore[arg-type]


def whole(text: Any, **message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text, **message}}]}


def chunk(index: int = 0, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta}]}


def test_messages_are_logged_unchanged() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "é"}]},
    ]
    assert json.loads(content(messages=messages).as_dict()["request"]) == messages


@pytest.mark.parametrize(
    ("body", "logged_input"),
    [
        ({"prompt": "Once upon"}, "Once upon"),
        ({"prompt": ["a", "b"]}, '["a", "b"]'),
        ({"input": [[1, 2], [3]]}, "[[1, 2], [3]]"),
        ({"prompt": None}, "null"),
    ],
)
def test_prompts_and_inputs_are_logged_unchanged(body: dict[str, Any], logged_input: str) -> None:
    assert content(**body).as_dict() == {"request": logged_input, "answer": ""}


def test_a_stream_is_put_together() -> None:
    logged = content(prompt="x")
    logged.add([chunk(role="assistant", content="A ship"), chunk(content=" sails")])
    logged.add([chunk(content=".")])
    logged.add([{"choices": [], "usage": {}}])
    assert logged.as_dict()["answer"] == "A ship sails."


def test_a_text_completion_is_logged() -> None:
    logged = content(prompt="x")
    logged.add([{"choices": [{"index": 0, "text": "A ship"}]}, {"choices": [{"index": 0, "text": " sails."}]}])
    assert logged.as_dict()["answer"] == "A ship sails."


def test_thoughts_refusals_and_calls_of_tools_are_part_of_an_answer() -> None:
    calls = [{"index": 0, "function": {"name": "look", "arguments": '{"at": 1}'}}]
    logged = content(prompt="x")
    logged.add([whole("Well.", reasoning_content="Hm.", tool_calls=calls)])
    assert logged.as_dict()["answer"] == '(thinks) Hm.\n(answers) Well.\n(calls) look {"at": 1}'
    refused = content(prompt="x")
    refused.add([whole(None, refusal="No.")])
    assert refused.as_dict()["answer"] == "(refuses) No."


def test_several_choices_are_logged_separately() -> None:
    logged = content(prompt="x")
    logged.add([chunk(1, content="b"), chunk(0, content="a"), chunk(1, content="B")])
    assert logged.as_dict()["answer"] == "(choice 0) a\n(choice 1) bB"


@pytest.mark.parametrize("letter", ["x", "é", "\N{GRINNING FACE}"])
def test_request_and_answer_are_truncated_and_marked(letter: str) -> None:
    long = letter * 50_000
    for logged_input in (content(prompt=long), content(messages=[{"role": "user", "content": long}, {"role": "user"}])):
        for _ in range(5):
            logged_input.add([chunk(content=long[:10_000])])
        for text in logged_input.as_dict().values():
            assert len(text.encode()) < MAX_BYTES + 100
            assert text.endswith(" characters left out)") or '"role": "user"' in text
            assert " characters left out)" in text
    left = logged_input.as_dict()["answer"].rpartition("(")[2]
    assert int(left.split()[0]) == 50_000 - logged_input.as_dict()["answer"].count(letter)


def test_an_image_does_not_displace_later_text() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}},
        {"type": "text", "text": "What is this?"},
    ]
    logged_input = content(messages=[{"role": "user", "content": parts}]).as_dict()["request"]
    assert "What is this?" in logged_input
    assert len(logged_input) < 500


def test_many_parts_and_deep_values_are_truncated() -> None:
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    for raw in (list(range(1_000_000)), ["" for _ in range(1_000_000)], {str(n): n for n in range(100_000)}, deep):
        assert len(content(input=raw).as_dict()["request"].encode()) < MAX_BYTES + 100


def test_text_that_is_no_unicode_can_be_written() -> None:
    logged = content(prompt="\ud800")
    logged.add([whole("\udfff")])
    assert logged.as_dict() == {"request": "?", "answer": "?"}
