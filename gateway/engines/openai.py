"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, Ollama, OpenAI itself, ..."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import orjson

from gateway.continuation import PROBE_OPENING, Continuation, Prefill, candidates, judge_probe, place_prefix, probe_body
from gateway.engines.base import EngineState, OpeningReply, OpeningRequest
from gateway.engines.chat import ChatWire, first_choice, message_text, opening_body, opening_finish, read_usage
from gateway.engines.lists import Lists
from gateway.errors import EngineFailed, EngineGarbled, EngineRejected

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.continuation import Mode
    from gateway.engines.http import EngineHttp
    from gateway.protocol import Json


class OpenAIEngine:
    """An OpenAI-compatible server.

    Args:
        name: the configured model name.
        model: what the server calls the model.
        http: its pool; `base_url` ends in /v1 where the server wants that.
        continuation: how it continues an assistant message; `auto` probes for it, `none` never tries.
        echo: whether it repeats the message it continues; None leaves that to the probe.
        lists: whether the openings of one batch go out in one call, where the server is found to take lists.
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
    ) -> None:
        self._name = name
        self._model = model
        self._http = http
        self._chat = ChatWire(http, "/chat/completions")
        self._asked = continuation
        self._echo = echo
        self._lists = Lists(http, model, self._opening) if lists else None
        self._looked = False  # whether what it can do was looked at since it is up
        self._doubt: str | None = None  # what that look found wanting
        self._state = EngineState()
        if continuation == "none":
            self._state.continuation = None
        elif continuation != "auto":
            # What the configuration says holds from the first request on; the probe only adds what it sees.
            self._state.continuation = Continuation(continuation, echo=echo)

    @property
    def name(self) -> str:
        return self._name

    @property
    def state(self) -> EngineState:
        return self._state

    async def close(self) -> None:
        if self._lists is not None:
            await self._lists.close()
        await self._http.close()

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        return await self._chat.complete(self._sent(body, prefill))

    def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[list[Json], None]:
        return self._chat.stream(self._sent(body, prefill))

    def _sent(self, body: Json, prefill: Prefill | None) -> Json:
        if prefill is not None:
            body = place_prefix(prefill.how.mode, body, prefill.text)
        return {**body, "model": self._model}

    async def opening(self, request: OpeningRequest, *, batch: str | None = None) -> OpeningReply:
        if self._lists is None or batch is None:
            return await self._opening(request)
        return await self._lists.opening(request, batch)

    async def _opening(self, request: OpeningRequest) -> OpeningReply:
        body = opening_body(request)
        if request.messages is not None:
            reply = await self.complete({**body, "messages": list(request.messages)})
            text = message_text(reply)
        else:
            reply = (
                await self._http.post("/completions", {**body, "model": self._model, "prompt": request.prompt})
            ).body
            text = first_choice(reply).get("text")
        if not isinstance(text, str):
            raise EngineGarbled(f"Engine '{self._name}' sent a reply without text.", engine=self._name)
        return OpeningReply(
            text, opening_finish(first_choice(reply).get("finish_reason")), read_usage(reply.get("usage"))
        )

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
        # After it was away it may be another server.
        self._looked = self._looked and bool(self._state.up)
        if not self._looked:
            if self._asked != "none":
                await self._look(candidates(mine.get("owned_by")) if self._asked == "auto" else [self._asked])
            if self._lists is not None:
                await self._lists.look(mine.get("owned_by"))
            self._looked = True
        if self._lists is not None:
            self._state.facts["lists"] = self._lists.taken
        unlisted = bool(known) and all(entry.get("id") != self._model for entry in known)
        missing = f"the engine does not list a model '{self._model}'" if unlisted else None
        doubts = self._lists.doubts if self._lists is not None else ()
        self._state.warnings = [warning for warning in (missing, self._doubt, *doubts) if warning is not None]

    async def _look(self, modes: list[Mode]) -> None:
        found = await self._find_continuation(modes)
        self._doubt = None
        if found is None and self._asked == "auto":
            self._doubt = "the engine continues no assistant message: placement prefix goes unguided"
        elif found is None:
            self._doubt = f"the engine did not continue the probe with continuation '{self._asked}'"
        if found is not None or self._asked == "auto":
            self._state.continuation = found

    async def _find_continuation(self, modes: list[Mode]) -> Continuation | None:
        failures: list[EngineFailed] = []
        for mode in modes:
            try:
                reply = await self.complete(probe_body(), Prefill(PROBE_OPENING, Continuation(mode)))
            except EngineRejected as refused:
                if refused.status_sent in {400, 422}:
                    continue
                raise
            except EngineFailed as failed:
                failures.append(failed)  # some servers fail on what they should refuse
                continue
            text = message_text(reply)
            found = None if text is None else judge_probe(mode, text)
            if found is not None:
                return found if self._echo is None else Continuation(mode, self._echo, found.strips_leading_space)
        if len(failures) == len(modes):
            raise failures[0]
        return None


def _revision(model: str, listed: Json) -> str:
    """What /models tells of the weights behind a model's name. Not when it was `created`: some servers say now."""
    meta = listed.get("meta")  # llama.cpp's: the same name may stand for another quantisation
    of_file: Json = meta if isinstance(meta, dict) else {}
    told: list[Any] = [listed.get(key) for key in ("id", "owned_by", "root", "parent")]
    return orjson.dumps([model, *told, of_file.get("n_params"), of_file.get("size")]).decode()
