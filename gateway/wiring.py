"""Values that `app.py` derives from the settings, and values that follow changes of the policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from gateway.accounting.request_log import LogSample
from gateway.accounting.shares import UsageError
from gateway.batching.ticket import TeacherLimits
from gateway.errors import StartupError
from gateway.redis.keys import slice_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aiohttp.typedefs import Middleware

    from gateway.accounting.engine_set import EngineSet
    from gateway.accounting.spans import ReceiptSpans
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet
    from gateway.policy.policies import Policies
    from gateway.telemetry.metrics import Metrics
    from gateway.telemetry.tracing import Tracing

_MAX_SHADOWS = 64


def max_shadows(settings: Settings) -> int:
    """Return the limit on shadow requests in flight: a quarter of the slots for requests, but at most 64."""
    return min(_MAX_SHADOWS, max(1, settings.server.max_in_flight // 4))


def tracing_parts_of(
    settings: Settings, process_id: str, metrics: Metrics
) -> tuple[Tracing | None, ReceiptSpans | None, list[Middleware]]:
    """Return the parts that export traces. Without a collector there are none, and OpenTelemetry is not imported.

    Raises StartupError if OpenTelemetry is not installed.
    """
    if settings.tracing.endpoint is None:
        return None, None, []
    try:
        from gateway.accounting.spans import ReceiptSpans
        from gateway.api.traced import traced
        from gateway.telemetry.tracing import Tracing
    except ImportError as error:
        raise StartupError(
            "tracing.endpoint (or OTEL_EXPORTER_OTLP_ENDPOINT) is set, but OpenTelemetry is not installed "
            f"({error.name}). Install the extra: pip install 'gkt-gateway[otel]'. Or remove the endpoint."
        ) from error
    tracing = Tracing(settings.tracing, process_id, metrics)
    return tracing, ReceiptSpans(), [traced(tracing)]


def name_series(metrics: Metrics, book: PolicySet) -> None:
    """Name the metric series of tenants and models, in file order, so that all workers name the same tenants."""
    for policy in book.policies:
        metrics.series.name(policy.tenant, (route.model for route in policy.routes))
        # The series exists before the first delayed request.
        metrics.steps_delayed.labels(metrics.series.tenant(policy.tenant))


def init_engine_series(metrics: Metrics, engines: Iterable[str]) -> None:
    """Create the series of engines that alerts use. Prometheus detects no increase when a series first appears."""
    for engine in engines:
        for reason in filter(None, get_args(UsageError)):
            metrics.engine_usage_errors.labels(engine, reason)
        metrics.engine_usage_missing.labels(engine)


def set_deadlines(metrics: Metrics, book: PolicySet) -> None:
    """Publish the shortest guidance deadline of each teacher. A teacher without routes has none."""
    shortest: dict[str, float] = {}
    for policy in book.policies:
        for route in policy.all_routes:
            if route.teacher is not None and policy.max_guidance_tokens(route):
                deadline_s = route.guidance.max_deadline_s
                shortest[route.teacher] = min(deadline_s, shortest.get(route.teacher, deadline_s))
    metrics.set_deadlines(shortest)


def webhook_of(settings: Settings) -> tuple[str | None, str | None]:
    """Return the URL and the secret of the alert webhook."""
    url, secret = settings.alerts.webhook, settings.alerts.webhook_secret
    return url.get_secret_value() if url else None, secret.get_secret_value() if secret else None


def hash_key_of(settings: Settings) -> str | None:
    """Return the secret of hashed labels."""
    secret = settings.labels.hash_key
    return None if secret is None else secret.get_secret_value()


def leases_of(lease_s: float, policies: Policies) -> Callable[[str], float]:
    """Return a function of a teacher that returns the lease of its permits in seconds.

    The lease is redis.lease, or the teacher's longest guidance deadline if that is longer, since a call must not
    outlive its permit. The lease follows policy changes.
    """
    leases: dict[str, float] = {}

    def update(book: PolicySet) -> None:
        leases.clear()
        for policy in book.policies:
            for route in policy.all_routes:
                if route.teacher is not None:
                    leases[route.teacher] = max(leases.get(route.teacher, lease_s), route.guidance.max_deadline_s)

    update(policies.policy_set)
    policies.on_change(update)
    return lambda teacher: leases.get(teacher, lease_s)


def namespaces_of(policies: Policies) -> list[str]:
    """Return the names of all tenants and slices, removed ones included: their last requests may not be settled yet."""
    return [name for tenant in policies.tenants() for name in slice_names(tenant, policies.slices_of(tenant))]


def limits_of(name: str, engines: EngineSet, lease_of: Callable[[str], float]) -> Callable[[], TeacherLimits]:
    """Return a function that returns a teacher's current limits, capped by the engine's own limit."""
    model, state = engines.models[name], engines.by_name[name].state
    last: TeacherLimits | None = None

    def current() -> TeacherLimits:
        nonlocal last
        own, lease_s = state.max_concurrency, lease_of(name)
        cap = model.max_concurrency if own is None else min(own, model.max_concurrency)
        if last is None or (cap, lease_s) != (last.max_in_flight, last.lease_s):
            last = TeacherLimits(
                max_in_flight=cap,
                max_size=model.batch.max_size,
                max_prompt_tokens=model.batch.max_prompt_tokens,
                low_water=model.batch.low_water,
                max_queue=model.batch.max_queue,
                max_cache_bytes=model.guidance_cache_bytes,
                lease_s=lease_s,
            )
        return last

    return current


def log_sample_of(settings: Settings) -> LogSample:
    """Return which requests are logged."""
    return LogSample(settings.log.requests.sample, settings.log.requests.slow_s)
