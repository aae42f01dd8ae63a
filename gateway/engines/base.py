"""What an engine is to the gateway: one protocol, whichever role it plays.

Teacher and student are roles, not classes. As a teacher an engine writes the opening of an answer (`opening`); as a
student it finishes one (`complete` for JSON callers, `stream` for SSE callers).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    import msgspec

    from gateway.capabilities.continuation import Known, Prefill
    from gateway.capabilities.reasoning import Reasoning
    from gateway.protocol.body import Json

Finish = Literal["stop", "length"]


class TokenUsage(Record, frozen=True):
    """Tokens as the engine counted them.

    Attributes:
        cached_input_tokens: the part of `input_tokens` that the engine read from its prompt cache.
        estimated: the engine counted a list of calls, and this is one call's share.
        cache_write_input_tokens: another part of `input_tokens`, which the engine wrote to its prompt cache.
    """

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    estimated: bool = False
    cache_write_input_tokens: int = 0


class OpeningRequest(Record, frozen=True):
    """What the teacher is asked for: the first `max_tokens` tokens of an answer.

    Exactly one of `messages` (a chat, rendered by the engine's own template) and `prompt` (raw text, the paper's
    few-shot setting) is set. The sampling is the policy's, not the caller's; temperature 0 is greedy.
    """

    max_tokens: int
    messages: Sequence[Json] | None = None
    prompt: str | None = None
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()


class OpeningReply(Record, frozen=True):
    """What the teacher wrote. `finish` is `stop` when it ended by itself, `length` when it was cut.

    `ends_at`: how many characters of the text are to be kept, where the policy wants it to end with a sentence or line.
    """

    text: str
    finish: Finish
    usage: TokenUsage | None
    ends_at: int | None = None
    span: Any = None  # where traces are on: that of the call


@dataclass(frozen=True, slots=True)
class EngineEmbeddings:
    """Vectors: the fields of OpenAI's reply, in the bytes in which the engine wrote them; those of `data` in parts."""

    fields: dict[str, msgspec.Raw]
    data: list[bytes]
    usage: TokenUsage | None


@dataclass(slots=True)
class EngineState:
    """What is known of an engine right now; written by its watch, read by readiness and the request path."""

    up: bool | None = None  # None: not looked at yet
    detail: str = "not probed yet"
    called: bool = True  # False: no call was made yet, and there is nothing else to look at
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    continuation: Known = "not_probed"
    takes_prompts: bool = True  # whether it continues raw prompts; a server may still have no such route
    revision: str | None = None  # which weights it serves; None: not known yet. Guidance is of one revision
    reasoning: Reasoning = "none"  # as configured: whether its model reasons before it answers
    max_concurrency: int | None = None  # the engine's own limit on calls in flight, where it tells
    stops_within_s: float | None = None  # how soon it stops when its client disconnects; None: it is not known to
    context_tokens: int | None = None  # the most that prompt and answer have together, where the engine reports it


class Engine(Protocol):
    """One model server. All methods raise `EngineError`s and let a cancellation through."""

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> EngineState: ...

    async def opening(
        self, request: OpeningRequest, *, batch: str | None = None, tell: Callable[[str], None] | None = None
    ) -> OpeningReply:
        """Write the first tokens of an answer. Openings of one `batch` that come together may share an HTTP call.

        `tell` hears each piece of the text as it is written, where the engine can tell so; it may hear of none. It may
        raise StopStream, which ends the call and comes through.
        """
        ...

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        """Answer an OpenAI chat body; the reply has OpenAI's shape and at least one choice.

        A body with a `prompt` and no messages is a text completion's; its reply has the shape of a chat's too.
        With a `prefill` the answer goes on with that; whether the reply repeats it is the prefill's to say.
        """
        ...

    def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[list[Json], None]:
        """Answer with OpenAI's chunks, as many at a time as came together.

        Ends normally only after a finish_reason or [DONE] was seen.
        """
        ...

    async def embed(self, body: Json) -> EngineEmbeddings:
        """Answer an OpenAI embeddings body."""
        ...

    async def probe(self) -> None:
        """Look whether the engine is there and what it can do; update `state`. Raises when it is not there."""
        ...

    async def close(self) -> None: ...
