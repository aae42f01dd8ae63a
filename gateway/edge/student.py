"""A student behind any server that speaks OpenAI's chat completions, on the device or beside it.

How it goes on with an answer that was begun is found out once, by the gateway's own probes (`engines/probing.py`).
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, Self

from gateway.capabilities.continuation import Continuation, place_prefix, unsupported_as_text
from gateway.capabilities.kinds import kind_of
from gateway.capabilities.reasoning import without_reasoning
from gateway.edge.http import LAST_EVENT, StudentHttp, said_in
from gateway.engines.probing import find_continuation
from gateway.engines.raw_prompts import asked_limit, chat_chunk, chat_reply, text_body
from gateway.engines.renderers import LlamaCppRenderer, SGLangRenderer, VllmRenderer
from gateway.errors import EngineFailed, EngineProtocolError, EngineUnsupported

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType

    import httpx

    from gateway.capabilities.continuation import Mode, Prefill
    from gateway.capabilities.kinds import EngineKind
    from gateway.capabilities.reasoning import Reasoning
    from gateway.engines.renderers import Renderer
    from gateway.protocol.body import Json

_RENDERERS: dict[str, type[LlamaCppRenderer | SGLangRenderer | VllmRenderer]] = {
    "llamacpp": LlamaCppRenderer,
    "sglang": SGLangRenderer,
    "vllm": VllmRenderer,
}
SILENCE_LIMIT_S = 120.0


class UrlStudent:
    """An async context manager around one server. All methods raise EngineErrors.

    Args:
        url: its base, with the /v1 where it wants that, like http://127.0.0.1:11434/v1.
        model: what the server calls it; None: the first that its /models lists.
        key: what the server wants for one, if anything.
        name: what the gateway is told that it is; None: as the server calls it.
        continuation: how it goes on with an answer that was begun; `auto` finds out, `none` never tries: then guidance
            stands in its prompt.
        echo: whether it repeats what it goes on with; None leaves that to the probe.
        reasoning: whether it thinks before it answers, as `reasoning` of a model in the gateway's config.yaml.
        silence_s: how long it may say nothing.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        name: str | None = None,
        continuation: Mode | Literal["auto", "none"] = "auto",
        echo: bool | None = None,
        reasoning: Reasoning = "none",
        silence_s: float = SILENCE_LIMIT_S,
    ) -> None:
        self.reasoning = reasoning
        self._url = url
        self._model = model
        self._key = key
        self._name = name
        self._asked = continuation
        self._echo = echo
        self._silence_s = silence_s
        self._http: StudentHttp | None = None
        self._kind: EngineKind | None = None
        self._renderer: Renderer | None = None
        self._continuation: Continuation | None = None
        self._looked = False
        self._one_look = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._http = StudentHttp(self._model or "the student", self._url, self._key, self._silence_s, self._transport())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.close()

    def _transport(self) -> httpx.AsyncBaseTransport | None:
        """Another way to the server than its address."""
        return None

    @property
    def name(self) -> str:
        """What the gateway is told that it is."""
        return self._name or self._model or "unknown"

    @property
    def _server(self) -> StudentHttp:
        if self._http is None:
            raise RuntimeError("the student is used outside of `async with`")
        return self._http

    async def look(self) -> Continuation | None:
        """How it goes on with an answer that was begun; None: it cannot. Asks once; who asks meanwhile waits."""
        async with self._one_look:
            if not self._looked:
                self._continuation = await self._found()
                self._looked = True
            return self._continuation

    async def _found(self) -> Continuation | None:
        if self._asked == "none":
            return None
        modes = (await self._known()).candidates if self._asked == "auto" else (self._asked,)
        return await find_continuation(self._probe, modes, self._echo)

    async def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[Json, None]:
        """Chunks of a chat completion. Ends normally only where the answer has: a cut is an error.

        body: OpenAI's, but for `model`, which is the student's own, and `stream`.
        """
        sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
        path, sent = await self._sent(sent, prefill)
        ended = False
        async with aclosing(self._server.events(path, sent)) as events:
            async for event in events:
                if event == LAST_EVENT:
                    return
                chunk = self._chunk(event)
                ended = ended or any(choice.get("finish_reason") for choice in chunk["choices"])
                yield chunk if "messages" in sent else chat_chunk(chunk)
        if not ended:
            raise EngineFailed(f"Student '{self.name}' broke off in the middle of its answer.", engine=self.name)

    async def _known(self) -> EngineKind:
        """Which kind of server it is, and what it calls its model."""
        if self._kind is None:
            listed = (await self._server.get("/models")).body
            models = listed.get("data") if isinstance(listed, dict) else None
            known = [entry for entry in models if isinstance(entry, dict)] if isinstance(models, list) else []
            mine = next((entry for entry in known if entry.get("id") == self._model), known[0] if known else {})
            self._model = self._model or str(mine.get("id") or "default")
            self._kind = kind_of(mine.get("owned_by"), self._server.host)
            renders = _RENDERERS.get(self._kind.renderer or "")
            self._renderer = renders(self._server, self._model) if renders is not None else None
            if isinstance(self._renderer, SGLangRenderer) and isinstance(mine.get("max_model_len"), int):
                self._renderer.context_tokens = mine["max_model_len"]
        return self._kind

    async def _probe(self, body: Json, prefill: Prefill) -> Json:
        path, sent = await self._sent(without_reasoning(self.reasoning, body), prefill)
        reply = (await self._server.post(path, sent)).body
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise EngineProtocolError(f"Student '{self.name}' sent a reply without an answer.", engine=self.name)
        if "messages" in sent:
            return reply  # type: ignore[no-any-return]
        if not isinstance(choices[0].get("text"), str):
            raise EngineProtocolError(f"Student '{self.name}' sent a reply without text.", engine=self.name)
        return chat_reply(reply)

    async def _sent(self, body: Json, prefill: Prefill | None) -> tuple[str, Json]:
        """Where a chat goes, and what goes there."""
        kind = await self._known()
        if prefill is not None and prefill.continuation.mode == "completions":
            return "/completions", await self._raw(body, prefill.text)
        if prefill is not None:
            body = place_prefix(prefill.continuation.mode, body, prefill.text)
        sent = {**body, "model": self._model}
        kind.adapt(sent)
        return "/chat/completions", sent

    async def _raw(self, body: Json, opening: str) -> Json:
        if self._renderer is None or (lost := unsupported_as_text(body)) is not None:
            why = "is not known to render chats" if self._renderer is None else f"cannot carry it ({lost})"
            raise EngineUnsupported(
                f"Student '{self.name}' was to get a chat as a raw prompt, and {why}.",
                engine=self.name,
                status_sent=422,
            )
        prompt = await self._renderer.begun(body, opening)
        limit = asked_limit(body) or self._renderer.limit(prompt)
        return {**text_body(body, prompt, limit), "model": self._model}

    def _chunk(self, event: bytes) -> Json:
        try:
            chunk: Any = json.loads(event)
        except ValueError:
            chunk = None
        if isinstance(chunk, dict) and chunk.get("error"):
            raise EngineFailed(f"Student '{self.name}' failed in its answer{said_in(event)}.", engine=self.name)
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise EngineProtocolError(f"Student '{self.name}' sent an event that is no chunk.", engine=self.name)
        return chunk  # type: ignore[no-any-return]
