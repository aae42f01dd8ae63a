from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.text import TextRequest, parse_text_completion

LEAST: dict[str, Any] = {"model": "m", "prompt": "Q: Why?\nA:"}


def rejection(raw: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_text_completion(raw)
    assert caught.value.status == 400
    return caught.value


def parsed(**fields: Any) -> TextRequest:
    return parse_text_completion(orjson.dumps({**LEAST, **fields}))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"text"', b"\xff"])
def test_a_body_that_is_no_json_object_names_no_field(raw: bytes) -> None:
    """There is no field to name; the message contains the required fields."""
    error = rejection(raw)
    assert error.param is None
    assert "JSON object with 'model' and 'prompt'" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"prompt": None, "messages": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": True}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [1, [1]]}, "prompt[1]"),
        ({"prompt": ["a", None]}, "prompt[1]"),
        ({"prompt": [1, 1.5]}, "prompt[1]"),
        ({"prompt": [1, True]}, "prompt[1]"),
        ({"prompt": [1, -1]}, "prompt[1]"),
        ({"prompt": [1, 2**31]}, "prompt[1]"),
        ({"prompt": [1, 10**30]}, "prompt[1]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [[1], [1, -5]]}, "prompt[1][1]"),
        ({"prompt": [[1], ["a"]]}, "prompt[1][0]"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 128}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"echo": "yes"}, "echo"),
        ({"suffix": 5}, "suffix"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": "0"}, "frequency_penalty"),
        ({"seed": "7"}, "seed"),
        ({"stop": ["1", "2", "3", "4", "5"]}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"logit_bias": []}, "logit_bias"),
        ({"user": 5}, "user"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options.include_usage"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    """In the error's `param` and message, as for a chat."""
    error = rejection(_dumped({**LEAST, **fields}))
    assert error.param == param
    assert error.message.startswith(f"'{param}'")
    assert "`" not in error.message


def _dumped(body: dict[str, Any]) -> bytes:
    import json

    return json.dumps(body).encode()  # orjson does not encode integers of more than 64 bits


def test_a_missing_model_is_named() -> None:
    error = rejection(orjson.dumps({"prompt": "Q: Why?"}))
    assert (error.param, error.message) == ("model", "'model' is required.")


def test_a_minimal_body_has_the_defaults() -> None:
    """Every default means absence."""
    assert parsed() == TextRequest(
        body=LEAST, model="m", prompt="Q: Why?\nA:", choices=1, max_tokens=None, stop=(), stream=False,
        wants_usage=False, size_bytes=len(orjson.dumps(LEAST)),
    )  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": " "},
        {"prompt": ["a", "b"]},
        {"prompt": [0, 50256]},
        {"prompt": [[0], [1, 2]]},
        {"max_tokens": None, "n": None, "best_of": None, "echo": None, "suffix": None, "logprobs": None, "stop": None},
        {"max_tokens": 0, "echo": True, "logprobs": 0},
        {"n": 2, "best_of": 2, "stream": True},
        {"n": 2, "best_of": 5},
        {"temperature": 0, "top_p": 1, "unknown": {"a": [1, None]}, "top_k": 40, "user": "日本 😀"},
        {"stream": True, "stream_options": {"include_usage": True}},
    ],
)
def test_a_good_body_is_kept_verbatim(fields: dict[str, Any]) -> None:
    """Including unknown fields and all digits."""
    raw = orjson.dumps({**LEAST, **fields})
    text = parse_text_completion(raw)
    assert orjson.dumps(text.body) == raw
    assert text.size_bytes == len(raw)


@pytest.mark.parametrize(
    ("fields", "prompt", "choices"),
    [
        ({}, "Q: Why?\nA:", 1),
        ({"prompt": ["one"]}, "one", 1),
        ({"prompt": ["one", "two"]}, None, 2),
        ({"prompt": ["one", "two"], "n": 3}, None, 6),
        ({"prompt": [1, 2, 3]}, None, 1),
        ({"prompt": [[1, 2]]}, None, 1),
        ({"prompt": [[1], [2]]}, None, 2),
        ({"n": 2}, "Q: Why?\nA:", 2),
        ({"best_of": 2}, "Q: Why?\nA:", 1),
    ],
)
def test_prompts_and_answers_are_counted(fields: dict[str, Any], prompt: str | None, choices: int) -> None:
    """A teacher can read only a single prompt of text."""
    text = parsed(**fields)
    assert (text.prompt, text.choices) == (prompt, choices)


def test_stop_and_limit_are_read_as_for_a_chat() -> None:
    """Under the names of this route."""
    text = parsed(stop=["x", "", "y"], max_tokens=7, stream=True, stream_options={"include_usage": True})
    assert (text.stop, text.max_tokens, text.limit_field, text.wants_usage) == (("x", "y"), 7, "max_tokens", True)


@pytest.mark.parametrize("prompt", ["", [""], ["a", ""]])
def test_a_prompt_may_be_empty(prompt: Any) -> None:
    request = parsed(prompt=prompt)
    assert (request.body["prompt"], request.has_empty_prompt) == (prompt, True)


@pytest.mark.parametrize("raw", [b'{"model": "m"}', b'{"model": "m", "prompt": null}'])
def test_a_missing_prompt_is_empty(raw: bytes) -> None:
    """Engines reject null, and treat an empty text as the beginning of a document."""
    request = parse_text_completion(raw)
    assert (request.body["prompt"], request.prompt, request.choices) == ("", "", 1)
