"""The protocol of text-generation-inference (TGI) in front of llama.cpp, as far as the gateway uses TGI.

    python -m tests.kit.tgi_front --model smollm2-135m-instruct --port 8080

The contract suite runs the gateway's TGI engine on it with a real model. Its limits, errors, events and defects are
TGI's. It has the chat route only and no regular expressions, and each reply to a chat with tools is a call. Token
boundaries and speed are llama.cpp's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import tempfile
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
from aiohttp import web

from gateway.local import child, weights
from gateway.runtime import llama_cpp as llama

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    Json = dict[str, Any]

MAX_STOP_SEQUENCES = 4
STOP_WINDOW_CHARS = 300
LLAMA_SEEDS = 2**32
TOOL_PROMPT = (
    "\nGiven the functions available, please respond with a JSON for a function call with its proper arguments that "
    "best answers the given prompt. Respond in the format {name: function name, parameters: dictionary of argument "
    "name and its value}.Do not use variables.\n"
)
_STATUS = {"validation": 422, "template_error": 422, "tool_error": 422, "generation": 424}


class TgiError(Exception):
    """An error as TGI reports it: `error_type` is TGI's name of the error."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.message = message


class Token(NamedTuple):
    """A generated token. A character that spans several tokens is the text of the last one."""

    text: str
    logprob: float | None
    special: bool
    finish_reason: str | None = None  # of the last token: `length`, `eos_token` or `stop_sequence`


class Llama:
    """The client of llama.cpp's server on a unix socket, as an async context manager."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def __aenter__(self) -> Llama:
        # No keep-alive: llama.cpp may close an idle connection at the moment of its reuse.
        connector = aiohttp.UnixConnector(str(self._socket), limit=0, force_close=True)
        self._session = aiohttp.ClientSession("http://llama", connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str) -> Any:
        async with self._session.get(path) as reply:
            return await reply.json()

    async def post(self, path: str, body: Json, error_type: str = "generation") -> Any:
        async with self._session.post(path, json=body) as reply:
            answer = await reply.json()
        if reply.status != 200:
            raise TgiError(error_type, answer["error"]["message"])
        return answer

    async def complete(self, body: Json) -> AsyncGenerator[Json, None]:
        """Yield the events of a completion. Closing the iterator cancels it."""
        async with self._session.post("/completion", json={**body, "stream": True}) as reply:
            if reply.status != 200:
                raise TgiError("generation", await reply.text())
            async for line in reply.content:
                if line.startswith(b"data: "):
                    event = json.loads(line.removeprefix(b"data: "))
                    if "error" in event:
                        raise TgiError("generation", str(event["error"]))
                    yield event


@dataclass
class Generation:
    """A generation by llama.cpp. Iterate `tokens()` once; the other values are final after the last token.

    Stop sequences are not sent to llama.cpp, which would remove the stop text. TGI keeps it, and searches for it at the
    end of the text after each token.
    """

    llama: Llama
    ids: list[int]
    limit: int
    stops: list[str]
    settings: Json
    text: str = ""
    count: int = 0
    finish_reason: str = ""

    async def tokens(self) -> AsyncGenerator[Token, None]:
        """Yield the tokens. Raises TgiError if the model failed."""
        body = {"prompt": self.ids, "n_predict": self.limit, "n_probs": 1, "return_tokens": True}
        held: Token | None = None
        async with aclosing(self.llama.complete({**self.settings, **body})) as chunks:
            async for chunk in chunks:
                if held is not None:
                    # Only the next chunk shows whether a special token ended the answer.
                    yield self._close(held, "eos_token" if chunk.get("stop_type") == "eos" else None)
                    held = None
                async for token in self._tokens_of(chunk):
                    if token.special and self.count < self.limit:
                        held = token
                    else:
                        yield self._close(token, None)
                    if self.finish_reason:
                        return
        if not self.finish_reason:
            raise TgiError("incomplete_generation", "Incomplete generation")

    async def finish(self) -> list[Token]:
        """Run the generation to its end. Closing this coroutine cancels it."""
        async with aclosing(self.tokens()) as tokens:
            return [token async for token in tokens]

    async def _tokens_of(self, chunk: Json) -> AsyncGenerator[Token, None]:
        """Yield the tokens that llama.cpp held back until a character was complete, then the chunk's own."""
        ids = chunk.get("tokens") or []
        for _ in range(chunk["tokens_predicted"] - self.count - len(ids)):
            self.count += 1
            yield Token("", None, special=False)
        if not ids:
            return
        self.count += 1
        text = chunk["content"]
        self.text += text
        logprob = (chunk.get("completion_probabilities") or [{}])[0].get("logprob")
        shown = text or (await self.llama.post("/detokenize", {"tokens": ids[-1:]}))["content"]
        yield Token(shown, logprob, special=not text)

    def _close(self, token: Token, reason: str | None) -> Token:
        """Set the finish reason of a token, if it has one. Like TGI, check the length before the token."""
        end = self.text[-STOP_WINDOW_CHARS:]
        if self.count >= self.limit:
            reason = "length"
        elif reason is None and any(re.search(f"{re.escape(stop)}$", end) for stop in self.stops):
            reason = "stop_sequence"
        self.finish_reason = reason or ""
        return token._replace(finish_reason=reason)

    def usage(self) -> Json:
        read = len(self.ids)
        return {"prompt_tokens": read, "completion_tokens": self.count, "total_tokens": read + self.count}


@dataclass
class Front:
    """The state of the server."""

    llama: Llama
    model: str
    total_tokens: int

    async def generation(self, prompt: str, body: Json, grammar: Json | None) -> Generation:
        """Return the generation of a chat with this prompt. Raises TgiError for a request that TGI rejects."""
        if len(stops := body.get("stop") or []) > MAX_STOP_SEQUENCES:
            raise _invalid(f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(stops)}")
        text = {"content": prompt, "add_special": False, "parse_special": True}
        ids = (await self.llama.post("/tokenize", text))["tokens"]
        limit = body.get("max_tokens", max(0, self.total_tokens - len(ids)))
        if len(ids) + limit > self.total_tokens:
            raise _invalid(f"`inputs` tokens + `max_new_tokens` must be <= {self.total_tokens}. Given: {len(ids)}")
        return Generation(self.llama, ids, limit, stops, _settings(body, grammar))

    async def render(self, body: Json, added: str = "") -> str:
        """Return the rendered prompt of a chat. `added` is appended to the content of its last message.

        A trailing assistant message is continued as by TGI. The prompt is cut after the last occurrence of the
        message's text, and stripped at the end. If the template changes the text, the prompt starts a new turn.
        """
        messages = [{"role": message["role"], "content": message.get("content") or ""} for message in body["messages"]]
        messages[-1]["content"] += added
        prompt: str = (await self.llama.post("/apply-template", {"messages": messages}, "template_error"))["prompt"]
        last = messages[-1]
        found = prompt.rfind(last["content"]) if last["role"] == "assistant" else -1
        return prompt if found < 0 else prompt[: found + len(last["content"])].rstrip()


FRONT = web.AppKey("front", Front)


def _invalid(cause: str) -> TgiError:
    return TgiError("validation", f"Input validation error: {cause}")


def _settings(body: Json, grammar: Json | None) -> Json:
    """Return llama.cpp's sampling parameters of a chat."""
    settings = {
        # TGI's order. llama.cpp's default applies the temperature last, which keeps other tokens.
        "samplers": ["penalties", "temperature", "top_p"],
        "temperature": body.get("temperature", 1.0),
        "top_p": body.get("top_p", 1.0),
        "frequency_penalty": body.get("frequency_penalty", 0.0),
        "seed": body.get("seed", 0) % LLAMA_SEEDS,
    }
    if grammar is None:
        return settings
    if grammar["type"] == "regex":
        raise TgiError("generation", "Request failed during generation: regular expressions are not supported")
    schema = grammar["value"]["schema"] if grammar["type"] == "json_schema" else grammar["value"]
    return settings | {"json_schema": schema}


async def info(request: web.Request) -> web.Response:
    """GET /info"""
    front = request.app[FRONT]
    return web.json_response(
        {
            "model_id": front.model,
            "model_sha": None,
            "max_concurrent_requests": 128,
            "max_stop_sequences": MAX_STOP_SEQUENCES,
            "max_input_tokens": front.total_tokens - 1,
            "max_total_tokens": front.total_tokens,
        }
    )


async def health(request: web.Request) -> web.Response:
    """GET /health"""
    await request.app[FRONT].llama.get("/health")
    return web.Response()


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics"""
    busy = sum(slot["is_processing"] for slot in await request.app[FRONT].llama.get("/slots"))
    return web.Response(text=f"tgi_batch_current_size {busy}\n")


async def chat(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    front, body = request.app[FRONT], await request.json()
    functions = [tool["function"] for tool in body.get("tools") or ()]
    if functions:
        run = await front.generation(await front.render(body, _tool_prompt(functions)), body, _tool_grammar(functions))
    else:
        run = await front.generation(await front.render(body), body, body.get("response_format"))
        if body.get("stream"):
            return await _stream_chat(request, body, run)
    tokens = await run.finish()
    content: Json = {"tool_calls": [_parsed_call(run.text)]} if functions else {"content": run.text}
    message = {"role": "assistant", **content}
    if body.get("stream"):
        response = await _opened(request)
        for chunk in (_chunk(front, message, tokens), _chunk(front, None, []) | {"usage": run.usage()}, "[DONE]"):
            await _send(response, chunk)
        return response
    choice = {"index": 0, "message": message, "logprobs": _logprobs(tokens)}
    choice["finish_reason"] = _finish(run.finish_reason)
    reply = {"object": "chat.completion", "id": "", "created": 0, "model": front.model, "choices": [choice]}
    return web.json_response(reply | {"usage": run.usage()})


async def _stream_chat(request: web.Request, body: Json, run: Generation) -> web.StreamResponse:
    front = request.app[FRONT]
    response = await _opened(request)
    try:
        async with aclosing(run.tokens()) as tokens:
            async for token in tokens:
                delta = {"role": "assistant", "content": "" if token.special else token.text}
                await _send(response, _chunk(front, delta, [token]))
        if (body.get("stream_options") or {}).get("include_usage"):
            await _send(response, _chunk(front, None, []) | {"usage": run.usage()})
    except TgiError as error:
        await _send(response, {"error": {"message": error.message, "http_status_code": 422}})
    await _send(response, "[DONE]")
    return response


def _chunk(front: Front, delta: Json | None, tokens: list[Token]) -> Json:
    chunk = {"object": "chat.completion.chunk", "id": "", "created": 0, "model": front.model, "choices": []}
    if delta is None:
        return chunk
    reason = tokens[-1].finish_reason
    choice = {"index": 0, "delta": delta, "logprobs": _logprobs(tokens)}
    return chunk | {"choices": [choice | {"finish_reason": None if reason is None else _finish(reason)}]}


def _finish(reason: str) -> str:
    return "stop" if reason == "eos_token" else reason


def _logprobs(tokens: list[Token]) -> Json:
    shown = [token for token in tokens if token.logprob is not None]
    return {"content": [{"token": token.text, "logprob": token.logprob, "top_logprobs": []} for token in shown]}


def _tool_prompt(functions: list[Json]) -> str:
    return f"\n---\n{json.dumps([{'type': 'function', 'function': function} for function in functions])}\n{TOOL_PROMPT}"


def _tool_grammar(functions: list[Json]) -> Json:
    calls = []
    for function in functions:
        schema = function["parameters"]
        named = {"_name": {"type": "string", "const": function["name"]}, **schema.get("properties", {})}
        required = ["_name", *schema.get("required", ())]
        calls.append({"type": "object", "properties": named, "required": required, "additionalProperties": False})
    schema = {"type": "object", "properties": {"function": {"anyOf": calls}}, "required": ["function"]}
    return {"type": "json", "value": schema | {"additionalProperties": False}}


def _parsed_call(text: str) -> Json:
    try:
        arguments = json.loads(text)["function"]
        name = arguments.pop("_name")
    except (ValueError, KeyError) as error:
        raise TgiError("tool_error", f"Tool error: Failed to parse generated text: {error}") from error
    return {"id": "0", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


async def _opened(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


async def _send(response: web.StreamResponse, value: Json | str) -> None:
    await response.write(b"data: " + (value if isinstance(value, str) else json.dumps(value)).encode() + b"\n\n")


@web.middleware
async def _render_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except TgiError as error:
        body = {"error": error.message, "error_type": error.error_type}
        return web.json_response(body, status=_STATUS.get(error.error_type, 500))


async def serve(port: int, front: Front) -> None:
    """Serve on 127.0.0.1 until SIGTERM."""
    app = web.Application(middlewares=[_render_errors], client_max_size=2_000_000)
    app[FRONT] = front
    for path, handler in (("/info", info), ("/health", health), ("/metrics", metrics)):
        app.router.add_get(path, handler)
    app.router.add_post("/v1/chat/completions", chat)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    # With handler_cancellation, a disconnect cancels the generation.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
    async with front.llama:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await stopped.wait()
        await runner.cleanup()


def main() -> None:
    """Run the command."""
    flags = argparse.ArgumentParser(prog="python -m tests.kit.tgi_front")
    flags.add_argument("--model", required=True)
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--slot-tokens", type=int, default=2048)
    args = flags.parse_args()
    # Front.render cuts the prompt for continuation as TGI does, so llama.cpp must not.
    options = llama.LlamaOptions(slot_tokens=args.slot_tokens, continue_assistant=False)
    with tempfile.TemporaryDirectory(prefix="gkt-tgi-") as folder:
        socket = Path(folder) / "llama.sock"
        server = llama.serve(weights.fetch(args.model), args.model, options, host=str(socket))
        asyncio.run(serve(args.port, Front(Llama(socket), args.model, args.slot_tokens)))
    child.exit_now(server)


if __name__ == "__main__":
    main()
