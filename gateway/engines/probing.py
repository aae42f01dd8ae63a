"""Finds out how an engine goes on with an answer that was begun, by asking it to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gateway.capabilities.continuation import Continuation, Prefill, judge_probe, probes
from gateway.engines.replies import message_text
from gateway.errors import EngineError, EngineFailed, EngineProtocolError, EngineRejected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.capabilities.continuation import Mode
    from gateway.protocol.body import Json

    Complete = Callable[[Json, Prefill], Awaitable[Json]]

_REFUSES_MODE = frozenset({400, 422})
# A raw prompt takes routes of its own, which a server may not have.
_LACKS_ROUTE = _REFUSES_MODE | {404, 405}


async def find_continuation(complete: Complete, modes: Sequence[Mode], echo: bool | None) -> Continuation | None:
    """The first of these ways in which the engine continues; None when it refuses, or starts anew in, all of them.

    echo: whether it repeats what it continues, where the configuration says so. Raises EngineErrors when the engine is
    not there: some fail on what they should refuse, so a failure is one only when nothing else was heard.
    """
    failed: EngineError | None = None
    heard = False
    for mode in modes:
        raw = mode == "completions"
        try:
            found = await _try(complete, mode)
        except EngineRejected as refused:
            if refused.status_sent not in (_LACKS_ROUTE if raw else _REFUSES_MODE):
                raise
            heard = heard or not raw
        except EngineFailed as error:
            failed = failed or error
        except EngineProtocolError:
            if not raw:
                raise
        else:
            heard = True
            if found is not None:
                return found if echo is None else replace(found, echo=echo)
    if failed is not None and not heard:
        raise failed
    return None


async def _try(complete: Complete, mode: Mode) -> Continuation | None:
    found: Continuation | None = None
    for probe in probes(mode):
        reply = message_text(await complete(probe.body(), Prefill(probe.prefix, Continuation(mode))))
        found = None if reply is None else judge_probe(mode, reply, probe)
        if found is None:
            return None
    return found
