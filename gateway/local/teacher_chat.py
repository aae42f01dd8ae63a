"""The teacher's OpenAI-compatible routes, with TGI's behavior."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

from gateway.local import tgi_chat, tgi_errors, tgi_request
from gateway.local.tgi_chat import TgiChatBody, TgiCompletionBody, TgiReplies
from gateway.local.tgi_wire import STATE, headers, read, reply, send_event, stream_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.local.generation import LocalGeneration
    from gateway.local.tgi_wire import TeacherState


async def chat(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    started = time.monotonic()
    state = request.app[STATE]
    body = await read(request, TgiChatBody)
    prompt = await tgi_chat.prompt_of(body, state.llama)
    if body.stream:
        return await _stream_chat(request, body, prompt)
    logprobs = bool(body.logprobs)
    run, tokens = await state.run(prompt, body.parameters, logprobs=logprobs, special=False)
    answer = TgiReplies(state.model).chat(run, tokens, logprobs=logprobs)
    return reply(answer, headers=headers(prompt, [run], time.monotonic() - started))


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions: several prompts run concurrently, and one failure fails all of them."""
    started = time.monotonic()
    state = request.app[STATE]
    body = await read(request, TgiCompletionBody)
    if body.suffix is not None:
        message = "Suffix is not supported and can be achieved by preprocessing the prompt."
        raise tgi_errors.TgiError(422, "suffix not supported", message)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(prompts) > tgi_request.MAX_CLIENT_BATCH_SIZE:
        limit = tgi_request.MAX_CLIENT_BATCH_SIZE
        message = f"Number of prompts exceeds the maximum allowed batch size of {limit}"
        raise tgi_errors.TgiError(422, "batch size exceeded", message)
    if body.stream:
        return await _stream_completions(request, body, prompts)
    runs = await _run_all(state, body, prompts)
    answer = TgiReplies(state.model).completion(runs)
    return reply(answer, headers=headers("".join(prompts), runs, time.monotonic() - started))


async def chat_tokenize(request: web.Request) -> web.Response:
    """POST /chat_tokenize: the rendered prompt of a chat, and its tokens."""
    state = request.app[STATE]
    prompt = await tgi_chat.prompt_of(await read(request, TgiChatBody), state.llama)
    tokens = await simple_tokens(state, prompt, special=False)
    return reply({"tokenize_response": tokens, "templated_text": prompt})


async def simple_tokens(state: TeacherState, text: str, *, special: bool) -> list[dict[str, Any]]:
    """Return the tokens of `text` with their `start` and `stop` in bytes of UTF-8.

    The tokens of a character that spans several tokens have no text and an empty range. So has a token that is not in
    the text, such as the model's first token (BOS).
    """
    data = text.encode()
    tokens = []
    position = 0
    for piece in await state.llama.tokenize(text, special=special):
        found = data.find(piece.text.encode(), position) if piece.text else -1
        start, stop = (found, found + len(piece.text.encode())) if found >= 0 else (position, position)
        tokens.append({"id": piece.id, "text": piece.text, "start": start, "stop": stop})
        position = stop
    return tokens


async def _run_all(state: TeacherState, body: TgiCompletionBody, prompts: list[str]) -> list[LocalGeneration]:
    parameters = body.parameters
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(state.run(prompt, parameters, logprobs=False)) for prompt in prompts]
    except* tgi_errors.TgiError as failures:
        first = failures.exceptions[0]
        raise first from None
    return [task.result()[0] for task in tasks]


@asynccontextmanager
async def _stream(request: web.Request, prompt: str) -> AsyncIterator[web.StreamResponse]:
    """Yield a stream that ends with [DONE]. A TgiError becomes an event. TGI's event has status 422 for each error."""
    response = web.StreamResponse(headers=stream_headers(prompt))
    await response.prepare(request)
    try:
        yield response
    except tgi_errors.TgiError as failure:
        error = tgi_errors.in_stream(failure)
        request.app[STATE].counts[error.error_type] += 1
        await send_event(response, {"error": {"message": error.message, "http_status_code": 422}})
    await send_event(response, "[DONE]")


async def _stream_chat(request: web.Request, body: TgiChatBody, prompt: str) -> web.StreamResponse:
    state = request.app[STATE]
    replies = TgiReplies(state.model)
    logprobs = bool(body.logprobs)
    async with (
        _stream(request, prompt) as response,
        state.start(prompt, body.parameters, logprobs=logprobs, special=False) as (run, tokens),
    ):
        async for token in tokens:
            await send_event(response, replies.chat_chunk(token, logprobs=logprobs))
        if body.wants_usage:
            await send_event(response, replies.usage_chunk([run], "chat.completion.chunk"))
    return response


async def _stream_completions(request: web.Request, body: TgiCompletionBody, prompts: list[str]) -> web.StreamResponse:
    state = request.app[STATE]
    replies = TgiReplies(state.model)
    runs = []
    async with _stream(request, "".join(prompts)) as response:
        for index, prompt in enumerate(prompts):
            async with state.start(prompt, body.parameters, logprobs=False) as (run, tokens):
                runs.append(run)
                async for token in tokens:
                    await send_event(response, replies.completion_chunk(index, token))
        if body.wants_usage:
            await send_event(response, replies.usage_chunk(runs, "text_completion"))
    return response
