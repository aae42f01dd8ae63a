"""Which requests have a line in the log where not all of the ordinary ones shall. Pure."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.accounting.receipt import Receipt

_WHOLE = 2**32

AS_ASKED = frozenset({
    "auto_model", "auto_rule", "auto_short", "best_of", "budget", "caller_prefill", "echo", "field_not_known",
    "logprobs", "modalities", "n", "offline", "output_detail", "prompt_control", "prompt_in_reply", "prompts",
    "response_format", "stop_condition", "structured_output", "student_confident", "suffix", "token_constraint",
    "token_ids", "token_limit", "tools",
})  # fmt: skip
"""Why a request goes unguided of which nothing has failed: it is what the caller asked for, a budget that is spent, the
length that was chosen, or that a device was out of reach. Any other reason, also one that comes later, is a failure."""


class LogSample:
    """Args:
    share: what part of the ordinary requests has a line, from 0 to 1.
    slow_s: from this long on a request is none of the ordinary ones; None: however long it took.
    """

    def __init__(self, share: float, slow_s: float | None) -> None:
        self._below = round(share * _WHOLE)
        self._slow_ms = None if slow_s is None else slow_s * 1000

    def takes(self, receipt: Receipt) -> bool:
        """Whether a request has its line. Its id alone draws the lot, so whoever asks again hears the same.

        A shadow goes with the request beside which it was made, and what a device reports with its guidance.
        """
        if self._below >= _WHOLE or self._stands_out(receipt):
            return True
        return zlib.crc32((receipt.shadow_of or receipt.edge_of or receipt.id).encode()) < self._below

    def _stands_out(self, receipt: Receipt) -> bool:
        return (
            receipt.status != "ok"
            or bool(receipt.attempts)
            or (receipt.unguided is not None and receipt.unguided not in AS_ASKED)
            or (receipt.guidance is not None and receipt.guidance.cut_short is not None)
            or (self._slow_ms is not None and receipt.timings.total_ms >= self._slow_ms)
        )
