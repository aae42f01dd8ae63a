"""Determines how an engine continues an assistant message, with probe requests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gateway.engines.replies import message_text
from gateway.errors import EngineError, EngineFailed, EngineProtocolError, EngineRejected
from gateway.protocol.capabilities.continuation import Continuation, Prefill, judge_probe, probes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Mode

    Complete = Callable[[Json, Prefill], Awaitable[Json]]

_REFUSES_MODE = frozenset({400, 422})
# A raw prompt uses separate routes, which a server may lack.
_LACKS_ROUTE = _REFUSES_MODE | {404, 405}


async def find_continuation(complete: Complete, modes: Sequence[Mode], echo: bool | None) -> Continuation | None:
    """Return the first mode in which the engine continues a message; None if it supports none of the modes.

    Raises EngineError if the engine is unavailable. Some engines fail for a mode that they should reject, so a failure
    is raised only if the engine answered no other mode. An `echo` of None is replaced by the result of the probe.
    """
    failed: EngineError | None = None
    answered = False
    for mode in modes:
        raw = mode == "completions"
        try:
            found = await _try(complete, mode)
        except EngineRejected as refused:
            if refused.status_sent not in (_LACKS_ROUTE if raw else _REFUSES_MODE):
                raise
            answered = answered or not raw
        except EngineFailed as error:
            failed = failed or error
        except EngineProtocolError:
            if not raw:
                raise
        else:
            answered = True
            if found is not None:
                return found if echo is None else replace(found, echo=echo)
    if failed is not None and not answered:
        raise failed
    return None


def not_continued(mode: str) -> str:
    """Return the warning for an engine that continued no message. `mode` is as configured, perhaps `auto`."""
    if mode == "auto":
        return "the engine continues no assistant message: placement prefix sends guidance as context"
    return f"the engine did not continue the probe with continuation '{mode}'"


async def _try(complete: Complete, mode: Mode) -> Continuation | None:
    found: Continuation | None = None
    for probe in probes(mode):
        reply = message_text(await complete(probe.body(), Prefill(probe.prefix, Continuation(mode))))
        found = None if reply is None else judge_probe(mode, reply, probe)
        if found is None:
            return None
    return found
