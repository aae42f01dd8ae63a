"""The engine for OpenAI-compatible servers: vLLM, SGLang, llama.cpp, Ollama, OpenAI and others."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

import orjson
from msgspec.structs import replace

from gateway.engines.base import EngineEmbeddings, EngineState, TeacherReply, TeacherRequest
from gateway.engines.chat import (
    ChatWire,
    TextWire,
    collect_stream,
    sampling_body,
    teacher_reply,
    token_fields,
    tokens_of,
)
from gateway.engines.embeddings import MAX_REPLY_BYTES, read_embeddings
from gateway.engines.probing import find_continuation, not_continued
from gateway.engines.raw_prompts import chat_chunk, chat_reply, is_raw, prefilled_body, renderer_of
from gateway.engines.replies import (
    bad_reply,
    context_of,
    is_reasoning,
    listed_model,
    message_text,
    reject_foreign_tool,
    short_name,
    unsupported,
)
from gateway.engines.vllm_status import VllmStatus
from gateway.errors import EngineOverloaded, EngineRejected
from gateway.protocol.capabilities.anthropic import continue_last, messages_fields
from gateway.protocol.capabilities.continuation import Continuation, place_prefix, unsupported_as_text
from gateway.protocol.capabilities.kinds import kind_of
from gateway.protocol.capabilities.reasoning import without_reasoning
from gateway.protocol.content_run import each_chunk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from gateway.engines.http import EngineHttp
    from gateway.engines.raw_prompts import Renderer
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.anthropic import MessagesFields
    from gateway.protocol.capabilities.continuation import Mode, Prefill
    from gateway.protocol.content_run import ChunkGroup

_REFUSES_FIELD = frozenset({400, 422})


# Warnings for a model that reasons first, by its setting `reasoning`.
_REASONS = {
    "none": "the model reasons before it answers, so guidance has no text: set 'reasoning' to switchable or always",
    "switchable": "the model reasons although the gateway disabled it, so guidance has no text: use another teacher",
    "always": "the model reasons before it answers, so guidance has no text: use another teacher",
}


class OpenAIEngine:
    """The client of an OpenAI-compatible server.

    A server that policies use only for embeddings rejects chats, so it must not be probed with one.
    """

    def __init__(
        self,
        name: str,
        model: str,  # the server's name of the model
        http: EngineHttp,  # `base_url` ends in /v1 if the server requires it
        *,
        continuation: Mode | Literal["auto", "none"] = "auto",  # `auto` probes, `none` disables continuation
        echo: bool | None = None,  # whether the engine repeats the message that it continues; None: as probed
        only_embeds: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = name
        self._model = model
        self._http = http
        self._chat = ChatWire(http, "/chat/completions")
        self._texts = TextWire(http, "/completions")
        self._kind = kind_of(None, http.host)
        self._renderer: Renderer | None = None
        self._configured = continuation
        self._only_embeds = only_embeds
        self._echo = echo
        self._status = VllmStatus(http)
        self._probed = False  # whether capabilities were probed since the engine is up
        self._identity: tuple[Any, ...] = ()  # of the server for which they were probed
        self._warning: str | None = None  # the result of that probe, if it failed
        self._token_fields: Mapping[str, Any] = {}  # fields of a chat that request the text of each token
        self._reasons = False  # whether the model reasoned where the gateway needs an answer
        self.state = EngineState()
        self._mode = self._current_mode()
        self._assume()

    def _current_mode(self) -> Mode | Literal["auto", "none"]:
        """Return the configured mode of continuation; `none` while the engine serves only embeddings."""
        return "none" if self._only_embeds() else self._configured

    def _assume(self) -> None:
        """Set the configured continuation, so that it applies before the first probe."""
        mode = self._mode
        if mode == "none":
            self.state.continuation = None
        elif mode == "auto" or mode == "completions":  # the renderer is not known yet
            self.state.continuation = "not_probed"
        else:
            self.state.continuation = Continuation(mode, echo=self._echo)

    async def close(self) -> None:
        await self._http.close()

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        if (own := messages_fields()) is not None:
            body, prefill = self._without_unread(own, body, prefill)
        if is_raw(body, prefill):
            return chat_reply(await self._texts.complete(await self._text_body(body, prefill)))
        return await self._chat.complete(self._chat_body(body, prefill))

    def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[ChunkGroup, None]:
        if (own := messages_fields()) is not None:
            body, prefill = self._without_unread(own, body, prefill)
        if is_raw(body, prefill):
            return self._stream_raw(body, prefill)
        return self._chat.stream(self._chat_body(body, prefill))

    async def _stream_raw(self, body: Json, prefill: Prefill | None) -> AsyncGenerator[ChunkGroup, None]:
        async with aclosing(self._texts.stream(await self._text_body(body, prefill))) as groups:
            async for chunks in groups:
                yield [chat_chunk(chunk) for chunk in each_chunk(chunks)]

    def _without_unread(self, own: MessagesFields, body: Json, prefill: Prefill | None) -> tuple[Json, Prefill | None]:
        """Return a chat of /v1/messages as the server reads it, and the beginning of the answer to continue."""
        if "messages" not in body:
            return body, prefill
        reads, reasoning = self._kind.reads, self.state.reasoning
        reject_foreign_tool(self.name, own, body, reads)
        body = {**own.chat(body, reads), **own.template_fields(body, reasoning)}
        return (body, prefill) if prefill is not None else continue_last(body, self.state.continuation, reasoning)

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
            raise unsupported(self.name, f"cannot continue the chat as a raw prompt: {why}.")
        return await prefilled_body(self._renderer, self._model, body, prefill.text)

    async def generate_guidance(
        self, request: TeacherRequest, *, batch: str | None = None, on_text: Callable[[str], None] | None = None
    ) -> TeacherReply:
        if on_text is not None:
            more = {"stream": True, "stream_options": {"include_usage": True}}
            reply = await self._with_tokens(
                request, lambda body: collect_stream(self.stream({**body, **more}), on_text)
            )
            if not reply.text and reply.finish == "length":
                self._reasons = True  # the limit was reached without a word of the answer
            return reply
        return await self._with_tokens(request, self._whole_guidance)

    async def _with_tokens(
        self, request: TeacherRequest, call: Callable[[Json], Awaitable[TeacherReply]]
    ) -> TeacherReply:
        """Call with a request for the texts of the tokens, and without it if the server rejects that."""
        body = self._guidance_body(request)
        if not self._token_fields:
            return await call(body)
        try:
            reply = await call({**body, **token_fields(request, self._token_fields)})
        except EngineRejected as error:
            if error.status_sent not in _REFUSES_FIELD or "logprob" not in error.message.lower():
                raise
        else:
            return reply if _has_each_token(reply) else replace(reply, token_ends=None)
        reply = await call(body)
        self._token_fields, self.state.sends_tokens = {}, False  # until the next probe of the capabilities
        return reply

    def _guidance_body(self, request: TeacherRequest) -> Json:
        body = sampling_body(request)
        if request.messages is None:
            return {**body, "prompt": request.prompt}
        return without_reasoning(self.state.reasoning, {**body, "messages": list(request.messages)})

    async def _complete_without_reasoning(self, body: Json, prefill: Prefill) -> Json:
        reply = await self.complete(without_reasoning(self.state.reasoning, body), prefill)
        if self.state.reasoning == "none" and is_reasoning(reply):
            self._reasons = True
        return reply

    async def _whole_guidance(self, body: Json) -> TeacherReply:
        reply = await self.complete(body)
        text = message_text(reply)
        if not text and is_reasoning(reply):
            self._reasons = True
            raise bad_reply(self.name, "reasoning instead of guidance: see the setting 'reasoning' of the model")
        return teacher_reply(self.name, reply, text)

    async def embed(self, body: Json) -> EngineEmbeddings:
        sent = {**body, "model": self._model}
        raw = await self._http.post_raw("/embeddings", sent, max_reply_bytes=MAX_REPLY_BYTES)
        return await read_embeddings(raw, self.name)

    async def probe(self) -> None:
        """Read /models, and probe the engine's capabilities once while it stays up."""
        self.state.asleep = False
        mine, known = listed_model((await self._http.get("/models")).body, self._model)
        meta: Json = mine["meta"] if isinstance(mine.get("meta"), dict) else {}  # of llama.cpp
        # `created` is omitted: some servers report the current time. One name may have several quantizations.
        values: list[Any] = [mine.get(key) for key in ("id", "owned_by", "root", "parent")]
        values += [meta.get("n_params"), meta.get("size")]
        self.state.revision = short_name(orjson.dumps([self._model, *values]).decode())
        self.state.facts = {
            "owned_by": short_name(owner) if isinstance(owner := mine.get("owned_by"), str) else None,
            "models": [short_name(name) for entry in known if isinstance(name := entry.get("id"), str)][:20],
        }
        self.state.context_tokens = context_of(mine, known) or tokens_of(meta.get("n_ctx"))
        kind = kind_of(mine.get("owned_by"), self._http.host)
        self.state.max_prompt_tokens = self.state.context_tokens if kind.rejects_long_prompts else None
        version = await self._status.version() if kind.has_vllm_status else {}
        self.state.facts |= version
        identity = (self.state.revision, self.state.context_tokens, version)
        if (mode := self._current_mode()) != self._mode:
            self._mode, self._probed, self._warning = mode, False, None
            self._assume()
        # After an outage the address may belong to another server.
        self._probed = self._probed and bool(self.state.up) and identity == self._identity
        if not self._probed:
            self._status.may_sleep = True
        if kind.has_vllm_status and await self._status.is_asleep():
            self.state.asleep = True
            self._probed = False
            raise EngineOverloaded(f"Engine '{self.name}' sleeps. Wake it with POST /wake_up.", engine=self.name)
        if not self._probed:
            self._reasons, self._kind, self._identity = False, kind, identity
            self.state.stops_within_s = self._kind.stops_within_s
            self.state.sends_tokens = self.state.counts_chunks = self._kind.reports_tokens
            self._token_fields = self._kind.token_fields
            self.state.constraints = self._kind.constraints
            self._renderer = renderer_of(self._kind, self._http, self._model, mine)
            if self._mode != "none":
                await self._probe_continuation()
            self._probed = True
        unlisted = bool(known) and mine.get("id") != self._model
        missing = f"the engine does not list a model '{self._model}'" if unlisted else None
        reasons = _REASONS.get(self.state.reasoning) if self._reasons else None
        self.state.warnings = [one for one in (missing, reasons, self._warning) if one is not None]

    async def _probe_continuation(self) -> None:
        mode = self._mode
        assert mode != "none", "continuation is disabled"
        modes = self._kind.candidates if mode == "auto" else (mode,)
        is_configured = mode != "auto" and self._echo is not None
        found = None  # the probe generates text, so it is sent only for what is not configured
        if not is_configured:
            found = await find_continuation(self._complete_without_reasoning, modes, self._echo)
        self._warning = None if is_configured or found is not None else not_continued(mode)
        if found is None and mode == "completions" and self._renderer is None:
            self._warning = "continuation 'completions' requires a server that renders chats; this one is not known to"
        if found is not None or mode == "auto":
            self.state.continuation = found
        elif mode == "completions":
            known = self._renderer is not None
            self.state.continuation = Continuation(mode, echo=self._echo) if known else None


def _has_each_token(reply: TeacherReply) -> bool:
    """Return whether the tokens of a reply that was cut are all there: llama.cpp's streams omit parts of characters."""
    ends, usage = reply.token_ends, reply.usage
    return ends is None or usage is None or reply.finish == "stop" or len(ends) == usage.output_tokens
