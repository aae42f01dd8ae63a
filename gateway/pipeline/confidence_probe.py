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

MAX_REFUSALS = 5
"""In a row, without an answer between: so many are no single request's fault."""
PROBE_EVERY = 100
"""Of an engine that refused so often one request in so many is asked all the same: it may have been the callers' fault
after all."""
# What engines say to a field that they do not take, and to a request that is wrong otherwise.
_REFUSALS = frozenset({400, 422})


MIN_TENANTS = 2
"""An engine that gave no tenant probabilities, and so many none or refusals alone, is asked for none."""


@dataclass(slots=True)
class _ProbeHistory:
    """The replies of an engine to probes of one form, while its weights stay: with or without probabilities.

    What one tenant sends may be the reason for a reply without them, so each tenant is judged by its own calls.
    """

    revision: str | None
    has_logprobs: bool = False  # some tenant got probabilities
    without_logprobs: set[str] = field(default_factory=set)  # tenants that got an answer without
    refusals: Counter[str] = field(default_factory=Counter)  # by tenant, since the engine last answered it
    rejected: set[str] = field(default_factory=set)  # tenants with ENOUGH_REFUSALS
    skipped: Counter[str] = field(default_factory=Counter)  # requests by tenant, since the engine was last asked

    def should_probe(self, tenant: str) -> bool:
        """Return whether to ask the engine for one more request of the tenant. Counts the request if not."""
        if self._applies_to(self.without_logprobs, tenant):
            return False
        if not self._applies_to(self.rejected, tenant):
            return True
        self.skipped[tenant] = (self.skipped[tenant] + 1) % PROBE_EVERY
        return not self.skipped[tenant]

    def record_answer(self, tenant: str, *, with_logprobs: bool) -> None:
        """told: with probabilities."""
        if with_logprobs:
            self.has_logprobs = True
        else:
            self.without_logprobs.add(tenant)  # a call that was under way by then does not undo it
        self.refusals.pop(tenant, None)
        self.rejected.discard(tenant)

    def record_failure(self, tenant: str, error: EngineError) -> None:
        """Count a refusal. No other failure indicates that the engine lacks probabilities."""
        if isinstance(error, EngineRejected) and not isinstance(error, EngineUnsupported):
            self.refusals[tenant] += error.status_sent in _REFUSALS
            if self.refusals[tenant] >= MAX_REFUSALS:
                self.rejected.add(tenant)

    def _applies_to(self, tenants: set[str], tenant: str) -> bool:
        return tenant in tenants or (not self.has_logprobs and len(tenants) >= MIN_TENANTS)


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
        self._histories: dict[tuple[str, bool, int], _ProbeHistory] = {}

    async def is_confident(
        self, plan: Plan, request: CompletionRequest, builder: ReceiptBuilder, deadline: float
    ) -> bool:
        """Whether the student needs no opening; False where nobody wants to know. Never raises EngineErrors.

        deadline: the guidance's, on the loop's clock.
        """
        rule = plan.length.probe if plan.length is not None else None
        if rule is None:
            return False
        student = plan.finishers[0]
        engine = self._engines[student.engine]
        history = self._history_of(engine, request, rule)
        if not history.should_probe(builder.tenant):
            builder.probed = ProbeFacts("no_logprobs")
            return False
        started = time.perf_counter()
        # Until it has answered, nobody knows whether it wrote its token.
        builder.probe = call = EngineCall(engine.name, _input_messages(request), lost_tokens=1, role="probe")
        result: FirstToken | None = None
        outcome: Outcome = "no_logprobs"
        until = min(deadline, asyncio.get_running_loop().time() + rule.deadline_s)
        try:
            async with asyncio.timeout_at(until):
                result, call.usage = await first_token(engine, request, student.reasoning, rule.top_logprobs)
        except TimeoutError:
            outcome = "late"
        except EngineError as error:
            note_failure(error, builder.id, self._metrics)
            history.record_failure(builder.tenant, error)
            outcome = "no_logprobs" if isinstance(error, EngineUnsupported) else "failed"
            if not error.heard:
                builder.probe = None
        else:
            history.record_answer(builder.tenant, with_logprobs=result is not None)
        confident = result is not None and result.is_confident(rule)
        if result is not None:
            outcome = "confident" if confident else "unsure"
        builder.probed = ProbeFacts(
            outcome,
            round(result.p1, 4) if result is not None else None,
            round(result.entropy, 4) if result is not None else None,
            round((time.perf_counter() - started) * 1000, 3),
        )
        return confident

    def _history_of(self, engine: Engine, request: CompletionRequest, rule: ProbeRule) -> _ProbeHistory:
        key = engine.name, isinstance(request, TextRequest), rule.top_logprobs
        history = self._histories.get(key)
        if history is None or history.revision != engine.state.revision:
            self._histories[key] = history = _ProbeHistory(engine.state.revision)
        return history


def _input_messages(request: CompletionRequest) -> Sequence[Json]:
    """What the student reads."""
    return [{"role": "user", "content": request.prompt}] if isinstance(request, TextRequest) else request.messages
