"""The engine for providers without an OpenAI-compatible API: Anthropic, Bedrock, Gemini, Azure, Vertex and others.

LiteLLM translates requests and replies. Timeouts, connections, retries, prices and error classes are the gateway's.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import httpx
import orjson

from gateway.engines.base import EngineEmbeddings, EngineState, TeacherReply, TeacherRequest
from gateway.engines.chat import collect_stream, sampling_body, teacher_reply
from gateway.engines.http import Deadline
from gateway.engines.litellm_chat import BodyUnsupported, arguments, plain_chunk, plain_reply
from gateway.engines.litellm_wire import EnginePool, ForeignHost, ReplyTooLarge
from gateway.engines.probing import find_continuation
from gateway.engines.refusal import ReportedError, hidden_in, read_error, refusal, reported
from gateway.engines.replies import (
    bad_reply,
    closed_early,
    connection_failed,
    first_choice,
    message_text,
    reject_foreign_tool,
    unsupported,
)
from gateway.errors import EngineError, EngineFailed, EngineRejected, EngineTimeout, EngineUnreachable
from gateway.protocol.capabilities.anthropic import messages_fields, read_by
from gateway.protocol.capabilities.continuation import Continuation, place_prefix

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from gateway.engines.http import EngineDeadlines
    from gateway.engines.litellm_library import LiteLLMLibrary
    from gateway.engines.litellm_wire import WireCall
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Mode, Prefill

# The modes to probe, from LiteLLM's table of models and the documentation of the providers. Some providers require a
# flag on the message to continue. The others continue any assistant message at the end.
_MODES: dict[str, tuple[Mode, ...]] = {
    **dict.fromkeys(("mistral", "deepseek", "codestral"), ("prefix", "instruct")),
    "hosted_vllm": ("vllm", "trailing", "instruct"),
}
_NO_CHAT_FIELDS = frozenset({"thinking", "top_k"})  # are passed with the other fields of /v1/messages
# Claude does not think while it continues an answer, and rejects edits of its thinking then.
_WITHOUT_PREFILL = frozenset({"context_management", "thinking"})
_FLAGS = ("continue_final_message", "add_generation_prompt")
# For these providers LiteLLM 1.110 invents a finish reason. `WireCall.ended` has the engine's own.
_INVENTED_FOR = frozenset({"gemini", "vertex_ai"})
# After these statuses the next call is expected to fail, too.
_DOWN = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})
# Exceptions of LiteLLM's translation for a field with another form than it expects.
_MALFORMED = frozenset({AttributeError, IndexError, KeyError, TypeError, ValueError})
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


class LiteLLMEngine:
    """The client of one model of one provider, whose environment variables apply without `api_base` and `api_key`."""

    def __init__(
        self,
        name: str,
        model: str,  # `provider/name` in LiteLLM's notation
        library: LiteLLMLibrary,
        *,
        deadlines: EngineDeadlines,
        api_base: str | None = None,
        api_key: str | None = None,
        options: Mapping[str, str] | None = None,  # arguments of each call, such as Azure's `api_version`
        continuation: Mode | Literal["auto", "none"] = "auto",  # `auto` probes
        echo: bool | None = None,  # whether the engine repeats the message that it continues; None: as probed
        outgoing: Callable[[], Mapping[str, str] | None] | None = None,  # additional headers of each call
    ) -> None:
        self.name = name
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
        self._reads = read_by(model)  # fields of /v1/messages
        self._echo = echo
        self._is_probed = continuation != "auto"
        self._down: EngineError | None = None  # the error of the last call, if the next call is expected to fail, too
        self.state = EngineState(revision=model, takes_prompts=False, called=False)
        self.state.facts = {"provider": self._provider, "seen": "no call yet"}
        if continuation != "auto":
            self.state.continuation = None if continuation == "none" else Continuation(continuation, echo=echo)

    async def close(self) -> None:
        await self._pool.close()

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        return await self._complete(self._arguments(body, prefill), with_thinking=messages_fields() is not None)

    async def _complete(self, sent: Json, *, with_thinking: bool = False) -> Json:
        plain = await self._call(self._library.chat(**sent), partial(plain_reply, with_thinking=with_thinking))
        if not plain["choices"]:
            raise bad_reply(self.name, "a reply without a message")
        self._answered()
        return plain

    async def _call(self, answer: Awaitable[Any], read: Callable[[Any], Json]) -> Json:
        with self._pool.call() as call:
            try:
                return read(await Deadline.of(self._deadlines.total_s).bound(self.name, answer))
            except Exception as error:  # LiteLLM raises exceptions of many types
                raise self._failed(error, call) from error

    async def stream(
        self, body: Json, prefill: Prefill | None = None, *, lenient: bool = False
    ) -> AsyncGenerator[list[Json], None]:
        """Yield chunks. The stream ends without an error only after all choices have finished."""
        sent = self._arguments(body, prefill, lenient=lenient)
        unfinished = set(range(body.get("n") or 1))
        end = Deadline.of(self._deadlines.total_s).at
        due = self._due(self._deadlines.first_token_s, end)
        started, with_thinking = False, messages_fields() is not None
        chunks: Any = None
        with self._pool.call() as call:
            try:
                call_chat = self._library.chat(**sent, stream=True, stream_options={"include_usage": True})
                chunks = await due.bound(self.name, call_chat)
            except Exception as error:
                raise self._failed(error, call) from error
        try:
            while True:
                try:
                    with self._pool.call(call):  # some providers send the request at the first chunk
                        chunk = plain_chunk(await due.bound(self.name, anext(chunks)), with_thinking=with_thinking)
                except StopAsyncIteration:
                    break
                except Exception as error:
                    if not unfinished:
                        break  # the answer is complete; only the usage is missing
                    raise self._failed(error, call, started=started) from error
                call.unread_bytes = 0
                finished = {choice["index"] for choice in chunk["choices"] if choice["finish_reason"]}
                if finished and not self._has_ended(chunks, call):
                    raise closed_early(self.name)
                unfinished -= finished
                started = True
                self._answered()
                yield [chunk]
                due = self._due(self._deadlines.idle_s, end)
        finally:
            with suppress(Exception):
                await chunks.aclose()
        if unfinished:
            raise closed_early(self.name)

    @staticmethod
    def _due(seconds: float, end: float) -> Deadline:
        """Return a deadline after `seconds`, at the latest at `end` on the event loop's clock."""
        return Deadline(seconds, min(end, Deadline.of(seconds).at))

    async def generate_guidance(
        self, request: TeacherRequest, *, batch: str | None = None, on_text: Callable[[str], None] | None = None
    ) -> TeacherReply:
        """Generate guidance. Sampling parameters that the provider does not support are omitted."""
        if on_text is not None and request.messages is not None:
            body = {**sampling_body(request), "messages": list(request.messages)}
            return await collect_stream(self.stream(body, lenient=True), on_text)
        if request.messages is not None or self._provider not in self._library.takes_text:
            messages = request.messages or [{"role": "user", "content": request.prompt}]
            sent = self._arguments({**sampling_body(request), "messages": list(messages)}, None, lenient=True)
            reply = await self._complete(sent)
            text = message_text(reply)
        else:
            sent = {**sampling_body(request), "prompt": request.prompt, "drop_params": True, **self._fixed}
            reply = await self._call(self._library.text(**sent), lambda answer: answer.model_dump(mode="json"))
            self._answered()
            text = first_choice(reply).get("text")
        return teacher_reply(self.name, reply, text)

    async def embed(self, body: Json) -> EngineEmbeddings:
        """Raise EngineUnsupported. Policies that need embeddings from LiteLLM are rejected when they are read."""
        raise unsupported(self.name, "does not support embeddings through LiteLLM.", 404)

    async def probe(self) -> None:
        """Determine the continuation once, with a small call. No other call is made, since calls cost money.

        After that the engine counts as up, unless the error of its last call is expected to last.
        """
        if not self._is_probed:
            modes = _MODES.get(self._provider, ("trailing", "instruct"))
            self.state.continuation = await find_continuation(self._send_probe, modes, self._echo)
            self._is_probed = True
            if self.state.continuation is None:
                self.state.warnings = ["the engine continues no assistant message: placement prefix adds no guidance"]
        if self._down is not None:
            raise self._down.copy()

    async def _send_probe(self, body: Json, prefill: Prefill) -> Json:
        return await self._complete(self._arguments(body, prefill, lenient=True))

    def _arguments(self, body: Json, prefill: Prefill | None, *, lenient: bool = False) -> Json:
        """Return the arguments of a LiteLLM call. `lenient` omits parameters that the provider does not support."""
        assert "prompt" not in body, "state.takes_prompts is False"
        own = messages_fields()
        if own is not None:
            reject_foreign_tool(self.name, own, body, self._reads)
            body = own.chat(body, self._reads - _NO_CHAT_FIELDS)
        try:
            knows_tools = own is not None and "client_tools" in self._reads
            sent = arguments(body, None if lenient else self._supported, knows_client_tools=knows_tools)
        except BodyUnsupported as error:
            raise unsupported(self.name, f"does not support the request: {error}", 400, error.param) from None
        if own is not None and not lenient:
            sent |= own.more(self._reads if prefill is None else self._reads - _WITHOUT_PREFILL)
            if own.headers and "headers" in self._reads:
                sent["extra_headers"] = dict(own.headers)
        if prefill is not None:
            sent = place_prefix(prefill.continuation.mode, sent, prefill.text)
            if flags := {name: sent.pop(name) for name in _FLAGS if name in sent}:
                sent["extra_body"] = flags
        return {**sent, "drop_params": lenient, **self._fixed}

    def _has_ended(self, chunks: Any, call: WireCall) -> bool:
        """Return whether the finish_reason came from the engine. LiteLLM invents one at the end of some streams."""
        if self._provider in _INVENTED_FOR:
            return call.ended
        names = ("received_finish_reason", "intermittent_finish_reason", "received_any_finish_reason")
        return any(getattr(chunks, name) for name in names)

    def _answered(self) -> None:
        self._down = None
        self.state.called = True
        self.state.facts["seen"] = "the last call was answered"

    def _failed(self, error: Exception, call: WireCall, *, started: bool = False) -> EngineError:
        """Return the EngineError for an exception of LiteLLM, and update the state.

        The reply on the wire determines the class. The exception does only if there was no reply.
        """
        failed = error if isinstance(error, EngineError) else self._classified(error, call, started=started)
        if isinstance(failed, EngineUnreachable | EngineTimeout) or getattr(failed, "status_sent", 0) in _DOWN:
            # Readiness shows the error while it lasts.
            status = f" ({failed.status_sent})" if isinstance(failed, EngineRejected) else ""
            self._down = failed.with_message(
                f"The last call to engine '{self.name}' failed with {failed.label}{status}."
            )
        self.state.called = True
        self.state.facts["seen"] = f"the last call failed with {failed.label}"
        return failed

    def _classified(self, error: Exception, call: WireCall, *, started: bool) -> EngineError:
        if isinstance(call.broke, ReplyTooLarge):
            return bad_reply(self.name, f"a reply above the size limit: {call.broke}")
        if isinstance(call.broke, ForeignHost):
            message = f"LiteLLM addressed a call of engine '{self.name}' to another host than api_base."
            failed: EngineError = EngineFailed(message, engine=self.name)
            failed.may_have_run = call.sent
            return failed
        if call.broke is not None:
            return connection_failed(self.name, connected=call.sent)
        if call.status is not None and call.status != HTTPStatus.OK:
            return refusal(self.name, call.status, read_error(call.error_body, self._hidden), call.retry_after)
        if started:
            failed = reported(self.name, self._error_in_stream(error), "failed during its answer")
            failed.may_have_run = True
            return failed
        if call.status is not None:
            return bad_reply(self.name, "a reply that LiteLLM cannot read")
        if self._reads and not call.sent and type(error.__cause__ or error.__context__) in _MALFORMED:
            # The providers of these models are called on the wire alone, so nothing was sent.
            return unsupported(self.name, "does not support the request: LiteLLM cannot translate it.", 400)
        return self._local_error(error)

    def _error_in_stream(self, error: Exception) -> ReportedError:
        """Return the engine's error in a stream, if LiteLLM forwards it unchanged."""
        original = getattr(error, "original_exception", None) or error
        _, dash, text = str(getattr(original, "message", "")).rpartition(" - ")
        with suppress(orjson.JSONDecodeError):
            return read_error(orjson.loads(text), self._hidden)
        if not dash or "\n" in text:  # a text of LiteLLM
            return ReportedError()
        return read_error({"message": _URL.sub("(hidden)", text)}, self._hidden)

    def _local_error(self, error: Exception) -> EngineError:
        """Return the error for an exception of LiteLLM itself, or of a provider's client that bypasses the wire."""
        status = getattr(error, "status_code", None)
        if not isinstance(status, int) or status < HTTPStatus.BAD_REQUEST or isinstance(error, httpx.HTTPError):
            status = HTTPStatus.INTERNAL_SERVER_ERROR
        text = str(getattr(error, "message", "")).partition("\n")[0]
        report = ReportedError()
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            report = read_error({"message": _URL.sub("(hidden)", text)}, self._hidden)
        headers = getattr(getattr(error, "response", None), "headers", None) or {}
        return refusal(self.name, status, report, headers.get("retry-after"))
