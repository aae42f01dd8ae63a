"""Students: behind a server with OpenAI's chat completions API, or in this process through llama.cpp.

The gateway's probes (`engines/probing.py`) detect once how a student continues the beginning of an answer.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import aclosing, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import httpx

from gateway.engines.probing import find_continuation
from gateway.engines.raw_prompts import chat_chunk, chat_reply, prefilled_body, renderer_of
from gateway.engines.replies import first_choice, listed_model
from gateway.engines.sse import EventTooLarge, SseDecoder
from gateway.errors import (
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    EngineUnsupported,
    StartupError,
)
from gateway.protocol.capabilities.continuation import Continuation, place_prefix, unsupported_as_text
from gateway.protocol.capabilities.kinds import kind_of
from gateway.protocol.capabilities.reasoning import without_reasoning
from gateway.runtime import llama_cpp as llama

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from gateway.engines.raw_prompts import Renderer
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Mode, Prefill
    from gateway.protocol.capabilities.kinds import EngineKind
    from gateway.protocol.capabilities.reasoning import Reasoning

LAST_EVENT = b"[DONE]"
_CONNECT_LIMIT_S = 5.0
_BUSY = frozenset({429, 503})
_MAX_MESSAGE_CHARS = 300
SILENCE_LIMIT_S = 120.0
_MAX_THREADS = 4


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


class LlamaStudent(UrlStudent):
    """A student in this process: an async context manager that loads the weights, which takes seconds.

    llama.cpp's own server listens on a unix socket that only this user can access, and on no port. Raises StartupError
    if xllamacpp is not installed, or cannot load the weights, a .gguf file.

    Args:
        name: the student's name in usage reports; None: the file's name without its suffix.
        threads: decoding threads; None: one less than the number of cores, at most four. The threads synchronize many
            times per token, so more threads than free cores make decoding very slow.
        context_tokens: maximum tokens of the prompt and the answer together.
    """

    def __init__(
        self,
        weights: Path | str,
        *,
        name: str | None = None,
        threads: int | None = None,
        context_tokens: int = 4096,
        reasoning: Reasoning = "none",
        silence_s: float = SILENCE_LIMIT_S,
    ) -> None:
        self._weights = Path(weights)
        model = name or self._weights.name.removesuffix(".gguf")
        super().__init__("http://student/v1", model=model, reasoning=reasoning, silence_s=silence_s)
        self._options = llama.LlamaOptions(
            threads=threads or max(1, min((os.cpu_count() or 1) - 1, _MAX_THREADS)),
            parallel=1,
            slot_tokens=context_tokens,
        )
        self._llama: Any = None

    async def __aenter__(self) -> Self:
        if find_spec("xllamacpp") is None:
            raise StartupError(
                "xllamacpp is not installed, which runs a student in this process: pip install 'gkt-edge[llama]', or "
                "name a server with its URL"
            )
        if not self._weights.is_file():
            raise StartupError(f"there is no file {self._weights}: name a .gguf file")
        self._folder = TemporaryDirectory(prefix="gkt-edge-")
        self._socket = str(Path(self._folder.name) / "llama.sock")
        try:
            self._llama = await asyncio.to_thread(
                llama.serve, self._weights, self.name, self._options, host=self._socket
            )
        except BaseException:
            self._folder.cleanup()
            raise
        return await super().__aenter__()

    async def __aexit__(self, *details: object) -> None:
        await super().__aexit__(*details)
        # Its destructor waits for open connections; all are closed now.
        self._llama = None
        self._folder.cleanup()

    def _transport(self) -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(uds=self._socket, limits=httpx.Limits(max_keepalive_connections=0))


class EdgeJsonReply(NamedTuple):
    body: Any


class StudentHttp:
    """A client for one student's server. `silence_s` is the longest time without data, which includes the prompt."""

    def __init__(
        self, name: str, url: str, key: str | None, silence_s: float, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.name = name
        self._url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(silence_s, connect=_CONNECT_LIMIT_S),
            # llama.cpp may close an idle connection while it is reused; a new local connection costs nothing.
            limits=httpx.Limits(max_keepalive_connections=0),
            transport=transport,
            trust_env=False,  # a local server needs no proxy
        )

    @property
    def host(self) -> str:
        return httpx.URL(self._url).host

    async def close(self) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> EdgeJsonReply:
        async with self._call("GET", path, None) as reply:
            return EdgeJsonReply(_json(await reply.aread(), self.name))

    async def post(self, path: str, payload: Json, *, native: bool = False) -> EdgeJsonReply:
        """Send a POST request. A `native` path is not below /v1. Raises EngineError."""
        async with self._call("POST", path, payload, native=native) as reply:
            return EdgeJsonReply(_json(await reply.aread(), self.name))

    async def events(self, path: str, payload: Json) -> AsyncGenerator[bytes, None]:
        """Yield the data of each event of a stream. Raises EngineError."""
        decoder = SseDecoder()
        async with self._call("POST", path, payload) as reply:
            try:
                async for received in reply.aiter_bytes():
                    for event in decoder.feed(received):
                        yield event
                for event in decoder.end():
                    yield event
            except EventTooLarge:
                message = f"Student '{self.name}' sent an event that is too large."
                raise EngineProtocolError(message, engine=self.name) from None

    @asynccontextmanager
    async def _call(
        self, method: str, path: str, payload: Json | None, *, native: bool = False
    ) -> AsyncIterator[httpx.Response]:
        base = self._url.removesuffix("/v1") if native else self._url
        try:
            async with self._http.stream(method, base + path, json=payload) as reply:
                if reply.status_code != httpx.codes.OK:
                    raise _refusal(self.name, reply.status_code, await reply.aread())
                yield reply
        except httpx.ConnectTimeout:
            raise EngineUnreachable(f"Student '{self.name}' cannot be reached.", engine=self.name) from None
        except httpx.TimeoutException:
            raise EngineTimeout(f"Student '{self.name}' sent no data in time.", engine=self.name) from None
        except httpx.HTTPError as error:
            message = f"Student '{self.name}' cannot be reached ({type(error).__name__})."
            raise EngineUnreachable(message, engine=self.name) from None


def _json(raw: bytes, name: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise EngineProtocolError(f"Student '{name}' sent invalid JSON.", engine=name) from None


def _refusal(name: str, status: int, raw: bytes) -> EngineError:
    message = error_text(raw)
    if status in _BUSY:
        return EngineOverloaded(f"Student '{name}' is busy or starting{message}.", engine=name)
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return EngineFailed(f"Student '{name}' failed ({status}){message}.", engine=name)
    message = f"Student '{name}' rejected the request ({status}){message}."
    return EngineRejected(message, engine=name, status_sent=status)


def error_text(raw: bytes) -> str:
    """Return the message of an error in OpenAI's format after a colon; "" if there is none."""
    try:
        error = json.loads(raw)["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        return ""
    return f": {message}"[:_MAX_MESSAGE_CHARS].rstrip(".") if isinstance(message, str) else ""
