"""Replies of fake engines to raw prompts: OpenAI's text completions and TGI's two routes."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

READ = 10
"""The tokens that any prompt has."""


async def text_reply(request: web.Request, body: dict[str, Any], text: str, finish: str) -> web.StreamResponse:
    """Reply with a fixed text, whole or word by word, on each route for raw prompts."""
    if request.path == "/generate":
        return generated(text, finish)
    if request.path == "/generate_stream":
        response = await begin_events(request)
        for part in token_events(words(text), finish):
            await response.write(event(part))
        return response
    return await _completed(request, body, text, finish)


def generated(text: str, finish: str) -> web.Response:
    """Return a reply of TGI 3.3.7 (router/src/server.rs): token counts in headers, the finish reason in `details`."""
    tokens = [{"id": 1, "text": word, "logprob": -0.5, "special": False} for word in words(text)]
    details = {"finish_reason": _tgis(finish), "generated_tokens": len(text.split()), "seed": None, "prefill": []}
    headers = {"x-prompt-tokens": str(READ), "x-generated-tokens": str(len(text.split()))}
    return web.json_response({"generated_text": text, "details": {**details, "tokens": tokens}}, headers=headers)


def token_events(tokens: list[str], finish: str) -> list[dict[str, Any]]:
    """Return the events of a stream of TGI 3.3.7: one per token, the last with the whole text and the counts, without
    [DONE].

    If the model ends by itself, the last token is special and is not part of the text.
    """
    written = [(token, False) for token in tokens] + ([("</s>", True)] if finish == "stop" else [])
    events: list[dict[str, Any]] = [
        {
            "index": index,
            "token": {"id": index, "text": token, "logprob": -0.5, "special": special},
            "generated_text": None,
            "details": None,
        }
        for index, (token, special) in enumerate(written, start=1)
    ]
    counts = {"generated_tokens": len(tokens), "seed": None, "input_length": READ}
    events[-1] |= {"generated_text": "".join(tokens), "details": {"finish_reason": _tgis(finish), **counts}}
    return events


def _tgis(finish: str) -> str:
    return "eos_token" if finish == "stop" else finish


async def _completed(request: web.Request, body: dict[str, Any], text: str, finish: str) -> web.StreamResponse:
    """Reply as OpenAI's /v1/completions: each prompt n times, repeated before the answer if `echo` is set."""
    prompt, choice_count = body["prompt"], body.get("n") or 1
    prompts = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    silent = body.get("max_tokens") == 0
    answers = [
        ("".join(map(str, each)) if body.get("echo") else "") + ("" if silent else text)
        for each in prompts
        for _ in range(choice_count)
    ]
    finish = "length" if silent else finish
    written = 0 if silent else len(text.split())
    usage = {"prompt_tokens": READ * len(prompts), "completion_tokens": written * len(answers)}
    scored = body.get("logprobs") is not None
    if not body.get("stream"):
        choices = [
            text_choice(answer, finish, index, logprobs(words(answer)) if scored else None)
            for index, answer in enumerate(answers)
        ]
        return web.json_response({**text_chunk(*choices), "usage": usage})
    response = await begin_events(request)
    for index, answer in enumerate(answers):
        for word in words(answer):
            scores = logprobs([word]) if scored else None
            await response.write(event(text_chunk(text_choice(word, None, index, scores))))
        await response.write(event(text_chunk(text_choice("", finish, index))))
    if (body.get("stream_options") or {}).get("include_usage"):
        await response.write(event({**text_chunk(), "usage": usage}))
    await response.write(b"data: [DONE]\n\n")
    return response


def text_choice(
    text: str, finish: str | None = None, index: int = 0, scores: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": scores, "finish_reason": finish}


def text_chunk(*choices: dict[str, Any]) -> dict[str, Any]:
    """Return a reply or a chunk of a text completion; both have the same shape."""
    return {"id": "fake-1", "object": "text_completion", "created": 1, "model": "fake", "choices": list(choices)}


def logprobs(tokens: list[str]) -> dict[str, Any]:
    """Return log-probabilities in the format of text completions, which differs from that of chats."""
    return {
        "tokens": tokens,
        "token_logprobs": [None, *[-0.5] * (len(tokens) - 1)],
        "top_logprobs": [{token: -0.5} for token in tokens],
        "text_offset": [0] * len(tokens),
    }


def words(text: str) -> list[str]:
    first, *rest = text.split(" ")
    return [word for word in (first, *(" " + word for word in rest)) if word]


async def begin_events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
