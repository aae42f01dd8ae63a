"""All errors of the gateway, in one tree. `api/error_body.py` renders them.

GatewayError                     the label names the error in reply bodies, logs and metrics
├── RequestError                 4xx: the caller can correct the request; `param` names the field
│   ├── InvalidRequest           400
│   ├── RouteWithoutGuidance     400: a device requested guidance from a route without guidance
│   ├── EdgeVersion              400: the device's client and the gateway have no protocol version in common
│   ├── NotAuthenticated         401
│   ├── AdminKeyUnset            403: only on the admin listener
│   ├── CrossOrigin              403: only on the admin listener
│   ├── ModelNotFound            404
│   ├── NotFound                 404
│   ├── MethodNotAllowed         405
│   ├── Conflict                 409: only on the admin listener
│   ├── EdgeClosed               409: the request of a device's report is already settled
│   ├── EdgeExpired              410: a device's report came too late
│   ├── BodyTooLarge             413
│   ├── BodyTooSlow              408
│   ├── HeadTooLarge             431
│   └── HeadTooSlow              408
├── ServiceError                 the caller can only wait and retry
│   ├── Overloaded               503, Retry-After: too many requests in flight, or the gateway is draining
│   ├── GuidanceUnavailable      503, Retry-After: no guidance, and the policy requires it
│   ├── QueueFull                429, Retry-After: too many of the tenant's requests wait for guidance
│   ├── RateLimited              429, Retry-After: a request or token limit of the tenant or the key
│   │   └── NeverFits            429: the request alone exceeds the limit
│   ├── BudgetSpent              429 insufficient_quota: the request exceeds the rest of the budget
│   ├── TicketUnreadable         503, Retry-After: the request's ticket in Redis cannot be read
│   └── StoreUnavailable         503, Retry-After: Redis is unreachable, and the configuration requires it
│       └── UsageUnavailable     503, Retry-After: the usage database cannot be read
├── EngineError                  502: a call to an engine (teacher or student) failed
│   ├── EngineUnreachable        no connection, or the connection closed before the reply
│   ├── EngineTimeout            504: connected, but no data within the timeout
│   ├── EngineOverloaded         503, Retry-After: the engine answered 429 or 503
│   ├── EngineRejected           another 4xx, `status_sent`, or fails for this request only (`proven`)
│   │   └── EngineUnsupported    the gateway knows that the engine rejects such a request, and did not send it
│   ├── CircuitOpen              503, Retry-After: the circuit breaker is open after failures or a requested pause
│   ├── EngineFailed             the engine answered 5xx, or reported that generation failed
│   └── EngineProtocolError      the reply breaks the engine's protocol
└── StartupError                 the process cannot start; the message states the remedy
    └── ConfigError              config.yaml or a policy file is invalid; `issues` lists all problems
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


# Default of Retry-After where the wait is not known.
_RETRY_AFTER_S = 1.0


class GatewayError(Exception):
    """Root of the tree.

    Attributes:
        label: a short, stable name.
        status: the HTTP status of the reply.
        kind: OpenAI's `error.type`.
        code: OpenAI's `error.code`.
        retry: whether the same request may succeed later. None: unknown.
        recorded: whether a receipt records this error.
    """

    label: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    retry: ClassVar[bool | None] = None

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
    pass


class RouteWithoutGuidance(RequestError):
    label = code = "route_without_guidance"


class EdgeVersion(RequestError):
    label = code = "edge_version"


class NotAuthenticated(RequestError):
    label = "not_authenticated"
    status = 401
    code = "invalid_api_key"


class AdminKeyUnset(RequestError):
    label = code = "admin_key_unset"
    status = 403


class CrossOrigin(RequestError):
    label = code = "cross_origin"
    status = 403


class ModelNotFound(RequestError):
    label = code = "model_not_found"
    status = 404


class NotFound(RequestError):
    label = code = "not_found"
    status = 404


class Conflict(RequestError):
    label = code = "conflict"
    status = 409


class EdgeClosed(RequestError):
    label = code = "edge_closed"
    status = 409


class EdgeExpired(RequestError):
    label = code = "edge_expired"
    status = 410


class MethodNotAllowed(RequestError):
    label = code = "method_not_allowed"
    status = 405


class BodyTooLarge(RequestError):
    label = "body_too_large"
    status = 413
    code = "request_too_large"


class BodyTooSlow(RequestError):
    label = "body_too_slow"
    status = 408
    code = "request_timeout"
    retry = None


class HeadTooLarge(RequestError):
    label = "head_too_large"
    status = 431
    code = "request_too_large"


class HeadTooSlow(RequestError):
    label = "head_too_slow"
    status = 408
    code = "request_timeout"
    retry = None


class ServiceError(GatewayError):
    status = 503
    retry = True

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = _RETRY_AFTER_S) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)


class Overloaded(ServiceError):
    label = code = "overloaded"


class GuidanceUnavailable(ServiceError):
    label = code = "guidance_unavailable"


class QueueFull(ServiceError):
    label = code = "queue_full"
    status = 429
    kind = "rate_limit_error"


class RateLimited(ServiceError):
    label = "rate_limited"
    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"


class NeverFits(RateLimited):
    retry = False

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=None)


class BudgetSpent(ServiceError):
    label = "budget_spent"
    status = 429
    kind = "insufficient_quota"
    code = "insufficient_quota"
    retry = False

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=None)


class TicketUnreadable(ServiceError):
    label = code = "ticket_unreadable"


class StoreUnavailable(ServiceError):
    label = code = "store_unavailable"


class UsageUnavailable(StoreUnavailable):
    """The usage database cannot be read. Only queries of usage and of receipts fail."""

    def __init__(self) -> None:
        super().__init__("The usage database cannot be read now. Try again.")


class EngineError(GatewayError):
    """A call to an engine failed.

    Attributes:
        engine: the configured model name, never the engine's address.
        may_have_run: False if the engine certainly did not process the call; then the call costs nothing.
        retryable: whether the gateway may repeat the call. An instance may override its class.
        is_copy: another request has the same error of the same call.
        reason: the engine's name for the error, such as TGI's error_type.
        engine_text: the part of `message` that the engine wrote, which may quote the prompt.
    """

    label = code = "engine_error"
    status = 502
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
        return copied

    def for_other_requests(self) -> Self:
        """Return a copy for the other requests of a shared call."""
        return self.with_message(f"Engine '{self.engine}' failed a call that several requests share.")


class EngineUnreachable(EngineError):
    label = code = "engine_unreachable"
    retryable = True


class EngineTimeout(EngineError):
    label = code = "engine_timeout"
    status = 504


class EngineOverloaded(EngineError):
    label = code = "engine_overloaded"
    status = 503
    retryable = True
    retry = True

    def __init__(self, message: str, *, engine: str, retry_after_s: float | None = None) -> None:
        super().__init__(
            message, engine=engine, retry_after_s=_RETRY_AFTER_S if retry_after_s is None else retry_after_s
        )
        self.engine_retry_after_s = retry_after_s  # None: the engine sent no Retry-After; TGI never sends it


class CircuitOpen(EngineError):
    label = code = "engine_circuit_open"
    status = 503
    retry = True
    may_have_run = False


class EngineRejected(EngineError):
    """The engine rejected the request.

    Attributes:
        status_sent: the engine's HTTP status.
        proven: the engine reported a failure, and the evidence shows that only this request fails.
    """

    label = code = "engine_rejected"
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


class EngineUnsupported(EngineRejected):
    """The engine does not support the request, so the gateway did not send it. Another engine may support it."""

    may_have_run = False


class EngineFailed(EngineError):
    """The engine failed. `status_sent` is its HTTP status; None if it reported none."""

    label = code = "engine_failed"
    retryable = True

    def __init__(self, message: str, *, engine: str, status_sent: int | None = None) -> None:
        super().__init__(message, engine=engine)
        self.status_sent = status_sent

    @property
    def may_blame_request(self) -> bool:
        """Return whether the request may cause the failure: the engine itself, not a proxy, reported it with a text."""
        return self.status_sent in {424, 500} and bool(self.engine_text)


class EngineProtocolError(EngineError):
    label = code = "engine_protocol_error"


class StartupError(GatewayError):
    label = "startup"


class ConfigError(StartupError):
    """The configuration is invalid. `issues` lists all problems in file order."""

    label = "config"

    def __init__(self, issues: Sequence[ConfigIssue]) -> None:
        super().__init__("\n".join(map(str, issues)))
        self.issues = tuple(issues)


class StopStream(Exception):
    """Raised by an `on_text` callback to end the teacher's call without a failure."""
