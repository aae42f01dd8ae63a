"""A stand-in for vLLM 0.32: one model whose answer is a list of tokens, with the counts that vLLM reports.

Sources: vllm/entrypoints/openai/chat_completion/serving.py and batch_serving.py, completion/serving.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.fake_texts import begin_events, event
from tests.fakes import FakeEngine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

END_TOKEN = "<|im_end|>"
TOKENS = (
    "It", " is", " so", ",", " as", " a", " rule", " incontrovertibly", " be", "cause", " mole", "cules", " of", " air",
    " scatter", " blue", " light", " more", " than", " they", " scatter", " red", " light", ".",
)  # fmt: skip
"""Tokens of such different lengths that no estimate from characters is exact."""
TEMPLATE_TOKENS = 7


@dataclass(frozen=True)
class Generated:
    """The generated tokens, the text without the stop string, and why it ended."""

    tokens: tuple[str, ...]
    text: str
    finish: str


class VllmEngine(FakeEngine):
    """A vLLM server. Its answer is `answer`, or the rest of it after a text that the prompt begins.

    `per_event` is the number of tokens that one event of a stream has: more than one if the client reads slowly.
    `cached` is the number of tokens of each prompt that the prefix cache has. With `context_tokens`, longer prompts and
    limits are rejected. While it is `asleep`, calls wait.
    """

    ROUTES = ("/v1/chat/completions", "/v1/completions", "/tokenize")

    def __init__(
        self, answer: Sequence[str] = TOKENS, *, per_event: int = 1, cached: int = 0, context_tokens: int | None = None
    ) -> None:
        super().__init__(self._serve, owned_by="vllm")
        self.answer = tuple(answer)
        self.per_event = per_event
        self.cached = cached
        self.context_tokens = context_tokens
        self.asleep = False

    def add_routes(self, app: web.Application) -> None:
        async def version(_: web.Request) -> web.Response:
            return web.json_response({"version": "0.32.0"})

        async def is_sleeping(_: web.Request) -> web.Response:
            return web.json_response({"is_sleeping": self.asleep})

        app.router.add_get("/version", version)
        app.router.add_get("/is_sleeping", is_sleeping)

    async def _models(self, _: web.Request) -> web.Response:
        entry = {"id": "fake", "object": "model", "owned_by": "vllm", "max_model_len": self.context_tokens}
        return web.json_response({"object": "list", "data": [entry]})

    async def _serve(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        while self.asleep:
            await asyncio.sleep(0.02)
        if request.path == "/tokenize":
            read = self._chat(body["messages"])[0] if "messages" in body else len(self.begun(body["prompt"]))
            return web.json_response({"tokens": list(range(read))})
        if "messages" not in body:
            prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
            read = [self._raw(prompt) for prompt in prompts]
        else:
            read = [self._chat(body["messages"], continued=body.get("continue_final_message", False))]
            if body.get("chat_template_kwargs"):
                read = [(read[0][0] + TEMPLATE_TOKENS, read[0][1])]
        if self.context_tokens is not None:
            limit = body.get("max_completion_tokens") or body.get("max_tokens") or 0
            if limit > self.context_tokens:
                text = f"max_tokens={limit} cannot be greater than max_model_len={self.context_tokens}. "
                return _refused(text + "Please request fewer output tokens.", "max_tokens")
            if read[0][0] > self.context_tokens:
                text = f"This model's maximum context length is {self.context_tokens} tokens. However, your prompt "
                return _refused(f"{text}contains at least {read[0][0]} input tokens.", "input_tokens")
        if body.get("stream"):
            return await self._stream(request, body, *read[0])
        return self._reply(body, read, chat="messages" in body)

    def _chat(self, messages: list[dict[str, Any]], *, continued: bool = False) -> tuple[int, str]:
        begun = messages[-1]["content"] if continued else ""
        counted = messages[:-1] if continued else messages
        return TEMPLATE_TOKENS + sum(len(one["content"].split()) for one in counted) + len(self.begun(begun)), begun

    def _raw(self, prompt: str) -> tuple[int, str]:
        question, mark, begun = prompt.partition("A:")
        return len(question.split()) + 1 + len(self.begun(begun)), begun if mark else ""

    def begun(self, text: str) -> list[str]:
        """Return the tokens of the beginning of an answer. A beginning that ends within a token has one more."""
        tokens, at = [], 0
        for token in self._after(""):
            if at >= len(text):
                break
            tokens.append(token)
            at += len(token)
        return tokens

    def _after(self, begun: str) -> Iterator[str]:
        """Yield the tokens after the beginning of an answer. A chat template trims the beginning."""
        whole = "".join(self.answer)
        left = len(begun) + (whole.index(begun) if begun in whole else 0)
        for token in self.answer:
            if left < len(token):
                yield token[left:]
            left = max(0, left - len(token))

    def generate(self, body: dict[str, Any], begun: str) -> Generated:
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or (16 if "messages" not in body else 1000)
        stops = body.get("stop") or ()
        tokens: list[str] = []
        text = ""
        for token in self._after(begun):
            tokens.append(token)
            text += token
            found = [text.index(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop in text]
            if found:
                return Generated(tuple(tokens), text[: min(found)], "stop")
            if len(tokens) == limit:
                return Generated(tuple(tokens), text, "length")
        return Generated((*tokens, END_TOKEN), text, "stop")

    def _reply(self, body: dict[str, Any], read: list[tuple[int, str]], *, chat: bool) -> web.Response:
        written = [self.generate(body, begun) for _, begun in read]
        choices: list[dict[str, Any]] = []
        for index, (one, (tokens, _)) in enumerate(zip(written, read, strict=True)):
            content = {"message": {"role": "assistant", "content": one.text}} if chat else {"text": one.text}
            details = _details(body, one.tokens, chat=chat)
            if body.get("return_token_ids") and not chat:
                details["prompt_token_ids"] = list(range(tokens))
            choices.append({"index": index, **content, "finish_reason": one.finish, **details})
        prompt_tokens = sum(tokens for tokens, _ in read)
        usage = self._usage(prompt_tokens, sum(len(one.tokens) for one in written))
        ids = {"prompt_token_ids": list(range(prompt_tokens))} if chat and body.get("return_token_ids") else {}
        return web.json_response({"id": "cmpl-1", "model": body["model"], "choices": choices, "usage": usage, **ids})

    def _usage(self, read: int, written: int) -> dict[str, Any]:
        counted: dict[str, Any] = {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }
        return {**counted, "prompt_tokens_details": {"cached_tokens": self.cached}} if self.cached else counted

    async def _stream(
        self, request: web.Request, body: dict[str, Any], prompt_tokens: int, begun: str
    ) -> web.StreamResponse:
        chat, one = "messages" in body, self.generate(body, begun)
        options = body.get("stream_options") or {}
        running = options.get("include_usage") and options.get("continuous_usage_stats")
        response = await begin_events(request)
        texts = held_back(one.text, ["" if token is END_TOKEN else token for token in one.tokens], body.get("stop"))
        for at in range(0, len(one.tokens), self.per_event):
            tokens, text = one.tokens[at : at + self.per_event], "".join(texts[at : at + self.per_event])
            finish = one.finish if at + self.per_event >= len(one.tokens) else None
            content = {"delta": {"content": text}} if chat else {"text": text}
            choice = {"index": 0, **content, "finish_reason": finish, **_details(body, tokens, chat=chat)}
            counts = {"usage": self._usage(prompt_tokens, at + len(tokens))} if running else {}
            await response.write(event({"id": "c", "model": "m", "choices": [choice], **counts}))
        if options.get("include_usage"):
            usage = self._usage(prompt_tokens, len(one.tokens))
            await response.write(event({"id": "c", "model": "m", "choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def held_back(text: str, tokens: Sequence[str], stop: str | Sequence[str] | None) -> list[str]:
    """Return the part of the text that vLLM sends with each token: the end is held back while it may be a stop string.

    Source: vllm/v1/engine/detokenizer.py.
    """
    stops = [stop] if isinstance(stop, str) else stop or ()
    held = max(map(len, stops), default=1) - 1
    parts: list[str] = []
    size = sent = 0
    for number, token in enumerate(tokens, start=1):
        size += len(token)
        until = len(text) if number == len(tokens) else max(sent, min(size - held, len(text)))
        parts.append(text[sent:until])
        sent = until
    return parts


def _details(body: dict[str, Any], tokens: Sequence[str], *, chat: bool) -> dict[str, Any]:
    """Return the fields of a choice that describe its tokens, as far as they were requested."""
    details: dict[str, Any] = {}
    if body.get("return_token_ids"):
        details["token_ids"] = list(range(len(tokens)))
    if chat and body.get("logprobs"):
        content = [
            {"token": token, "logprob": -0.1, "bytes": list(token.encode()), "top_logprobs": []} for token in tokens
        ]
        details["logprobs"] = {"content": content}
    elif not chat and body.get("logprobs") is not None:
        details["logprobs"] = {"tokens": list(tokens), "token_logprobs": [-0.1] * len(tokens), "top_logprobs": None}
    return details


def _refused(message: str, param: str) -> web.Response:
    error = {"message": message, "type": "BadRequestError", "param": param, "code": 400}
    return web.json_response({"error": error}, status=400)
