"""All errors of the gateway, in one tree. `api/error_body.py` renders them.

- RequestError: 4xx. The caller can correct the request; `param` names the field.
- ServiceError: the caller can only wait and retry.
- EngineError: a call to an engine (teacher or student) failed.
- StartupError: the process cannot start. The message states the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class ConfigIssue:
    """A problem in a configuration file. `line` and `column` count from 1; line 0 stands for the whole file."""

    file: str
    line: int
    column: int
    field: str
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        location = f"{self.file}:{self.line}" if self.line else self.file
        subject = f"{self.field}: " if self.field else ""
        hint = f". Did you mean '{self.suggestion}'?" if self.suggestion else ""
        return f"{location}: {subject}{self.message}{hint}"


# OpenAI's code, and its older one.
_CONTENT_FILTERS = frozenset({"content_filter", "content_policy_violation"})
# Default of Retry-After where the wait is not known.
_RETRY_AFTER_S = 1.0


class GatewayError(Exception):
    """Root of the tree. `recorded` states whether a receipt records the error."""

    label: ClassVar[str] = "internal"  # a short, stable name for replies, logs and metrics
    status: ClassVar[int] = 500  # the HTTP status of the reply
    kind: ClassVar[str] = "server_error"  # OpenAI's `error.type`
    code: str | None = None  # OpenAI's `error.code`. An instance may override its class.
    retry: ClassVar[bool | None] = None  # whether the same request may succeed later; None: unknown

    def __init_subclass__(cls, *, label: str = "", code: str = "", status: int = 0) -> None:
        """Set the attributes that a class states in its header. The code is the label unless it is stated."""
        if label:
            cls.label, cls.code = label, code or label
        if status:
            cls.status = status

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.recorded = False


class RequestError(GatewayError):
    label = "invalid_request"
    status = 400
    kind = "invalid_request_error"
    retry: ClassVar[bool | None] = False


class InvalidRequest(RequestError):
    """The request is invalid. `code` is the code of the engine that rejected it; None: it named none."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code


class RouteWithoutGuidance(RequestError, label="route_without_guidance"):
    """A device requested guidance from a route without guidance."""


class EdgeVersion(RequestError, label="edge_version"):
    """The device's client and the gateway have no protocol version in common."""


class NotAuthenticated(RequestError, label="not_authenticated", code="invalid_api_key", status=401):
    pass


class AdminKeyUnset(RequestError, label="admin_key_unset", status=403):
    """Only on the admin listener."""


class RoleRequired(RequestError, label="role_required", status=403):
    """Only on the admin listener."""


class CrossOrigin(RequestError, label="cross_origin", status=403):
    """Only on the admin listener."""


class HostUnknown(RequestError, label="host_unknown", status=421):
    """Only on the admin listener: the request is for a name that the listener does not have."""


class ModelNotFound(RequestError, label="model_not_found", status=404):
    pass


class NotFound(RequestError, label="not_found", status=404):
    pass


class PreviousResponseNotFound(RequestError, label="previous_response_not_found", status=404):
    pass


class Conflict(RequestError, label="conflict", status=409):
    """Only on the admin listener."""


class FeedbackGiven(RequestError, label="feedback_given", status=409):
    """The request has another score already."""


class EdgeClosed(RequestError, label="edge_closed", status=409):
    """The request of a device's report is already settled."""


class EdgeExpired(RequestError, label="edge_expired", status=410):
    """A device's report came too late."""


class MethodNotAllowed(RequestError, label="method_not_allowed", status=405):
    pass


class BodyTooLarge(RequestError, label="body_too_large", code="request_too_large", status=413):
    pass


class BodyTooSlow(RequestError, label="body_too_slow", code="request_timeout", status=408):
    retry = None


class HeadTooLarge(RequestError, label="head_too_large", code="request_too_large", status=431):
    pass


class HeadTooSlow(RequestError, label="head_too_slow", code="request_timeout", status=408):
    retry = None


class ServiceError(GatewayError):
    status = 503
    retry = True

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = _RETRY_AFTER_S) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s if self.retry else None)


class Overloaded(ServiceError, label="overloaded"):
    """Too many requests are in flight, or the gateway is draining."""


class GuidanceUnavailable(ServiceError, label="guidance_unavailable"):
    """There is no guidance, and the policy requires it."""


class QueueFull(ServiceError, label="queue_full", status=429):
    """Too many of the tenant's requests wait for guidance."""

    kind = "rate_limit_error"


class RateLimited(ServiceError, label="rate_limited", code="rate_limit_exceeded", status=429):
    """A request or token limit of the tenant or the key."""

    kind = "rate_limit_error"


class NeverFits(RateLimited):
    """The request alone exceeds the limit."""

    retry = False


class BudgetSpent(ServiceError, label="budget_spent", code="insufficient_quota", status=429):
    """The request exceeds the rest of the budget."""

    kind = "insufficient_quota"
    retry = False


class TicketUnreadable(ServiceError, label="ticket_unreadable"):
    """The request's ticket in Redis cannot be read."""


class StoreUnavailable(ServiceError, label="store_unavailable"):
    """Redis is unreachable, and the configuration requires it."""


class PermitUnavailable(StoreUnavailable):
    """Redis is unreachable, and the process has no permit of its own for the teacher."""


class UsageUnavailable(StoreUnavailable):
    """The usage database cannot be read. Only queries of usage and of receipts fail."""

    def __init__(self) -> None:
        super().__init__("The usage database cannot be read now. Try again.")


class EngineError(GatewayError, label="engine_error", status=502):
    """A call to an engine failed.

    Attributes:
        engine: the configured model name, never the engine's address.
        may_have_run: False if the engine certainly did not process the call; then the call costs nothing.
        retryable: whether the gateway may repeat the call. An instance may override its class.
        is_copy: another request has the same error of the same call.
        reason: the engine's name for the error, such as TGI's error_type.
        engine_text: the part of `message` that the engine wrote, which may quote the prompt.
        engine_code: OpenAI's `error.code`, as the engine reported it.
        engine_param: OpenAI's `error.param`, as the engine reported it: a field of the body that the engine got.
    """

    retryable = False
    may_have_run = True

    def __init__(
        self, message: str, *, engine: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.engine = engine
        self.is_copy = False
        self.reason: str | None = None
        self.engine_text = ""
        self.engine_code: str | None = None
        self.engine_param: str | None = None

    @property
    def redacted_message(self) -> str:
        """The message without `engine_text`."""
        return self.message.replace(f": {self.engine_text}", ".", 1) if self.engine_text else self.message

    def copy(self) -> Self:
        """Return a copy for another request that shares the call. The copy has its own `recorded` and traceback."""
        copied = type(self).__new__(type(self), *self.args)
        copied.__dict__.update(self.__dict__)
        copied.__cause__ = self.__cause__
        copied.is_copy = True
        return copied

    def with_message(self, message: str) -> Self:
        """Return a copy with another message and without the engine's text, which may quote a prompt."""
        copied = self.copy()
        copied.message, copied.args, copied.reason, copied.engine_text = message, (message,), None, ""
        copied.engine_code = copied.engine_param = None
        return copied

    def for_other_requests(self) -> Self:
        """Return a copy for the other requests of a shared call."""
        return self.with_message(f"Engine '{self.engine}' failed a call that several requests share.")


class EngineUnreachable(EngineError, label="engine_unreachable"):
    """No connection, or the connection closed before the reply.

    Attributes:
        connected: whether there was a connection. A request may cause its end, and no request prevents a connection.
    """

    retryable = True
    connected = True


class EngineTimeout(EngineError, label="engine_timeout", status=504):
    """Connected, but no data within the timeout."""


class EngineOverloaded(EngineError, label="engine_overloaded", status=503):
    """The engine answered 429 or 503."""

    retryable = True
    retry = True

    def __init__(self, message: str, *, engine: str, retry_after_s: float | None = None) -> None:
        super().__init__(
            message, engine=engine, retry_after_s=_RETRY_AFTER_S if retry_after_s is None else retry_after_s
        )
        self.engine_retry_after_s = retry_after_s  # None: the engine sent no Retry-After; TGI never sends it


class CircuitOpen(EngineError, label="engine_circuit_open", status=503):
    """The circuit breaker is open after failures or a requested pause."""

    retry = True
    may_have_run = False


class EngineRejected(EngineError, label="engine_rejected"):
    """The engine rejected the request with another 4xx, or fails for this request only.

    Attributes:
        status_sent: the engine's HTTP status.
        proven: the engine reported a failure, and the evidence shows that only this request fails.
    """

    retry = False

    def __init__(
        self, message: str, *, engine: str, status_sent: int, param: str | None = None, proven: bool = False
    ) -> None:
        super().__init__(message, engine=engine, param=param)
        self.status_sent = status_sent
        self.proven = proven

    @property
    def blames_request(self) -> bool:
        """Return whether the request is invalid, rather than its credentials or its address."""
        return self.proven or self.status_sent in {400, 413, 422}

    @property
    def exceeds_context(self) -> bool:
        """Return whether the request is too long for the engine. Another engine may have a larger context."""
        return self.engine_code == "context_length_exceeded"

    @property
    def is_filtered(self) -> bool:
        """Return whether a content filter rejected the request."""
        return self.engine_code in _CONTENT_FILTERS or self.reason in _CONTENT_FILTERS

    @property
    def caller_code(self) -> str | None:
        """Return OpenAI's `error.code` for the caller; None: the engine reported none."""
        return self.engine_code or ("content_filter" if self.is_filtered else None)

    def for_other_requests(self) -> Self:
        """Return a copy for the other requests of a shared call, which the content filter rejected as well."""
        copied = super().for_other_requests()
        if self.is_filtered:
            copied.engine_code = "content_filter"
        return copied


class EngineUnsupported(EngineRejected):
    """The engine does not support the request, so the gateway did not send it. Another engine may support it."""

    may_have_run = False


class EngineFailed(EngineError, label="engine_failed"):
    """The engine failed. `status_sent` is its HTTP status; None if it reported none."""

    retryable = True

    def __init__(self, message: str, *, engine: str, status_sent: int | None = None) -> None:
        super().__init__(message, engine=engine)
        self.status_sent = status_sent

    @property
    def may_blame_request(self) -> bool:
        """Return whether the request may cause the failure: the engine itself, not a proxy, reported it with a text."""
        return self.status_sent in {424, 500} and bool(self.engine_text)


class EngineProtocolError(EngineError, label="engine_protocol_error"):
    """The reply breaks the engine's protocol."""


class StartupError(GatewayError):
    label = "startup"


class ConfigError(StartupError):
    """The configuration is invalid. `issues` lists all problems in file order."""

    label = "config"

    def __init__(self, issues: Sequence[ConfigIssue]) -> None:
        super().__init__("\n".join(map(str, issues)))
        self.issues = tuple(issues)
