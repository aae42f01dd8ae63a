"""Build the engines of config.yaml, probe them, and publish their calls and limits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.accounting.engine_set import EngineSet, encoding_of
from gateway.accounting.estimate import load
from gateway.engines.build import build
from gateway.engines.watch import watch
from gateway.telemetry.engine_figures import BREAKER_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.config.models import ModelSettings
    from gateway.engines.guard import GuardedEngine
    from gateway.engines.retry_budget import RetryBudgets
    from gateway.policy.book import PolicySet
    from gateway.policy.policies import Policies
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics
    from gateway.telemetry.tracing import Tracing

_PUBLISH_INTERVAL_S = 0.5


class EngineUpkeep:
    """The engines of the process, with the tasks that probe them.

    Attributes:
        policy_set: the policies for which engines are probed.
        engine_set: the engines, after `open`.
    """

    engine_set: EngineSet

    def __init__(self, policies: Policies, metrics: Metrics, tasks: BackgroundTasks) -> None:
        self.policy_set = policies.policy_set
        self._metrics, self._tasks = metrics, tasks
        self._engines: list[GuardedEngine] = []
        self._only_embed: dict[str, bool] = {}  # the purpose for which each engine was probed last
        self._probe_now: dict[str, asyncio.Event] = {}
        policies.on_change(self._follow_policies)

    async def open(
        self, models: Sequence[ModelSettings], tracing: Tracing | None, retry_budgets: RetryBudgets
    ) -> EngineSet:
        """Build the engines without calling them. Raises StartupError if an optional package is missing."""
        built = await build(models, self, self._metrics, tracing, retry_budgets)
        self._engines = list(built.values())
        # Loading some tokenizers blocks all threads for tenths of a second, so requests must not load them.
        encodings = map(encoding_of, models)
        await asyncio.to_thread(load, [encoding.name for encoding in encodings if encoding.own])
        self.engine_set = EngineSet.of(models, built)
        return self.engine_set

    def start(self, processes: Callable[[], int]) -> None:
        """Start to probe the engines and to publish their calls.

        `processes` returns the number of gateway processes, which share the limits of the engines.
        """
        for engine in self._engines:
            self._only_embed[engine.name] = self.policy_set.only_embeds(engine.name)
            self._probe_now[engine.name] = now = asyncio.Event()
            engine.on_lost(now.set)
            probing = watch(engine, self._metrics, probe_now=now)
            self._tasks.keep(f"engine:{engine.name}", probing)
        self._tasks.keep("calls", self._publish(processes))

    async def close(self) -> None:
        """Close all engines."""
        for engine in self._engines:
            await engine.close()

    def _follow_policies(self, policy_set: PolicySet) -> None:
        """Probe each engine again that serves only embeddings since the edit, or no longer does."""
        self.policy_set = policy_set
        for name, probe_now in self._probe_now.items():
            if (only_embeds := policy_set.only_embeds(name)) != self._only_embed[name]:
                self._only_embed[name] = only_embeds
                probe_now.set()

    async def _publish(self, processes: Callable[[], int]) -> None:
        """Publish the calls and the breaker of each engine, and update its limit, until canceled."""
        metrics = self._metrics
        while True:
            for engine in self._engines:
                engine.update_limit(processes())
                metrics.engine_in_flight.labels(engine.name).set(engine.calls)
                metrics.engine_waiting.labels(engine.name).set(engine.waiting)
                metrics.engine_breaker.labels(engine.name).set(BREAKER_STATES.index(engine.breaker))
                metrics.engine_paused_tenants.labels(engine.name).set(engine.paused_tenants)
            await asyncio.sleep(_PUBLISH_INTERVAL_S)
