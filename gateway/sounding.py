"""Step 5, before the teacher: where a policy wants it, the student is asked how sure it is of its first token.

Who is sure needs no opening. What the question costs stands in the receipt; and however it fails, the teacher is asked.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.engines.failures import note_failure
from gateway.errors import EngineCannot, EngineError, EngineRejected
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
    from gateway.policy.length_rules import ProbeRule
    from gateway.policy.resolve import Plan
    from gateway.protocol import CompletionRequest, Json

STUDENT_CONFIDENT = "student_confident"
"""Why an answer is unguided whose student was sure of its first token."""

ENOUGH_REFUSALS = 5
"""In a row, without an answer between: so many are no single request's fault."""
ASKED_AGAIN = 100
"""Of an engine that refused so often one request in so many is asked all the same: it may have been the callers' fault
after all."""
# What engines say to a field that they do not take, and to a request that is wrong otherwise.
_REFUSALS = frozenset({400, 422})


@dataclass(slots=True)
class _Known:
    """Whether an engine tells probabilities, asked in one way and as long as its weights stay."""

    revision: str | None
    silent: bool = False  # it has answered without
    refusals: int = 0  # since it answered last
    passed_by: int = 0  # requests, since it was asked last

    def is_to_be_asked(self) -> bool:
        """Of one more request."""
        if self.silent:
            return False
        if self.refusals < ENOUGH_REFUSALS:
            return True
        self.passed_by = (self.passed_by + 1) % ASKED_AGAIN
        return not self.passed_by

    def has_answered(self, *, told: bool) -> None:
        """told: with probabilities."""
        self.silent = self.silent or not told  # a call that was under way by then does not undo it
        self.refusals = 0

    def has_failed(self, error: EngineError) -> None:
        """Of all failures a refusal alone says something of what was asked for."""
        if isinstance(error, EngineRejected) and not isinstance(error, EngineCannot):
            self.refusals += error.status_sent in _REFUSALS


class Sounding:
    """Asks students for their first token.

    An engine that told no probabilities is not asked again by this process, and one that refused `ENOUGH_REFUSALS`
    times in a row hardly ever; until its weights change.
    """

    def __init__(self, engines: Mapping[str, Engine], metrics: Metrics) -> None:
        self._engines = engines
        self._metrics = metrics
        # By engine, whether for raw prompts, and how many tokens it was to tell of: as many as the policies name.
        self._known: dict[tuple[str, bool, int], _Known] = {}

    async def is_sure(self, plan: Plan, asked: CompletionRequest, draft: Draft, deadline: float) -> bool:
        """Whether the student needs no opening; False where nobody wants to know. Never raises EngineErrors.

        deadline: the guidance's, on the loop's clock.
        """
        rule = plan.length.probe if plan.length is not None else None
        if rule is None:
            return False
        finisher = plan.finishers[0]
        engine = self._engines[finisher.engine]
        known = self._known_of(engine, asked, rule)
        if not known.is_to_be_asked():
            draft.probed = ProbeFacts("no_logprobs")
            return False
        began = time.perf_counter()
        # Until it has answered, nobody knows whether it wrote its token.
        draft.probe = call = Call(engine.name, _read_from(asked), lost_tokens=1, role="probe")
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
            known.has_failed(error)
            outcome = "no_logprobs" if isinstance(error, EngineCannot) else "failed"
            if not error.heard:
                draft.probe = None
        else:
            known.has_answered(told=found is not None)
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

    def _known_of(self, engine: Engine, asked: CompletionRequest, rule: ProbeRule) -> _Known:
        way = engine.name, isinstance(asked, TextRequest), rule.top_logprobs
        known = self._known.get(way)
        if known is None or known.revision != engine.state.revision:
            self._known[way] = known = _Known(engine.state.revision)
        return known


def _read_from(asked: CompletionRequest) -> Sequence[Json]:
    """What the student reads."""
    return [{"role": "user", "content": asked.prompt}] if isinstance(asked, TextRequest) else asked.messages
