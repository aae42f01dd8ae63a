"""Chats as raw prompts: rendered with the server's own template, with guidance appended, and sent as text completions.

Templates are not applied in the gateway, since a copy could differ from the server's template.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from gateway.engines.replies import unsupported
from gateway.errors import EngineError, EngineProtocolError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from gateway.errors import EngineUnsupported
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Prefill
    from gateway.protocol.capabilities.kinds import EngineKind

_T = TypeVar("_T")

Prompt: TypeAlias = str | list[int]
"""A text, or token ids for servers that render to token ids only."""

# After such a prompt the model reasons first, and guidance appended to it would become reasoning.
_OPEN_REASONING = re.compile(r"<think(?:ing)?>\s*\Z")
_TAIL_TOKENS = 12
_MAX_TAILS = 64


class JsonPost(Protocol):
    """Posts JSON to one server: `EngineHttp`, or the HTTP client of gkt-edge."""

    name: str

    async def post(self, path: str, payload: Json, /, *, native: bool = False) -> Any:
        """POST JSON, and return the reply with its decoded `body`. A `native` path is relative to the server's root."""


class Renderer:
    """Renders chats with one server. All methods raise EngineErrors."""

    def __init__(self, http: JsonPost, model: str) -> None:
        self._http = http
        self._model = model

    async def render_with_prefill(self, chat: Json, text: str) -> Prompt:
        """Return the prompt and the start of the answer. Raises EngineUnsupported if the model would reason first."""
        raise NotImplementedError

    def default_limit(self, prompt: Prompt) -> int | None:
        """Return max_tokens for a request without a limit.

        None means null, for as many tokens as fit. A missing field can mean 16.
        """
        return None


class _TextRenderer(Renderer):
    """Append the prefill to the rendered chat."""

    async def render(self, chat: Json) -> str:
        """Return the prompt for a chat body, up to the start of the answer. Only fields of the template are sent."""
        raise NotImplementedError

    async def render_with_prefill(self, chat: Json, text: str) -> str:
        prompt = await self.render(chat)
        if _OPEN_REASONING.search(prompt):
            raise _reasons_first(self._http.name)
        return prompt + text


class LlamaCppRenderer(_TextRenderer):
    """Renders with llama.cpp's /apply-template. llama.cpp reads special tokens in the prompt as tokens."""

    async def render(self, chat: Json) -> str:
        body = _template_fields(chat, "chat_template_kwargs", "reasoning_effort")
        reply = (await self._http.post("/apply-template", body, native=True)).body
        return _field(reply, "prompt", str, self._http.name)


class _TokensRenderer(Renderer):
    """Renders with a /tokenize route that reads messages and returns token ids. Guidance is tokenized separately."""

    _TEXT: str  # the field of /detokenize with the text

    def __init__(self, http: JsonPost, model: str) -> None:
        super().__init__(http, model)
        self._reasons: dict[tuple[int, ...], bool] = {}  # by the end of the prompt, which has few variants

    async def render_with_prefill(self, chat: Json, text: str) -> list[int]:
        bodies = (self._body(chat), {"prompt": text, "add_special_tokens": False})
        prompt, prefill = await all_of(self._tokens(body) for body in bodies)
        await self._reject_open_reasoning(prompt)
        return prompt + prefill

    def _body(self, chat: Json) -> Json:
        raise NotImplementedError

    async def _tokens(self, body: Json) -> list[int]:
        reply = (await self._http.post("/tokenize", {"model": self._model, **body}, native=True)).body
        return _field(reply, "tokens", list, self._http.name)

    async def _reject_open_reasoning(self, prompt: list[int]) -> None:
        tail = tuple(prompt[-_TAIL_TOKENS:])
        reasons = self._reasons.get(tail)
        if reasons is None:
            body = {"model": self._model, "tokens": list(tail), "skip_special_tokens": False}
            reply = (await self._http.post("/detokenize", body, native=True)).body
            reasons = bool(_OPEN_REASONING.search(_field(reply, self._TEXT, str, self._http.name)))
            if len(self._reasons) < _MAX_TAILS:
                self._reasons[tail] = reasons
        if reasons:
            raise _reasons_first(self._http.name)


class VllmRenderer(_TokensRenderer):
    """Renders with vLLM's /tokenize. The route /v1/chat/completions/render requires `--enable-scale-out`."""

    _TEXT = "prompt"

    def _body(self, chat: Json) -> Json:
        body = _template_fields(chat, "chat_template", "chat_template_kwargs")
        if (effort := chat.get("reasoning_effort")) is not None:
            # The chat route passes this field to the template; /tokenize reads chat_template_kwargs only.
            body["chat_template_kwargs"] = {"reasoning_effort": effort, **(body.get("chat_template_kwargs") or {})}
        return body


class SGLangRenderer(_TokensRenderer):
    """Renders with SGLang's /tokenize."""

    _TEXT = "text"
    context_tokens: int | None = None  # from /models. SGLang's /v1/completions requires a limit; its default is 16

    def _body(self, chat: Json) -> Json:
        return _template_fields(chat, "chat_template_kwargs", "reasoning_effort")

    def default_limit(self, prompt: Prompt) -> int | None:
        left = (self.context_tokens or 0) - len(prompt) - 1
        if left < 1:
            why = "the prompt fills the context, or the context size is unknown. Set max_tokens."
            raise unsupported(self._http.name, f"cannot continue a raw prompt: {why}")
        return left


class TgiRenderer(_TextRenderer):
    """Renders with TGI's /chat_tokenize. TGI's /generate adds a special token to each prompt, so it is removed here."""

    _added: int | None = None  # the id of the token that TGI adds before a prompt; -1: none

    async def render(self, chat: Json) -> str:
        if self._added is None:
            self._added = await self._find_added_token()
        reply = (await self._http.post("/chat_tokenize", _template_fields(chat))).body
        prompt = _field(reply, "templated_text", str, self._http.name)
        # Depending on the version of TGI the rendered text already contains the token.
        for token in _field(reply, "tokenize_response", list, self._http.name)[:2]:
            text = token.get("text") if isinstance(token, dict) and token.get("id") == self._added else None
            if text and prompt.startswith(text):
                return prompt.removeprefix(text)
        return prompt

    async def _find_added_token(self) -> int:
        tokens = (await self._http.post("/tokenize", {"inputs": "a"})).body
        first = tokens[0] if isinstance(tokens, list) and len(tokens) > 1 else None
        added = first.get("id") if isinstance(first, dict) else None
        return added if isinstance(added, int) else -1


RENDERERS: dict[str | None, type[LlamaCppRenderer | SGLangRenderer | VllmRenderer]] = {
    "llamacpp": LlamaCppRenderer,
    "sglang": SGLangRenderer,
    "vllm": VllmRenderer,
}


def renderer_of(kind: EngineKind, http: JsonPost, model: str, listed: Json) -> Renderer | None:
    """Return the renderer for a kind of server; None: unknown. `listed` is the model's entry in /models."""
    constructor = RENDERERS.get(kind.renderer)
    renderer = constructor(http, model) if constructor is not None else None
    context_tokens = listed.get("max_model_len")
    if isinstance(renderer, SGLangRenderer) and isinstance(context_tokens, int):
        renderer.context_tokens = context_tokens
    return renderer


def _template_fields(chat: Json, *names: str) -> Json:
    return {name: chat[name] for name in ("messages", *names) if chat.get(name) is not None}


def _reasons_first(engine: str) -> EngineUnsupported:
    return unsupported(engine, "cannot continue guidance: its model reasons before the answer.")


def _field(reply: Any, name: str, kind: type[_T], engine: str) -> _T:
    value = reply.get(name) if isinstance(reply, dict) else None
    if not isinstance(value, kind):
        raise EngineProtocolError(f"Engine '{engine}' rendered a chat without the field '{name}'.", engine=engine)
    return value


async def all_of(work: Iterable[Awaitable[_T]]) -> list[_T]:
    """Return all results. After all awaitables have ended, raise the first error."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]


# Fields of a chat body that a text completion lacks or defines differently. `continuation.unsupported_as_text` has
# rejected those that the caller would miss, and the chat template has read the others.
_CHAT_FIELDS = frozenset(
    {
        *("messages", "chat_template", "chat_template_kwargs", "documents", "reasoning_effort"),
        *("continue_final_message", "add_generation_prompt", "add_special_tokens"),
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("response_format", "modalities", "audio", "verbosity", "prediction", "web_search_options"),
        *("include_reasoning", "separate_reasoning", "stream_reasoning", "reasoning_format"),
        *("max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"),
        *("echo", "suffix", "best_of", "prompt", "prompt_embeds"),
    }
)


def text_body(chat: Json, prompt: Prompt, limit: int | None) -> Json:
    """Return a text completion body with a raw prompt and the sampling parameters of a chat body.

    A `limit` of None is sent as null, since some engines use 16 without max_tokens. Other null fields are omitted,
    since not all engines accept them.
    """
    body = {name: value for name, value in chat.items() if value is not None and name not in _CHAT_FIELDS}
    return {**body, "prompt": prompt, "max_tokens": limit}


async def prefilled_body(renderer: Renderer, model: str, chat: Json, prefix: str) -> Json:
    """Return the text completion body for a chat and the start of its answer. Raises EngineErrors."""
    try:
        prompt = await renderer.render_with_prefill(chat, prefix)
        limit = requested_limit(chat) or renderer.default_limit(prompt)
    except EngineError as error:
        error.may_have_run = False  # the model was not called
        raise
    return {**text_body(chat, prompt, limit), "model": model}


def is_text(body: Json) -> bool:
    """Return whether a body is a text completion body."""
    return "messages" not in body


def is_raw(body: Json, prefill: Prefill | None) -> bool:
    """Return whether a request goes to the engine as a text completion."""
    return is_text(body) or (prefill is not None and prefill.continuation.mode == "completions")


def requested_limit(chat: Json) -> int | None:
    """Return the token limit of a chat body from `max_completion_tokens` or `max_tokens`."""
    return chat.get("max_completion_tokens") or chat.get("max_tokens")


def chat_reply(reply: Json) -> Json:
    """Return a text completion reply as a chat completion reply."""
    choices = [
        {**_plain(choice), "message": {"role": "assistant", "content": choice["text"]}} for choice in reply["choices"]
    ]
    return {**reply, "object": "chat.completion", "choices": choices}


def chat_chunk(chunk: Json) -> Json:
    """Return a text completion chunk as a chat completion chunk."""
    choices = [{**_plain(choice), "delta": {"content": choice.get("text") or ""}} for choice in chunk["choices"]]
    return {**chunk, "object": "chat.completion.chunk", "choices": choices}


def _plain(choice: Json) -> Json:
    """Return a choice without its text. Log-probabilities keep the format of text completions."""
    rest = {name: value for name, value in choice.items() if name != "text"}
    return {**rest, "finish_reason": choice.get("finish_reason") or None}
