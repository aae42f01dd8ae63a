"""The embedded teacher against TGI's API document, if the document is available."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

DOCUMENT = Path(__file__).parents[2].parent / "shared" / "reference" / "tgi-openapi.json"

if not DOCUMENT.is_file():
    pytest.skip(
        "TGI's API document is not beside this checkout (../shared/reference/tgi-openapi.json): not compared",
        allow_module_level=True,
    )

pytestmark = pytest.mark.models

GENERATE = {"inputs": "1, 2, 3,", "parameters": {"max_new_tokens": 4, "details": True, "top_n_tokens": 2}}
CHAT = {"messages": [{"role": "user", "content": "Say OK."}], "max_tokens": 4, "logprobs": True, "top_logprobs": 2}


@cache
def document() -> Any:
    return _nullable_to_json_schema(json.loads(DOCUMENT.read_text()))


def _nullable_to_json_schema(node: Any) -> Any:
    if isinstance(node, list):
        return [_nullable_to_json_schema(each) for each in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _nullable_to_json_schema(each) for key, each in node.items() if key != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if node.get("nullable") is True else plain


def check(instance: Any, schema: str) -> None:
    root = {"$ref": f"#/components/schemas/{schema}", "components": document()["components"]}
    jsonschema.Draft202012Validator(root).validate(instance)


async def post(teacher: Any, path: str, body: Any, status: int = 200) -> Any:
    async with teacher.post(path, json=body) as reply:
        assert reply.status == status
        return await reply.json()


async def events(teacher: Any, path: str, body: Any) -> list[Any]:
    async with teacher.post(path, json=body) as reply:
        lines = [line.removeprefix("data: ") for line in (await reply.text()).splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_the_check_can_fail():
    with pytest.raises(jsonschema.ValidationError):
        check({"error": "x"}, "ErrorResponse")


@pytest.mark.long
async def test_generate(teacher):
    check(GENERATE, "GenerateRequest")
    check(await post(teacher, "/generate", GENERATE), "GenerateResponse")
    check((await post(teacher, "/", GENERATE))[0], "GenerateResponse")


async def test_prompt_details(teacher):
    body = {"inputs": "1, 2,", "parameters": {"max_new_tokens": 2, "decoder_input_details": True, "do_sample": True}}
    check(await post(teacher, "/generate", body), "GenerateResponse")


async def test_generate_stream(teacher):
    received = await events(teacher, "/generate_stream", GENERATE)
    assert len(received) == 4
    for event in received:
        check(event, "StreamResponse")


async def test_errors(teacher):
    body = {"inputs": "1", "parameters": {"temperature": 0}}
    check(await post(teacher, "/generate", body, status=422), "ErrorResponse")
    for event in await events(teacher, "/generate_stream", body):
        check(event, "ErrorResponse")


async def test_info(teacher):
    async with teacher.get("/info") as reply:
        check(await reply.json(), "Info")


async def test_models(teacher):
    async with teacher.get("/v1/models") as reply:
        for model in (await reply.json())["data"]:
            check(model, "ModelInfo")


async def test_tokenize(teacher):
    check(await post(teacher, "/tokenize", GENERATE), "TokenizeResponse")
    check(await post(teacher, "/chat_tokenize", CHAT), "ChatTokenizeResponse")


async def test_chat(teacher):
    check(CHAT, "ChatRequest")
    check(await post(teacher, "/v1/chat/completions", CHAT), "ChatCompletion")


async def test_chat_stream(teacher):
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    received = await events(teacher, "/v1/chat/completions", body)
    assert len(received) == 5
    for event in received:
        check(event, "ChatCompletionChunk")


async def test_completions(teacher):
    body = {"prompt": "1, 2, 3,", "max_tokens": 3}
    check(await post(teacher, "/v1/completions", body), "CompletionFinal")
    for event in await events(teacher, "/v1/completions", {**body, "stream": True}):
        check(event, "Chunk")
