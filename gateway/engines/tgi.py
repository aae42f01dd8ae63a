"""text-generation-inference.

Requests and replies are those of huggingface_hub, the maintained TGI client, and its error names are kept as the cause
of ours, so that the contract is theirs: /generate is typed with its classes; the chat route, where typing took a tenth
of a guided request, is held to them field by field in a test. The transport is ours: `AsyncInferenceClient` opens a
second HTTP stack (httpx) beside ours, hides the reply headers in which TGI tells its token counts, and holds every
stream's response until the client is closed. Chat calls per second on one core with 32 in flight, in one run: ours
5760, the hub's 1301 (load_tests/tgi_client.py; docs/engines.md has the rest).
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from huggingface_hub import (
    TextGenerationInput,
    TextGenerationInputGenerateParameters,
    TextGenerationOutput,
)
from huggingface_hub.errors import (
    GenerationError,
    IncompleteGenerationError,
    OverloadedError,
    TextGenerationError,
    UnknownError,
    ValidationError,
)

from gateway.capabilities.continuation import Continuation, place_prefix, unsupported_as_text
from gateway.capabilities.kinds import TGI
from gateway.engines.base import EngineState, OpeningReply, OpeningRequest
from gateway.engines.chat import ChatWire, listen, opening_finish, read_usage, tokens_of
from gateway.engines.probing import find_continuation
from gateway.engines.raw_prompts import is_text
from gateway.engines.renderers import TgiRenderer
from gateway.engines.replies import first_choice, message_text
from gateway.engines.stops import StopFilter, before_stop
from gateway.engines.tgi_stream import generate_stream
from gateway.engines.tgi_text import TextRoute, generate_body, header_counts, lost_by_generate, without_none
from gateway.errors import EngineError, EngineProtocolError, EngineUnsupported

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from gateway.capabilities.continuation import Mode, Prefill
    from gateway.engines.base import EngineEmbeddings, TokenUsage
    from gateway.engines.http import EngineHttp
    from gateway.protocol.body import Json

_T = TypeVar("_T")

_DEFAULT_MAX_STOPS = 4

# TGI's error_type, in huggingface_hub's names.
_ERRORS: dict[str, type[TextGenerationError]] = {
    "generation": GenerationError,
    "incomplete_generation": IncompleteGenerationError,
    "overloaded": OverloadedError,
    "validation": ValidationError,
}

_PER_TOKEN = frozenset({"prefill", "tokens", "top_tokens", "best_of_sequences"})


class TGIEngine:
    """A text-generation-inference server.

    Args:
        name: the configured model name.
        model: sent as `model`; anything but "tgi" names a LoRA adapter to the server.
        http: its pool; `base_url` is the server's root.
        continuation: how it continues an assistant message. `trailing` is what its chat route does, and is not
            probed; `auto` probes for all its ways, `none` never tries.
        max_concurrency: what the configuration allows in flight, compared with what /info says.
        longest_opening: the most tokens that a policy asks it for now as a teacher, compared likewise.
    """

    def __init__(
        self,
        name: str,
        http: EngineHttp,
        *,
        model: str = "tgi",
        continuation: Mode | Literal["auto", "none"] = "trailing",
        max_concurrency: int | None = None,
        longest_opening: Callable[[], int] = lambda: 0,
    ) -> None:
        self._name = name
        self._model = model
        self._http = http
        self._chat = ChatWire(http, "/v1/chat/completions")
        self._configured_concurrency = max_concurrency
        self._longest_opening = longest_opening
        self._max_stops = _DEFAULT_MAX_STOPS
        self._text = TextRoute(http)
        self._renderer = TgiRenderer(http, model)
        self._asked = continuation
        self._looked = continuation in {"trailing", "none"}
        self._doubt: str | None = None
        self._state = EngineState(stops_within_s=TGI.stops_within_s)
        if continuation == "none":
            self._state.continuation = None
        elif continuation != "auto":
            # TGI never repeats what it continues; who is told to write it again does.
            self._state.continuation = Continuation(continuation, echo=continuation == "instruct")

    @property
    def name(self) -> str:
        return self._name

    @property
    def state(self) -> EngineState:
        return self._state

    async def close(self) -> None:
        await self._http.close()

    async def opening(
        self, request: OpeningRequest, *, batch: str | None = None, tell: Callable[[str], None] | None = None
    ) -> OpeningReply:
        """The first tokens of an answer: a chat through TGI's own template, a raw prompt through /generate.

        Always a call of its own: TGI puts calls in flight into one batch by itself, and its list of prompts fails as
        one, takes four at most, and turns its prefix cache off.
        """
        ask = self._chat_opening if request.messages is not None else self._raw_opening
        return await ask(request, tell)

    async def _chat_opening(self, request: OpeningRequest, tell: Callable[[str], None] | None) -> OpeningReply:
        body: Json = {
            "messages": list(request.messages or ()),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,  # this route reads 0 as greedy
            "seed": request.seed,
            "stop": self._sent_stops(request) or None,
            "top_p": request.top_p,
        }
        body = {key: value for key, value in body.items() if value is not None}
        if tell is not None:
            body.update(stream=True, stream_options={"include_usage": True})
            heard = await listen(self.stream(body), tell)
            return self._opening(heard.text, heard.finish, heard.usage, request)
        reply = await self.complete(body)
        # Its shape was looked at already; typing all of it with the hub's classes took a tenth of a guided request.
        finish = first_choice(reply).get("finish_reason")
        return self._opening(message_text(reply), finish, read_usage(reply.get("usage")), request)

    async def _raw_opening(self, request: OpeningRequest, tell: Callable[[str], None] | None) -> OpeningReply:
        asked = TextGenerationInput(
            inputs=request.prompt or "",
            parameters=TextGenerationInputGenerateParameters(
                max_new_tokens=request.max_tokens,  # without it TGI writes until its memory says stop
                details=True,
                do_sample=request.temperature > 0,  # without `parameters` TGI would sample
                temperature=request.temperature or None,  # 0 is refused here
                top_p=_inside_0_1(request.top_p) if request.temperature > 0 else None,
                seed=request.seed,
                stop=self._sent_stops(request) or None,
            ),
        )
        if tell is not None:
            heard = await self._translated(generate_stream(self._http, without_none(asked), tell))
            return self._opening(heard.text, heard.finish, heard.usage, request)
        reply = await self._translated(self._http.post("/generate", without_none(asked)))
        try:
            output = TextGenerationOutput.parse_obj_as_instance(_without_tokens(reply.body))
            finish = output.details.finish_reason if output.details is not None else None
        except (ValueError, TypeError, AttributeError):
            raise self._garbled("a reply that is not text generation") from None
        return self._opening(output.generated_text, finish, read_usage(header_counts(reply.headers)), request)

    def _sent_stops(self, request: OpeningRequest) -> list[str]:
        """As many as the server takes; what it is not told of is found when its reply is read."""
        return _as_list(request.stop)[: self._max_stops]

    def _opening(self, text: Any, finish: Any, usage: TokenUsage | None, request: OpeningRequest) -> OpeningReply:
        if not isinstance(text, str):
            raise self._garbled("a reply without text")
        # A stop string completed by the very last token is reported as `length`.
        text, met = before_stop(text, request.stop)
        return OpeningReply(text, "stop" if met else opening_finish(finish), usage)

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        adapted = self._adapted(body, prefill)
        if is_text(body) or (prefill is not None and prefill.continuation.mode == "completions"):
            raw = await self._raw(body, adapted, prefill)
            reply = await self._translated(self._text.complete(raw))
        else:
            reply = await self._translated(self._chat.complete(adapted))
        for choice in reply["choices"]:
            _end_at_stop(choice, choice["message"], StopFilter(adapted.get("stop", ())), ended=True)
        return reply

    async def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[list[Json], None]:
        adapted = self._adapted(body, prefill)
        filters: dict[int, StopFilter] = {}
        if is_text(body) or (prefill is not None and prefill.continuation.mode == "completions"):
            stream = self._text.stream(await self._raw(body, adapted, prefill))
        else:
            stream = self._chat.stream(adapted)
        async with aclosing(stream) as groups:
            try:
                async for chunks in groups:
                    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
                        choice["delta"] = choice.get("delta") or {}
                        seen = filters.setdefault(choice.get("index", 0), StopFilter(adapted.get("stop", ())))
                        _end_at_stop(choice, choice["delta"], seen, ended=bool(choice.get("finish_reason")))
                    yield chunks
            except EngineError as error:
                _name_cause(error)
                raise

    async def embed(self, body: Json) -> EngineEmbeddings:
        """It has no such route; a policy that wants one is refused when it is read."""
        raise EngineUnsupported(f"Engine '{self._name}' makes no embeddings.", engine=self._name, status_sent=404)

    async def probe(self) -> None:
        """Read /info: the limits, and where the configuration asks for more than the server allows.

        Once while it stays up, and where the configuration wants that, try how it continues.
        """
        info = (await self._http.get("/info")).body
        if not isinstance(info, dict) or "model_id" not in info:
            raise self._garbled("an /info without model_id")
        kept = ("model_id", "version", "max_concurrent_requests", "max_input_tokens", "max_total_tokens",
                "max_stop_sequences")  # fmt: skip
        self._state.revision = f"{info['model_id']}@{info.get('model_sha')}/{self._model}"
        self._state.facts = {key: info[key] for key in kept if isinstance(info.get(key), str | int)}
        self._looked = self._looked and (bool(self._state.up) or self._asked in {"trailing", "none"})
        if not self._looked:
            await self._look()
            self._looked = True
        self._state.warnings = [] if self._doubt is None else [self._doubt]
        if isinstance(stops := info.get("max_stop_sequences"), int):
            self._max_stops = stops
        if isinstance(limit := info.get("max_concurrent_requests"), int) and limit > 0:
            self._state.max_concurrency = limit
            if self._configured_concurrency is not None and self._configured_concurrency > limit:
                self._state.warnings.append(
                    f"max_concurrency {self._configured_concurrency} is above the server's "
                    f"max_concurrent_requests {limit}: {limit} is used"
                )
        longest = self._longest_opening()
        self._state.context_tokens = tokens_of(info.get("max_total_tokens"))
        if isinstance(most := info.get("max_total_tokens"), int) and longest >= most:
            self._state.warnings.append(
                f"a policy asks for guidance of {longest} tokens, and the server's max_total_tokens is "
                f"{most}, prompt included: it refuses every such call"
            )

    async def _look(self) -> None:
        asked = self._asked
        assert asked != "none", "nothing is looked for"
        found = await find_continuation(self.complete, TGI.modes if asked == "auto" else (asked,), None)
        self._doubt = None
        if found is None and asked == "auto":
            self._doubt = "the engine goes on with no opening: with placement prefix it gets guidance as context"
        elif found is None:
            self._doubt = f"the engine did not continue the probe with continuation '{asked}'"
        if found is not None or asked == "auto":
            self._state.continuation = found

    def _adapted(self, body: Json, prefill: Prefill | None) -> Json:
        """An OpenAI chat body as TGI's chat route reads it."""
        if prefill is not None and prefill.continuation.mode != "completions":
            body = place_prefix(prefill.continuation.mode, body, prefill.text)
        adapted = {key: value for key, value in body.items() if key not in TGI.never_sent}
        adapted["model"] = self._model
        adapted.pop("stop", None)
        if stops := _as_list(body.get("stop")):
            adapted["stop"] = stops
        top_p = adapted.pop("top_p", None)
        if top_p == 0:
            adapted["temperature"] = 0  # only the likeliest token, which is refused when said this way
        elif adapted.get("temperature") != 0 and (inside := _inside_0_1(top_p)) is not None:
            adapted["top_p"] = inside  # beside temperature 0 it would turn sampling on again
        limit = adapted.pop("max_completion_tokens", None)
        if limit is not None:
            adapted["max_tokens"] = limit
        return adapted

    async def _raw(self, body: Json, adapted: Json, prefill: Prefill | None) -> Json:
        """A body as one of /generate: a chat's with the opening behind it. Raises EngineErrors."""
        lost = lost_by_generate(body) if prefill is None else unsupported_as_text(body)
        if lost is None and (body.get("n") or 1) > 1:
            lost = "n"
        if lost is not None:
            raise EngineUnsupported(
                f"Engine '{self._name}' takes one prompt in words for one answer, and cannot carry '{lost}'.",
                engine=self._name,
                status_sent=422,
                param=lost,
            )
        if prefill is None:
            prompt = body["prompt"]
            return generate_body(adapted, prompt if isinstance(prompt, str) else prompt[0])
        try:
            prompt = await self._translated(self._renderer.begun(body, prefill.text))
        except EngineError as error:
            error.heard = False  # the model was not asked yet
            raise
        return generate_body(adapted, prompt)

    async def _translated(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except EngineError as error:
            _name_cause(error)
            raise

    def _garbled(self, what: str) -> EngineProtocolError:
        return EngineProtocolError(f"Engine '{self._name}' sent {what}.", engine=self._name)


def _name_cause(error: EngineError) -> None:
    """Where TGI named the kind of error, give ours huggingface_hub's exception for it as the cause."""
    if error.reason is not None:
        error.__cause__ = _ERRORS.get(error.reason, UnknownError)(error.message)


def _as_list(stop: str | Sequence[str] | None) -> list[str]:
    """OpenAI's `stop` as TGI wants it. An empty string would end every answer at its first token."""
    return [text for text in ([stop] if isinstance(stop, str) else stop or ()) if text]


def _inside_0_1(top_p: float | None) -> float | None:
    """TGI wants 0 < top_p < 1; None says the same as 1."""
    return top_p if top_p is not None and 0 < top_p < 1 else None


def _without_tokens(generated: Any) -> Any:
    """A /generate reply without what it says of each token: nobody reads that, and typing it took most of a call."""
    details = generated.get("details") if isinstance(generated, dict) else None
    if not isinstance(details, dict):
        return generated
    return {**generated, "details": {key: value for key, value in details.items() if key not in _PER_TOKEN}}


def _end_at_stop(choice: Json, said: Json, stops: StopFilter, *, ended: bool) -> None:
    """Make a choice end as OpenAI's do, in place: without its stop string, and with one name for having stopped.

    Args:
        choice: whose finish_reason it is.
        said: its message or delta.
        stops: what looks for the stop strings over all that the choice says.
        ended: whether nothing more comes.
    """
    text = said.get("content")
    if isinstance(text, str):
        said["content"] = stops.feed(text)
    if ended and (held := stops.finish()):
        said["content"] = (said["content"] if isinstance(text, str) else "") + held
    if choice.get("finish_reason") and (stops.met or choice["finish_reason"] in {"eos_token", "stop_sequence"}):
        choice["finish_reason"] = "stop"
