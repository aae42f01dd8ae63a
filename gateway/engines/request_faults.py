"""Recognizes requests that make an engine fail. Performs no I/O; callers pass the time.

Some servers answer 500 to an invalid request: llama.cpp does for invalid tools, unreadable images and an unknown
`reasoning_format`. Such a request fails each time, while others succeed. A broken engine also fails for other requests.
An engine that fails by chance lets the request succeed on a retry.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import orjson

from gateway.errors import EngineRejected

if TYPE_CHECKING:
    from gateway.errors import EngineFailed

_MAX_REQUESTS = 1024
_TTL_S = 300.0
# For so long after a retry succeeded, the engine counts as failing by chance.
_BY_CHANCE_S = 60.0
# A request with another token limit, or as a stream, is the same request.
_IGNORED_FIELDS = frozenset({"max_completion_tokens", "max_tokens", "stream", "stream_options"})


class RequestFaults:
    """The recently failed requests of one engine.

    Attributes:
        success_sent: when the last successful call was sent. A call keeps the value of its own start.
    """

    def __init__(self) -> None:
        self.success_sent = -math.inf
        self._failed: OrderedDict[bytes, float] = OrderedDict()  # when the first failed call was sent, by fingerprint
        self._ids: OrderedDict[str, bytes] = OrderedDict()  # the fingerprint by request id
        self._by_chance_until = -math.inf

    def failed(self, fingerprint: bytes, request_id: str, sent: float, success_sent: float, now: float) -> bool:
        """Record a failed call. Return whether the request causes the failure.

        It does if it failed before and another call succeeded since. That call was sent after the first failed one. Its
        answer came before this call was sent, at `sent`. `success_sent` is the attribute at that time.
        """
        first_sent = self._failed.get(fingerprint)
        if first_sent is not None and sent - first_sent < _TTL_S:
            return first_sent < success_sent and now >= self._by_chance_until
        self._failed[fingerprint] = sent
        if request_id:
            self._ids[request_id] = fingerprint
        for kept in (self._failed, self._ids):
            if len(kept) > _MAX_REQUESTS:
                kept.popitem(last=False)
        return False

    def succeeded(self, request_id: str, sent: float, now: float) -> None:
        """Record a successful call, sent at `sent`."""
        self.success_sent = max(self.success_sent, sent)
        if self._ids and (fingerprint := self._ids.pop(request_id, None)) is not None:
            self._failed.pop(fingerprint, None)
            self._by_chance_until = now + _BY_CHANCE_S


def fingerprint_of(tenant: str, sent: Any) -> bytes:
    """Return a hash of a tenant's request. Call it in a thread and only after a failure: a body may have megabytes."""
    if isinstance(sent, dict):
        sent = {name: value for name, value in sent.items() if name not in _IGNORED_FIELDS}
    return hashlib.blake2b(orjson.dumps((tenant, sent), default=str), digest_size=16).digest()


def callers_error(error: EngineFailed) -> EngineRejected:
    """Return the error for the caller of a request that causes the failure."""
    rejected = EngineRejected(
        f"Engine '{error.engine}' fails for this request and answers others. Correct the request: {error.engine_text}",
        engine=error.engine,
        status_sent=error.status_sent or 500,
        proven=True,
    )
    rejected.reason, rejected.engine_text, rejected.may_have_run = error.reason, error.engine_text, error.may_have_run
    rejected.engine_code, rejected.engine_param = error.engine_code, error.engine_param
    return rejected
