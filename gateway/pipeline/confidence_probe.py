"""Step 5, before the teacher: where a policy wants it, the student is asked how sure it is of its first token.

Who is sure needs no opening. What the question costs stands in the receipt; and however it fails, the teacher is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.accounting.draft import EngineCall
from gateway.accounting.receipt import ProbeFacts
from gateway.engines.failures import note_failure
from gateway.errors import EngineError, EngineRejected, EngineUnsupported
from gateway.guidance.probe import first_token
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.accounting.draft import ReceiptBuilder
    from gateway.engines.base import Engine
    from gateway.guidance.probe import FirstToken, Outcome
    from gateway.policy.length_rules import ProbeRule
    from gateway.policy.resolve import Plan
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest
    from gateway.telemetry.metrics import Metrics

STUDENT_CONFIDENT = "student_confident"
"""Why an answer is unguided whose student was sure of its first token."""

ENOUGH_REFUSALS = 5
"""In a row, without an answer between: so many are no single request's fault."""
ASKED_AGAIN = 100
"""Of an engine that refused so often one request in so many is asked all the same: it may have been the callers' fault
after all."""
# What engines say to a field that they do not take, and to a request that is wrong otherwise.
_REFUSALS = frozenset({400, 422})


AGREEING_TENANTS = 2
"""An engine that gave no tenant probabilities, and so many none or refusals alone, is asked for none."""


@dataclass(slots=True)
class _Known:
    """The replies of an engine to probes of one form, while its weights stay: with or without probabilities.

    What one tenant sends may be the reason for a reply without them, so each tenant is judged by its own calls.
    """

    revision: str | None
    given: bool = False  # some tenant got probabilities
    silent: set[str] = field(default_factory=set)  # tenants that got an answer without
    refusals: Counter[str] = field(default_factory=Counter)  # by tenant, since the engine last answered it
    refused: set[str] = field(default_factory=set)  # tenants with ENOUGH_REFUSALS
    passed_by: Counter[str] = field(default_factory=Counter)  # requests by tenant, since the engine was last asked

    def is_to_be_asked(self, tenant: str) -> bool:
        """Return whether to ask the engine for one more request of the tenant. Counts the request if not."""
        if self._holds(self.silent, tenant):
            return False
        if not self._holds(self.refused, tenant):
            return True
        self.passed_by[tenant] = (self.passed_by[tenant] + 1) % ASKED_AGAIN
        return not self.passed_by[tenant]

    def has_answered(self, tenant: str, *, told: bool) -> None:
        """told: with probabilities."""
        if told:
            self.given = True
        else:
            self.silent.add(tenant)  # a call that was under way by then does not undo it
        self.refusals.pop(tenant, None)
        self.refused.discard(tenant)

    def has_failed(self, tenant: str, error: EngineError) -> None:
        """Count a refusal. No other failure indicates that the engine lacks probabilities."""
        if isinstance(error, EngineRejected) and not isinstance(error, EngineUnsupported):
            self.refusals[tenant] += error.status_sent in _REFUSALS
            if self.refusals[tenant] >= ENOUGH_REFUSALS:
                self.refused.add(tenant)

    def _holds(self, tenants: set[str], tenant: str) -> bool:
        return tenant in tenants or (not self.given and len(tenants) >= AGREEING_TENANTS)


class ConfidenceProbe:
    """Asks students for their first token.

    An engine that gave a tenant no probabilities is not asked again for that tenant by this process, and one that
    refused `ENOUGH_REFUSALS` calls of a tenant in a row hardly ever; until its weights change. Several such tenants
    decide for all, as long as no tenant got probabilities.
    """

    def __init__(self, engines: Mapping[str, Engine], metrics: Metrics) -> None:
        self._engines = engines
        self._metrics = metrics
        # By engine, whether for raw prompts, and how many tokens it was to tell of: as many as the policies name.
        self._known: dict[tuple[str, bool, int], _Known] = {}

    async def is_confident(self, plan: Plan, asked: CompletionRequest, draft: ReceiptBuilder, deadline: float) -> bool:
        """Whether the student needs no opening; False where nobody wants to know. Never raises EngineErrors.

        deadline: the guidance's, on the loop's clock.
        """
        rule = plan.length.probe if plan.length is not None else None
        if rule is None:
            return False
        finisher = plan.finishers[0]
        engine = self._engines[finisher.engine]
        known = self._known_of(engine, asked, rule)
        if not known.is_to_be_asked(draft.tenant):
            draft.probed = ProbeFacts("no_logprobs")
            return False
        began = time.perf_counter()
        # Until it has answered, nobody knows whether it wrote its token.
        draft.probe = call = EngineCall(engine.name, _read_from(asked), lost_tokens=1, role="probe")
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
            known.has_failed(draft.tenant, error)
            outcome = "no_logprobs" if isinstance(error, EngineUnsupported) else "failed"
            if not error.heard:
                draft.probe = None
        else:
            known.has_answered(draft.tenant, told=found is not None)
        sure = found is not None and found.is_confident(rule)
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
