"""What every failed call to an engine leaves behind: a count, and a line for whoever runs the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from gateway.errors import CircuitOpen
from gateway.telemetry.logs import content_allowed_in_logs

if TYPE_CHECKING:
    from gateway.errors import EngineError
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

# OpenAI's, Anthropic's and TGI's words for what went wrong. Any other might be a word of the prompt.
_REASONS = frozenset(
    {
        *("api_error", "content_filter", "context_length_exceeded", "generation", "incomplete_generation"),
        *("insufficient_quota", "invalid_api_key", "invalid_request_error", "invalid_value", "model_not_found"),
        *("not_found_error", "overloaded", "overloaded_error", "rate_limit_error", "rate_limit_exceeded"),
        *("server_error", "template_error", "tool_error", "unsupported_value", "validation"),
    }
)


def note_failure(error: EngineError, request_id: str, metrics: Metrics) -> None:
    """Count and log a failed call. Callers are told less: the cause may hold the engine's address.

    And the log less than callers, unless their tenant wants content in it: an engine's words may quote the prompt.
    """
    metrics.engine_errors.labels(error.engine, error.label).inc()
    if isinstance(error, CircuitOpen):
        return  # said once, when the breaker opened
    log.warning(
        "engine_error",
        id=request_id,
        engine=error.engine,
        label=error.label,
        message=error.message if content_allowed_in_logs() else error.unquoted,
        reason=error.reason if error.reason in _REASONS else None,
        cause=cause_of(error),
    )


def cause_of(error: EngineError) -> str | None:
    """What lies behind an error, for operators alone: it may hold the engine's address, and never a header."""
    cause = error.__cause__
    if cause is None:
        return None
    # Only the system's own errors have a number. Others may be made of what the engine said.
    by_system = isinstance(cause, OSError) and cause.errno is not None
    return f"{type(cause).__name__}: {cause}" if by_system else type(cause).__name__
