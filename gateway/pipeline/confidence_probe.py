"""Step 5, before the teacher: ask the student for the probability of its first token, where the policy has a probe.

A confident student needs no guidance. The receipt contains the cost of the probe. If the probe fails for any reason,
the teacher is called. GlimpRouter (arXiv 2601.05110): the entropy of a step's first token indicates how hard the step
is, without training. An engine that caches prefixes does not read the prompt again for the answer.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gateway.accounting.receipt import ProbeFacts
from gateway.accounting.shares import EngineCall
from gateway.capabilities.reasoning import without_reasoning
from gateway.engines.chat import read_usage
from gateway.engines.failures import record_failure
from gateway.engines.replies import first_choice
from gateway.errors import EngineError, EngineRejected, EngineUnsupported
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.capabilities.reasoning import Reasoning
    from gateway.engines.base import Engine, TokenUsage
    from gateway.policy.length import ProbeRule
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest
    from gateway.telemetry.metrics import Metrics

Outcome = Literal["confident", "unsure", "no_logprobs", "late", "failed"]
"""Outcome of a probe. `no_logprobs`: the engine returned no probabilities."""

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

# Values that engines write for a probability of almost 0, or for 1 with a rounding error.
_MIN_LOGPROB, _MAX_LOGPROB = -1e4, 1e-3
# The caller's fields that affect the student's input, its reasoning, and the destination of the call.
_FORWARDED = frozenset({
    "model", "messages", "prompt", "tools", "functions", "tool_choice", "function_call", "chat_template",
    "chat_template_kwargs", "documents", "add_special_tokens", "mm_processor_kwargs", "media_io_kwargs", "lora",
    "lora_path", "adapter_id", "reasoning", "reasoning_effort", "thinking", "enable_thinking", "think", "user",
    "cache_salt", "prompt_cache_key", "priority", "provider", "service_tier",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The distribution of the student's first token."""

    p1: float  # probability of the most likely token
    entropy: float  # in nats, over the reported tokens, with all others counted as one

    def is_confident(self, rule: ProbeRule) -> bool:
        """Return whether the rule skips the teacher."""
        return self.p1 >= rule.confident or (rule.entropy is not None and self.entropy <= rule.entropy)


async def first_token(
    engine: Engine, request: CompletionRequest, reasoning: Reasoning, top: int
) -> tuple[FirstToken | None, TokenUsage | None]:
    """Request one token and its `top` most likely alternatives. Raises EngineErrors.

    Return the distribution, or None if the engine returns no probabilities; and the usage, or None if it reports none.
    """
    reply = await engine.complete(probe_body(request, reasoning, top))
    return read_first(first_choice(reply).get("logprobs")), read_usage(reply.get("usage"))


def probe_body(request: CompletionRequest, reasoning: Reasoning, top: int) -> Json:
    """Return a body that requests one token without sampling, with only those of the caller's fields in `_FORWARDED`.

    Any other field may change the reported probabilities, or make the engine reject the request.
    """
    body = one_token_body(request, reasoning)
    return body | ({"logprobs": top} if isinstance(request, TextRequest) else {"logprobs": True, "top_logprobs": top})


def one_token_body(request: CompletionRequest, reasoning: Reasoning) -> Json:
    """Return a body that requests one token of the prompt that the student continues, without sampling."""
    forwarded = {name: value for name, value in request.body.items() if name in _FORWARDED}
    body: Json = {**forwarded, request.limit_field: 1, "temperature": 0}
    return body if isinstance(request, TextRequest) else without_reasoning(reasoning, body)


def prompt_messages(request: CompletionRequest) -> Sequence[Json]:
    """Return the caller's prompt as messages, for the gateway's own token count."""
    return [{"role": "user", "content": request.prompt}] if isinstance(request, TextRequest) else request.messages


def read_first(logprobs: Any) -> FirstToken | None:
    """Return the distribution of the first token from the `logprobs` of a choice of a chat or a text, or None."""
    if not isinstance(logprobs, dict):
        return None
    logprob_values = _of_chat(logprobs.get("content")) or _of_text(logprobs)
    probabilities = [math.exp(min(0.0, one)) for one in logprob_values if _is_logprob(one)]
    if not probabilities or len(probabilities) < len(logprob_values):
        return None
    shares = [*probabilities, max(0.0, 1 - sum(probabilities))]
    return FirstToken(max(probabilities), -sum(share * math.log(share) for share in shares if share > 0))


def _of_chat(content: Any) -> Sequence[Any]:
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, dict):
        return ()
    top = first.get("top_logprobs")
    if isinstance(top, list) and top:
        return [one.get("logprob") if isinstance(one, dict) else None for one in top]
    return (first.get("logprob"),)


def _of_text(logprobs: Json) -> Sequence[Any]:
    top = logprobs.get("top_logprobs")
    if isinstance(top, list) and top and isinstance(top[0], dict) and top[0]:
        return list(top[0].values())
    own = logprobs.get("token_logprobs")
    return (own[0],) if isinstance(own, list) and own else ()


def _is_logprob(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _MIN_LOGPROB <= value <= _MAX_LOGPROB


@dataclass(slots=True)
class _ProbeHistory:
    """The replies of one engine to one form of probe, until its weights change. Each tenant has its own."""

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
        """Record an answer of the engine, with or without probabilities."""
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
        self._engines, self._metrics = engines, metrics
        # By engine, whether for raw prompts, and the number of alternatives requested, of which policies have few.
        self._histories: dict[tuple[str, bool, int], _ProbeHistory] = {}

    async def is_confident(self, request: CompletionRequest, builder: ReceiptBuilder, deadline: float) -> bool:
        """Return whether the student needs no guidance; False if the plan has no probe. Never raises EngineErrors.

        `deadline` is that of the guidance, in seconds of the loop's clock.
        """
        plan = builder.plan
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
        builder.probe = call = EngineCall(engine.name, prompt_messages(request), lost_tokens=1, role="probe")
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
        p1, entropy = (round(result.p1, 4), round(result.entropy, 4)) if result is not None else (None, None)
        builder.probed = ProbeFacts(outcome, p1, entropy, round((time.perf_counter() - started) * 1000, 3))
        return confident

    def _history_of(self, engine: Engine, request: CompletionRequest, rule: ProbeRule) -> _ProbeHistory:
        key = engine.name, isinstance(request, TextRequest), rule.top_logprobs
        history = self._histories.get(key)
        if history is None or history.revision != engine.state.revision:
            self._histories[key] = history = _ProbeHistory(engine.state.revision)
        return history
