"""Counts and logs failed engine calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from gateway.errors import CircuitOpen
from gateway.telemetry.logs import content_allowed_in_logs

if TYPE_CHECKING:
    from gateway.errors import EngineError
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

# Error types of OpenAI, Anthropic and TGI. Any other value might quote the prompt and is not logged.
REASONS = frozenset(
    {
        *("api_error", "content_filter", "context_length_exceeded", "generation", "incomplete_generation"),
        *("insufficient_quota", "invalid_api_key", "invalid_request_error", "invalid_value", "model_not_found"),
        *("not_found_error", "overloaded", "overloaded_error", "rate_limit_error", "rate_limit_exceeded"),
        *("server_error", "template_error", "tool_error", "unsupported_value", "validation"),
    }
)


def record_failure(error: EngineError, request_id: str, metrics: Metrics) -> None:
    """Count and log a failed call.

    The log contains the cause, which replies omit since it may contain the engine's address. The engine's text may
    quote the prompt, so it is logged only if the tenant's policy logs content.
    """
    metrics.engine_errors.labels(error.engine, error.label).inc()
    if isinstance(error, CircuitOpen):
        return  # logged once, when the breaker opened
    log.warning(
        "engine_error",
        id=request_id,
        engine=error.engine,
        label=error.label,
        message=error.message if content_allowed_in_logs() else error.redacted_message,
        reason=error.reason if error.reason in REASONS else None,
        cause=cause_of(error),
    )


def cause_of(error: EngineError) -> str | None:
    """Return the cause of an error for operators. The cause may contain the engine's address, and never a header."""
    cause = error.__cause__
    if cause is None:
        return None
    # Only errors of the operating system have a number. Other messages may contain text of the engine.
    by_system = isinstance(cause, OSError) and cause.errno is not None
    return f"{type(cause).__name__}: {cause}" if by_system else type(cause).__name__
