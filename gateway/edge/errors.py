"""Exceptions of the edge client. A failing student raises the gateway's `errors.EngineError`.

EdgeError
├── GatewayAway        no guidance is available now: never raised to callers, since the student answers alone
└── GatewayRefused     the gateway rejected the request; a retry fails too: correct the request
    └── VersionRefused the gateway does not support this client's protocol: the message lists its versions
"""

from __future__ import annotations

from typing import Literal

AwayReason = Literal[
    "gateway_unreachable",  # no connection, or it broke before the reply
    "gateway_timeout",  # no reply in time
    "gateway_busy",  # it replied 429 or 503: a limit, a budget, or overload
    "gateway_failed",  # it replied another 5xx, or reported an error
    "gateway_garbled",  # the reply is not a gateway's, such as the login page of a network
    "gateway_broke_off",  # the reply ended before it was complete
]


class EdgeError(Exception):
    """Base class of the client's exceptions. `message` is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class GatewayAway(EdgeError):
    """No guidance is available now. `receipt` is of guidance that was begun; None if there is none or it is unknown."""

    def __init__(self, reason: AwayReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.receipt: str | None = None


class GatewayRefused(EdgeError):
    """The gateway rejected the request. `message`, `status`, `code` and `param` are from its reply."""

    def __init__(self, message: str, *, status: int, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class VersionRefused(GatewayRefused):
    """The gateway does not support this client's protocol version."""
