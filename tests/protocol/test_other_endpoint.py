"""A body that is meant for another endpoint is rejected with the path of that endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import orjson
import pytest
from aiohttp import web

from gateway.api.routes import ROUTES
from gateway.errors import InvalidRequest
from gateway.protocol.chat import parse_chat
from gateway.protocol.edge import parse_edge_usage
from gateway.protocol.embeddings import parse_embeddings
from gateway.protocol.other_endpoint import CHAT as CHAT_PATH
from gateway.protocol.other_endpoint import EMBEDDINGS, MESSAGES, RESPONSES, TEXT, missing_content
from gateway.protocol.responses.request import parse_responses
from gateway.protocol.text import parse_text_completion

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.protocol.requests import AnyRequest
    from gateway.protocol.responses.request import ResponsesRequest

Parse: TypeAlias = "Callable[[bytes], AnyRequest | ResponsesRequest]"
USER = {"role": "user", "content": "Why?"}
CHAT: dict[str, Any] = {"messages": [USER], "max_completion_tokens": 9}
CLAUDE: dict[str, Any] = {"messages": [USER], "max_tokens": 9, "system": "Be brief."}
TOOL_RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "4"}]}
BOTH = "/v1/responses, and for an embedding to /v1/embeddings"


def rejection(parse: Parse, body: dict[str, Any]) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequest) as caught:
        parse(orjson.dumps({"model": "m", **body}))
    assert caught.value.status == 400
    return caught.value.param, caught.value.message


@pytest.mark.parametrize(
    ("parse", "missing", "body", "found", "path"),
    [
        (parse_text_completion, "prompt", CHAT, "messages", "/v1/chat/completions"),
        (parse_text_completion, "prompt", CHAT | {"prompt": None}, "messages", "/v1/chat/completions"),
        (parse_text_completion, "prompt", {"messages": []}, "messages", "/v1/chat/completions"),
        (parse_text_completion, "prompt", {"messages": "Why?"}, "messages", "/v1/chat/completions"),
        (parse_text_completion, "prompt", CLAUDE, "messages", "/v1/messages"),
        (parse_text_completion, "prompt", {"input": "Why?"}, "input", BOTH),
        (parse_embeddings, "input", CHAT, "messages", "/v1/chat/completions"),
        (parse_embeddings, "input", {"messages": [TOOL_RESULT]}, "messages", "/v1/messages"),
        (parse_embeddings, "input", {"messages": [USER], "stop_sequences": ["."]}, "messages", "/v1/messages"),
        (parse_embeddings, "input", {"messages": [USER], "tools": [{"input_schema": {}}]}, "messages", "/v1/messages"),
        (parse_embeddings, "input", {"prompt": "Why?", "max_tokens": 9}, "prompt", "/v1/completions"),
        (parse_responses, "input", CHAT, "messages", "/v1/chat/completions"),
        (parse_responses, "input", CLAUDE, "messages", "/v1/messages"),
        (parse_responses, "input", {"prompt": "Why?"}, "prompt", "/v1/completions"),
        (parse_chat, "messages", {"prompt": "Why?"}, "prompt", "/v1/completions"),
        (parse_chat, "messages", {"prompt": "Why?", "n_predict": 9}, "prompt", "/v1/completions"),
        (parse_chat, "messages", {"input": "Why?"}, "input", BOTH),
        (parse_chat, "messages", {"input": "Why?", "dimensions": 8}, "input", "/v1/embeddings"),
        (parse_chat, "messages", {"input": ["Why?", "How?"]}, "input", "/v1/embeddings"),
        (parse_chat, "messages", {"input": [1, 2]}, "input", "/v1/embeddings"),
        (parse_chat, "messages", {"input": []}, "input", "/v1/embeddings"),
        (parse_chat, "messages", {"input": "Why?", "instructions": "Be brief."}, "input", "/v1/responses"),
        (parse_chat, "messages", {"input": [USER], "max_output_tokens": 9}, "input", "/v1/responses"),
        (parse_chat, "messages", {"input": "Why?", "Model": "m"}, "input", BOTH),
        (parse_chat, "messages", {"input": "Why?", "model": None}, "input", BOTH),
    ],
)
def test_a_body_without_content_names_the_endpoint_of_its_content(
    parse: Parse, missing: str, body: dict[str, Any], found: str, path: str
) -> None:
    """Also if the body has a field that this endpoint rejects for another reason."""
    expected = f"'{missing}' is required. A body with '{found}' goes to {path}."
    assert rejection(parse, body) == (missing, expected)


@pytest.mark.parametrize(
    ("parse", "body", "message"),
    [
        (parse_chat, {}, "'messages' is required."),
        (parse_chat, {"text": "Why?"}, "'messages' is required."),
        (parse_embeddings, {}, "'input' is required."),
        (parse_embeddings, {"prompt": None}, "'input' is required."),
        (parse_chat, {"messages": [{"content": "Why?"}], "input": "Why?"}, "'messages[0].role' is required."),
        (parse_chat, {"messages": [USER], "prompt": "Why?", "n": 0}, "'n': expected an integer >= 1."),
        (parse_responses, {}, "'input' is required: a string or a list of items."),
        (parse_responses, {"input": [USER, "Why?"]}, "'input[1]': expected an object, got a string."),
        (parse_responses, {"input": [], "top_p": 2}, "'top_p': expected a number <= 1.0."),
        (parse_responses, {"input": [USER], "top_p": 2}, "'top_p': expected a number <= 1.0."),
        (parse_embeddings, {"input": ["Why?"], "dimensions": 0}, "'dimensions': expected an integer >= 1."),
        (parse_edge_usage, {"messages": [USER]}, "'input_tokens' is required."),
    ],
)
def test_other_errors_name_no_endpoint(parse: Parse, body: dict[str, Any], message: str) -> None:
    assert rejection(parse, body)[1] == message


@pytest.mark.parametrize(
    ("parse", "entries", "message"),
    [
        (parse_responses, ["Why?", "How?"], "'input[0]' must be an object. A list of texts goes to /v1/embeddings."),
        (parse_responses, [[1, 2]], "'input[0]' must be an object. A list of texts goes to /v1/embeddings."),
        (parse_embeddings, [USER, USER], "'input[0]' must be a text. A list of items goes to /v1/responses."),
    ],
)
def test_an_input_of_another_endpoint_names_it(parse: Parse, entries: list[Any], message: str) -> None:
    assert rejection(parse, {"input": entries}) == ("input[0]", message)


def test_the_content_of_another_endpoint_beside_its_own_is_an_unknown_field() -> None:
    assert parse_chat(orjson.dumps({"model": "m", "messages": [USER], "input": "x", "prompt": "y"})).model == "m"
    assert parse_embeddings(orjson.dumps({"model": "m", "input": "x", "messages": [USER]})).inputs == ["x"]


@pytest.mark.parametrize(
    "messages",
    [5, [5], [{"content": 5}], [{"content": [5, {"type": {}}, {"type": ["tool_use"]}]}], {"content": "x"}, "system"],
)
def test_malformed_messages_are_no_sign_of_another_api(messages: Any) -> None:
    error = missing_content({"messages": messages, "tools": [5]}, ("input",))
    assert error is not None
    assert error.message.endswith("goes to /v1/chat/completions.")


MESSAGES_FIELDS = ("model", "messages", "max_tokens", "system", "stop_sequences")


@pytest.mark.parametrize(
    "body",
    [
        CHAT,
        {"messages": [USER], "response_format": {"type": "json_object"}},
        {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
        {"messages": [USER, {"role": "tool", "tool_call_id": "call_1", "content": "4"}]},
    ],
)
def test_a_chat_without_the_limit_that_the_messages_api_requires_names_the_endpoint_of_chats(
    body: dict[str, Any],
) -> None:
    error = missing_content(body, MESSAGES_FIELDS)
    assert error is not None
    assert error.param == "max_tokens"
    assert error.message == "'max_tokens' is required. A body in OpenAI's format goes to /v1/chat/completions."
    assert missing_content({**body, "max_tokens": 9}, MESSAGES_FIELDS) is None
    assert missing_content(body, ("messages", "max_tokens")) is None


@pytest.mark.parametrize("messages", [[USER], [5], 5, [{"role": {}}], [{"role": "system", "content": "Be brief."}]])
def test_messages_of_either_api_name_no_endpoint(messages: Any) -> None:
    assert missing_content({"messages": messages, "tools": [{"name": "f"}]}, MESSAGES_FIELDS) is None


@pytest.mark.parametrize("kind", ["tool_use", "tool_result"])
def test_a_chat_with_parts_of_anthropics_api_names_its_endpoint(kind: str) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind}]}
    at = "messages[1].content[1].type"
    expected = (at, f"'{at}': only /v1/messages accepts parts of type '{kind}'.")
    assert rejection(parse_chat, {"messages": [USER, message]}) == expected


def test_every_named_endpoint_exists() -> None:
    paths = {route.path for route in ROUTES if isinstance(route, web.RouteDef) and route.method == "POST"}
    named = {CHAT_PATH, MESSAGES, RESPONSES, EMBEDDINGS, TEXT}
    assert named <= paths


@pytest.mark.parametrize("system", ["Be brief.", [{"type": "text", "text": "Be brief."}], ""])
def test_a_chat_with_a_system_prompt_of_anthropics_api_is_rejected(system: Any) -> None:
    """Engines ignore the field, so the answer would disregard the caller's rules."""
    message = "'system' is accepted at /v1/messages alone. Send a message with the role 'system' instead."
    assert rejection(parse_chat, {"messages": [USER], "system": system}) == ("system", message)
    assert parse_chat(orjson.dumps({"model": "m", "messages": [USER], "system": None})).model == "m"
    assert parse_text_completion(orjson.dumps({"model": "m", "prompt": "x", "system": system})).prompt == "x"
