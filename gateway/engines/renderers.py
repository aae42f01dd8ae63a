"""Renders chats to prompts with the chat template of the server, and appends guidance to the prompt.

Templates are not applied in the gateway, since a copy could differ from the server's template.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from gateway.errors import EngineProtocolError, EngineUnsupported

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from gateway.protocol.body import Json

_T = TypeVar("_T")

Prompt: TypeAlias = str | list[int]
"""A text, or token ids for servers that render to token ids only."""

# After such a prompt the model reasons first, and guidance appended to it would become reasoning.
_OPEN_REASONING = re.compile(r"<think(?:ing)?>\s*\Z")
_TAIL_TOKENS = 12
_MAX_TAILS = 64


class RenderedReply(Protocol):
    """A decoded JSON reply."""

    @property
    def body(self) -> Any: ...


class JsonPost(Protocol):
    """Posts JSON to one server: `EngineHttp`, or the HTTP client of gkt-edge."""

    @property
    def name(self) -> str: ...

    async def post(self, path: str, payload: Json, /, *, native: bool = False) -> RenderedReply:
        """POST JSON. A `native` path is relative to the server's root instead of /v1."""
        ...


class Renderer(Protocol):
    """Renders chats with one server. All methods raise EngineErrors."""

    async def render(self, chat: Json) -> Prompt:
        """Return the prompt for a chat body, up to the start of the answer.

        Only the fields of the body that affect the template are sent.
        """
        ...

    async def render_with_prefill(self, chat: Json, text: str) -> Prompt:
        """Return the prompt followed by the start of the answer.

        Raises EngineUnsupported if the model would reason before it answers.
        """
        ...

    def default_limit(self, prompt: Prompt) -> int | None:
        """Return max_tokens for a request without a limit; None: send null."""
        ...


class LlamaCppRenderer:
    """Renders with llama.cpp's /apply-template. llama.cpp reads special tokens in the prompt as tokens."""

    def __init__(self, http: JsonPost, _: str) -> None:
        self._http = http

    async def render(self, chat: Json) -> str:
        body = _template_fields(chat, "chat_template_kwargs", "reasoning_effort")
        reply = (await self._http.post("/apply-template", body, native=True)).body
        return _field(reply, "prompt", str, self._http.name)

    async def render_with_prefill(self, chat: Json, text: str) -> str:
        prompt = await self.render(chat)
        _reject_open_reasoning(prompt, self._http.name)
        return prompt + text

    def default_limit(self, prompt: Prompt) -> int | None:
        return None


class _TokensRenderer:
    """Renders with a /tokenize route that reads messages and returns token ids. Guidance is tokenized separately."""

    _TEXT: str  # the field of /detokenize with the text

    def __init__(self, http: JsonPost, model: str) -> None:
        self._http = http
        self._model = model
        self._reasons: dict[tuple[int, ...], bool] = {}  # by the end of the prompt, which has few variants

    async def render(self, chat: Json) -> list[int]:
        return await self._tokens(self._body(chat))

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

    def default_limit(self, prompt: Prompt) -> int | None:
        return None  # null means as many as fit; the default of a missing field is 16


class SGLangRenderer(_TokensRenderer):
    """Renders with SGLang's /tokenize.

    Attributes:
        context_tokens: the context size from /models. SGLang's /v1/completions requires a number; its default is 16.
    """

    _TEXT = "text"

    def __init__(self, http: JsonPost, model: str) -> None:
        super().__init__(http, model)
        self.context_tokens: int | None = None

    def _body(self, chat: Json) -> Json:
        return _template_fields(chat, "chat_template_kwargs", "reasoning_effort")

    def default_limit(self, prompt: Prompt) -> int | None:
        left = (self.context_tokens or 0) - len(prompt) - 1
        if left < 1:
            raise EngineUnsupported(
                f"Engine '{self._http.name}' cannot continue a raw prompt: the prompt fills the context, "
                "or the context size is unknown. Set max_tokens.",
                engine=self._http.name,
                status_sent=422,
            )
        return left


class TgiRenderer:
    """Renders with TGI's /chat_tokenize. TGI's /generate adds a special token to each prompt, so it is removed here."""

    def __init__(self, http: JsonPost, _: str) -> None:
        self._http = http
        self._added: int | None = None  # the id of the token that TGI adds before a prompt; -1: none

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

    async def render_with_prefill(self, chat: Json, text: str) -> str:
        prompt = await self.render(chat)
        _reject_open_reasoning(prompt, self._http.name)
        return prompt + text

    def default_limit(self, prompt: Prompt) -> int | None:
        return None

    async def _find_added_token(self) -> int:
        tokens = (await self._http.post("/tokenize", {"inputs": "a"})).body
        first = tokens[0] if isinstance(tokens, list) and len(tokens) > 1 else None
        added = first.get("id") if isinstance(first, dict) else None
        return added if isinstance(added, int) else -1


def _template_fields(chat: Json, *names: str) -> Json:
    return {name: chat[name] for name in ("messages", *names) if chat.get(name) is not None}


def _reject_open_reasoning(prompt: str, engine: str) -> None:
    if _OPEN_REASONING.search(prompt):
        raise _reasons_first(engine)


def _reasons_first(engine: str) -> EngineUnsupported:
    return EngineUnsupported(
        f"Engine '{engine}' cannot continue guidance: its model reasons before the answer.",
        engine=engine,
        status_sent=422,
    )


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
