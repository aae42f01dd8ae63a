"""The teacher's OpenAI-compatible routes, with TGI's behavior.

Chats and completions become prompts and parameters, and generations become replies.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from aiohttp import web

from gateway.local import tgi_errors, tgi_request, tgi_tools
from gateway.local.tgi_messages import TgiMessage
from gateway.local.tgi_request import TgiGrammar, TgiParameters, Unsigned
from gateway.local.tgi_tools import TgiTool
from gateway.local.tgi_wire import STATE, headers, read, reply, send_event, stream_headers
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gateway.local.generation import GeneratedToken, LocalGeneration
    from gateway.local.llama_client import LlamaClient
    from gateway.local.tgi_wire import TeacherState


class TgiStreamOptions(msgspec.Struct, frozen=True):
    """The options of a stream. `include_usage` requests a last chunk with the usage and without choices."""

    include_usage: bool = False


class _SamplingBody(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of both routes."""

    frequency_penalty: float | None = None
    max_tokens: Unsigned | msgspec.UnsetType | None = msgspec.UNSET
    seed: Unsigned | None = None
    stop: list[str] | None = None
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None

    def _parameters(self, **own: Any) -> TgiParameters:
        return TgiParameters(
            details=True,
            do_sample=self.temperature != 0,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=self.stop or [],
            temperature=self.temperature or None,
            top_p=self.top_p,
            **own,
        )


class TgiChatBody(_SamplingBody, frozen=True, kw_only=True):
    """The body of /v1/chat/completions and /chat_tokenize. Fields that TGI does not read are ignored."""

    messages: list[TgiMessage]
    logit_bias: list[float] | None = None  # not OpenAI's object; not used
    logprobs: bool | None = None
    max_completion_tokens: Unsigned | msgspec.UnsetType | None = msgspec.UNSET
    n: Unsigned | None = None  # not used
    presence_penalty: float | None = None
    response_format: TgiGrammar | None = None
    stream_options: TgiStreamOptions = TgiStreamOptions()
    tool_choice: Any = None
    tool_prompt: str | None = None
    tools: list[TgiTool] | None = None
    top_logprobs: Unsigned | None = None

    def __post_init__(self) -> None:
        tgi_tools.check_choice(self.tool_choice)
        if msgspec.UNSET not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("duplicate field `max_tokens`")  # the other name is an alias

    @property
    def parameters(self) -> TgiParameters:
        """The parameters as TGI maps them. A `presence_penalty` of x becomes a repetition penalty of x + 2."""
        penalty = self.presence_penalty
        return self._parameters(
            grammar=self.response_format,
            max_new_tokens=_set(self.max_tokens, self.max_completion_tokens),
            repetition_penalty=None if penalty is None else penalty + 2.0,
            top_n_tokens=self.top_logprobs,
        )


class TgiCompletionBody(_SamplingBody, frozen=True, kw_only=True):
    """The body of /v1/completions."""

    prompt: str | list[str]
    repetition_penalty: float | None = None
    suffix: str | None = None

    @property
    def parameters(self) -> TgiParameters:
        """The parameters as TGI maps them."""
        return self._parameters(max_new_tokens=_set(self.max_tokens), repetition_penalty=self.repetition_penalty)


def _set(*values: int | msgspec.UnsetType | None) -> int | None:
    """Return the value that the body contains; None if it contains none."""
    return next((value for value in values if value is not msgspec.UNSET), None)


class PreparedChat(NamedTuple):
    """A chat as it is generated. Only with `tools` the text is a tool call."""

    prompt: str
    parameters: TgiParameters
    tools: bool


async def _prepare(body: TgiChatBody, llama: LlamaClient) -> PreparedChat:
    """Return what is generated for a chat. Raises TgiError 422."""
    if body.response_format is not None and body.tools is not None:
        raise tgi_errors.failure("tool_error", "Grammar and tools are mutually exclusive")
    plan = None if body.tools is None else tgi_tools.plan_tools(body.tools, body.tool_choice, body.tool_prompt)
    if plan is None:
        return PreparedChat(await _prompt_of(body, llama), body.parameters, tools=False)
    parameters = msgspec.structs.replace(body.parameters, grammar=plan.grammar)
    return PreparedChat(await _prompt_of(body, llama, plan.prompt), parameters, tools=True)


async def _prompt_of(body: TgiChatBody, llama: LlamaClient, added: str = "") -> str:
    """Return the rendered prompt of a chat. `added` is appended to the content of its last message.

    A trailing assistant message is continued as by TGI. The chat is rendered with the start of another turn, then cut
    after the last occurrence of the message's text, and stripped at the end. If the template changes the text, for
    example by stripping it, the text is not found, and the prompt starts a new turn. Raises TgiError 422.
    """
    messages = [{"role": message.role, "content": message.text} for message in body.messages]
    if messages and body.messages[-1].content is not None:
        messages[-1]["content"] += added
    prompt = await llama.render(messages)
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant":
        return prompt
    found = prompt.rfind(last["content"])
    return prompt if found < 0 else prompt[: found + len(last["content"])].rstrip()


class TgiReplies(NamedTuple):
    """Builds the replies of one request. Like TGI's, each has an empty `id`."""

    model: str

    def chat(
        self,
        run: LocalGeneration,
        tokens: Sequence[GeneratedToken],
        *,
        logprobs: bool,
        answer: LocalGeneration | None = None,
        call: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the reply to a chat without streaming.

        If the model chose no tool, `answer` has the text and the prompt tokens. Like TGI's, the other counts and the
        finish reason remain those of `run`, which generated the choice.
        """
        text = (answer or run).text
        content = {"content": text} if call is None else {"tool_calls": [call]}
        read, written = (answer or run).input_tokens, run.generated_tokens
        choice = {
            "index": 0,
            "message": {"role": "assistant", **content},
            "logprobs": _logprobs(tokens) if logprobs else None,
            "finish_reason": _finish_reason(run.finish_reason),
        }
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return self._envelope("chat.completion", [choice]) | {"usage": usage}

    def chat_chunk(
        self, token: GeneratedToken, *, logprobs: bool, part: tgi_tools.CallPart | None = None
    ) -> dict[str, Any]:
        """Return the chunk of one token of a streamed chat, or of a part of a tool call. The role is in each delta."""
        reason = token.finish_reason
        content = {"content": "" if token.special else token.text} if part is None else {"tool_calls": [part.delta]}
        choice = {
            "index": 0,
            "delta": {"role": "assistant", **content},
            "logprobs": _logprobs([token]) if logprobs else None,
            "finish_reason": None if reason is None else _finish_reason(reason),
        }
        return self._envelope("chat.completion.chunk", [choice]) | {"usage": None}

    def usage_chunk(self, run: LocalGeneration) -> dict[str, Any]:
        """Return the usage chunk of a streamed chat with `include_usage`."""
        return self._envelope("chat.completion.chunk", []) | {"usage": _usage([run])}

    def completion(self, runs: Sequence[LocalGeneration]) -> dict[str, Any]:
        """Return the reply to a completion without streaming, with one choice for each prompt."""
        choices = [
            {"index": index, "text": run.text, "logprobs": None, "finish_reason": _finish_reason(run.finish_reason)}
            for index, run in enumerate(runs)
        ]
        return self._envelope("text_completion", choices) | {"usage": _usage(runs)}

    def completion_chunk(self, index: int, token: GeneratedToken, run: LocalGeneration) -> dict[str, Any]:
        """Return the chunk of one token of a streamed completion. The last one has the usage.

        Special tokens are part of the text here, and `eos_token` is not renamed.
        """
        choice = {"index": index, "text": token.text, "logprobs": None, "finish_reason": token.finish_reason or ""}
        chunk = self._envelope("text_completion", [choice])
        return chunk if token.finish_reason is None else chunk | {"usage": _usage([run])}

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "object": kind,
            "id": "",
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": f"{__version__}-llama.cpp",
            "choices": choices,
        }


def _usage(runs: Sequence[LocalGeneration]) -> dict[str, int]:
    read = sum(run.input_tokens for run in runs)
    written = sum(run.generated_tokens for run in runs)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _finish_reason(reason: str) -> str:
    return "stop" if reason == "eos_token" else reason


def _logprobs(tokens: Sequence[GeneratedToken]) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": token.text,
                "logprob": token.logprob,
                "top_logprobs": [{"token": other.text, "logprob": other.logprob} for other in token.top],
            }
            for token in tokens
            if token.logprob is not None
        ]
    }


async def chat(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    started = time.monotonic()
    state = request.app[STATE]
    body = await read(request, TgiChatBody)
    prepared = await _prepare(body, state.llama)
    if body.stream:
        return await _stream_chat(request, body, prepared)
    logprobs = bool(body.logprobs)
    run, tokens = await state.run(prepared.prompt, prepared.parameters, logprobs=logprobs, special=False)
    call = tgi_tools.parse_call(run.text) if prepared.tools else None
    answer = None
    if prepared.tools and call is None:
        prompt = await _prompt_of(body, state.llama)
        answer, _ = await state.run(prompt, body.parameters, logprobs=False, special=False)
    whole = TgiReplies(state.model).chat(run, tokens, logprobs=logprobs, answer=answer, call=call)
    return reply(whole, headers=headers(prepared.prompt, [answer or run], time.monotonic() - started))


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
    sent = headers("".join(prompts), runs, time.monotonic() - started)
    del sent["x-compute-time"]  # TGI's other routes send it
    return reply(answer, headers=sent)


async def chat_tokenize(request: web.Request) -> web.Response:
    """POST /chat_tokenize: the rendered prompt of a chat, and its tokens."""
    state = request.app[STATE]
    prompt = (await _prepare(await read(request, TgiChatBody), state.llama)).prompt
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


async def _stream_chat(request: web.Request, body: TgiChatBody, prepared: PreparedChat) -> web.StreamResponse:
    state = request.app[STATE]
    async with _stream(request, prepared.prompt) as response:
        if not await _stream_generation(state, response, body, prepared):
            plain = PreparedChat(await _prompt_of(body, state.llama), body.parameters, tools=False)
            await _stream_generation(state, response, body, plain)
    return response


async def _stream_generation(
    state: TeacherState, response: web.StreamResponse, body: TgiChatBody, prepared: PreparedChat
) -> bool:
    """Stream a generation. Return False if the model chose no tool; nothing was sent then."""
    replies = TgiReplies(state.model)
    logprobs = bool(body.logprobs)
    parser = tgi_tools.CallParser() if prepared.tools else None
    async with state.start(prepared.prompt, prepared.parameters, logprobs=logprobs, special=False) as (run, tokens):
        async for token in tokens:
            part = None if parser is None else parser.feed(token.text)
            if part is not None and part.is_no_tool:
                return False
            if parser is None or part is not None:
                await send_event(response, replies.chat_chunk(token, logprobs=logprobs, part=part))
        if body.stream_options.include_usage:
            await send_event(response, replies.usage_chunk(run))
    return True


async def _stream_completions(request: web.Request, body: TgiCompletionBody, prompts: list[str]) -> web.StreamResponse:
    state = request.app[STATE]
    replies = TgiReplies(state.model)
    async with _stream(request, "".join(prompts)) as response:
        for index, prompt in enumerate(prompts):
            async with state.start(prompt, body.parameters, logprobs=False) as (run, tokens):
                async for token in tokens:
                    await send_event(response, replies.completion_chunk(index, token, run))
    return response
