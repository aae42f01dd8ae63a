"""A model behind LiteLLM: Anthropic, Bedrock, Gemini, Azure, Vertex and the many others that speak no OpenAI.

LiteLLM translates; all else is the gateway's: deadlines, connections, retries, prices, and what an error means.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import httpx
import orjson

from gateway.capabilities.continuation import Continuation, place_prefix
from gateway.engines.base import EngineEmbeddings, EngineState, OpeningReply, OpeningRequest
from gateway.engines.chat import listen, opening_body, opening_finish, read_usage
from gateway.engines.litellm_chat import BodyUnsupported, arguments, plain_chunk, plain_reply
from gateway.engines.litellm_wire import EnginePool, ForeignHost, ReplyTooLarge
from gateway.engines.probing import find_continuation
from gateway.engines.refusal import ReportedError, hidden_in, refusal, reported, said_error
from gateway.engines.replies import first_choice, message_text
from gateway.errors import (
    EngineError,
    EngineFailed,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    EngineUnsupported,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from typing import TypeVar

    from gateway.capabilities.continuation import Mode, Prefill
    from gateway.engines.http import EngineDeadlines
    from gateway.engines.litellm_library import LiteLLMLibrary
    from gateway.engines.litellm_wire import WireCall
    from gateway.protocol.body import Json

    _T = TypeVar("_T")

# Who wants the message marked; all others that continue want nothing but the message at the end.
_MARKED = frozenset({"mistral", "deepseek", "codestral"})
_FLAGS = ("continue_final_message", "add_generation_prompt")
# For these a part without a reason is as good as the last one to LiteLLM 1.110: the wire has to look.
_INVENTED_FOR = frozenset({"gemini", "vertex_ai"})
# Statuses after which nobody can expect the next call to fare better.
_DOWN = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


class LiteLLMEngine:
    """One model of one provider.

    Args:
        name: the configured model name.
        model: `provider/name`, as LiteLLM wants it.
        library: LiteLLM, loaded.
        api_base: where the provider is; None: where LiteLLM, or the provider's environment variables, say.
        api_key: None: out of the provider's environment variables.
        options: what else the provider's calls need, such as Azure's `api_version`.
        continuation: how it continues an assistant message; `auto` probes for it, `none` never tries.
        echo: whether it repeats the message it continues; None leaves that to the probe.
        outgoing: asked at each call for headers that go with it; None: there are none.
    """

    def __init__(
        self,
        name: str,
        model: str,
        library: LiteLLMLibrary,
        *,
        deadlines: EngineDeadlines,
        api_base: str | None = None,
        api_key: str | None = None,
        options: Mapping[str, str] | None = None,
        continuation: Mode | Literal["auto", "none"] = "auto",
        echo: bool | None = None,
        outgoing: Callable[[], Mapping[str, str] | None] | None = None,
    ) -> None:
        self._name = name
        self._model = model
        self._provider = model.partition("/")[0]
        self._library = library
        self._deadlines = deadlines
        self._pool = EnginePool(api_base, deadlines, outgoing=outgoing)
        self._hidden = hidden_in(api_base, api_key)
        self._fixed: Json = {
            "model": model,
            "timeout": deadlines.total_s,
            "num_retries": 0,
            "max_retries": 0,
            "caching": False,
            "fallbacks": None,
            **(options or {}),
        }
        if api_base is not None:
            self._fixed["api_base"] = api_base
        if api_key is not None:
            self._fixed["api_key"] = api_key
        self._supported = library.parameters(model)
        self._asked = continuation
        self._echo = echo
        self._looked = continuation != "auto"
        self._down: EngineError | None = None  # what the last call met, if the next will meet it too
        self._state = EngineState(revision=model, takes_prompts=False, called=False)
        self._state.facts = {"provider": self._provider, "seen": "no call yet"}
        if continuation == "none":
            self._state.continuation = None
        elif continuation != "auto":
            self._state.continuation = Continuation(continuation, echo=echo)

    @property
    def name(self) -> str:
        return self._name

    @property
    def state(self) -> EngineState:
        return self._state

    async def close(self) -> None:
        await self._pool.close()

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        return await self._complete(self._arguments(body, prefill))

    async def _complete(self, sent: Json) -> Json:
        with self._pool.call() as call:
            try:
                reply = await self._by(
                    self._at(self._deadlines.total_s), self._deadlines.total_s, self._library.chat(**sent)
                )
                plain = plain_reply(reply)
            except Exception as error:  # LiteLLM's are of every kind
                raise self._failed(error, call) from error
        if not plain["choices"]:
            raise self._garbled("a reply without a message")
        self._answered()
        return plain

    async def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[list[Json], None]:
        """Yield chunks. Ends normally only when all choices have finished: a cut is an error."""
        async with aclosing(self._stream(body, self._arguments(body, prefill))) as groups:
            async for chunks in groups:
                yield chunks

    async def _stream(self, body: Json, sent: Json) -> AsyncGenerator[list[Json], None]:
        unfinished = set(range(body.get("n") or 1))
        end = self._at(self._deadlines.total_s)
        limit_s = self._deadlines.first_token_s
        due = min(end, self._at(limit_s))
        begun = False
        chunks: Any = None
        with self._pool.call() as call:
            try:
                asked = self._library.chat(**sent, stream=True, stream_options={"include_usage": True})
                chunks = await self._by(due, limit_s, asked)
            except Exception as error:
                raise self._failed(error, call) from error
        try:
            while True:
                try:
                    with self._pool.call(call):  # some providers' streams are asked for by their first chunk
                        chunk = plain_chunk(await self._by(due, limit_s, anext(chunks)))
                except StopAsyncIteration:
                    break
                except Exception as error:
                    if not unfinished:
                        break  # all was said; what comes after it only counts
                    raise self._failed(error, call, begun=begun) from error
                call.unread_bytes = 0
                finished = {choice["index"] for choice in chunk["choices"] if choice["finish_reason"]}
                if finished and not self._was_said(chunks, call):
                    raise self._broke_off()
                unfinished -= finished
                begun = True
                self._answered()
                yield [chunk]
                limit_s = self._deadlines.idle_s
                due = min(end, self._at(limit_s))
        finally:
            with suppress(Exception):
                await chunks.aclose()
        if unfinished:
            raise self._broke_off()

    async def opening(
        self, request: OpeningRequest, *, batch: str | None = None, tell: Callable[[str], None] | None = None
    ) -> OpeningReply:
        """Each opening is a call of its own. What of the policy's sampling the provider does not take is left out."""
        if tell is not None and request.messages is not None:
            body = {**opening_body(request), "messages": list(request.messages)}
            return await listen(self._stream(body, self._arguments(body, None, lenient=True)), tell)
        if request.messages is not None or self._provider not in self._library.takes_text:
            messages = request.messages or [{"role": "user", "content": request.prompt}]
            asked = self._arguments({**opening_body(request), "messages": list(messages)}, None, lenient=True)
            reply = await self._complete(asked)
            text = message_text(reply)
        else:
            asked = {**opening_body(request), "prompt": request.prompt, "drop_params": True, **self._fixed}
            reply = await self._text(asked)
            text = first_choice(reply).get("text")
        if not isinstance(text, str):
            raise self._garbled("a reply without text")
        return OpeningReply(
            text, opening_finish(first_choice(reply).get("finish_reason")), read_usage(reply.get("usage"))
        )

    async def embed(self, body: Json) -> EngineEmbeddings:
        """Not through LiteLLM; a policy that wants it is refused when it is read."""
        raise EngineUnsupported(f"Engine '{self._name}' makes no embeddings.", engine=self._name, status_sent=404)

    async def _text(self, sent: Json) -> Json:
        total_s = self._deadlines.total_s
        with self._pool.call() as call:
            try:
                reply: Any = await self._by(self._at(total_s), total_s, self._library.text(**sent))
                plain: Json = reply.model_dump(mode="json")
            except Exception as error:
                raise self._failed(error, call) from error
        self._answered()
        return plain

    async def probe(self) -> None:
        """Find out once, by a small call, how the model continues. No other call is made: they cost money.

        From then on the engine is up unless its last call says that the next will fail as well.
        """
        if not self._looked:
            found = await find_continuation(self._probed, self._modes(), self._echo)
            self._state.continuation = found
            self._looked = True
            if found is None:
                self._state.warnings = ["the engine continues no assistant message: placement prefix goes unguided"]
        if self._down is not None:
            raise self._down.twin()

    async def _probed(self, body: Json, prefill: Prefill) -> Json:
        return await self._complete(self._arguments(body, prefill, lenient=True))

    def _modes(self) -> list[Mode]:
        """What to try, by what LiteLLM's table of models and its provider's documentation say."""
        if self._provider in _MARKED:
            return ["prefix", "instruct"]
        if self._provider == "hosted_vllm":
            return ["vllm", "trailing", "instruct"]
        return ["trailing", "instruct"]

    def _arguments(self, body: Json, prefill: Prefill | None, *, lenient: bool = False) -> Json:
        """All that LiteLLM is called with. `lenient`: without what the provider does not take."""
        flags: Json = {}
        assert "prompt" not in body, "as its state says"
        try:
            sent = arguments(body, None if lenient else self._supported)
        except BodyUnsupported as refused:
            raise EngineUnsupported(
                f"Engine '{self._name}': {refused}",
                engine=self._name,
                status_sent=HTTPStatus.BAD_REQUEST,
                param=refused.param,
            ) from None
        if prefill is not None:
            sent = place_prefix(prefill.continuation.mode, sent, prefill.text)
            flags = {name: sent.pop(name) for name in _FLAGS if name in sent}
        if flags:
            sent["extra_body"] = flags
        return {**sent, "drop_params": lenient, **self._fixed}

    def _was_said(self, chunks: Any, call: WireCall) -> bool:
        """Whether the finish_reason came from the engine: at the end of some streams LiteLLM makes one up."""
        if self._provider in _INVENTED_FOR:
            return call.ended
        return bool(
            chunks.received_finish_reason or chunks.intermittent_finish_reason or chunks.received_any_finish_reason
        )

    def _answered(self) -> None:
        self._down = None
        self._state.called = True
        self._state.facts["seen"] = "its last call was answered"

    @staticmethod
    def _at(seconds: float) -> float:
        return asyncio.get_running_loop().time() + seconds

    async def _by(self, due: float, limit_s: float, awaitable: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout_at(due) as limit:
                return await awaitable
        except TimeoutError:
            if not limit.expired():
                raise
            raise EngineTimeout(f"Engine '{self._name}' was silent for {limit_s:g} s.", engine=self._name) from None

    def _failed(self, error: Exception, call: WireCall, *, begun: bool = False) -> EngineError:
        """What LiteLLM raised, judged by what went over the wire, and only without that by its own words."""
        failed = error if isinstance(error, EngineError) else self._judged(error, call, begun=begun)
        if isinstance(failed, EngineUnreachable | EngineTimeout) or getattr(failed, "status_sent", 0) in _DOWN:
            # For operators, who see it for as long as it lasts.
            status = f" ({failed.status_sent})" if isinstance(failed, EngineRejected) else ""
            self._down = failed.reworded(f"The last call to engine '{self._name}' met {failed.label}{status}.")
        self._state.called = True
        self._state.facts["seen"] = f"its last call met {failed.label}"
        return failed

    def _judged(self, error: Exception, call: WireCall, *, begun: bool) -> EngineError:
        if isinstance(call.broke, ReplyTooLarge):
            return self._garbled(f"too much: {call.broke}")
        if isinstance(call.broke, ForeignHost):
            strayed = EngineFailed(f"A call to engine '{self._name}' would have left its address.", engine=self._name)
            strayed.heard = call.sent
            return strayed
        if call.broke is not None:
            broke = EngineUnreachable(f"Engine '{self._name}' could not be reached or broke off.", engine=self._name)
            broke.heard = call.sent
            return broke
        if call.status is not None and call.status != HTTPStatus.OK:
            return refusal(self._name, call.status, said_error(call.said, self._hidden), call.retry_after)
        if begun:
            failed = reported(self._name, self._said_midway(error), "failed in the middle of its answer")
            failed.heard = True
            return failed
        if call.status is not None:
            return self._garbled("a reply that LiteLLM cannot read")
        return self._unsent(error)

    def _said_midway(self, error: Exception) -> ReportedError:
        """What the engine said, where LiteLLM passes it on as it came."""
        original = getattr(error, "original_exception", None) or error
        _, dash, text = str(getattr(original, "message", "")).rpartition(" - ")
        with suppress(orjson.JSONDecodeError):
            return said_error(orjson.loads(text), self._hidden)
        if not dash or "\n" in text:  # words of LiteLLM's own
            return ReportedError()
        return said_error({"message": _URL.sub("(hidden)", text)}, self._hidden)

    def _unsent(self, error: Exception) -> EngineError:
        """LiteLLM refused by itself, or a provider's own client, which goes past the wire, met something."""
        status = getattr(error, "status_code", None)
        if not isinstance(status, int) or status < HTTPStatus.BAD_REQUEST or isinstance(error, httpx.HTTPError):
            status = HTTPStatus.INTERNAL_SERVER_ERROR
        text = str(getattr(error, "message", "")).partition("\n")[0]
        said = (
            ReportedError()
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR
            else said_error({"message": _URL.sub("(hidden)", text)}, self._hidden)
        )
        headers = getattr(getattr(error, "response", None), "headers", None) or {}
        return refusal(self._name, status, said, headers.get("retry-after"))

    def _broke_off(self) -> EngineFailed:
        return EngineFailed(f"Engine '{self._name}' broke off in the middle of its answer.", engine=self._name)

    def _garbled(self, what: str) -> EngineProtocolError:
        return EngineProtocolError(f"Engine '{self._name}' sent {what}.", engine=self._name)
