"""What a device's client raises of itself. A student that fails raises the gateway's own `errors.EngineError`s.

EdgeError
├── GatewayAway        no guidance can be had now: never raised to callers, for the student answers alone
└── GatewayRefused     the gateway refused the request, and would again: whoever asks can mend it
    └── VersionRefused it does not speak this client's protocol: the message names the versions that it does
"""

from __future__ import annotations

from typing import Literal

AwayReason = Literal[
    "gateway_unreachable", "gateway_timeout", "gateway_busy", "gateway_failed", "gateway_garbled", "gateway_broke_off"
]
"""
gateway_unreachable  no connection, or it broke before the reply
gateway_timeout      nothing came in time
gateway_busy         it answered 429 or 503: a limit, a budget, or too much to do
gateway_failed       it answered another 5xx, or said that it failed
gateway_garbled      what answered is no gateway: a hotel's login page, say
gateway_broke_off    the reply ended before it was whole
"""


class EdgeError(Exception):
    """Root of the tree. `message` is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class GatewayAway(EdgeError):
    """No guidance can be had now.

    receipt: of the guidance that was begun, where a reply had come; None: the gateway has none, or nobody knows.
    """

    def __init__(self, reason: AwayReason, message: str, *, receipt: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.receipt = receipt


class GatewayRefused(EdgeError):
    """The gateway's own words in `message`; `status`, `code` and `param` as it sent them."""

    def __init__(self, message: str, *, status: int, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class VersionRefused(GatewayRefused):
    pass
