"""The protocol `Engine`, which all clients of model servers implement.

Teacher and student are roles of an engine. As a teacher an engine generates guidance (`generate_guidance`). As a
student it completes the answer (`complete` for JSON replies, `stream` for SSE).
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

    import msgspec

    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Known, Prefill
    from gateway.protocol.capabilities.reasoning import Reasoning
    from gateway.protocol.content_run import ChunkGroup

CONTENT_FILTER: Final = "content_filter"
"""OpenAI's finish reason and error code of a refusal by a content filter."""
Finish = Literal["stop", "length", "content_filter"]


class TokenUsage(Record, frozen=True):
    """The token counts of one call, as the engine reported them."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0  # the part of `input_tokens` that the engine read from its prompt cache
    estimated: bool = False  # the engine reported a sum for a list of prompts; this is the share of one prompt
    cache_write_input_tokens: int = 0  # another part of `input_tokens`, which the engine wrote to its prompt cache
    cache_write_1h_input_tokens: int | None = None  # the part of it with a lifetime of one hour; None: not reported
    no_cache_reads: bool = False  # the engine reported 0 tokens read from its prompt cache, rather than no count


class TeacherRequest(Record, frozen=True):
    """A request for guidance: the first `max_tokens` tokens of an answer.

    Either `messages` (a chat, rendered by the engine's template) or `prompt` (raw text, the paper's few-shot setting)
    is set. The sampling parameters come from the policy, not from the caller. Temperature 0 is greedy.
    """

    max_tokens: int
    messages: Sequence[Json] | None = None
    prompt: str | None = None
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    constraints: Json | None = None  # the caller's constraining fields, for an engine that knows them


class TeacherReply(Record, frozen=True):
    """The text that the teacher generated."""

    text: str
    finish: (
        Finish  # `stop` if the teacher ended the text itself, `length` if it was cut, or its content filter ended it
    )
    usage: TokenUsage | None
    span: Any = None  # the span context of the call; None without tracing
    token_ends: tuple[int, ...] | None = None  # the number of characters after each token; None: not reported


class EngineEmbeddings(NamedTuple):
    """An embeddings reply in the engine's own bytes: the fields of OpenAI's reply, and `data` in parts."""

    fields: dict[str, msgspec.Raw]
    data: list[bytes]
    usage: TokenUsage | None


@dataclass(slots=True)
class EngineState:
    """The current state of an engine. Probes write it; readiness and the request path read it."""

    up: bool | None = None  # whether the last probe succeeded; None before the first one
    since: float | None = None  # the time of the last change of `up` in Unix seconds
    asleep: bool = False  # whether the engine reported that it queues calls until it is woken
    detail: str = "not probed yet"  # for operators: it may contain the engine's address
    problem: str | None = None  # the error label of the last probe if it failed, or engine_asleep
    called: bool = True  # False if no call was made yet and the engine has no other probe
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    continuation: Known = "not_probed"
    takes_prompts: bool = True  # whether the client supports raw prompts. The server may still lack the route.
    revision: str | None = None  # identifies the weights; None: not known yet. Cached guidance belongs to one revision.
    reasoning: Reasoning = "none"  # whether the model reasons before it answers, as configured
    max_concurrency: int | None = None  # the engine's own limit on calls in flight; None: not reported
    stops_within_s: float | None = None  # seconds from a disconnect to the end of generation; None: not known to stop
    context_tokens: int | None = None  # the limit on prompt and answer together; None: not reported
    max_prompt_tokens: int | None = None  # the engine rejects longer prompts; None: not known to reject any
    sends_tokens: bool = False  # whether each piece of streamed guidance is one token
    counts_chunks: bool = False  # whether each chunk of a stream has a running count if that is requested
    tokenizer: str | None = None  # as configured; None: not configured
    address: str | None = None  # the base URL, as configured; None: a provider's own
    constraints: frozenset[str] = frozenset()  # the constraining fields that it applies to guidance


class Engine(Protocol):
    """The client of one model server. All methods raise `EngineError`s and propagate cancellation."""

    name: str
    state: EngineState

    async def generate_guidance(
        self, request: TeacherRequest, *, batch: str | None = None, on_text: Callable[[str], None] | None = None
    ) -> TeacherReply:
        """Generate the first tokens of an answer. `batch` is the id of the request's batch, for traces.

        An engine that streams the text calls `on_text` with each piece.
        """

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        """Return the reply to an OpenAI chat body, in OpenAI's shape and with at least one choice.

        A body with `prompt` and without `messages` is a text completion, whose reply has the shape of a chat reply.
        With a `prefill` the answer continues it; `prefill.continuation.echo` says whether the reply repeats it.
        """

    def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[ChunkGroup, None]:
        """Yield OpenAI chunks, grouped as they arrived. Without an error a finish_reason or [DONE] came."""

    async def embed(self, body: Json) -> EngineEmbeddings:
        """Return the reply to an OpenAI embeddings body."""

    async def probe(self) -> None:
        """Check availability and capabilities, and update `state`. Raise an EngineError if unavailable."""

    async def close(self) -> None: ...


def is_same_model(one: Engine, other: Engine) -> bool:
    """Return whether two engines are known to serve one model, so that they count tokens alike."""
    return one.name == other.name or (one.state.revision is not None and one.state.revision == other.state.revision)


class CallOrigin(NamedTuple):
    """The tenant and the id of the request that caused a call. Both are empty for the gateway's own calls."""

    tenant: str = ""
    request_id: str = ""
    numbers: Iterator[int] = count(1)  # numbers the calls of the request

    @property
    def call_id(self) -> str:
        """Return the next call's id: an engine may reject one that is in use. Empty for the gateway's own calls."""
        return f"{self.request_id}-{next(self.numbers)}" if self.request_id else ""


# In a context variable, as traces are, since engines are called in separate tasks.
_NO_ORIGIN = CallOrigin()
_origin: ContextVar[CallOrigin] = ContextVar("origin", default=_NO_ORIGIN)


def set_origin(tenant: str, request_id: str) -> None:
    """Attribute the engine calls of this task, and of the tasks that it starts, to a request."""
    _origin.set(CallOrigin(tenant, request_id, count(1)))


def current_origin() -> CallOrigin:
    """Return the origin of the current task."""
    return _origin.get()
