"""The refusals and the expected error of every client: one table for all clients, and for docs/clients.md."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tests.clients.fault_gateway import MAX_BODY, FaultGateway, a_question
from tests.gateway_process import KEY

if TYPE_CHECKING:
    from tests.clients.tap import Call

TRIES = 3
"""How often each client asks where asking again may help: once, and OpenAI's default of two retries."""


@dataclass(frozen=True)
class Refusal:
    """A call to `model` that fails with this status, code and param."""

    name: str
    model: str
    status: int
    code: str | None
    param: str | None = None
    retried: bool = False
    retry_after_s: float | None = None
    max_retries: int | None = None  # where the client's default would wait for long
    key: str = KEY
    temperature: float | None = None
    filler: int = 0  # characters, before the question

    @property
    def tries(self) -> int:
        if not self.retried:
            return 1
        return TRIES if self.max_retries is None else 1 + self.max_retries


REFUSALS = (
    # First: the queue's pace, and with it Retry-After, is forgotten after a second.
    Refusal("a full queue", "crowded", 429, "queue_full", retried=True, retry_after_s=1, max_retries=1),
    Refusal("a key that nobody knows", "chat", 401, "invalid_api_key", key="gk-stranger"),
    Refusal("a model that the key has not", "gpt-4", 404, "model_not_found", "model"),
    Refusal("a field out of its range", "chat", 400, None, "temperature", temperature=3),
    Refusal("an engine that blames the request", "refuses", 400, None),
    Refusal("a body that is too large", "chat", 413, "request_too_large", filler=MAX_BODY),
    Refusal("an engine that fails", "broken", 502, "engine_failed", retried=True),
    Refusal("an engine that is gone", "gone", 502, "engine_unreachable", retried=True),
    Refusal("an engine that is full", "busy", 503, "engine_overloaded", retried=True, retry_after_s=1),
    Refusal("an engine that is silent", "silent", 504, "engine_timeout", retried=True),
)

_OPENAI = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    413: "APIStatusError",
    429: "RateLimitError",
    502: "InternalServerError",
    503: "InternalServerError",
    504: "InternalServerError",
}
RAISES = {
    "openai-python": _OPENAI,
    "openai-node": _OPENAI | {413: "APIError"},
    "ChatOpenAI": _OPENAI,
    "LiteLLM": _OPENAI | {413: "APIError", 502: "BadGatewayError", 503: "ServiceUnavailableError", 504: "Timeout"},
}
"""The class that each client makes of a status."""


ANTHROPIC_STATUS = {503: 529}
"""Statuses that the Messages API has instead."""
ANTHROPIC_RAISES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    413: "ContentTooLargeError",
    429: "RateLimitError",
    502: "InternalServerError",
    504: "GatewayTimeoutError",
    529: "OverloadedError",
}
"""The class that Anthropic's clients make of a status."""
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    502: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""The type in an error of the Messages API, by status."""


class Attempt:
    """A refusal for one client: the request for it, and the resulting calls."""

    def __init__(self, fault_gateway: FaultGateway, refusal: Refusal) -> None:
        self.refusal = refusal
        self.question = "x" * refusal.filler + a_question(refusal.name)
        self._fault_gateway = fault_gateway
        self._before = len(fault_gateway.calls())

    def as_dict(self) -> dict[str, Any]:
        """Return the refusal for a client in another process."""
        return {**asdict(self.refusal), "question": self.question}

    def calls(self) -> list[Call]:
        """Return the calls on the wire. A client may not have sent all of a body that is too large."""
        calls = self._fault_gateway.calls()[self._before :]
        if self.refusal.filler:
            return [call for call in calls if int(call.headers["content-length"]) > MAX_BODY]
        return [call for call in calls if call.asks(self.question)]

    def check_calls(self, status: int | None = None) -> None:
        """Check the number of calls, their status, and that each waited as long as the last reply stated."""
        calls = self.calls()
        assert [call.status for call in calls] == [status or self.refusal.status] * self.refusal.tries
        if self.refusal.retry_after_s is not None:
            for before, after in itertools.pairwise(calls):
                # The SDKs take this one of the two (openai-python 3.57, `_parse_retry_after_header`).
                assert after.at_s - before.at_s >= float(before.reply_headers["retry-after-ms"]) / 1000
                assert float(before.reply_headers["retry-after"]) >= self.refusal.retry_after_s
