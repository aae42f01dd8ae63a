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
from typing import TYPE_CHECKING, Any, TypeVar

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

from gateway.continuation import Continuation, place_prefix
from gateway.engines.base import EngineState, OpeningReply, OpeningRequest
from gateway.engines.chat import ChatWire, first_choice, message_text, opening_finish, read_usage
from gateway.engines.stops import StopFilter, before_stop
from gateway.errors import EngineError, EngineGarbled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence

    from gateway.continuation import Prefill
    from gateway.engines.base import Usage
    from gateway.engines.http import EngineHttp
    from gateway.protocol import Json

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

# What TGI's chat route would misread: presence_penalty 0 becomes a repetition penalty of 2 (protocol: it adds 2).
_NEVER_SENT = frozenset({"presence_penalty"})


class TGIEngine:
    """A text-generation-inference server.

    Args:
        name: the configured model name.
        model: sent as `model`; anything but "tgi" names a LoRA adapter to the server.
        http: its pool; `base_url` is the server's root.
        continues: whether it may be asked to continue an assistant message.
        max_concurrency: what the configuration allows in flight, compared with what /info says.
        longest_opening: the most tokens that a policy asks it for as a teacher, compared likewise.
    """

    def __init__(
        self,
        name: str,
        http: EngineHttp,
        *,
        model: str = "tgi",
        continues: bool = True,
        max_concurrency: int | None = None,
        longest_opening: int = 0,
    ) -> None:
        self._name = name
        self._model = model
        self._http = http
        self._chat = ChatWire(http, "/v1/chat/completions")
        self._configured_concurrency = max_concurrency
        self._longest_opening = longest_opening
        self._max_stops = _DEFAULT_MAX_STOPS
        # TGI's chat route continues a trailing assistant message and never repeats it.
        self._state = EngineState(continuation=Continuation("trailing", echo=False) if continues else None)

    @property
    def name(self) -> str:
        return self._name

    @property
    def state(self) -> EngineState:
        return self._state

    async def close(self) -> None:
        await self._http.close()

    async def opening(self, request: OpeningRequest, *, batch: str | None = None) -> OpeningReply:
        """The first tokens of an answer: a chat through TGI's own template, a raw prompt through /generate.

        Always a call of its own: TGI puts calls in flight into one batch by itself, and its list of prompts fails as
        one, takes four at most, and turns its prefix cache off.
        """
        return await (self._chat_opening(request) if request.messages is not None else self._raw_opening(request))

    async def _chat_opening(self, request: OpeningRequest) -> OpeningReply:
        body: Json = {
            "messages": list(request.messages or ()),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,  # this route reads 0 as greedy
            "seed": request.seed,
            "stop": self._sent_stops(request) or None,
            "top_p": request.top_p,
        }
        reply = await self.complete({key: value for key, value in body.items() if value is not None})
        # Its shape was looked at already; typing all of it with the hub's classes took a tenth of a guided request.
        finish = first_choice(reply).get("finish_reason")
        return self._opening(message_text(reply), finish, read_usage(reply.get("usage")), request)

    async def _raw_opening(self, request: OpeningRequest) -> OpeningReply:
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
        reply = await self._translated(self._http.post("/generate", _without_none(asked)))
        try:
            output = TextGenerationOutput.parse_obj_as_instance(_without_tokens(reply.body))
            finish = output.details.finish_reason if output.details is not None else None
        except (ValueError, TypeError, AttributeError):
            raise self._garbled("a reply that is not text generation") from None
        return self._opening(output.generated_text, finish, _header_usage(reply.headers), request)

    def _sent_stops(self, request: OpeningRequest) -> list[str]:
        """As many as the server takes; what it is not told of is found when its reply is read."""
        return _as_list(request.stop)[: self._max_stops]

    def _opening(self, text: Any, finish: Any, usage: Usage | None, request: OpeningRequest) -> OpeningReply:
        if not isinstance(text, str):
            raise self._garbled("a reply without text")
        # A stop string completed by the very last token is reported as `length`.
        text, met = before_stop(text, request.stop)
        return OpeningReply(text, "stop" if met else opening_finish(finish), usage)

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        adapted = self._adapted(body, prefill)
        reply = await self._translated(self._chat.complete(adapted))
        for choice in reply["choices"]:
            _end_at_stop(choice, choice["message"], StopFilter(adapted.get("stop", ())), ended=True)
        return reply

    async def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[list[Json], None]:
        adapted = self._adapted(body, prefill)
        filters: dict[int, StopFilter] = {}
        async with aclosing(self._chat.stream(adapted)) as groups:
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

    async def probe(self) -> None:
        """Read /info: the limits, and where the configuration asks for more than the server allows."""
        info = (await self._http.get("/info")).body
        if not isinstance(info, dict) or "model_id" not in info:
            raise self._garbled("an /info without model_id")
        kept = ("model_id", "version", "max_concurrent_requests", "max_input_tokens", "max_total_tokens",
                "max_stop_sequences")  # fmt: skip
        self._state.revision = f"{info['model_id']}@{info.get('model_sha')}/{self._model}"
        self._state.facts = {key: info[key] for key in kept if isinstance(info.get(key), str | int)}
        self._state.warnings = []
        if isinstance(stops := info.get("max_stop_sequences"), int):
            self._max_stops = stops
        if isinstance(limit := info.get("max_concurrent_requests"), int) and limit > 0:
            self._state.max_concurrency = limit
            if self._configured_concurrency is not None and self._configured_concurrency > limit:
                self._state.warnings.append(
                    f"max_concurrency {self._configured_concurrency} is above the server's "
                    f"max_concurrent_requests {limit}: {limit} is used"
                )
        if isinstance(most := info.get("max_total_tokens"), int) and self._longest_opening >= most:
            self._state.warnings.append(
                f"a policy asks for guidance of {self._longest_opening} tokens, and the server's max_total_tokens is "
                f"{most}, prompt included: it refuses every such call"
            )

    def _adapted(self, body: Json, prefill: Prefill | None) -> Json:
        """An OpenAI chat body as TGI's chat route reads it."""
        if prefill is not None:
            body = place_prefix(prefill.how.mode, body, prefill.text)
        adapted = {key: value for key, value in body.items() if key not in _NEVER_SENT}
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

    async def _translated(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except EngineError as error:
            _name_cause(error)
            raise

    def _garbled(self, what: str) -> EngineGarbled:
        return EngineGarbled(f"Engine '{self._name}' sent {what}.", engine=self._name)


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


def _without_none(value: Any) -> Any:
    """A hub dataclass as the JSON it stands for, without the fields nobody set."""
    if isinstance(value, dict):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return value


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


def _header_usage(headers: Mapping[str, str]) -> Usage | None:
    try:
        counts = int(headers["x-prompt-tokens"]), int(headers["x-generated-tokens"])
    except (KeyError, ValueError):
        return None
    return read_usage({"prompt_tokens": counts[0], "completion_tokens": counts[1]})
