"""The engine for OpenAI-compatible servers: vLLM, SGLang, llama.cpp, Ollama, OpenAI and others."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

import orjson

from gateway.capabilities.continuation import Continuation, place_prefix, unsupported_as_text
from gateway.capabilities.kinds import kind_of
from gateway.capabilities.reasoning import without_reasoning
from gateway.engines.base import EngineEmbeddings, EngineState, TeacherReply, TeacherRequest
from gateway.engines.chat import ChatWire, collect_stream, read_usage, sampling_body, teacher_finish, tokens_of
from gateway.engines.embeddings import MAX_REPLY_BYTES, read_embeddings
from gateway.engines.lists import CallLists
from gateway.engines.probing import find_continuation
from gateway.engines.raw_prompts import chat_chunk, chat_reply, is_text, requested_limit, text_body
from gateway.engines.renderers import LlamaCppRenderer, SGLangRenderer, VllmRenderer
from gateway.engines.replies import first_choice, message_text
from gateway.engines.texts import TextWire
from gateway.errors import EngineError, EngineProtocolError, EngineUnsupported

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from gateway.capabilities.continuation import Mode, Prefill
    from gateway.engines.http import EngineHttp
    from gateway.engines.renderers import Renderer
    from gateway.protocol.body import Json

_RENDERERS: dict[str, type[LlamaCppRenderer | SGLangRenderer | VllmRenderer]] = {
    "llamacpp": LlamaCppRenderer,
    "sglang": SGLangRenderer,
    "vllm": VllmRenderer,
}


class OpenAIEngine:
    """The client of an OpenAI-compatible server.

    Args:
        name: the configured model name.
        model: the server's name of the model.
        http: the HTTP client; `base_url` ends in /v1 if the server requires it.
        continuation: how the engine continues an assistant message. `auto` probes, `none` disables continuation.
        echo: whether the engine repeats the message that it continues; None: as probed.
        lists: whether guidance requests of one batch share a call, if the server supports lists.
        only_embeds: returns whether policies use the engine only for embeddings. Such a server rejects chats, so it
            must not be probed with one.
    """

    def __init__(
        self,
        name: str,
        model: str,
        http: EngineHttp,
        *,
        continuation: Mode | Literal["auto", "none"] = "auto",
        echo: bool | None = None,
        lists: bool = False,
        only_embeds: Callable[[], bool] = lambda: False,
    ) -> None:
        self._name = name
        self._model = model
        self._http = http
        self._chat = ChatWire(http, "/chat/completions")
        self._texts = TextWire(http, "/completions")
        self._kind = kind_of(None, http.host)
        self._renderer: Renderer | None = None
        self._configured = continuation
        self._only_embeds = only_embeds
        self._echo = echo
        self._lists = CallLists(http, model, self._generate_alone) if lists else None
        self._probed = False  # whether capabilities were probed since the engine is up
        self._warning: str | None = None  # the result of that probe, if it failed
        self._state = EngineState()
        self._mode = self._current_mode()
        self._assume()

    @property
    def name(self) -> str:
        return self._name

    @property
    def state(self) -> EngineState:
        return self._state

    def _current_mode(self) -> Mode | Literal["auto", "none"]:
        """Return the configured mode of continuation; `none` while the engine serves only embeddings."""
        return "none" if self._only_embeds() else self._configured

    def _assume(self) -> None:
        """Set the configured continuation, so that it applies before the first probe."""
        mode = self._mode
        if mode == "none":
            self._state.continuation = None
        elif mode == "auto" or mode == "completions":  # the renderer is not known yet
            self._state.continuation = "not_probed"
        else:
            self._state.continuation = Continuation(mode, echo=self._echo)

    async def close(self) -> None:
        if self._lists is not None:
            await self._lists.close()
        await self._http.close()

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        if _is_raw(body, prefill):
            return chat_reply(await self._texts.complete(await self._text_body(body, prefill)))
        return await self._chat.complete(self._chat_body(body, prefill))

    def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[list[Json], None]:
        if _is_raw(body, prefill):
            return self._stream_raw(body, prefill)
        return self._chat.stream(self._chat_body(body, prefill))

    async def _stream_raw(self, body: Json, prefill: Prefill | None) -> AsyncGenerator[list[Json], None]:
        async with aclosing(self._texts.stream(await self._text_body(body, prefill))) as groups:
            async for chunks in groups:
                yield [chat_chunk(chunk) for chunk in chunks]

    def _chat_body(self, body: Json, prefill: Prefill | None) -> Json:
        if prefill is not None:
            body = place_prefix(prefill.continuation.mode, body, prefill.text)
        sent = {**body, "model": self._model}
        self._kind.adapt(sent)
        return sent

    async def _text_body(self, body: Json, prefill: Prefill | None) -> Json:
        """Return a text completion body: the rendered chat followed by the guidance, or the raw prompt."""
        if prefill is None:
            return {**body, "model": self._model}
        if (lost := unsupported_as_text(body)) is not None or self._renderer is None:
            why = f"'{lost}' cannot be sent" if lost else "the server is not known to render chats"
            raise EngineUnsupported(
                f"Engine '{self._name}' cannot continue the chat as a raw prompt: {why}.",
                engine=self._name,
                status_sent=422,
            )
        try:
            prompt = await self._renderer.render_with_prefill(body, prefill.text)
            limit = requested_limit(body) or self._renderer.default_limit(prompt)
        except EngineError as error:
            error.may_have_run = False  # the model was not called
            raise
        return {**text_body(body, prompt, limit), "model": self._model}

    async def generate_guidance(
        self, request: TeacherRequest, *, batch: str | None = None, on_text: Callable[[str], None] | None = None
    ) -> TeacherReply:
        if self._lists is not None and batch is not None:
            return await self._lists.generate_guidance(request, batch)
        if on_text is not None:
            body = {**self._guidance_body(request), "stream": True, "stream_options": {"include_usage": True}}
            return await collect_stream(self.stream(body), on_text)
        return await self._generate_alone(request)

    def _guidance_body(self, request: TeacherRequest) -> Json:
        """Return the body of a guidance request: a chat body or a text completion body."""
        body = sampling_body(request)
        if request.messages is None:
            return {**body, "prompt": request.prompt}
        return without_reasoning(self._state.reasoning, {**body, "messages": list(request.messages)})

    async def _complete_without_reasoning(self, body: Json, prefill: Prefill | None = None) -> Json:
        """Return the reply to a body with reasoning disabled, if the model supports that."""
        return await self.complete(without_reasoning(self._state.reasoning, body), prefill)

    async def _generate_alone(self, request: TeacherRequest) -> TeacherReply:
        reply = await self.complete(self._guidance_body(request))
        text = message_text(reply)
        if not isinstance(text, str):
            raise EngineProtocolError(f"Engine '{self._name}' sent a reply without text.", engine=self._name)
        return TeacherReply(
            text, teacher_finish(first_choice(reply).get("finish_reason")), read_usage(reply.get("usage"))
        )

    async def embed(self, body: Json) -> EngineEmbeddings:
        sent = {**body, "model": self._model}
        raw = await self._http.post_raw("/embeddings", sent, max_reply_bytes=MAX_REPLY_BYTES)
        return await read_embeddings(raw, self._name)

    async def probe(self) -> None:
        """Read /models, and probe the engine's capabilities once while it stays up."""
        listed = (await self._http.get("/models")).body
        models = listed.get("data") if isinstance(listed, dict) else None
        known = [entry for entry in models if isinstance(entry, dict)] if isinstance(models, list) else []
        mine = next((entry for entry in known if entry.get("id") == self._model), known[0] if known else {})
        self._state.revision = _revision(self._model, mine)
        self._state.facts = {
            "owned_by": owner if isinstance(owner := mine.get("owned_by"), str) else None,
            "models": [name for entry in known if isinstance(name := entry.get("id"), str)][:20],
        }
        self._state.context_tokens = _context_tokens(mine)
        if (mode := self._current_mode()) != self._mode:
            self._mode, self._probed, self._warning = mode, False, None
            self._assume()
        # After an outage the address may belong to another server.
        self._probed = self._probed and bool(self._state.up)
        if not self._probed:
            self._kind = kind_of(mine.get("owned_by"), self._http.host)
            self._state.stops_within_s = self._kind.stops_within_s
            self._renderer = self._renderer_of(mine)
            if self._mode != "none":
                await self._probe_continuation()
            if self._lists is not None:
                await self._lists.probe(mine.get("owned_by"))
            self._probed = True
        if self._lists is not None:
            self._state.facts["lists"] = self._lists.supported
        unlisted = bool(known) and all(entry.get("id") != self._model for entry in known)
        missing = f"the engine does not list a model '{self._model}'" if unlisted else None
        warnings = self._lists.warnings if self._lists is not None else ()
        self._state.warnings = [warning for warning in (missing, self._warning, *warnings) if warning is not None]

    async def _probe_continuation(self) -> None:
        """Determine how the engine continues an assistant message."""
        mode = self._mode
        assert mode != "none", "continuation is disabled"
        modes = self._kind.candidates if mode == "auto" else (mode,)
        found = await find_continuation(self._complete_without_reasoning, modes, self._echo)
        self._warning = None
        if found is None and mode == "auto":
            self._warning = "the engine continues no assistant message: placement prefix sends guidance as context"
        elif found is None and mode == "completions" and self._renderer is None:
            self._warning = "continuation 'completions' requires a server that renders chats; this one is not known to"
        elif found is None:
            self._warning = f"the engine did not continue the probe with continuation '{mode}'"
        if found is not None or mode == "auto":
            self._state.continuation = found
        elif mode == "completions":
            known = self._renderer is not None
            self._state.continuation = Continuation(mode, echo=self._echo) if known else None

    def _renderer_of(self, listed: Json) -> Renderer | None:
        """Return the renderer for this kind of server; None: unknown. `listed` is the model's entry in /models."""
        kind = _RENDERERS.get(self._kind.renderer or "")
        renderer = kind(self._http, self._model) if kind is not None else None
        context_tokens = listed.get("max_model_len")
        if isinstance(renderer, SGLangRenderer) and isinstance(context_tokens, int):
            renderer.context_tokens = context_tokens
        return renderer


def _is_raw(body: Json, prefill: Prefill | None) -> bool:
    """Return whether the request goes to the engine as a text completion."""
    return is_text(body) or (prefill is not None and prefill.continuation.mode == "completions")


def _context_tokens(listed: Json) -> int | None:
    """Return the context size in an entry of /models: `max_model_len` of vLLM and SGLang, `n_ctx` of llama.cpp."""
    meta = listed.get("meta")
    return tokens_of(listed.get("max_model_len")) or tokens_of(meta.get("n_ctx") if isinstance(meta, dict) else None)


def _revision(model: str, listed: Json) -> str:
    """Return what identifies the weights in /models. `created` is omitted: some servers report the current time."""
    meta = listed.get("meta")  # of llama.cpp: the same name may have another quantization
    file_meta: Json = meta if isinstance(meta, dict) else {}
    values: list[Any] = [listed.get(key) for key in ("id", "owned_by", "root", "parent")]
    return orjson.dumps([model, *values, file_meta.get("n_params"), file_meta.get("size")]).decode()
