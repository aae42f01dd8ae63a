"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, Ollama, OpenAI itself, ..."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

import orjson

from gateway.capabilities.continuation import Continuation, place_prefix, unsupported_as_text
from gateway.capabilities.kinds import kind_of
from gateway.capabilities.reasoning import without_reasoning
from gateway.engines.base import EngineEmbeddings, EngineState, OpeningReply, OpeningRequest
from gateway.engines.chat import ChatWire, listen, opening_body, opening_finish, read_usage, tokens_of
from gateway.engines.embeddings import MAX_REPLY_BYTES, read_embeddings
from gateway.engines.lists import CallLists
from gateway.engines.probing import find_continuation
from gateway.engines.raw_prompts import asked_limit, chat_chunk, chat_reply, is_text, text_body
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
    """An OpenAI-compatible server.

    Args:
        name: the configured model name.
        model: what the server calls the model.
        http: its pool; `base_url` ends in /v1 where the server wants that.
        continuation: how it continues an assistant message; `auto` probes for it, `none` never tries.
        echo: whether it repeats the message it continues; None leaves that to the probe.
        lists: whether the openings of one batch go out in one call, where the server is found to take lists.
        only_embeds: whether it is asked for nothing but embeddings, as policies say now. Such a server answers no chat,
            so a probe of one would take it for a server that is down.
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
        self._lists = CallLists(http, model, self._opening) if lists else None
        self._looked = False  # whether what it can do was looked at since it is up
        self._doubt: str | None = None  # what that look found wanting
        self._state = EngineState()
        self._asked = self._role()
        self._assume()

    @property
    def name(self) -> str:
        return self._name

    @property
    def state(self) -> EngineState:
        return self._state

    def _role(self) -> Mode | Literal["auto", "none"]:
        """How it shall be found to continue, as long as it is asked for what it is asked for now."""
        return "none" if self._only_embeds() else self._configured

    def _assume(self) -> None:
        """Take what the configuration says for true from the first request on; the probe only adds what it sees."""
        asked = self._asked
        if asked == "none":
            self._state.continuation = None
        elif asked == "auto" or asked == "completions":  # who renders chats is not known yet
            self._state.continuation = "not_probed"
        else:
            self._state.continuation = Continuation(asked, echo=self._echo)

    async def close(self) -> None:
        if self._lists is not None:
            await self._lists.close()
        await self._http.close()

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        if _is_raw(body, prefill):
            return chat_reply(await self._texts.complete(await self._raw(body, prefill)))
        return await self._chat.complete(self._sent(body, prefill))

    def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[list[Json], None]:
        if _is_raw(body, prefill):
            return self._stream_raw(body, prefill)
        return self._chat.stream(self._sent(body, prefill))

    async def _stream_raw(self, body: Json, prefill: Prefill | None) -> AsyncGenerator[list[Json], None]:
        async with aclosing(self._texts.stream(await self._raw(body, prefill))) as groups:
            async for chunks in groups:
                yield [chat_chunk(chunk) for chunk in chunks]

    def _sent(self, body: Json, prefill: Prefill | None) -> Json:
        if prefill is not None:
            body = place_prefix(prefill.continuation.mode, body, prefill.text)
        sent = {**body, "model": self._model}
        self._kind.adapt(sent)
        return sent

    async def _raw(self, body: Json, prefill: Prefill | None) -> Json:
        """A body as one of a text completion: a chat's with the opening behind it. Raises EngineErrors."""
        if prefill is None:
            return {**body, "model": self._model}
        if (lost := unsupported_as_text(body)) is not None or self._renderer is None:
            why = f"cannot carry it ({lost})" if lost else "is not known to render chats"
            raise EngineUnsupported(
                f"Engine '{self._name}' was to get a chat as a raw prompt, and {why}.",
                engine=self._name,
                status_sent=422,
            )
        try:
            prompt = await self._renderer.begun(body, prefill.text)
            limit = asked_limit(body) or self._renderer.limit(prompt)
        except EngineError as error:
            error.heard = False  # the model was not asked yet
            raise
        return {**text_body(body, prompt, limit), "model": self._model}

    async def opening(
        self, request: OpeningRequest, *, batch: str | None = None, tell: Callable[[str], None] | None = None
    ) -> OpeningReply:
        if self._lists is not None and batch is not None:
            return await self._lists.opening(request, batch)
        if tell is not None:
            body = {**self._asked_to_open(request), "stream": True, "stream_options": {"include_usage": True}}
            return await listen(self.stream(body), tell)
        return await self._opening(request)

    def _asked_to_open(self, request: OpeningRequest) -> Json:
        """What an opening asks for, as a body of the route that its kind of prompt goes to."""
        body = opening_body(request)
        if request.messages is None:
            return {**body, "prompt": request.prompt}
        return without_reasoning(self._state.reasoning, {**body, "messages": list(request.messages)})

    async def _unthinking(self, body: Json, prefill: Prefill | None = None) -> Json:
        """The reply of a model that is told not to think first, where it can be."""
        return await self.complete(without_reasoning(self._state.reasoning, body), prefill)

    async def _opening(self, request: OpeningRequest) -> OpeningReply:
        reply = await self.complete(self._asked_to_open(request))
        text = message_text(reply)
        if not isinstance(text, str):
            raise EngineProtocolError(f"Engine '{self._name}' sent a reply without text.", engine=self._name)
        return OpeningReply(
            text, opening_finish(first_choice(reply).get("finish_reason")), read_usage(reply.get("usage"))
        )

    async def embed(self, body: Json) -> EngineEmbeddings:
        asked = {**body, "model": self._model}
        raw = await self._http.post_raw("/embeddings", asked, max_reply_bytes=MAX_REPLY_BYTES)
        return await read_embeddings(raw, self._name)

    async def probe(self) -> None:
        """Ask /models whether the server is there, and, once while it stays up, try what it can do."""
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
        if (asked := self._role()) != self._asked:
            self._asked, self._looked, self._doubt = asked, False, None
            self._assume()
        # After it was away it may be another server.
        self._looked = self._looked and bool(self._state.up)
        if not self._looked:
            self._kind = kind_of(mine.get("owned_by"), self._http.host)
            self._state.stops_within_s = self._kind.stops_within_s
            self._renderer = self._renderer_of(mine)
            if self._asked != "none":
                await self._look()
            if self._lists is not None:
                await self._lists.look(mine.get("owned_by"))
            self._looked = True
        if self._lists is not None:
            self._state.facts["lists"] = self._lists.taken
        unlisted = bool(known) and all(entry.get("id") != self._model for entry in known)
        missing = f"the engine does not list a model '{self._model}'" if unlisted else None
        doubts = self._lists.doubts if self._lists is not None else ()
        self._state.warnings = [warning for warning in (missing, self._doubt, *doubts) if warning is not None]

    async def _look(self) -> None:
        """Find out how it continues."""
        asked = self._asked
        assert asked != "none", "nothing is looked for"
        modes = self._kind.candidates if asked == "auto" else (asked,)
        found = await find_continuation(self._unthinking, modes, self._echo)
        self._doubt = None
        if found is None and asked == "auto":
            self._doubt = "the engine goes on with no opening: with placement prefix it gets guidance as context"
        elif found is None and asked == "completions" and self._renderer is None:
            self._doubt = "continuation 'completions' needs a server that renders chats, and none is known here"
        elif found is None:
            self._doubt = f"the engine did not continue the probe with continuation '{asked}'"
        if found is not None or asked == "auto":
            self._state.continuation = found
        elif asked == "completions":
            known = self._renderer is not None
            self._state.continuation = Continuation(asked, echo=self._echo) if known else None

    def _renderer_of(self, listed: Json) -> Renderer | None:
        """What renders this kind's chats; `listed` is its entry in /models."""
        kind = _RENDERERS.get(self._kind.renderer or "")
        renderer = kind(self._http, self._model) if kind is not None else None
        context_tokens = listed.get("max_model_len")
        if isinstance(renderer, SGLangRenderer) and isinstance(context_tokens, int):
            renderer.context_tokens = context_tokens
        return renderer


def _is_raw(body: Json, prefill: Prefill | None) -> bool:
    """Whether it goes to the engine as a text completion."""
    return is_text(body) or (prefill is not None and prefill.continuation.mode == "completions")


def _context_tokens(listed: Json) -> int | None:
    """Return the context size in an entry of /models: `max_model_len` of vLLM and SGLang, `n_ctx` of llama.cpp."""
    meta = listed.get("meta")
    return tokens_of(listed.get("max_model_len")) or tokens_of(meta.get("n_ctx") if isinstance(meta, dict) else None)


def _revision(model: str, listed: Json) -> str:
    """What /models tells of the weights behind a model's name. Not when it was `created`: some servers say now."""
    meta = listed.get("meta")  # llama.cpp's: the same name may stand for another quantisation
    of_file: Json = meta if isinstance(meta, dict) else {}
    told: list[Any] = [listed.get(key) for key in ("id", "owned_by", "root", "parent")]
    return orjson.dumps([model, *told, of_file.get("n_params"), of_file.get("size")]).decode()
