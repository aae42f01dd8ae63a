"""An engine call of a request, and the known facts of its response."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import Any

import msgspec

from gateway.accounting.worst_case import Role
from gateway.engines.base import TokenUsage
from gateway.protocol.body import Json
from gateway.runtime.record import Record


# A struct: creating a dataclass takes ten times as long.
class EngineCall(msgspec.Struct):
    """A call to an engine.

    Attributes:
        usage: the usage as the engine reported it.
        text: the received text, for counting tokens where no usage was reported.
        lost_tokens: an upper bound on tokens that were written but not received.
        shared: "flight" or "cache" where an identical request made and paid for the call.
        unbounded: tokens may have been written but not received, without any bound.
        span: the trace span of the call, also where another request made it.
        limit_tokens: the engine's output limit over all choices.
        seen_tokens: a lower bound on the received output tokens.
        min_output_tokens: a lower bound on the output tokens; 0 where it is clearly below the reported count.
        ended: every choice has its finish_reason. The usage may still be missing.
    """

    model: str
    messages: Sequence[Json]
    usage: TokenUsage | None = None
    text: StringIO = msgspec.field(default_factory=StringIO)
    lost_tokens: int = 0
    shared: str = ""
    unbounded: bool = False
    span: Any = None
    limit_tokens: int | None = None
    seen_tokens: int = 0
    min_output_tokens: int = 0
    ended: bool = False
    role: Role = "student"


class FailedCall(Record, frozen=True):
    """A failed call that another call replaced. `call` is None where the engine never received it."""

    engine: str
    label: str
    call: EngineCall | None
