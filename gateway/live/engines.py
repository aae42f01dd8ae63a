"""Build, probe, replace and close the engines of config.yaml while requests run.

A request uses the engine set of its start until its end (accounting/engine_set.py). An edit creates a new set. Engines
whose settings did not change are in both sets, with their connections, circuit breakers, cooldowns and queues. Other
engines are new: they are probed before a request uses them, as at the start of the gateway. An engine that is in no
current set is closed when the last request with an earlier set has ended.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from gateway import wiring
from gateway.accounting.engine_set import CurrentEngines, EngineSet, encoding_of
from gateway.accounting.estimate import load
from gateway.config.changes import ModelChanges, is_same_engine
from gateway.engines.build import build
from gateway.engines.watch import wait_until_probed, watch
from gateway.telemetry.engine_figures import BREAKER_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gateway.batching.batcher import Batcher
    from gateway.batching.ticket import TeacherLimits
    from gateway.config.models import ModelSettings
    from gateway.engines.guard import GuardedEngine
    from gateway.engines.retry_budget import RetryBudgets
    from gateway.policy.book import PolicySet
    from gateway.policy.policies import Policies
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics
    from gateway.telemetry.tracing import Tracing

    LimitsOf = Callable[[str], Callable[[], TeacherLimits]]

log = structlog.get_logger()

FIRST_PROBE_S = 5.0
"""An engine that does not answer its first probe delays an edit by no more than this."""
_GAUGE_INTERVAL_S = 0.5


@dataclass(slots=True)
class _Probing:
    """The task that probes an engine."""

    task: asyncio.Task[None]
    now: asyncio.Event  # set it to probe at once
    only_embeds: bool  # the purpose of the engine, for which it was probed last


class LiveEngines:
    """The engines of the process.

    Attributes:
        engines: the set for new requests.
        policy_set: the policies for which engines are probed. During an edit, these are the policies of the edit.
    """

    def __init__(
        self,
        policies: Policies,
        metrics: Metrics,
        tasks: BackgroundTasks,
        tracing: Tracing | None,
        retry_budgets: RetryBudgets,
        first_probe_s: float = FIRST_PROBE_S,
    ) -> None:
        self.engines, self.policy_set = CurrentEngines(EngineSet({})), policies.policy_set
        self._metrics, self._tasks, self._tracing = metrics, tasks, tracing
        self._retry_budgets, self._first_probe_s = retry_budgets, first_probe_s
        self._open: list[GuardedEngine] = []  # current engines, and engines of requests that began with them
        self._former: list[EngineSet] = []  # earlier sets that requests use
        self._probing: dict[GuardedEngine, _Probing] = {}
        self._editing = asyncio.Lock()
        self._unused = asyncio.Event()  # a former set may have lost its last request
        self._batcher: Batcher
        self._limits_of: LimitsOf
        policies.on_change(self._follow_policies)

    async def open(self, models: Sequence[ModelSettings]) -> None:
        """Build the engines without calling them."""
        built = await self._build(models)
        self.engines.engine_set = EngineSet.of(models, built)
        wiring.init_engine_series(self._metrics, built)

    def start(self, batcher: Batcher, limits_of: LimitsOf) -> None:
        """Start to probe the engines and to publish their calls. `limits_of` returns the limits of a new teacher."""
        self._batcher, self._limits_of = batcher, limits_of
        for engine in self._open:
            self._probe(engine)
        self._tasks.keep("calls", self._publish())
        self._tasks.keep("former_engines", self._close_former())

    async def close(self) -> None:
        """Close all engines."""
        for engine in self._open:
            await engine.close()

    async def apply(
        self, models: Sequence[ModelSettings], policy_set: PolicySet, commit: Callable[[], None]
    ) -> ModelChanges:
        """Build and probe the changed engines. Then put them into effect, and call `commit`, in one step.

        An engine that is down is used, as at the start of the gateway. Raises StartupError if an engine cannot be
        built. Then the edit has no effect.
        """
        async with self._editing:
            before = self.engines.engine_set
            changes = ModelChanges.between(before.models, models)
            if list(before.models) == [model.name for model in models] and not changes.changed:
                commit()
                return changes
            in_effect, self.policy_set = self.policy_set, policy_set
            try:
                built = await self._build([model for model in models if not _keeps_engine(before, model)])
                for engine in built.values():
                    self._probe(engine)
                await wait_until_probed(built.values(), self._first_probe_s)
            except BaseException:
                self.policy_set = in_effect
                self._unused.set()  # to close the engines of the edit
                raise
            self._replace(before, EngineSet.of(models, {**before.by_name, **built}), changes)
            commit()
            return changes

    async def _build(self, models: Sequence[ModelSettings]) -> dict[str, GuardedEngine]:
        built = await build(models, self, self._metrics, self._tracing, self._retry_budgets)
        self._open += built.values()
        # Loading some tokenizers blocks all threads for tenths of a second, so requests must not load them.
        encodings = map(encoding_of, models)
        await asyncio.to_thread(load, [encoding.name for encoding in encodings if encoding.own])
        return built

    def _replace(self, before: EngineSet, after: EngineSet, changes: ModelChanges) -> None:
        """Put a set into effect for new requests."""
        self.engines.engine_set = after
        before.on_unused = self._unused.set
        self._former.append(before)
        self._unused.set()
        for engine in self._probing.keys() - set(after.by_name.values()):
            self._probing.pop(engine).task.cancel()
        wiring.init_engine_series(self._metrics, changes.added)
        for name in changes.added:
            self._batcher.add(name, self._limits_of(name))
        self._update_limits()

    def _probe(self, engine: GuardedEngine) -> None:
        """Start to probe an engine."""
        now = asyncio.Event()
        engine.on_lost(now.set)
        probing = watch(engine, self._metrics, probe_now=now)
        task = self._tasks.keep(f"engine:{engine.name}", probing)
        self._probing[engine] = _Probing(task, now, self.policy_set.only_embeds(engine.name))

    def _follow_policies(self, policy_set: PolicySet) -> None:
        """Probe each engine again that serves only embeddings since the edit, or no longer does."""
        self.policy_set = policy_set
        for engine, probing in self._probing.items():
            if (only_embeds := policy_set.only_embeds(engine.name)) != probing.only_embeds:
                probing.only_embeds = only_embeds
                probing.now.set()

    async def _publish(self) -> None:
        """Publish the calls and the breaker of each engine, and update its limit, until canceled."""
        metrics = self._metrics
        while True:
            self._update_limits()
            for name, engines in self._open_by_name().items():
                metrics.engine_in_flight.labels(name).set(sum(one.calls for one in engines))
                metrics.engine_waiting.labels(name).set(sum(one.waiting for one in engines))
                metrics.engine_breaker.labels(name).set(BREAKER_STATES.index(engines[-1].breaker))
                metrics.engine_paused_tenants.labels(name).set(engines[-1].paused_tenants)
            await asyncio.sleep(_GAUGE_INTERVAL_S)

    def _update_limits(self) -> None:
        """Update the limit of each engine on its calls.

        Calls that began before an edit are calls of the same server, unless the edit changed its address.
        """
        named, processes = self._open_by_name(), self._batcher.processes()
        for name, engine in self.engines.engine_set.by_name.items():
            others = [one for one in named[name] if one is not engine and one.state.address == engine.state.address]
            engine.update_limit(processes, sum(one.calls for one in others))

    def _open_by_name(self) -> Mapping[str, Sequence[GuardedEngine]]:
        """Return the open engines by name, the newest of a name last."""
        named = defaultdict[str, list["GuardedEngine"]](list)
        for engine in self._open:
            named[engine.name].append(engine)
        return named

    async def _close_former(self) -> None:
        """Close engines, and leave the queues of removed teachers, when no request uses them; until canceled."""
        while True:
            await self._unused.wait()
            self._unused.clear()
            async with self._editing:
                await self._close_unused()

    async def _close_unused(self) -> None:
        self._former = [one for one in self._former if one.is_used]
        used = [self.engines.engine_set, *self._former]
        engines = {engine for one in used for engine in one.by_name.values()}
        names = {name for one in used for name in one.by_name}
        for engine in [one for one in self._open if one not in engines]:
            await self._close(engine)
            if engine.name not in names:
                with _continuing("teacher_not_removed", engine.name):
                    await self._batcher.remove(engine.name)
                self._metrics.remove_engine(engine.name)

    async def _close(self, engine: GuardedEngine) -> None:
        if (probing := self._probing.pop(engine, None)) is not None:
            probing.task.cancel()
        with _continuing("engine_not_closed", engine.name):
            await engine.close()
            log.info("engine_closed", engine=engine.name)
        self._open.remove(engine)


@contextmanager
def _continuing(event: str, engine: str) -> Iterator[None]:
    """Log any error of the block, and continue to close other engines."""
    try:
        yield
    except Exception:
        log.exception(event, engine=engine)


def _keeps_engine(engine_set: EngineSet, model: ModelSettings) -> bool:
    """Return whether the engine of the set serves the model with these settings."""
    before = engine_set.models.get(model.name)
    return before is not None and is_same_engine(before, model)
