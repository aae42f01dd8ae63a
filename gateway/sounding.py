"""Step 5, before the teacher: where a policy wants it, the student is asked how sure it is of its first token.

Who is sure needs no opening. What the question costs stands in the receipt; and however it fails, the teacher is asked.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from gateway.engines.failures import note_failure
from gateway.errors import EngineCannot, EngineError
from gateway.guidance.probe import first_token
from gateway.ledger.draft import Call
from gateway.ledger.receipt import ProbeFacts
from gateway.protocol import TextRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.engines.base import Engine
    from gateway.guidance.probe import FirstToken, Outcome
    from gateway.ledger.draft import Draft
    from gateway.metrics import Metrics
    from gateway.policy.resolve import Plan
    from gateway.protocol import CompletionRequest, Json

STUDENT_CONFIDENT = "student_confident"
"""Why an answer is unguided whose student was sure of its first token."""


class Sounding:
    """Asks students for their first token. An engine that told no probabilities is not asked again by this process."""

    def __init__(self, engines: Mapping[str, Engine], metrics: Metrics) -> None:
        self._engines = engines
        self._metrics = metrics
        self._silent: set[tuple[str, str | None, bool]] = set()  # name, revision, and whether for raw prompts

    async def is_sure(self, plan: Plan, asked: CompletionRequest, draft: Draft, deadline: float) -> bool:
        """Whether the student needs no opening; False where nobody wants to know. Never raises EngineErrors.

        deadline: the guidance's, on the loop's clock.
        """
        rule, finisher = plan.length.probe if plan.length is not None else None, plan.finishers[0]
        if rule is None:
            return False
        engine = self._engines[finisher.engine]
        silent = (engine.name, engine.state.revision, isinstance(asked, TextRequest))
        if silent in self._silent:
            draft.probed = ProbeFacts("no_logprobs")
            return False
        began = time.perf_counter()
        # Until it has answered, nobody knows whether it wrote its token.
        draft.probe = call = Call(engine.name, _read_from(asked), lost_tokens=1)
        found: FirstToken | None = None
        outcome: Outcome = "no_logprobs"
        until = min(deadline, asyncio.get_running_loop().time() + rule.deadline_s)
        try:
            async with asyncio.timeout_at(until):
                found, call.usage = await first_token(engine, asked, finisher.reasoning, rule.top_logprobs)
        except TimeoutError:
            outcome = "late"
        except EngineError as error:
            note_failure(error, draft.id, self._metrics)
            outcome = "no_logprobs" if isinstance(error, EngineCannot) else "failed"
            if not error.heard:
                draft.probe = None
        else:
            if found is None:
                self._silent.add(silent)
        sure = found is not None and found.is_sure(rule)
        if found is not None:
            outcome = "confident" if sure else "unsure"
        draft.probed = ProbeFacts(
            outcome,
            round(found.p1, 4) if found is not None else None,
            round(found.entropy, 4) if found is not None else None,
            round((time.perf_counter() - began) * 1000, 3),
        )
        return sure


def _read_from(asked: CompletionRequest) -> Sequence[Json]:
    """What the student reads."""
    return [{"role": "user", "content": asked.prompt}] if isinstance(asked, TextRequest) else asked.messages
