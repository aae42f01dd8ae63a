"""Every error the gateway raises, in one tree; `api/error_body.py` is the one place that renders them.

GatewayError                     label, status, type, code: the same label names it in the body, the log and the metric
├── RequestError                 the caller can mend it (4xx); `param` names the field
│   ├── InvalidRequest           400
│   ├── RouteWithoutGuidance     400: a device asked a route that opens no answers
│   ├── EdgeVersion              400: a device's client and the gateway speak no common version
│   ├── NotAuthenticated         401
│   ├── AdminKeyUnset            403: only on the admin listener
│   ├── CrossOrigin              403: only on the admin listener
│   ├── ModelNotFound            404
│   ├── NotFound                 404
│   ├── MethodNotAllowed         405
│   ├── Conflict                 409: only on the admin listener
│   ├── EdgeClosed               409: what a device reports is accounted for
│   ├── EdgeExpired              410: a device reports what it did too late
│   ├── BodyTooLarge             413
│   ├── BodyTooSlow              408
│   ├── HeadTooLarge             431
│   └── HeadTooSlow              408
├── ServiceError                 the caller can only wait
│   ├── Overloaded               503, Retry-After: too much in flight, or the gateway is draining
│   ├── GuidanceUnavailable      503, Retry-After: no guidance, and the policy forbids going without
│   ├── QueueFull                429, Retry-After: too many of the tenant's requests wait for guidance
│   ├── RateLimited              429, Retry-After: a limit of the tenant or the key on requests or tokens
│   │   └── NeverFits            429: the request alone is larger than the limit
│   ├── BudgetSpent              429 insufficient_quota: the request does not fit into the budget
│   ├── TicketUnreadable         503, Retry-After: what Redis kept of the request's ticket cannot be read
│   └── StoreUnavailable         503, Retry-After: Redis is away, and the configuration forbids going without
│       └── UsageUnavailable     503, Retry-After: the usage database cannot be read
├── EngineError                  an engine (teacher or student) did not do its part: 502
│   ├── EngineUnreachable        no connection, or it broke before the reply
│   ├── EngineTimeout            connected, but silent for too long: 504
│   ├── EngineOverloaded         it answered 429 or 503: 503, Retry-After
│   ├── EngineRejected           it answered another 4xx: `status_sent`; 400, 413 and 422 blame the request, and so
│   │   │                        does a failure that is `proven` to be of this request alone
│   │   └── EngineUnsupported         it is known that it would, and it was not asked
│   ├── CircuitOpen            it is not called: it failed again and again, or asked for a pause. 503, Retry-After
│   ├── EngineFailed             it answered 5xx, or said that generation failed
│   └── EngineProtocolError            it answered something that is not its protocol
└── StartupError                 the process cannot start: one line that says what to do
    └── ConfigError              config.yaml or a policy file is wrong: `mistakes`, all of them
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
        place = f"{self.file}:{self.line}" if self.line else self.file
        subject = f"{self.field}: " if self.field else ""
        hint = f". Did you mean '{self.suggestion}'?" if self.suggestion else ""
        return f"{place}: {subject}{self.message}{hint}"


# For a caller that can only wait, where nobody knows for how long.
_RETRY_AFTER_S = 1.0


class GatewayError(Exception):
    """Root of the tree.

    `label` is stable and short; `status` is the HTTP status a caller sees; `kind` and `code` are OpenAI's
    `error.type` and `error.code`. `retry` tells the caller whether the same request may succeed later: False where it
    cannot, True where it will in all likelihood, None where nobody knows more than the status says.
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
        self.recorded = False  # whether a receipt tells of it


class RequestError(GatewayError):
    label = "invalid_request"
    status = 400
    kind = "invalid_request_error"
    retry: ClassVar[bool | None] = False


class InvalidRequest(RequestError):
    pass


class RouteWithoutGuidance(RequestError):
    label = "route_without_guidance"
    code = "route_without_guidance"


class EdgeVersion(RequestError):
    label = "edge_version"
    code = "edge_version"


class NotAuthenticated(RequestError):
    label = "not_authenticated"
    status = 401
    code = "invalid_api_key"


class AdminKeyUnset(RequestError):
    label = "admin_key_unset"
    status = 403
    code = "admin_key_unset"


class CrossOrigin(RequestError):
    label = "cross_origin"
    status = 403
    code = "cross_origin"


class ModelNotFound(RequestError):
    label = "model_not_found"
    status = 404
    code = "model_not_found"


class NotFound(RequestError):
    label = "not_found"
    status = 404
    code = "not_found"


class Conflict(RequestError):
    label = "conflict"
    status = 409
    code = "conflict"


class EdgeClosed(RequestError):
    label = "edge_closed"
    status = 409
    code = "edge_closed"


class EdgeExpired(RequestError):
    label = "edge_expired"
    status = 410
    code = "edge_expired"


class MethodNotAllowed(RequestError):
    label = "method_not_allowed"
    status = 405
    code = "method_not_allowed"


class BodyTooLarge(RequestError):
    label = "body_too_large"
    status = 413
    code = "request_too_large"


class BodyTooSlow(RequestError):
    label = "body_too_slow"
    status = 408
    code = "request_timeout"
    retry = None  # the way here may be faster next time


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
    label = "overloaded"
    code = "overloaded"


class GuidanceUnavailable(ServiceError):
    label = "guidance_unavailable"
    code = "guidance_unavailable"


class QueueFull(ServiceError):
    label = "queue_full"
    status = 429
    kind = "rate_limit_error"
    code = "queue_full"


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
    label = "ticket_unreadable"
    code = "ticket_unreadable"


class StoreUnavailable(ServiceError):
    label = "store_unavailable"
    code = "store_unavailable"


class UsageUnavailable(StoreUnavailable):
    """The usage database cannot be read. Only queries of usage and of receipts fail."""

    def __init__(self) -> None:
        super().__init__("The usage database cannot be read now. Try again.")


class EngineError(GatewayError):
    """An engine did not do its part. `engine` is the configured model name, never its address.

    `heard` is False where it certainly did not get the call: then the call cost nothing.
    `again` says whether the gateway may make the same call again: it may go better a moment later. An instance may say
    otherwise than its class: what was proven to be in vain is not tried again.
    `is_twin`: another request has the same error of the same call.
    """

    label = "engine_error"
    status = 502
    code = "engine_error"
    again = False

    def __init__(
        self, message: str, *, engine: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.engine = engine
        self.heard = True
        self.is_twin = False
        self.reason: str | None = None  # the engine's own word for it, such as TGI's error_type
        self.said = ""  # what of the message are the engine's own words: they may quote the prompt

    @property
    def unquoted(self) -> str:
        """The message without the engine's own words."""
        return self.message.replace(f": {self.said}", ".", 1) if self.said else self.message

    def twin(self) -> Self:
        """The same error for another request that met it: `recorded` and the traceback are each one's own."""
        twin = type(self).__new__(type(self), *self.args)
        twin.__dict__.update(self.__dict__)
        twin.__cause__ = self.__cause__
        twin.is_twin = True
        return twin

    def reworded(self, message: str) -> Self:
        """Likewise, without the engine's own words: they may quote the prompt of whoever made the call."""
        twin = self.twin()
        twin.message, twin.args, twin.reason, twin.said = message, (message,), None, ""
        return twin

    def for_others(self) -> Self:
        """For those whose call it was not alone."""
        return self.reworded(f"Engine '{self.engine}' failed a call that was made for several requests.")


class EngineUnreachable(EngineError):
    label = "engine_unreachable"
    code = "engine_unreachable"
    again = True


class EngineTimeout(EngineError):
    label = "engine_timeout"
    status = 504
    code = "engine_timeout"


class EngineOverloaded(EngineError):
    label = "engine_overloaded"
    status = 503
    code = "engine_overloaded"
    again = True
    retry = True

    def __init__(self, message: str, *, engine: str, retry_after_s: float | None = None) -> None:
        # TGI never says when.
        super().__init__(
            message, engine=engine, retry_after_s=_RETRY_AFTER_S if retry_after_s is None else retry_after_s
        )
        self.asked_s = retry_after_s  # None: the engine did not say


class CircuitOpen(EngineError):
    label = "engine_circuit_open"
    status = 503
    code = "engine_circuit_open"
    retry = True

    def __init__(self, message: str, *, engine: str, retry_after_s: float) -> None:
        super().__init__(message, engine=engine, retry_after_s=retry_after_s)
        self.heard = False


class EngineRejected(EngineError):
    """The engine refused the request.

    `proven`: it did so with the status of a failure, and evidence shows that this request alone fails.
    """

    label = "engine_rejected"
    code = "engine_rejected"
    retry = False

    def __init__(
        self, message: str, *, engine: str, status_sent: int, param: str | None = None, proven: bool = False
    ) -> None:
        super().__init__(message, engine=engine, param=param)
        self.status_sent = status_sent
        self.proven = proven

    @property
    def blames_request(self) -> bool:
        """Whether the engine says that the request is wrong, rather than who sent it or where."""
        return self.proven or self.status_sent in {400, 413, 422}


class EngineUnsupported(EngineRejected):
    """The gateway knows that the engine does not take such a request: it was not asked, and another one may."""

    def __init__(self, message: str, *, engine: str, status_sent: int, param: str | None = None) -> None:
        super().__init__(message, engine=engine, status_sent=status_sent, param=param)
        self.heard = False


class EngineFailed(EngineError):
    """`status_sent` is the status of the failure; None where the engine named none."""

    label = "engine_failed"
    code = "engine_failed"
    again = True

    def __init__(self, message: str, *, engine: str, status_sent: int | None = None) -> None:
        super().__init__(message, engine=engine)
        self.status_sent = status_sent

    @property
    def may_blame_request(self) -> bool:
        """Return whether the request may be at fault: the engine itself failed, and says at what.

        A status such as 502 is a proxy's, and a proxy's page has no words that are quoted.
        """
        return self.status_sent in {424, 500} and bool(self.said)


class EngineProtocolError(EngineError):
    label = "engine_protocol_error"
    code = "engine_protocol_error"


class StartupError(GatewayError):
    label = "startup"


class ConfigError(StartupError):
    """A configuration that cannot be used. `mistakes` holds every one found, in file order."""

    label = "config"

    def __init__(self, mistakes: Sequence[ConfigIssue]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = tuple(mistakes)


class StopStream(Exception):
    """Nobody's failure, and outside the tree: whoever is told of an opening's pieces ends the call with it."""
