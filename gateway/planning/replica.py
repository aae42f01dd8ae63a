"""The capacity of a replica: a server that decodes many answers together and reads prompts in between.

The formulas are in docs/design/planning.md.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.planning.curve import Curve


class RequestWork(NamedTuple):
    """Tokens of one request: prompt tokens to prefill, output tokens, and prompt tokens from the prefix cache."""

    read: int
    written: int
    cached: int = 0

    @property
    def context(self) -> int:
        """Return the tokens of the request at its end."""
        return self.read + self.cached + self.written

    @property
    def steps(self) -> int:
        """Return the number of decoding steps; prefill yields the first token."""
        return self.written - 1


def replica_s(curve: Curve, work: RequestWork) -> float:
    """Return the seconds of a full replica that one request takes: the inverse of the maximum requests per second."""
    prompt_s, pass_s = work.read / curve.prefill.tokens_per_s, curve.prefill.pass_s
    max_prompts = _max_prompts(curve, work)
    if not work.steps:
        return prompt_s + pass_s / max_prompts
    # No more requests can begin in a round than one pass reads. If fewer begin than end, the batch is never full.
    per_round = min(max_prompts, curve.slots(work.context) / work.steps)
    per_pass = min(max_prompts, max(1.0, per_round))
    return prompt_s + pass_s / per_pass + curve.step_s(per_round * work.steps) / per_round


def _max_prompts(curve: Curve, work: RequestWork) -> float:
    """Return the maximum prompts of one pass; below 1, a prompt takes several passes."""
    prefill = curve.prefill
    if prefill.pass_tokens is None:
        return inf
    fit = prefill.pass_tokens / work.read
    return fit if prefill.chunked else max(1.0, float(int(fit)))
