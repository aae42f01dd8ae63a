"""The engine for text-generation-inference (TGI).

Requests and replies follow huggingface_hub, the maintained TGI client. /generate uses its classes. On the chat route
the classes took a tenth of a guided request, so a test compares the fields instead. An error's cause is the exception
class that huggingface_hub has for it. Its `AsyncInferenceClient` is not used: it hides TGI's token counts, and made a
quarter of the calls per second (docs/engines.md).
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from huggingface_hub import TextGenerationOutput
from huggingface_hub import errors as hub_errors
from msgspec.structs import replace

from gateway.engines import tgi_text
from gateway.engines.base import EngineState, TeacherReply, TeacherRequest
from gateway.engines.chat import ChatWire, collect_stream, read_usage, sampling_body, teacher_finish, tokens_of
from gateway.engines.probing import find_continuation, not_continued
from gateway.engines.raw_prompts import TgiRenderer, is_raw
from gateway.engines.replies import bad_reply, first_choice, message_text, reject_foreign_tool, short_name, unsupported
from gateway.engines.stops import StopFilter, before_stop
from gateway.engines.tgi_chat import adapt_chat
from gateway.engines.token_ends import token_ends, token_texts
from gateway.errors import EngineError
from gateway.protocol.body import stop_texts
from gateway.protocol.capabilities.anthropic import messages_fields
from gateway.protocol.capabilities.continuation import Continuation, place_prefix, unsupported_as_text
from gateway.protocol.capabilities.kinds import TGI
from gateway.protocol.content_run import ContentRun

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from gateway.engines.base import EngineEmbeddings, TokenUsage
    from gateway.engines.http import EngineHttp
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Mode, Prefill
    from gateway.protocol.content_run import ChunkGroup

_T = TypeVar("_T")

_DEFAULT_MAX_STOPS = 4

# huggingface_hub's exceptions by TGI's error_type.
_ERRORS: dict[str, type[hub_errors.TextGenerationError]] = {
    "generation": hub_errors.GenerationError,
    "incomplete_generation": hub_errors.IncompleteGenerationError,
    "overloaded": hub_errors.OverloadedError,
    "validation": hub_errors.ValidationError,
}

_PER_TOKEN = frozenset({"prefill", "tokens", "top_tokens", "best_of_sequences"})


class TGIEngine:
    """The client of a text-generation-inference server. Its chat route continues a `trailing` message without a probe.

    The configured concurrency and the guidance tokens of policies are compared with the limits in /info.
    """

    def __init__(
        self,
        name: str,
        http: EngineHttp,  # `base_url` is the server's root
        *,
        model: str = "tgi",  # any value except "tgi" names a LoRA adapter
        continuation: Mode | Literal["auto", "none"] = "trailing",  # `auto` probes, `none` disables continuation
        echo: bool | None = None,  # if set, a configured continuation is not probed
        max_concurrency: int | None = None,
        max_guidance_tokens: Callable[[], int] = lambda: 0,
    ) -> None:
        self.name = name
        self._model = model
        self._http = http
        self._chat = ChatWire(http, "/v1/chat/completions")
        self._configured_concurrency = max_concurrency
        self._max_guidance_tokens = max_guidance_tokens
        self._max_stops = _DEFAULT_MAX_STOPS
        self._renderer = TgiRenderer(http, model)
        self._configured = continuation
        self._is_configured = continuation in {"trailing", "none"} or (continuation != "auto" and echo is not None)
        self._probed = self._is_configured
        self._warning: str | None = None
        self.state = EngineState(stops_within_s=TGI.stops_within_s)
        if continuation == "none":
            self.state.continuation = None
        elif continuation != "auto":
            # TGI never repeats the text that it continues. Mode `instruct` instructs the model to repeat it.
            self.state.continuation = Continuation(continuation, echo=continuation == "instruct")

    async def close(self) -> None:
        await self._http.close()

    async def generate_guidance(
        self, request: TeacherRequest, *, batch: str | None = None, on_text: Callable[[str], None] | None = None
    ) -> TeacherReply:
        """Generate the first tokens of an answer: a chat on the chat route, a raw prompt on /generate.

        Each request is a separate call, since TGI batches calls in flight. A list of prompts is limited to four, fails
        as a whole and disables the prefix cache.
        """
        generate = self._chat_guidance if request.messages is not None else self._raw_guidance
        return await generate(request, on_text)

    async def _chat_guidance(self, request: TeacherRequest, on_text: Callable[[str], None] | None) -> TeacherReply:
        # The router returns each token's text with its log-probability, which the model server computes in any case.
        body = {"messages": list(request.messages or ()), **self._sampling(request), "logprobs": True}
        if on_text is not None:
            body.update(stream=True, stream_options={"include_usage": True})
            streamed = await collect_stream(self.stream(body), on_text)
            ended = self._reply(streamed.text, streamed.finish, streamed.usage, request)
            return ended if ended.text != streamed.text else replace(ended, token_ends=streamed.token_ends)
        reply = await self.complete(body)
        # `complete` has validated the shape. Parsing with the hub's classes took a tenth of a guided request.
        choice = first_choice(reply)
        finish, tokens = choice.get("finish_reason"), token_texts(choice)
        return self._reply(message_text(reply), finish, read_usage(reply.get("usage")), request, tokens)

    async def _raw_guidance(self, request: TeacherRequest, on_text: Callable[[str], None] | None) -> TeacherReply:
        sampling = self._sampling(request)
        sampling["top_p"] = _inside_0_1(request.top_p) if request.temperature > 0 else None
        body = tgi_text.generate_body(sampling, request.prompt or "")
        if on_text is not None:
            text, finish, usage, tokens = await self._translated(tgi_text.generate_stream(self._http, body, on_text))
            return self._reply(text, finish, usage, request, tokens)
        reply = await self._translated(self._http.post("/generate", body))
        try:
            output = TextGenerationOutput.parse_obj_as_instance(_without_tokens(reply.body))
            finish = output.details.finish_reason if output.details is not None else None
        except (ValueError, TypeError, AttributeError):
            raise bad_reply(self.name, "a reply without generated_text") from None
        usage = read_usage(tgi_text.header_counts(reply.headers))
        return self._reply(output.generated_text, finish, usage, request, _details_texts(reply.body))

    def _sampling(self, request: TeacherRequest) -> Json:
        """Return the parameters with as many stop strings as the server accepts. `_reply` applies the others."""
        if not request.stop:
            return sampling_body(request)
        return sampling_body(replace(request, stop=stop_texts(request.stop)[: self._max_stops]))

    def _reply(
        self,
        text: Any,
        finish: Any,
        usage: TokenUsage | None,
        request: TeacherRequest,
        tokens: Sequence[str] | None = None,
    ) -> TeacherReply:
        if not isinstance(text, str):
            raise bad_reply(self.name, "a reply without text")
        # A stop string completed by the very last token is reported as `length`.
        text, met = before_stop(text, request.stop)
        ends = token_ends(text, tokens) if tokens else None
        return TeacherReply(text, "stop" if met else teacher_finish(finish), usage, token_ends=ends)

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        adapted = self._adapted(body, prefill)
        if is_raw(body, prefill):
            reply = await self._translated(tgi_text.complete_text(self._http, await self._raw(body, adapted, prefill)))
        else:
            try:
                reply = await self._chat.complete(adapted)
            except EngineError as error:
                _name_cause(error)
                raise
        stops = adapted.get("stop", ())
        for choice in reply["choices"]:
            if stops:
                _end_at_stop(choice, choice["message"], StopFilter(stops), ended=True)
        return reply

    async def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[ChunkGroup, None]:
        adapted = self._adapted(body, prefill)
        stops = adapted.get("stop", ())
        filters: dict[int, StopFilter] = {}
        if is_raw(body, prefill):
            stream: AsyncGenerator[ChunkGroup, None] = tgi_text.stream_text(
                self._http, await self._raw(body, adapted, prefill)
            )
        else:
            stream = self._chat.stream(adapted)
        async with aclosing(stream) as groups:
            try:
                async for chunks in groups:
                    for chunk in chunks:
                        if isinstance(chunk, ContentRun):
                            if stops:
                                seen = filters.setdefault(chunk.template.index, StopFilter(stops))
                                chunk.contents[:] = map(seen.feed, chunk.contents)
                            continue
                        for choice in chunk["choices"]:
                            choice["delta"] = choice.get("delta") or {}
                            seen = filters.setdefault(choice.get("index", 0), StopFilter(stops))
                            _end_at_stop(choice, choice["delta"], seen, ended=bool(choice.get("finish_reason")))
                    yield chunks
            except EngineError as error:
                _name_cause(error)
                raise

    async def embed(self, body: Json) -> EngineEmbeddings:
        """Raise EngineUnsupported: TGI has no such route. Policies that need it are rejected when they are read."""
        raise unsupported(self.name, "does not support embeddings.", 404)

    async def probe(self) -> None:
        """Read the limits from /info, and warn where the configuration exceeds them. Probe continuation once."""
        info = (await self._http.get("/info")).body
        if not isinstance(info, dict) or "model_id" not in info:
            raise bad_reply(self.name, "an /info without model_id")
        kept = ("model_id", "version", "max_concurrent_requests", "max_input_tokens", "max_total_tokens",
                "max_stop_sequences")  # fmt: skip
        self.state.revision = short_name(f"{info['model_id']}@{info.get('model_sha')}/{self._model}")
        facts = {key: info[key] for key in kept if isinstance(info.get(key), str | int)}
        self.state.facts = {key: short_name(one) if isinstance(one, str) else one for key, one in facts.items()}
        self._probed = self._probed and (bool(self.state.up) or self._is_configured)
        if not self._probed:
            await self._probe_continuation()
            self._probed = True
        self.state.warnings = [] if self._warning is None else [self._warning]
        if isinstance(stops := info.get("max_stop_sequences"), int):
            self._max_stops = stops
        if isinstance(limit := info.get("max_concurrent_requests"), int) and limit > 0:
            self.state.max_concurrency = limit
            if self._configured_concurrency is not None and self._configured_concurrency > limit:
                self.state.warnings.append(
                    f"max_concurrency {self._configured_concurrency} exceeds the server's "
                    f"max_concurrent_requests {limit}; {limit} is used"
                )
        longest = self._max_guidance_tokens()
        self.state.context_tokens = tokens_of(info.get("max_total_tokens"))
        if isinstance(limit := info.get("max_total_tokens"), int) and longest >= limit:
            self.state.warnings.append(
                f"a policy requests {longest} guidance tokens, but the server's max_total_tokens, prompt included, is "
                f"{limit}: the server rejects each such call"
            )

    async def _probe_continuation(self) -> None:
        mode = self._configured
        assert mode != "none", "continuation is disabled"
        found = await find_continuation(self.complete, TGI.modes if mode == "auto" else (mode,), None)
        self._warning = None if found is not None else not_continued(mode)
        if found is not None or mode == "auto":
            self.state.continuation = found

    def _adapted(self, body: Json, prefill: Prefill | None) -> Json:
        if (own := messages_fields()) is not None and "messages" in body:
            reject_foreign_tool(self.name, own, body, TGI.reads)
            body = own.chat(body, TGI.reads)
        if prefill is not None and prefill.continuation.mode != "completions":
            body = place_prefix(prefill.continuation.mode, body, prefill.text)
        adapted = {**body, "model": self._model}
        for name in TGI.never_sent:
            adapted.pop(name, None)
        if "messages" in adapted:
            adapt_chat(self.name, adapted)
        adapted.pop("stop", None)
        if stops := stop_texts(body.get("stop")):  # an empty text would end each answer at its first token
            adapted["stop"] = list(stops)
        top_p = adapted.pop("top_p", None)
        if top_p == 0:
            adapted["temperature"] = 0  # greedy; the route rejects top_p 0
        elif adapted.get("temperature") != 0 and (inside := _inside_0_1(top_p)) is not None:
            adapted["top_p"] = inside  # with temperature 0 it would enable sampling
        limit = adapted.pop("max_completion_tokens", None)
        if limit is not None:
            adapted["max_tokens"] = limit
        return adapted

    async def _raw(self, body: Json, adapted: Json, prefill: Prefill | None) -> Json:
        """Return the /generate body: the rendered chat followed by the guidance, or the raw prompt."""
        lost = tgi_text.lost_by_generate(body) if prefill is None else unsupported_as_text(body)
        if lost is None and (body.get("n") or 1) > 1:
            lost = "n"
        if lost is not None:
            raise unsupported(self.name, f"does not support '{lost}' with a raw prompt.", param=lost)
        if prefill is None:
            prompt = body["prompt"]
            return tgi_text.generate_body(adapted, prompt if isinstance(prompt, str) else prompt[0])
        try:
            prompt = await self._translated(self._renderer.render_with_prefill(adapted, prefill.text))
        except EngineError as error:
            error.may_have_run = False  # the model was not called
            raise
        return tgi_text.generate_body(adapted, prompt)

    async def _translated(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except EngineError as error:
            _name_cause(error)
            raise


def _name_cause(error: EngineError) -> None:
    """Set huggingface_hub's exception for TGI's error_type as the cause."""
    if error.reason is not None:
        error.__cause__ = _ERRORS.get(error.reason, hub_errors.UnknownError)(error.message)


def _inside_0_1(top_p: float | None) -> float | None:
    """Return top_p if 0 < top_p < 1, as TGI requires. None is equivalent to 1."""
    return top_p if top_p is not None and 0 < top_p < 1 else None


def _without_tokens(generated: Any) -> Any:
    """Return a /generate reply without its token details, which are not used and took most of a call to parse."""
    details = generated.get("details") if isinstance(generated, dict) else None
    if not isinstance(details, dict):
        return generated
    return {**generated, "details": {key: value for key, value in details.items() if key not in _PER_TOKEN}}


def _details_texts(generated: Any) -> list[str] | None:
    """Return the text of each token of a /generate reply; None if it has no valid details."""
    details = generated.get("details") if isinstance(generated, dict) else None
    tokens = details.get("tokens") if isinstance(details, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        return None
    texts = [token.get("text") for token in tokens if not token.get("special")]
    return texts if all(isinstance(text, str) for text in texts) else None


def _end_at_stop(choice: Json, part: Json, stops: StopFilter, *, ended: bool) -> None:
    """Remove the stop string from a message or delta, and set the finish reason of its choice, in place.

    `stops` filters the whole text of the choice, of which this may be the last part.
    """
    text = part.get("content")
    if isinstance(text, str):
        part["content"] = stops.feed(text)
    if ended and (held := stops.finish()):
        part["content"] = (part["content"] if isinstance(text, str) else "") + held
    if choice.get("finish_reason") and stops.met:
        choice["finish_reason"] = "stop"
