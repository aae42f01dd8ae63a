"""Constraints and prefilled answers with a real llama.cpp student, as JSON and as streams, through the OpenAI SDK."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from openai import OpenAI

from tests.gateway_process import KEY, GatewayProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.models

QUESTION = "Is the sky green? Explain."
CHAT: list[Any] = [{"role": "user", "content": QUESTION}]
SCHEMA = {
    "type": "object",
    "properties": {"green": {"type": "boolean"}},
    "required": ["green"],
    "additionalProperties": False,
}


def is_yes_or_no(text: str) -> bool:
    return text in {"yes", "no"}


def is_of_the_schema(text: str) -> bool:
    return isinstance(json.loads(text)["green"], bool)


def is_an_object(text: str) -> bool:
    return isinstance(json.loads(text), dict)


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def ask(client: OpenAI, model: str, messages: list[Any] = CHAT, *, stream: bool, **more: Any) -> tuple[Any, str]:
    """Return the headers and the text of the answer."""
    request: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": 40, "temperature": 0} | more
    if not stream:
        raw = client.chat.completions.with_raw_response.create(**request)
        return raw.headers, raw.parse().choices[0].message.content or ""
    chunks = client.chat.completions.create(**request, stream=True)
    return chunks.response.headers, "".join(part.choices[0].delta.content or "" for part in chunks if part.choices)


@pytest.mark.long
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("model", "mode"), [("chat", "student"), ("chat-context", "guided")])
@pytest.mark.parametrize(
    ("fields", "holds"),
    [
        ({"extra_body": {"grammar": 'root ::= "yes" | "no"'}}, is_yes_or_no),
        ({"extra_body": {"json_schema": SCHEMA}}, is_of_the_schema),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "sky", "schema": SCHEMA}}},
            is_of_the_schema,
        ),
    ],
    ids=["grammar", "json_schema", "response_format"],
)
def test_an_answer_satisfies_its_grammar(
    client: OpenAI, fields: dict[str, Any], holds: Callable[[str], bool], model: str, mode: str, *, stream: bool
) -> None:
    """Guidance is only in the prompt, so the student writes the answer from its first token on."""
    headers, text = ask(client, model, stream=stream, **fields)
    assert holds(text)
    assert headers["x-gkt-mode"] == mode


@pytest.mark.long
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["chat", "chat-context"])
def test_a_forbidden_word_is_nowhere_in_the_answer(client: OpenAI, model: str, *, stream: bool) -> None:
    """The teacher's opening would begin with the forbidden word."""
    _, teachers = ask(client, "chat-teacher", stream=False, max_tokens=4)
    word = teachers.split()[0].rstrip(",.")
    _, text = ask(client, model, stream=stream, logit_bias={word: -100, f" {word}": -100})
    assert text
    assert word not in text.split()


@pytest.mark.parametrize("stream", [False, True])
def test_a_raw_prompts_grammar_holds(client: OpenAI, *, stream: bool) -> None:
    request: Any = {"model": "chat", "prompt": f"Q: {QUESTION}\nA:", "max_tokens": 8, "temperature": 0}
    request["extra_body"] = {"grammar": 'root ::= " yes" | " no"'}
    if stream:
        text = "".join(
            part.choices[0].text for part in client.completions.create(**request, stream=True) if part.choices
        )
    else:
        raw = client.completions.with_raw_response.create(**request)
        assert raw.headers["x-gkt-unguided"] == "structured_output"
        text = raw.parse().choices[0].text
    assert text in {" yes", " no"}


@pytest.mark.long
@pytest.mark.parametrize("model", ["chat", "chat-context", "chat-student"])
@pytest.mark.parametrize(
    "begun", ["The capital of", "The", "The capital of the country of France, as is well known, is"]
)
def test_a_callers_prefix_is_continued_equally_in_json_and_streams(client: OpenAI, model: str, begun: str) -> None:
    """llama.cpp repeats the beginning in JSON, and not in a stream. With `echo` it does in both."""
    chat = [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": begun}]
    headers, whole = ask(client, model, chat, stream=False, max_tokens=8)
    _, streamed = ask(client, model, chat, stream=True, max_tokens=8)
    assert whole == streamed
    assert whole
    assert not whole.startswith(begun)
    assert headers.get("x-gkt-unguided") == (None if model == "chat-student" else "caller_prefill")
    for stream in (False, True):
        _, echoed = ask(client, model, chat, stream=stream, max_tokens=8, extra_body={"echo": True})
        assert echoed == begun + whole
