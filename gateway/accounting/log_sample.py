"""Select the requests that are logged when only a sample of ordinary requests is. Pure."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.accounting.receipt import Receipt

_WHOLE = 2**32

EXPECTED_REASONS = frozenset({
    "auto_model", "auto_rule", "auto_short", "best_of", "budget", "caller_prefill", "echo", "field_not_known",
    "logprobs", "modalities", "n", "offline", "output_detail", "prompt_control", "prompt_in_reply", "prompts",
    "response_format", "stop_condition", "structured_output", "student_confident", "suffix", "token_constraint",
    "token_ids", "token_limit", "tools",
})  # fmt: skip
"""Reasons for an unguided request without a failure: the caller's request, a spent budget, the chosen length, or an
offline device. Every other reason, also a future one, is a failure."""


class LogSample:
    """Select requests by id. Requests with failures and slow requests are always selected.

    Args:
        share: the part of ordinary requests to log, from 0 to 1.
        slow_s: the total time from which a request counts as slow; None: no request is slow.
    """

    def __init__(self, share: float, slow_s: float | None) -> None:
        self._threshold = round(share * _WHOLE)
        self._slow_ms = None if slow_s is None else slow_s * 1000

    def includes(self, receipt: Receipt) -> bool:
        """Return whether to log the request. The id alone decides, so every process decides the same.

        A shadow follows its original request, and an edge report follows its guidance request.
        """
        if self._threshold >= _WHOLE or self._is_notable(receipt):
            return True
        return zlib.crc32((receipt.shadow_of or receipt.edge_of or receipt.id).encode()) < self._threshold

    def _is_notable(self, receipt: Receipt) -> bool:
        return (
            receipt.status != "ok"
            or bool(receipt.attempts)
            or (receipt.unguided is not None and receipt.unguided not in EXPECTED_REASONS)
            or (receipt.guidance is not None and receipt.guidance.cut_short is not None)
            or (self._slow_ms is not None and receipt.timings.total_ms >= self._slow_ms)
        )
