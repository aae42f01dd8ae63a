"""Servers that support lists, with the routes of vLLM, llama.cpp, SGLang and OpenAI.

They answer each question with `<its last word> says the machine`, cut at the requested number of tokens. A word is a
token, also in the prompt.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from gateway.engines.base import TeacherRequest
from gateway.engines.openai import OpenAIEngine
from tests.engines.fake_server import NAME, engine_http, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.protocol.capabilities.reasoning import Reasoning
    from tests.engines.fake_server import FakeServer

CHAT = "/v1/chat/completions"
BATCH = CHAT + "/batch"
RAW = "/v1/completions"
LLAMA = "/completion"
TEMPLATE = "/apply-template"
GENERATE = "/generate"
TOKENIZE = "/tokenize"

KINDS = ("vllm", "llamacpp", "sglang")
LIST_PATHS = {"vllm": BATCH, "llamacpp": LLAMA, "sglang": GENERATE}


def chat(question: str, max_tokens: int = 3, **more: Any) -> TeacherRequest:
    return TeacherRequest(max_tokens, messages=[{"role": "user", "content": question}], **more)


def prompt(text: str, max_tokens: int = 3, **more: Any) -> TeacherRequest:
    return TeacherRequest(max_tokens, prompt=text, **more)


@dataclass
class ListServer:
    """A server that supports lists.

    Attributes:
        owner: the kind of server whose routes it has.
        spoil: changes the entries of a list reply before they are sent.
        refuse: (body, whether it is a list) -> the status of a rejection, or None.
        hold: list calls wait until this event is set.
        render: chats are rendered when this event is set. `rendering` is set when a chat waits for it.
        gone: the number of list calls that their client canceled.
        count: returns the number of tokens of a question, for vLLM's /tokenize.
        answer: returns the answer to a question.
        thoughts: the reasoning that precedes the answer to a separately rendered chat.
        unrenderable: the template rejects chats with this word.
        counts: vLLM has /tokenize.
        thinks: the model reasons first unless the template's switch is off, and a parser separates the reasoning.
    """

    owner: str = "vllm"
    spoil: Callable[[list[Any]], list[Any]] = lambda entries: entries
    refuse: Callable[[dict[str, Any], bool], int | None] = lambda _, __: None
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    render: asyncio.Event = field(default_factory=asyncio.Event)
    rendering: asyncio.Event = field(default_factory=asyncio.Event)
    canceled: int = 0
    count: Callable[[str], int] = lambda question: len(question.split())
    answer: Callable[[str], str] = lambda question: f"{question.split()[-1]} says the machine"
    thoughts: str = ""
    unrenderable: str = "\0"
    counts: bool = False
    thinks: bool = False

    def __post_init__(self) -> None:
        self.hold.set()
        self.render.set()

    def routes(self) -> dict[str, Any]:
        own = {
            "vllm": {BATCH: self._chats, RAW: self._raw, **({TOKENIZE: self._tokenize} if self.counts else {})},
            "llamacpp": {TEMPLATE: self._template, LLAMA: self._llama, RAW: self._raw},
            "sglang": {TOKENIZE: self._tokenize, GENERATE: self._generate, RAW: self._raw},
        }
        return {"/v1/models": self._models, CHAT: self._chat, **own.get(self.owner, {RAW: self._raw})}

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "org/model", "owned_by": self.owner}]})

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        if status := self.refuse(body, False):
            return web.json_response({"error": {"message": "refused"}}, status=status)
        text, finish = self._written(body["messages"][-1]["content"], body["max_tokens"])
        choice = {"index": 0, "message": self._message(body, text), "finish_reason": finish}
        return web.json_response({"choices": [choice], "usage": self._sum([body["messages"][-1]["content"]], [text])})

    async def _chats(self, request: web.Request) -> web.Response:
        body = await request.json()
        questions = [messages[-1]["content"] for messages in body["messages"]]

        def choice(index: int, text: str, finish: str) -> Any:
            message = self._message(body, text)
            return {"index": index, "message": message, "finish_reason": finish, **self._details(body, text)}

        return await self._listed(body, questions, body["max_tokens"], choice, wrap=True)

    def _details(self, body: Any, text: str, prompt: str | None = None) -> dict[str, Any]:
        """Return the tokens of a choice as vLLM 0.32 does. The batch route has no ids of prompts."""
        if self.owner != "vllm" or not body.get("return_token_ids"):
            return {}
        words = re.findall(r" ?[^ ]+", text)
        ids = {"token_ids": list(range(len(words)))}
        if prompt is None:
            return {**ids, "logprobs": {"content": [{"token": word, "logprob": -0.1} for word in words]}}
        return {**ids, "logprobs": {"tokens": words}, "prompt_token_ids": list(range(len(prompt.split())))}

    def _reasons(self, body: Any) -> bool:
        return self.thinks and (body.get("chat_template_kwargs") or {}).get("enable_thinking") is not False

    def _message(self, body: Any, text: str) -> Any:
        reasons = self._reasons(body)
        return {"role": "assistant", "content": None if reasons else text, "reasoning": "Hm," if reasons else None}

    async def _raw(self, request: web.Request) -> web.Response:
        body = await request.json()
        listed = isinstance(body["prompt"], list)
        if not listed and (status := self.refuse(body, False)):
            return web.json_response({"error": {"message": "refused"}}, status=status)

        def choice(index: int, text: str, finish: str) -> Any:
            details = self._details(body, text, body["prompt"][index]) if listed else {}
            return {"index": index, "text": text, "finish_reason": finish, **details}

        if not listed:
            text, finish = self._written(body["prompt"], body["max_tokens"])
            usage = self._sum([body["prompt"]], [text])
            return web.json_response({"choices": [choice(0, text, finish)], "usage": usage})
        return await self._listed(body, body["prompt"], body["max_tokens"], choice, wrap=True)

    async def _template(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.rendering.set()
        await self.render.wait()
        if self.unrenderable in str(body):
            return web.json_response({"error": {"message": "no such role"}}, status=400)
        opened = "<think>" if self._reasons(body) else ""
        return web.json_response({"prompt": f"<chat>{body['messages'][-1]['content']}{opened}"})

    async def _llama(self, request: web.Request) -> web.Response:
        body = await request.json()
        questions = [text.removeprefix("<chat>") for text in body["prompt"]]
        stop_types = {"length": "limit", "stop": "eos"}

        def entry(index: int, text: str, finish: str) -> Any:
            return {
                "index": index,
                "content": (self.thoughts + text) if body["prompt"][index].startswith("<chat>") else text,
                "stop_type": stop_types[finish],
                "tokens_evaluated": len(questions[index].split()),
                "tokens_predicted": len(text.split()),
                "timings": {"cache_n": 1},
                "completion_probabilities": [{"token": word, "prob": 1.0} for word in re.findall(r" ?[^ ]+", text)],
            }

        return await self._listed(body, questions, body["n_predict"], entry)

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.rendering.set()
        await self.render.wait()
        if self.unrenderable in str(body):
            return web.json_response({"error": {"message": "no such role"}}, status=400)
        opened = "<think>" if self._reasons(body) else ""
        question = body["messages"][-1]["content"]
        # vLLM's ids are used only for their number. The ids of SGLang are the prompt of a list.
        read = range(self.count(question)) if self.owner == "vllm" else f"{question}{opened}".encode()
        return web.json_response({"tokens": list(read)})

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        questions = body["text"] if "text" in body else [bytes(ids).decode() for ids in body["input_ids"]]

        def entry(index: int, text: str, finish: str) -> Any:
            meta = {
                "finish_reason": {"type": finish},
                "prompt_tokens": len(questions[index].split()),
                "completion_tokens": len(text.split()),
                "cached_tokens": 1,
            }
            return {"text": text, "meta_info": meta}

        return await self._listed(body, questions, body["sampling_params"]["max_new_tokens"], entry)

    async def _listed(
        self, body: Any, questions: list[str], max_tokens: int, entry: Callable[..., Any], *, wrap: bool = False
    ) -> web.Response:
        self.held.set()
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.canceled += 1
            raise
        if status := self.refuse(body, True):
            headers = {"Retry-After": "7"} if status == 429 else {}
            return web.json_response({"error": {"message": "refused"}}, status=status, headers=headers)
        written = [self._written(question, max_tokens) for question in questions]
        entries = self.spoil([entry(index, *one) for index, one in enumerate(written)])
        if not wrap:
            return web.json_response(entries)
        return web.json_response({"choices": entries, "usage": self._sum(questions, [text for text, _ in written])})

    def _written(self, question: str, max_tokens: int) -> tuple[str, str]:
        words = self.answer(question).split()
        return " ".join(words[:max_tokens]), "length" if len(words) > max_tokens else "stop"

    @staticmethod
    def _sum(read: list[str], written: list[str]) -> dict[str, int]:
        return {
            "prompt_tokens": sum(len(text.split()) for text in read),
            "completion_tokens": sum(len(text.split()) for text in written),
        }


@asynccontextmanager
async def listing(
    server: ListServer, *, probed: bool = True, reasoning: Reasoning = "none"
) -> AsyncIterator[tuple[OpenAIEngine, FakeServer]]:
    """Yield an engine that sends lists to `server`. With `looked` it was probed, and the probe's calls are removed."""
    async with serving(server.routes()) as fake, engine_http(fake.url + "/v1") as http:
        engine = OpenAIEngine(NAME, "org/model", http, continuation="none", lists=True)
        engine.state.reasoning = reasoning
        try:
            if probed:
                await engine.probe()
                engine.state.up = True
                server.held.clear()
                server.rendering.clear()
                fake.bodies.clear()
                fake.requests.clear()
            yield engine, fake
        finally:
            await engine.close()
