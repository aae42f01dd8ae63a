"""What every failed call to an engine leaves behind: a count, and a line for whoever runs the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from gateway.errors import EngineResting

if TYPE_CHECKING:
    from gateway.errors import EngineError
    from gateway.metrics import Metrics

log = structlog.get_logger()


def note_failure(error: EngineError, request_id: str, metrics: Metrics) -> None:
    """Count and log a failed call. Callers are told less: the cause may hold the engine's address."""
    metrics.engine_errors.labels(error.engine, error.label).inc()
    if isinstance(error, EngineResting):
        return  # said once, when the breaker opened
    log.warning(
        "engine_error",
        id=request_id,
        engine=error.engine,
        label=error.label,
        message=error.message,
        cause=cause_of(error),
    )


def cause_of(error: EngineError) -> str | None:
    """What lies behind an error, for operators alone: it may hold the engine's address, and never a header."""
    cause = error.__cause__
    if cause is None:
        return None
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, OSError) else type(cause).__name__
