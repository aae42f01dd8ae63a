"""What `app.py` gives its parts: values made of the settings, and what follows the policies as they change."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from gateway.accounting.max_output import EngineMaxima
from gateway.accounting.shares import UsageError
from gateway.batching.ticket import TeacherLimits
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from decimal import Decimal

    from aiohttp.typedefs import Middleware

    from gateway.accounting.spans import ReceiptSpans
    from gateway.config.models import ModelSettings
    from gateway.config.settings import Settings
    from gateway.engines.base import Engine
    from gateway.policy.book import PolicySet
    from gateway.policy.policies import Policies
    from gateway.telemetry.metrics import Metrics
    from gateway.telemetry.tracing import Tracing

_MAX_SHADOWS = 64


def most_shadows(settings: Settings) -> int:
    """How many shadows of requests may be under way: never so many that callers would miss their places."""
    return min(_MAX_SHADOWS, max(1, settings.server.max_in_flight // 4))


def most_compared(settings: Settings) -> int:
    """How many answers may be compared at a time, beside the shadows: half as many."""
    return max(1, most_shadows(settings) // 2)


@dataclass(frozen=True, slots=True)
class TracingParts:
    """What makes a gateway tell traces."""

    tracing: Tracing
    spans: ReceiptSpans
    middleware: Middleware


def traces_of(settings: Settings, owner: str, metrics: Metrics) -> TracingParts | None:
    """None where no collector is configured: then nothing of it is imported. Raises StartupError without the extra."""
    if settings.tracing.endpoint is None:
        return None
    try:
        from gateway.accounting.spans import ReceiptSpans
        from gateway.api.traced import traced
        from gateway.telemetry.tracing import Tracing
    except ImportError as error:
        raise StartupError(
            "tracing.endpoint (or OTEL_EXPORTER_OTLP_ENDPOINT) is set, and OpenTelemetry is not installed "
            f"({error.name}). Install the extra: pip install 'gkt-gateway[otel]'. Or set no endpoint."
        ) from error
    tracing = Tracing(settings.tracing, owner, metrics)
    return TracingParts(tracing, ReceiptSpans(), traced(tracing))


def name_series(metrics: Metrics, book: PolicySet) -> None:
    """In the order of the files, so that all workers name the same tenants."""
    for policy in book.policies:
        metrics.series.name(policy.tenant, (route.model for route in policy.routes))
        # Requests of any kind may be delayed, so the series exists before the first one.
        metrics.steps_delayed.labels(metrics.series.tenant(policy.tenant))


def init_engine_series(metrics: Metrics, engines: Iterable[str]) -> None:
    """Create at 0 the series of engines that an alert watches: Prometheus sees no growth in a series that appears."""
    for engine in engines:
        for reason in filter(None, get_args(UsageError)):
            metrics.engine_usage_errors.labels(engine, reason)


def set_deadlines(metrics: Metrics, book: PolicySet) -> None:
    """By teacher. One that guides no route any more has no deadline that its queue could come near."""
    shortest: dict[str, float] = {}
    for policy in book.policies:
        for route in policy.routes:
            if route.teacher is not None and policy.max_guidance_tokens(route):
                deadline_s = route.guidance.max_deadline_s
                shortest[route.teacher] = min(deadline_s, shortest.get(route.teacher, deadline_s))
    metrics.set_deadlines(shortest)


def when_role_changes(engines: Iterable[str], policies: Policies) -> dict[str, asyncio.Event]:
    """For each engine what is set when an edit makes it one that only embeds, or no longer: it is to be probed anew."""
    embeds = {name: policies.policy_set.only_embeds(name) for name in engines}
    changed = {name: asyncio.Event() for name in embeds}

    def look(book: PolicySet) -> None:
        for name, event in changed.items():
            if (now := book.only_embeds(name)) != embeds[name]:
                embeds[name] = now
                event.set()

    policies.on_change(look)
    return changed


def webhook_of(settings: Settings) -> tuple[str | None, str | None]:
    url, secret = settings.alerts.webhook, settings.alerts.webhook_secret
    return url.get_secret_value() if url else None, secret.get_secret_value() if secret else None


def hourly_of(settings: Settings) -> dict[str, Decimal]:
    """What an hour costs, of the engines that are paid by it."""
    priced = {model.name: model.price_rule.hourly_usd for model in settings.models if model.price_rule is not None}
    return {name: hourly_usd for name, hourly_usd in priced.items() if hourly_usd is not None}


def leases_of(lease_s: float, policies: Policies) -> Callable[[str], float]:
    """Return a function that tells a teacher's lease: redis.lease, or its longest guidance deadline if that is longer.

    A call must not outlive its permit. The lease follows each edit of the policies.
    """

    def longest(book: PolicySet) -> dict[str, float]:
        found: dict[str, float] = {}
        for policy in book.policies:
            for route in policy.routes:
                if route.teacher is not None:
                    found[route.teacher] = max(found.get(route.teacher, lease_s), route.guidance.max_deadline_s)
        return found

    leases = longest(policies.policy_set)

    def changed(book: PolicySet) -> None:
        nonlocal leases
        leases = longest(book)

    policies.on_change(changed)
    return lambda teacher: leases.get(teacher, lease_s)


def limits_of(model: ModelSettings, engine: Engine, lease_of: Callable[[str], float]) -> Callable[[], TeacherLimits]:
    """What the teacher takes: the configuration's limits, and never more than the engine says it takes."""
    configured = TeacherLimits(
        max_in_flight=model.max_concurrency,
        max_size=model.batch.max_size,
        max_prompt_tokens=model.batch.max_prompt_tokens,
        low_water=model.batch.low_water,
        max_queue=model.batch.max_queue,
        max_cache_bytes=model.guidance_cache_bytes,
    )

    last = configured

    def now() -> TeacherLimits:
        nonlocal last
        own, lease_s = engine.state.max_concurrency, lease_of(model.name)
        cap = configured.max_in_flight if own is None else min(own, configured.max_in_flight)
        if (cap, lease_s) != (last.max_in_flight, last.lease_s):
            last = replace(configured, max_in_flight=cap, lease_s=lease_s)
        return last

    return now


def max_output_of(models: Iterable[ModelSettings], engines: Mapping[str, Engine] | None = None) -> EngineMaxima:
    """Return the largest answers of all engines; without `engines`, as far as config.yaml states them."""
    known = {model.name: model for model in models}

    def reported(name: str) -> int | None:
        return None if engines is None or name not in engines else engines[name].state.context_tokens

    return EngineMaxima(
        {name: model.max_output_tokens for name, model in known.items()},
        {name: model.listed_max_output for name, model in known.items()},
        reported,
    )
