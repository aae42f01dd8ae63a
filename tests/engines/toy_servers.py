"""Model servers with the chat templates and errors of real ones, around one toy model.

The model knows its answers (`ANSWERS`). It continues an answer that is open in its prompt, and starts again after a
closed one. A word with the preceding space is a token. Each server cites its source.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import orjson
from aiohttp import web

from gateway.engines.openai import OpenAIEngine
from gateway.protocol.capabilities.continuation import INSTRUCTION, probes
from tests.engines.fake_server import NAME, engine_http, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.engines.fake_server import FakeServer, Handler

QUESTION = "Why is the sky blue?"
OPENING = "The sky is blue because"
ANSWER = (
    "The sky is blue because small molecules scatter blue light more than they scatter red light, and so we see it."
)
ANSWERS = {QUESTION: ANSWER, probes("vllm")[0].question: "a b c d e f g h i j k l m n o p q r s t u v w x y z"}

# One character each, so that a prompt's tokens are its characters' numbers.
USER, ASSISTANT, END, BOS = "\x01", "\x02", "\x03", "\x04"

_INSTRUCTION_START = INSTRUCTION.partition("{opening}")[0].strip()


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message


def rendered(messages: list[dict[str, Any]], *, open_end: bool = False) -> str:
    """A chat as the toy template has it; with `open_end` the last message is left open."""
    turns = [(ASSISTANT if one["role"] == "assistant" else USER) + one["content"] + END for one in messages]
    prompt = "".join(turns)
    return prompt.removesuffix(END) if open_end else prompt + ASSISTANT


@dataclass
class ToyServer:
    """The common part: the model, and OpenAI's replies.

    Args:
        obeys: whether the model follows the instruction in its prompt.
    """

    obeys: bool = True
    owner: ClassVar[Any] = None
    host: ClassVar[str | None] = None
    chat_path: ClassVar[str] = "/v1/chat/completions"

    def routes(self) -> dict[str, Handler]:
        return {"/v1/models": self._models, self.chat_path: self._chat}

    def entry(self) -> dict[str, Any]:
        return {"id": "org/model", "owned_by": self.owner}

    def prompt(self, body: dict[str, Any]) -> str:
        """The chat as the model reads it. Raises Refused."""
        raise NotImplementedError

    def limit(self, body: dict[str, Any]) -> int | None:
        return body.get("max_completion_tokens") or body.get("max_tokens")

    def shown(self, body: dict[str, Any], text: str) -> str:
        """Return the text of a chat's reply for the text of the model."""
        return text

    def write(self, prompt: str, limit: int | None) -> tuple[str, str]:
        before, _, answer_start = prompt.rpartition(ASSISTANT)
        question = before.rpartition(USER)[2].removesuffix(END)
        question, instruction, prefix = question.partition(_INSTRUCTION_START)
        answer = ANSWERS.get(question.strip(), "I do not know that one.")
        if instruction and self.obeys and not answer.startswith(prefix.strip()):
            answer = prefix.strip() + " and so on."
        words = re.findall(r"\s*\S+", answer.removeprefix(answer_start))
        return "".join(words[:limit]), "length" if limit is not None and len(words) > limit else "stop"

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [self.entry()]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        try:
            text, finish = self.write(self.prompt(body), self.limit(body))
        except Refused as refused:
            return refusal(refused)
        return await answered(request, body, self.shown(body, text), finish, kind="chat")


def refusal(refused: Refused) -> web.Response:
    return web.json_response({"error": {"message": refused.message}}, status=refused.status)


async def answered(
    request: web.Request, body: dict[str, Any], text: str, finish: str, *, kind: str
) -> web.StreamResponse:
    """OpenAI's reply: whole, or word by word."""

    def choice(part: str, end: str | None, *, whole: bool) -> dict[str, Any]:
        chat = {"message" if whole else "delta": {"role": "assistant", "content": part}}
        return {"index": 0, "finish_reason": end, **(chat if kind == "chat" else {"text": part, "logprobs": None})}

    usage = {"prompt_tokens": 9, "completion_tokens": len(text.split())}
    if not body.get("stream"):
        return web.json_response({"choices": [choice(text, finish, whole=True)], "usage": usage})
    words = re.findall(r"\s*\S+", text)
    events = [{"choices": [choice(word, None, whole=False)]} for word in words]
    events += [{"choices": [choice("", finish, whole=False)]}, {"choices": [], "usage": usage}]
    return await streamed(request, [*events, b"[DONE]"])


async def streamed(request: web.Request, events: list[Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(b"data: " + (event if isinstance(event, bytes) else orjson.dumps(event)) + b"\n\n")
    await response.write_eof()
    return response


def only(body: dict[str, Any], allowed: set[str], status: int, message: str) -> None:
    """Refuse what a strict host does not know."""
    for name in body:
        if name not in allowed:
            raise Refused(status, message.format(name))


@dataclass
class _Tokenizing(ToyServer):
    """vLLM and SGLang: /tokenize takes messages or a prompt, /v1/completions a list of tokens.

    thinks: whether the template has the model think before it answers.
    """

    thinks: bool = False
    text_field: ClassVar[str] = "text"

    def routes(self) -> dict[str, Handler]:
        return {
            **super().routes(),
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
            "/v1/completions": self._completions,
        }

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "messages" in body:
            text = rendered(body["messages"]) + ("<think>\n" if self.thinks else "")
            text = BOS * body.get("add_special_tokens", False) + text
        else:
            text = BOS * body.get("add_special_tokens", True) + body["prompt"]
        return web.json_response({"tokens": [ord(one) for one in text], "count": len(text), "max_model_len": 10**30})

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({self.text_field: "".join(map(chr, body["tokens"]))})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        try:
            limit = self.raw_limit(body)
        except Refused as refused:
            return refusal(refused)
        assert BOS not in map(chr, body["prompt"]), "special tokens in the middle of a prompt"
        text, finish = self.write("".join(map(chr, body["prompt"])), limit)
        return await answered(request, body, text, finish, kind="text")

    def raw_limit(self, body: dict[str, Any]) -> int | None:
        raise NotImplementedError


@dataclass
class Vllm(_Tokenizing):
    """vLLM main (2026): openai/chat_completion/protocol.py refuses both flags, and `add_generation_prompt` is on by
    itself; serve/tokenize/protocol.py; openai/completion/protocol.py, where a missing `max_tokens` is 16 and null none.

    trims: the template changes the last message, so that transformers' render_jinja_template does not find it.
    """

    trims: bool = False
    owner = "vllm"
    text_field = "prompt"

    def prompt(self, body: dict[str, Any]) -> str:
        goes_on = body.get("continue_final_message", False)
        if goes_on and body.get("add_generation_prompt", True):
            raise Refused(400, "Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
        if goes_on and self.trims:
            raise Refused(400, "continue_final_message is set but the final message does not appear in the chat.")
        return rendered(body["messages"], open_end=goes_on)

    def shown(self, body: dict[str, Any], text: str) -> str:
        return (body["messages"][-1]["content"] if body.get("echo") else "") + text

    def raw_limit(self, body: dict[str, Any]) -> int | None:
        return body.get("max_tokens", 16)


@dataclass
class SGLang(_Tokenizing):
    """SGLang 0.5.23: serving_chat.py's `_handle_last_assistant_message` takes the flag, and turns an unflagged trailing
    assistant into a user; protocol.py's TokenizeRequest takes messages, its CompletionRequest's `max_tokens` is an int.

    flagged: whether it knows the flag at all.
    """

    flagged: bool = True
    owner = "sglang"
    text_field = "text"

    def entry(self) -> dict[str, Any]:
        return {**super().entry(), "max_model_len": 4096}

    def prompt(self, body: dict[str, Any]) -> str:
        *before, last = body["messages"]
        if last["role"] != "assistant":
            return rendered(body["messages"])
        if body.get("continue_final_message") and self.flagged:
            return rendered(before) + last["content"]
        return rendered([*before, {**last, "role": "user"}])

    def raw_limit(self, body: dict[str, Any]) -> int | None:
        for name in ("max_tokens", "temperature", "top_p", "n"):
            if name in body and body[name] is None:
                raise Refused(400, f"{name}: Input should be a valid number")
        limit = body.get("max_tokens", 16)
        if limit + len(body["prompt"]) > 4096:
            raise Refused(400, "Requested token count exceeds the model's maximum context length of 4096 tokens.")
        return limit  # type: ignore[no-any-return]


@dataclass
class LlamaCpp(ToyServer):
    """llama.cpp main (2026): tools/server/server-common.cpp (`--prefill-assistant`, the flags, two assistants at the
    end), its /apply-template, and its /v1/completions, where no limit is none.

    prefills: `--prefill-assistant`. echoes: the build repeats what it continues (the demo's does).
    """

    prefills: bool = True
    echoes: bool = False
    owner = "llamacpp"

    def routes(self) -> dict[str, Handler]:
        return {**super().routes(), "/apply-template": self._template, "/v1/completions": self._completions}

    def prompt(self, body: dict[str, Any]) -> str:
        if body.get("continue_final_message") and body.get("add_generation_prompt", True):
            raise Refused(400, "Cannot set both add_generation_prompt and continue_final_message to true.")
        if [one["role"] for one in body["messages"]][-2:] == ["assistant", "assistant"]:
            raise Refused(400, "Cannot have 2 or more assistant messages at the end of the list.")
        return rendered(body["messages"], open_end=self._goes_on(body))

    def _goes_on(self, body: dict[str, Any]) -> bool:
        return self.prefills and body["messages"][-1]["role"] == "assistant"

    def shown(self, body: dict[str, Any], text: str) -> str:
        return (body["messages"][-1]["content"] if self.echoes and self._goes_on(body) else "") + text

    async def _template(self, request: web.Request) -> web.Response:
        return web.json_response({"prompt": rendered((await request.json())["messages"])})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text, finish = self.write(body["prompt"], body.get("max_tokens"))
        return await answered(request, body, text, finish, kind="text")


@dataclass
class Ollama(ToyServer):
    """Ollama main (2026-08): model/renderers leave a trailing assistant open, and old `.Response` templates in
    template/template.go may not; unknown fields, flags among them, are not read (openai/openai.go); neither is
    `max_completion_tokens` (issue 7125).

    leaves_open: whether the model's template does.
    """

    leaves_open: bool = True
    owner = "library"

    def prompt(self, body: dict[str, Any]) -> str:
        trailing = body["messages"][-1]["role"] == "assistant"
        return rendered(body["messages"], open_end=trailing and self.leaves_open)

    def limit(self, body: dict[str, Any]) -> int | None:
        return body.get("max_tokens")


_OPENAI_FIELDS = {
    *("model", "messages", "max_completion_tokens", "temperature", "top_p", "n", "stop", "stream", "stream_options"),
    *("seed", "presence_penalty", "frequency_penalty", "logit_bias", "user", "response_format", "tools"),
}


@dataclass
class OpenAI(ToyServer):
    """OpenAI: a trailing assistant message is a finished turn; a field it does not know is a 400; `max_tokens` is one
    with the o-series and GPT-5 (openai-python issue 2046).
    """

    owner = "system"
    host = "api.openai.com"

    def prompt(self, body: dict[str, Any]) -> str:
        if "max_tokens" in body:
            raise Refused(400, "Unsupported parameter: 'max_tokens' is not supported with this model.")
        only(body, _OPENAI_FIELDS, 400, "Unrecognized request argument supplied: {}")
        for message in body["messages"]:
            only(message, {"role", "content"}, 400, "Additional properties are not allowed ('{}' was unexpected)")
        return rendered(body["messages"])


@dataclass
class Mistral(ToyServer):
    """Mistral's API: the last assistant message needs `prefix: true`, and the reply repeats it (LiteLLM 1.110.2); what
    it does not know is a 422, `max_completion_tokens` (eca issue 231) and `stream_options` (anon-kode issue 53) too.
    """

    owner = "mistralai"
    host = "api.mistral.ai"

    def prompt(self, body: dict[str, Any]) -> str:
        known = {"model", "messages", "max_tokens", "temperature", "top_p", "n", "stop", "stream", "random_seed"}
        only(body, known, 422, "extra_forbidden: {}")
        for message in body["messages"]:
            only(message, {"role", "content", "prefix"}, 422, "extra_forbidden: {}")
        last = body["messages"][-1]
        if last["role"] == "assistant" and not last.get("prefix"):
            raise Refused(400, "Expected last role User or Tool (or Assistant with prefix True) but got assistant")
        return rendered(body["messages"], open_end=last["role"] == "assistant")

    def shown(self, body: dict[str, Any], text: str) -> str:
        last = body["messages"][-1]
        return (last["content"] if last["role"] == "assistant" else "") + text


@dataclass
class DeepSeek(ToyServer):
    """DeepSeek's documentation, "Chat Prefix Completion (Beta)": `prefix: true`, at /beta; nothing is repeated
    (LiteLLM's documentation). Other fields are OpenAI's, with `max_tokens`.
    """

    owner = "deepseek"
    host = "api.deepseek.com"

    def prompt(self, body: dict[str, Any]) -> str:
        last = body["messages"][-1]
        return rendered(body["messages"], open_end=last["role"] == "assistant" and last.get("prefix") is True)

    def limit(self, body: dict[str, Any]) -> int | None:
        return body.get("max_tokens")


@dataclass
class Groq(ToyServer):
    """Groq's documentation, "Assistant Message Prefilling": the message at the end is enough. An unknown property is a
    400 ("property 'store' is unsupported"). Whether it repeats the message is not documented; here it does not.
    """

    owner = "Meta"
    host = "api.groq.com"

    def prompt(self, body: dict[str, Any]) -> str:
        only(body, _OPENAI_FIELDS | {"max_tokens"}, 400, "property '{}' is unsupported")
        for message in body["messages"]:
            only(message, {"role", "content"}, 400, "property '{}' is unsupported")
        return rendered(body["messages"], open_end=body["messages"][-1]["role"] == "assistant")


@dataclass
class DashScope(ToyServer):
    """DashScope's documentation, "partial mode": `partial: true` on the last assistant message."""

    owner = "system"
    host = "dashscope.aliyuncs.com"

    def prompt(self, body: dict[str, Any]) -> str:
        last = body["messages"][-1]
        return rendered(body["messages"], open_end=last["role"] == "assistant" and last.get("partial") is True)


@asynccontextmanager
async def spoken_to(server: ToyServer, **options: Any) -> AsyncIterator[tuple[OpenAIEngine, FakeServer]]:
    """An engine that speaks to `server`, as if at its host; not probed yet."""
    async with serving(server.routes()) as fake, engine_http(fake.url + "/v1") as http:
        if server.host is not None:
            http.host = server.host
        yield OpenAIEngine(NAME, "org/model", http, **options), fake
