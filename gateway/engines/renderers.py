"""How each kind of server turns a chat into the prompt that its model reads, and an opening into the end of that.

A template of our own would drift from the engine's: each is asked for its own.
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
"""Text, or, from servers that give nothing else, their own tokens."""

# A prompt that ends like this has the model think first: an opening put there would be a thought.
_OPEN_THOUGHT = re.compile(r"<think(?:ing)?>\s*\Z")
_TAIL_TOKENS = 12
_MAX_TAILS = 64


class RenderedReply(Protocol):
    """A reply whose JSON is read."""

    @property
    def body(self) -> Any: ...


class JsonPost(Protocol):
    """Asks one server: `engines/http.py`, or a device's own way to its student."""

    @property
    def name(self) -> str: ...

    async def post(self, path: str, payload: Json, /, *, native: bool = False) -> RenderedReply:
        """A `native` path lies beside the server's /v1."""
        ...


class Renderer(Protocol):
    """One server's way. Raises EngineErrors."""

    async def render(self, chat: Json) -> Prompt:
        """A chat body's messages as a prompt that ends where the answer begins.

        What of the body has a say in that goes along; all else is left out.
        """
        ...

    async def begun(self, chat: Json, opening: str) -> Prompt:
        """The same with the answer begun. Raises EngineUnsupported where the model would think before it answers."""
        ...

    def limit(self, prompt: Prompt) -> int | None:
        """What stands for the limit on tokens when the caller sets none; None: null does."""
        ...


class LlamaCppRenderer:
    """llama.cpp's /apply-template. What it renders is read as its chat would be: special tokens are tokens there."""

    def __init__(self, http: JsonPost, _: str) -> None:
        self._http = http

    async def render(self, chat: Json) -> str:
        asked = _of_template(chat, "chat_template_kwargs", "reasoning_effort")
        reply = (await self._http.post("/apply-template", asked, native=True)).body
        return _field(reply, "prompt", str, self._http.name)

    async def begun(self, chat: Json, opening: str) -> str:
        prompt = await self.render(chat)
        _refuse_thought(prompt, self._http.name)
        return prompt + opening

    def limit(self, prompt: Prompt) -> int | None:
        return None


class _TokensRenderer:
    """A server whose /tokenize takes messages, and gives tokens; a text begun is tokenised apart and put behind."""

    _TEXT: str  # where /detokenize puts its text

    def __init__(self, http: JsonPost, model: str) -> None:
        self._http = http
        self._model = model
        self._thinks: dict[tuple[int, ...], bool] = {}  # by how a prompt ends: there are few ways

    async def render(self, chat: Json) -> list[int]:
        return await self._tokens(self._asked(chat))

    async def begun(self, chat: Json, opening: str) -> list[int]:
        asked = (self._asked(chat), {"prompt": opening, "add_special_tokens": False})
        prompt, begun = await all_of(self._tokens(one) for one in asked)
        await self._refuse_thought(prompt)
        return prompt + begun

    def _asked(self, chat: Json) -> Json:
        raise NotImplementedError

    async def _tokens(self, asked: Json) -> list[int]:
        reply = (await self._http.post("/tokenize", {"model": self._model, **asked}, native=True)).body
        return _field(reply, "tokens", list, self._http.name)

    async def _refuse_thought(self, prompt: list[int]) -> None:
        tail = tuple(prompt[-_TAIL_TOKENS:])
        thinks = self._thinks.get(tail)
        if thinks is None:
            asked = {"model": self._model, "tokens": list(tail), "skip_special_tokens": False}
            reply = (await self._http.post("/detokenize", asked, native=True)).body
            thinks = bool(_OPEN_THOUGHT.search(_field(reply, self._TEXT, str, self._http.name)))
            if len(self._thinks) < _MAX_TAILS:
                self._thinks[tail] = thinks
        if thinks:
            raise _thinks_first(self._http.name)


class VllmRenderer(_TokensRenderer):
    """vLLM's /tokenize, which every server has; /v1/chat/completions/render needs `--enable-scale-out`."""

    _TEXT = "prompt"

    def _asked(self, chat: Json) -> Json:
        asked = _of_template(chat, "chat_template", "chat_template_kwargs")
        if (effort := chat.get("reasoning_effort")) is not None:
            # Its chat route hands this to the template; /tokenize knows the template's own words only.
            asked["chat_template_kwargs"] = {"reasoning_effort": effort, **(asked.get("chat_template_kwargs") or {})}
        return asked

    def limit(self, prompt: Prompt) -> int | None:
        return None  # what is missing means 16, and null what fits


class SGLangRenderer(_TokensRenderer):
    """SGLang's /tokenize.

    context_tokens: what its model holds, as /models says; its /v1/completions wants a number, and 16 is its own.
    """

    _TEXT = "text"

    def __init__(self, http: JsonPost, model: str) -> None:
        super().__init__(http, model)
        self.context_tokens: int | None = None

    def _asked(self, chat: Json) -> Json:
        return _of_template(chat, "chat_template_kwargs", "reasoning_effort")

    def limit(self, prompt: Prompt) -> int | None:
        left = (self.context_tokens or 0) - len(prompt) - 1
        if left < 1:
            raise EngineUnsupported(
                f"Engine '{self._http.name}' needs a limit on tokens to go on with a raw prompt, or has no room left.",
                engine=self._http.name,
                status_sent=422,
            )
        return left


class TgiRenderer:
    """TGI's /chat_tokenize, for its /generate, which puts special tokens before every prompt: once is enough."""

    def __init__(self, http: JsonPost, _: str) -> None:
        self._http = http
        self._added: int | None = None  # the token that it puts before a prompt; -1: none

    async def render(self, chat: Json) -> str:
        if self._added is None:
            self._added = await self._look_what_is_added()
        reply = (await self._http.post("/chat_tokenize", _of_template(chat))).body
        prompt = _field(reply, "templated_text", str, self._http.name)
        # Whether it was put before this one too differs from version to version: then it has no place in the text.
        for token in _field(reply, "tokenize_response", list, self._http.name)[:2]:
            text = token.get("text") if isinstance(token, dict) and token.get("id") == self._added else None
            if text and prompt.startswith(text):
                return prompt.removeprefix(text)
        return prompt

    async def begun(self, chat: Json, opening: str) -> str:
        prompt = await self.render(chat)
        _refuse_thought(prompt, self._http.name)
        return prompt + opening

    def limit(self, prompt: Prompt) -> int | None:
        return None

    async def _look_what_is_added(self) -> int:
        tokens = (await self._http.post("/tokenize", {"inputs": "a"})).body
        first = tokens[0] if isinstance(tokens, list) and len(tokens) > 1 else None
        added = first.get("id") if isinstance(first, dict) else None
        return added if isinstance(added, int) else -1


def _of_template(chat: Json, *names: str) -> Json:
    return {name: chat[name] for name in ("messages", *names) if chat.get(name) is not None}


def _refuse_thought(prompt: str, engine: str) -> None:
    if _OPEN_THOUGHT.search(prompt):
        raise _thinks_first(engine)


def _thinks_first(engine: str) -> EngineUnsupported:
    return EngineUnsupported(
        f"Engine '{engine}' has its model think before it answers: an opening would become a thought.",
        engine=engine,
        status_sent=422,
    )


def _field(reply: Any, name: str, kind: type[_T], engine: str) -> _T:
    value = reply.get(name) if isinstance(reply, dict) else None
    if not isinstance(value, kind):
        raise EngineProtocolError(f"Engine '{engine}' did not render a chat.", engine=engine)
    return value


async def all_of(work: Iterable[Awaitable[_T]]) -> list[_T]:
    """Every result. When one failed, its error, but only when none is under way any more."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]
