"""Step 5, before the teacher: ask the student for the probability of its first token, where the policy has a probe.

A confident student needs no guidance. The receipt contains the cost of the probe. If the probe fails for any reason,
the teacher is called.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.accounting.calls import EngineCall
from gateway.accounting.receipt import ProbeFacts
from gateway.engines.failures import record_failure
from gateway.errors import EngineError, EngineRejected, EngineUnsupported
from gateway.guidance.probe import first_token
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.accounting.draft import ReceiptBuilder
    from gateway.engines.base import Engine
    from gateway.guidance.probe import FirstToken, Outcome
    from gateway.policy.length_rules import ProbeRule
    from gateway.policy.plan import Plan
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest
    from gateway.telemetry.metrics import Metrics

STUDENT_CONFIDENT = "student_confident"
"""The `unguided` reason of an answer whose student was confident of its first token."""

MAX_REFUSALS = 5
"""Consecutive refusals of a tenant's probes after which the engine, not a single request, counts as their cause."""
PROBE_EVERY = 100
"""One request in this number still probes an engine after `MAX_REFUSALS`, because the requests may have caused them."""
# HTTP statuses of an engine that does not support a field, or that rejects the request for another reason.
_REFUSALS = frozenset({400, 422})


MIN_TENANTS = 2
"""Tenants without probabilities after which an engine is not probed for any tenant, as long as no tenant got any."""


@dataclass(slots=True)
class _ProbeHistory:
    """The replies of one engine to one form of probe, until its weights change.

    A tenant's requests may cause replies without probabilities, so each tenant is judged by its own calls.
    """

    revision: str | None
    has_logprobs: bool = False  # a tenant got probabilities
    without_logprobs: set[str] = field(default_factory=set)  # tenants that got an answer without probabilities
    refusals: Counter[str] = field(default_factory=Counter)  # refusals by tenant, since the engine's last answer to it
    rejected: set[str] = field(default_factory=set)  # tenants with MAX_REFUSALS
    skipped: Counter[str] = field(default_factory=Counter)  # requests by tenant, since the engine's last probe for it

    def should_probe(self, tenant: str) -> bool:
        """Return whether to probe the engine for the tenant's next request. Count the request if not."""
        if self._applies_to(self.without_logprobs, tenant):
            return False
        if not self._applies_to(self.rejected, tenant):
            return True
        self.skipped[tenant] = (self.skipped[tenant] + 1) % PROBE_EVERY
        return not self.skipped[tenant]

    def record_answer(self, tenant: str, *, with_logprobs: bool) -> None:
        """Record an answer of the engine.

        Args:
            with_logprobs: whether the answer contained probabilities.
        """
        if with_logprobs:
            self.has_logprobs = True
        else:
            self.without_logprobs.add(tenant)  # a probe that was running already does not undo it
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
    """Probe students for their first token.

    This process stops probing an engine for a tenant that got no probabilities. After `MAX_REFUSALS` consecutive
    refusals it probes rarely. New weights reset both. Several such tenants decide for all tenants, as long as no tenant
    got probabilities.
    """

    def __init__(self, engines: Mapping[str, Engine], metrics: Metrics) -> None:
        self._engines = engines
        self._metrics = metrics
        # By engine, whether for raw prompts, and the number of alternatives requested: policies contain few different
        # numbers.
        self._histories: dict[tuple[str, bool, int], _ProbeHistory] = {}

    async def is_confident(
        self, plan: Plan, request: CompletionRequest, builder: ReceiptBuilder, deadline: float
    ) -> bool:
        """Return whether the student needs no guidance; False if the plan has no probe. Never raises EngineErrors.

        Args:
            deadline: the deadline of the guidance, in seconds of the loop's clock.
        """
        rule = plan.length.probe if plan.length is not None else None
        if rule is None:
            return False
        student = plan.students[0]
        engine = self._engines[student.engine]
        history = self._history_of(engine, request, rule)
        if not history.should_probe(builder.tenant):
            builder.probed = ProbeFacts("no_logprobs")
            return False
        started = time.perf_counter()
        # Until the engine answers, it is unknown whether it generated the token.
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
            record_failure(error, builder.id, self._metrics)
            history.record_failure(builder.tenant, error)
            outcome = "no_logprobs" if isinstance(error, EngineUnsupported) else "failed"
            if not error.may_have_run:
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
    """Return the student's input as messages."""
    return [{"role": "user", "content": request.prompt}] if isinstance(request, TextRequest) else request.messages
