"""Constructs the engines of the models in config.yaml, each behind its circuit breaker."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from gateway.engines.breaker import Breaker, BreakerRule
from gateway.engines.call_slots import CallSlots
from gateway.engines.guard import GuardedEngine
from gateway.engines.http import EngineDeadlines, EngineHttp
from gateway.engines.openai import OpenAIEngine
from gateway.telemetry.semconv import provider_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway.config.models import ModelSettings
    from gateway.engines.base import Engine
    from gateway.engines.litellm_library import LiteLLMLibrary
    from gateway.engines.retry_budget import RetryBudgets
    from gateway.policy.book import PolicySet
    from gateway.telemetry.metrics import Metrics
    from gateway.telemetry.tracing import Tracing


class HasPolicySet(Protocol):
    """The policies that use the engines. They may change."""

    @property
    def policy_set(self) -> PolicySet: ...


async def build(
    models: Sequence[ModelSettings],
    policies: HasPolicySet,
    metrics: Metrics,
    tracing: Tracing | None = None,
    budgets: RetryBudgets | None = None,
) -> dict[str, GuardedEngine]:
    """Return the engines by configured name, without calling them. The caller must close each."""
    library = None
    if through_litellm := [model.model for model in models if model.protocol == "litellm"]:
        # In threads, like LiteLLM's own: these imports take tenths of a second, and requests may run.
        for module in ("litellm_library", "litellm"):
            await asyncio.to_thread(import_module, f"gateway.engines.{module}")
        from gateway.engines.litellm_library import load

        library = await load(through_litellm)
    if any(model.protocol == "tgi" for model in models):
        # In a thread: the module imports huggingface_hub, which takes tenths of a second.
        await asyncio.to_thread(import_module, "gateway.engines.tgi")
    engines = {}
    for model in models:
        engine = _engine(model, policies, library, None if tracing is None else tracing.outgoing)
        engine.state.reasoning, engine.state.tokenizer = model.reasoning, model.tokenizer
        engine.state.address = model.api_base
        if tracing is not None:
            engine = _traced(engine, model)
        breaker = Breaker(BreakerRule(model.breaker.failures, model.breaker.cooldown_s))
        slots = CallSlots(
            model.name,
            model.max_concurrency if "max_concurrency" in model.model_fields_set else None,
            max_waiting=model.batch.max_queue,
            timeout_s=model.timeouts.first_token_s,
        )
        engines[model.name] = GuardedEngine(
            engine,
            breaker,
            metrics,
            budgets=budgets,
            slots=slots,
            total_s=model.timeouts.total_s,
            always_streams=model.always_stream,
        )
    return engines


def _traced(engine: Engine, model: ModelSettings) -> Engine:
    """Wrap an engine inside its breaker, so that refused calls have no span."""
    from gateway.engines.traced import TracedEngine

    url = urlsplit(model.api_base or "")
    address = None if url.hostname is None else (url.hostname, url.port or (443 if url.scheme == "https" else 80))
    provider = provider_of(model.protocol, model.model, url.hostname)
    name = model.model.partition("/")[2] if model.protocol == "litellm" else model.model
    return TracedEngine(engine, name, provider, address)


def _engine(
    model: ModelSettings,
    policies: HasPolicySet,
    library: LiteLLMLibrary | None,
    outgoing: Callable[[], Mapping[str, str] | None] | None,
) -> Engine:
    timeouts = model.timeouts
    deadlines = EngineDeadlines(timeouts.connect_s, timeouts.first_token_s, timeouts.idle_s, timeouts.total_s)
    api_key = model.api_key.get_secret_value() if model.api_key is not None else None
    echo = None if model.echo == "auto" else model.echo
    if model.protocol == "litellm":
        from gateway.engines.litellm import LiteLLMEngine

        assert library is not None, "build() loads it for such a model"
        return LiteLLMEngine(
            model.name,
            model.model,
            library,
            deadlines=deadlines,
            api_base=model.api_base,
            api_key=api_key,
            options=model.options,
            continuation=model.continuation,
            echo=echo,
            outgoing=outgoing,
        )
    assert model.api_base is not None, "only protocol litellm goes without"
    http = EngineHttp(model.name, model.api_base, api_key=api_key, deadlines=deadlines, outgoing=outgoing)
    if model.protocol == "tgi":
        from gateway.engines.tgi import TGIEngine

        return TGIEngine(
            model.name,
            http,
            model=model.model,
            continuation=model.continuation,
            echo=echo,
            max_concurrency=model.max_concurrency,
            max_guidance_tokens=lambda: policies.policy_set.max_guidance_tokens(model.name),
        )
    return OpenAIEngine(
        model.name,
        model.model,
        http,
        continuation=model.continuation,
        echo=echo,
        only_embeds=lambda: policies.policy_set.only_embeds(model.name),
    )
