"""A student behind a server with OpenAI's chat completions API, on the device or in its network.

The gateway's probes (`engines/probing.py`) detect once how it continues the beginning of an answer.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, Self

from gateway.capabilities.continuation import Continuation, place_prefix, unsupported_as_text
from gateway.capabilities.kinds import kind_of
from gateway.capabilities.reasoning import without_reasoning
from gateway.edge.http import LAST_EVENT, StudentHttp, error_text
from gateway.engines.probing import find_continuation
from gateway.engines.raw_prompts import chat_chunk, chat_reply, prefilled_body, renderer_of
from gateway.engines.replies import first_choice, listed_model
from gateway.errors import EngineFailed, EngineProtocolError, EngineUnsupported

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import httpx

    from gateway.capabilities.continuation import Mode, Prefill
    from gateway.capabilities.kinds import EngineKind
    from gateway.capabilities.reasoning import Reasoning
    from gateway.engines.raw_prompts import Renderer
    from gateway.protocol.body import Json

SILENCE_LIMIT_S = 120.0


class UrlStudent:
    """A student behind one server: an async context manager. All methods raise EngineErrors.

    Args:
        url: the base URL, with /v1 if the server needs it, such as http://127.0.0.1:11434/v1.
        model: the server's name of the model; None: the first in its /models.
        key: the server's API key; None: no key.
        name: the student's name in usage reports; None: the server's name of the model.
        continuation: how the server continues the beginning of an answer. `auto` probes it; `none` disables it, so
            guidance is put in the prompt.
        echo: whether the server repeats the beginning; None: probed.
        reasoning: whether the model reasons before it answers, as `reasoning` of a model in config.yaml.
        silence_s: the longest time without data from the server, in seconds.
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
        self._configured = continuation
        self._echo = echo
        self._silence_s = silence_s
        self._http: StudentHttp | None = None
        self._kind: EngineKind | None = None
        self._renderer: Renderer | None = None
        self._continuation: Continuation | None = None
        self._detected = False
        self._detection_lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._http = StudentHttp(self._model or "the student", self._url, self._key, self._silence_s, self._transport())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    def _transport(self) -> httpx.AsyncBaseTransport | None:
        return None

    @property
    def name(self) -> str:
        """The student's name in usage reports."""
        return self._name or self._model or "unknown"

    @property
    def _server(self) -> StudentHttp:
        if self._http is None:
            raise RuntimeError("the student is used outside of `async with`")
        return self._http

    async def detect_continuation(self) -> Continuation | None:
        """Return how the server continues the beginning of an answer; None if it cannot. Probe it once."""
        mode = self._configured
        async with self._detection_lock:
            if not self._detected and mode != "none":
                modes = (await self._detect_kind()).candidates if mode == "auto" else (mode,)
                self._continuation = await find_continuation(self._probe, modes, self._echo)
                self._detected = True
            return self._continuation

    async def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[Json, None]:
        """Yield the chunks of a chat completion. An incomplete answer raises EngineFailed.

        `body` is a request of OpenAI's API; its `model` and `stream` are replaced.
        """
        request = {**body, "stream": True, "stream_options": {"include_usage": True}}
        path, request = await self._request(request, prefill)
        ended = False
        async with aclosing(self._server.events(path, request)) as events:
            async for event in events:
                if event == LAST_EVENT:
                    return
                chunk = self._chunk(event)
                ended = ended or any(choice.get("finish_reason") for choice in chunk["choices"])
                yield chunk if "messages" in request else chat_chunk(chunk)
        if not ended:
            raise EngineFailed(f"Student '{self.name}' broke off in the middle of its answer.", engine=self.name)

    async def _detect_kind(self) -> EngineKind:
        """Return the kind of the server, and set the model's name."""
        if self._kind is None:
            mine, _ = listed_model((await self._server.get("/models")).body, self._model)
            self._model = self._model or str(mine.get("id") or "default")
            self._kind = kind_of(mine.get("owned_by"), self._server.host)
            self._renderer = renderer_of(self._kind, self._server, self._model, mine)
        return self._kind

    async def _probe(self, body: Json, prefill: Prefill) -> Json:
        path, request = await self._request(without_reasoning(self.reasoning, body), prefill)
        reply = (await self._server.post(path, request)).body
        choice = first_choice(reply)
        if not choice:
            raise EngineProtocolError(f"Student '{self.name}' sent a reply without an answer.", engine=self.name)
        if "messages" in request:
            return reply  # type: ignore[no-any-return]
        if not isinstance(choice.get("text"), str):
            raise EngineProtocolError(f"Student '{self.name}' sent a reply without text.", engine=self.name)
        return chat_reply(reply)

    async def _request(self, body: Json, prefill: Prefill | None) -> tuple[str, Json]:
        kind = await self._detect_kind()
        if prefill is not None and prefill.continuation.mode == "completions":
            return "/completions", await self._raw(body, prefill.text)
        if prefill is not None:
            body = place_prefix(prefill.continuation.mode, body, prefill.text)
        request = {**body, "model": self._model}
        kind.adapt(request)
        return "/chat/completions", request

    async def _raw(self, body: Json, prefix: str) -> Json:
        if self._renderer is None or (unsupported := unsupported_as_text(body)) is not None:
            why = (
                "the server cannot render chats" if self._renderer is None else f"the prompt cannot carry {unsupported}"
            )
            message = f"Student '{self.name}' cannot get a chat as a raw prompt: {why}."
            raise EngineUnsupported(message, engine=self.name, status_sent=422)
        assert self._model is not None, "set with the renderer"
        return await prefilled_body(self._renderer, self._model, body, prefix)

    def _chunk(self, event: bytes) -> Json:
        try:
            chunk: Any = json.loads(event)
        except ValueError:
            chunk = None
        fields = chunk if isinstance(chunk, dict) else {}
        if fields.get("error"):
            raise EngineFailed(f"Student '{self.name}' failed in its answer{error_text(event)}.", engine=self.name)
        choices = fields.get("choices")
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise EngineProtocolError(f"Student '{self.name}' sent an event that is not a chunk.", engine=self.name)
        return fields
