"""Detects failures that the request causes. Performs no I/O; callers pass the time.

Some servers answer 500 to an invalid request: llama.cpp does for invalid tools, unreadable images and an unknown
`reasoning_format`. Such a request fails each time, while others succeed. A broken engine also fails for other requests.
An engine that fails by chance lets the request succeed on a retry.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from gateway.errors import EngineRejected

if TYPE_CHECKING:
    from gateway.errors import EngineFailed

_MAX_REQUESTS = 1024
_TTL_S = 300.0
_MAX_SUCCESSES = 8
_MIN_FAILURES = 2
# For so long after a retry succeeded, the engine counts as failing by chance.
_BY_CHANCE_S = 60.0
# A request with another token limit, or as a stream, is the same request.
_IGNORED_FIELDS = frozenset({"max_completion_tokens", "max_tokens", "stream", "stream_options"})


@dataclass(slots=True)
class _Failing:
    """A failed request. `first_sent` is when its first failed call was sent, `last` when the last one failed."""

    first_sent: float
    last: float
    failures: int = 1


class RequestFaults:
    """The recently failed requests of one engine, and the evidence for and against each."""

    def __init__(self) -> None:
        self._failing: OrderedDict[bytes, _Failing] = OrderedDict()
        self._ids: OrderedDict[str, bytes] = OrderedDict()
        self._successes: deque[tuple[float, float]] = deque(maxlen=_MAX_SUCCESSES)  # when each was sent and answered
        self._by_chance_until = 0.0

    def failed(self, fingerprint: bytes, request_id: str, sent: float, now: float) -> int:
        """Record a failed call, sent at `sent`. Return how many times the request has failed."""
        failing = self._failing.pop(fingerprint, None)
        if failing is None or now - failing.last > _TTL_S:
            failing = _Failing(sent, now)
        else:
            failing.failures, failing.last = failing.failures + 1, now
        self._failing[fingerprint] = failing
        if request_id:
            self._ids[request_id] = fingerprint
        for kept in (self._failing, self._ids):
            if len(kept) > _MAX_REQUESTS:
                kept.popitem(last=False)
        return failing.failures

    def succeeded(self, request_id: str, sent: float, now: float) -> None:
        """Record a successful call. `sent` is when it was sent."""
        self._successes.append((sent, now))
        if self._ids and (fingerprint := self._ids.pop(request_id, None)) is not None:
            self._failing.pop(fingerprint, None)
            self._by_chance_until = now + _BY_CHANCE_S

    def is_proven(self, fingerprint: bytes, sent: float) -> bool:
        """Return whether the request causes the failure; `sent` is when its last failed call was sent.

        The proof is another call that was sent and answered between two failures of the request.
        """
        failing = self._failing.get(fingerprint)
        if failing is None or failing.failures < _MIN_FAILURES or failing.last < self._by_chance_until:
            return False
        return any(failing.first_sent < other_sent and answered <= sent for other_sent, answered in self._successes)


def fingerprint_of(tenant: str, sent: Any) -> bytes:
    """Return a hash of a tenant's request. Call it in a thread and only after a failure: a body may have megabytes."""
    if isinstance(sent, dict):
        sent = {name: value for name, value in sent.items() if name not in _IGNORED_FIELDS}
    return hashlib.blake2b(orjson.dumps((tenant, sent), default=str), digest_size=16).digest()


def proven_rejection(error: EngineFailed) -> EngineRejected:
    """Return the error for the caller of a request that is proven to cause the failure."""
    rejected = EngineRejected(
        f"Engine '{error.engine}' fails for this request and answers others. Correct the request: {error.engine_text}",
        engine=error.engine,
        status_sent=error.status_sent or 500,
        proven=True,
    )
    rejected.reason, rejected.engine_text, rejected.may_have_run = error.reason, error.engine_text, error.may_have_run
    rejected.engine_code, rejected.engine_param = error.engine_code, error.engine_param
    return rejected
