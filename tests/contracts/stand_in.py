"""A stand-in for vLLM 0.32 around a toy model: its routes, token counts, limits and errors.

    python -m tests.contracts.stand_in --port 8000

A token is a word with the space before it. The toy model generates a fixed answer to each question, and continues an
answer that is open in its prompt. Sources: `openai/chat_completion/protocol.py`, `openai/completion/protocol.py` and
`serve/tokenize/protocol.py` of vLLM 0.32.0.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from tests.contracts.toy_model import END, TOKENS, Constraints
from tests.vllm_engine import held_back

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Json = dict[str, Any]

MODEL = "stand-in"
CONTEXT_TOKENS = 2048
TOKEN_S = 0.002
LONG_TOKEN_S = 0.02  # of calls with ignore_eos, which must last until a test has left them
_USER, _ASSISTANT = "<|user|>", "<|assistant|>"


class Refused(Exception):
    """An error of the engine, with its HTTP status and the name of the faulty parameter."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}
        self.status = status


@dataclass(frozen=True)
class Generated:
    """A generated text. `pieces` has one text for each token; the text after a stop string is removed."""

    prompt: tuple[str, ...]
    pieces: tuple[str, ...]
    tokens: tuple[str, ...]
    finish: str
    stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def usage(self, tokens: int | None = None) -> Json:
        """Return the counts after `tokens` tokens; None: after all."""
        return total([len(self.prompt)], [len(self.tokens) if tokens is None else tokens])


def total(read: Sequence[int], written: Sequence[int]) -> Json:
    return {
        "prompt_tokens": sum(read),
        "completion_tokens": sum(written),
        "total_tokens": sum(read) + sum(written),
    }


def rendered(body: Json, messages: list[Json]) -> str:
    """Return the chat as the template renders it. Raises Refused."""
    open_end = body.get("continue_final_message", False)
    if open_end and body.get("add_generation_prompt", True):
        message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
        raise Refused(400, "BadRequestError", message)
    if not messages:
        raise Refused(400, "BadRequestError", "list index out of range")
    turns = [(_ASSISTANT if one["role"] == "assistant" else _USER) + text_of(one) + END for one in messages]
    return "".join(turns).removesuffix(END) if open_end else "".join(turns) + _ASSISTANT


def text_of(message: Json) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class StandIn:
    """The server. Its vocabulary grows with the texts that it reads."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._texts: list[str] = []
        self._running = 0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self._health),
            web.get("/version", self._version),
            web.get("/v1/models", self._models),
            web.get("/metrics", self._metrics),
            web.post("/tokenize", self._tokenize),
            web.post("/detokenize", self._detokenize),
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/completions", self._completions),
        ]

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0"})

    async def _models(self, _: web.Request) -> web.Response:
        entry = {"id": MODEL, "object": "model", "owned_by": "vllm", "root": MODEL, "max_model_len": CONTEXT_TOKENS}
        return web.json_response({"object": "list", "data": [entry]})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=f'vllm:num_requests_running{{engine="0"}} {float(self._running)}\n')

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        text = rendered(body, body["messages"]) if "messages" in body else body["prompt"]
        ids = self._numbers(TOKENS.findall(text))
        return web.json_response({"count": len(ids), "max_model_len": CONTEXT_TOKENS, "tokens": ids})

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"prompt": "".join(self._texts[one] for one in body["tokens"])})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = rendered(body, body["messages"])
        if (forced := forced_json(body)) is not None:
            generated = Generated(tuple(TOKENS.findall(prompt)), (forced,), (forced,), "stop")
        else:
            generated = self._generate(prompt, body, body.get("max_completion_tokens") or body.get("max_tokens"))
        return await self._reply(request, body, [generated], chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = body["prompt"]
        prompts = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        texts = [one if isinstance(one, str) else "".join(self._texts[number] for number in one) for one in prompts]
        limit = body.get("max_tokens", 16)
        return await self._reply(request, body, [self._generate(one, body, limit) for one in texts], chat=False)

    def _generate(self, prompt: str, body: Json, limit: int | None) -> Generated:
        if body.get("model", MODEL) != MODEL:
            raise Refused(404, "NotFoundError", f"The model `{body['model']}` does not exist.", "model")
        read = tuple(TOKENS.findall(prompt))
        room = CONTEXT_TOKENS - len(read)
        if room < 1 or (limit is not None and limit > room):
            message = (
                f"This model's maximum context length is {CONTEXT_TOKENS} tokens. However, you requested "
                f"{limit or 1} output tokens and your prompt contains {len(read)} input tokens."
            )
            raise Refused(400, "BadRequestError", message, "input_tokens")
        before, _, begun = prompt.rpartition(_ASSISTANT)
        question = before.rpartition(_USER)[2].removesuffix(END) if before else prompt
        constraints = Constraints(body, self._text)
        if limit is not None and constraints.least > limit:
            message = f"min_tokens must be less than or equal to max_tokens={limit}, got {constraints.least}."
            raise Refused(400, "BadRequestError", message, "min_tokens")
        output = constraints.generate(question, begun, room if limit is None else limit)
        if output.stop_token is not None:
            stop_reason, pieces = self._ids[output.stop_token], (*output.tokens[:-1], "")
            return Generated(read, pieces, output.tokens, output.finish, stop_reason)
        return stopped(Generated(read, output.tokens, output.tokens, output.finish), body.get("stop") or ())

    def _text(self, token_id: int) -> str:
        if not 0 <= token_id < len(self._texts):
            raise Refused(400, "BadRequestError", f"token_id {token_id} is out of vocabulary.")
        return self._texts[token_id]

    def _numbers(self, tokens: Sequence[str]) -> list[int]:
        for token in tokens:
            if token not in self._ids:
                self._ids[token] = len(self._texts)
                self._texts.append(token)
        return [self._ids[token] for token in tokens]

    async def _reply(self, request: web.Request, body: Json, texts: list[Generated], *, chat: bool) -> Any:
        with self._counted():
            if body.get("stream"):
                return await self._stream(request, body, texts[0], chat=chat)
            await asyncio.sleep(token_s(body) * max(len(text.tokens) for text in texts))
        usage = total([len(text.prompt) for text in texts], [len(text.tokens) for text in texts])
        reply = {**common(chat=chat), "usage": usage}
        reply["choices"] = [self._whole(index, text, body, chat=chat) for index, text in enumerate(texts)]
        if body.get("return_token_ids") and chat:
            reply["prompt_token_ids"] = self._numbers(texts[0].prompt)
        return web.json_response(reply)

    def _whole(self, index: int, text: Generated, body: Json, *, chat: bool) -> Json:
        logprobs = likelihoods(body, text.tokens, chat=chat)
        choice: Json = {
            "index": index,
            "finish_reason": text.finish,
            "logprobs": logprobs,
            "stop_reason": text.stop_reason,
        }
        if body.get("return_token_ids"):
            choice["token_ids"] = self._numbers(text.tokens)
            if not chat:
                choice["prompt_token_ids"] = self._numbers(text.prompt)
        if not chat:
            return {**choice, "text": text.text}
        if body.get("tools"):
            message = {"role": "assistant", "content": None, "tool_calls": [tool_call(body, text.text)]}
            return {**choice, "message": message, "finish_reason": "tool_calls"}
        return {**choice, "message": {"role": "assistant", "content": text.text}}

    async def _stream(self, request: web.Request, body: Json, text: Generated, *, chat: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        options = body.get("stream_options") or {}

        async def send(choices: list[Json], tokens: int | None, *, counted: bool) -> None:
            event = {**common(chat=chat, part=True), "choices": choices}
            if counted:
                event["usage"] = text.usage(tokens)
            await response.write(b"data: " + orjson.dumps(event) + b"\n\n")

        continuous = bool(options.get("continuous_usage_stats"))
        if chat:
            first: Json = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            await send([first], 0, counted=continuous)
        pieces = held_back("".join(text.pieces), text.pieces, body.get("stop")) if text.pieces else [""]
        for number, piece in enumerate(pieces, start=1):
            await asyncio.sleep(token_s(body))
            last = number >= len(text.pieces)
            logprobs = likelihoods(body, text.tokens[number - 1 : number], chat=chat)
            choice: Json = {"index": 0, "finish_reason": text.finish if last else None, "logprobs": logprobs}
            choice["stop_reason"] = text.stop_reason if last else None
            if chat and body.get("tools"):
                choice["delta"] = {"tool_calls": [{"index": 0, **tool_call(body, piece)}]}
                choice["finish_reason"] = "tool_calls"
            elif chat:
                choice["delta"] = {"content": piece}
            else:
                choice["text"] = piece
            if body.get("return_token_ids"):
                choice["token_ids"] = self._numbers(text.tokens[number - 1 : number])
            await send([choice], number, counted=continuous)
        if options.get("include_usage"):
            await send([], None, counted=True)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


def token_s(body: Json) -> float:
    return LONG_TOKEN_S if body.get("ignore_eos") else TOKEN_S


def stopped(text: Generated, stop: str | Sequence[str]) -> Generated:
    """Cut a text at its first stop string. The token that completes the stop string counts."""
    stops = [stop] if isinstance(stop, str) else stop
    shown = ""
    for number, token in enumerate(text.tokens, start=1):
        shown += token
        if found := [(at, one) for one in stops if (at := shown.find(one)) >= 0]:
            (kept, first), pieces = min(found), []
            for piece in text.tokens[:number]:
                pieces.append(piece[:kept])
                kept = max(0, kept - len(piece))
            return Generated(text.prompt, tuple(pieces), text.tokens[:number], "stop", first)
    return text


def likelihoods(body: Json, tokens: Sequence[str], *, chat: bool) -> Json | None:
    """Return `logprobs` of a choice."""
    wanted = body.get("logprobs")
    if wanted is None or wanted is False:
        return None
    if not chat:
        return {"tokens": list(tokens), "token_logprobs": [-0.5] * len(tokens), "top_logprobs": None}
    entries = [{"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": []} for token in tokens]
    return {"content": entries}


def forced_json(body: Json) -> str | None:
    """Return an instance of the schema that the answer must satisfy; None without one."""
    if body.get("tools") and body.get("tool_choice") not in (None, "auto", "none"):
        return example(body["tools"][0]["function"]["parameters"])
    form = body.get("response_format") or {}
    return example(form["json_schema"]["schema"]) if form.get("type") == "json_schema" else None


def example(schema: Json) -> str:
    values = {"string": "Graz", "integer": 3, "number": 0.5, "boolean": True}
    found = {name: values.get(one["type"]) for name, one in schema.get("properties", {}).items()}
    return orjson.dumps(found).decode()


def tool_call(body: Json, arguments: str) -> Json:
    name = body["tools"][0]["function"]["name"]
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def common(*, chat: bool, part: bool = False) -> Json:
    kind = ("chat.completion.chunk" if part else "chat.completion") if chat else "text_completion"
    return {"id": "chatcmpl-1" if chat else "cmpl-1", "object": kind, "created": 1, "model": MODEL}


@web.middleware
async def errors(request: web.Request, handler: Any) -> Any:
    """Return errors as vLLM does."""
    try:
        return await handler(request)
    except Refused as refused:
        return web.json_response(refused.body, status=refused.status)


def application() -> web.Application:
    app = web.Application(client_max_size=16 << 20, middlewares=[errors])
    app.add_routes(StandIn().routes())
    return app


def main() -> None:
    """Serve until SIGTERM."""
    flags = argparse.ArgumentParser(prog="python -m tests.contracts.stand_in", description=__doc__)
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--finish-abandoned", action="store_true", help="Finish JSON calls whose client left.")
    chosen = flags.parse_args()
    web.run_app(
        application(), host="127.0.0.1", port=chosen.port, handler_cancellation=not chosen.finish_abandoned,
        access_log=None, shutdown_timeout=0.1, print=None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
