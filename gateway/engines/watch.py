"""Probe engines in the background. The gateway starts, and stays ready, without engines."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from gateway.engines.failures import cause_of
from gateway.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.engines.base import Engine
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class ProbeInterval:
    """The intervals between probes in seconds."""

    up_s: float = 30.0  # while the engine is up
    first_retry_s: float = 0.5  # after the first failed probe. The interval doubles after each failure.
    max_retry_s: float = 10.0  # the upper bound on the interval after failures


async def watch(
    engine: Engine,
    metrics: Metrics,
    interval: ProbeInterval = ProbeInterval(),
    probe_now: asyncio.Event | None = None,
) -> None:
    """Probe an engine until canceled. `probe_now` ends the wait between two probes; the watch clears the event."""
    probe_now = probe_now or asyncio.Event()
    retry_s = interval.first_retry_s
    while True:
        state = engine.state
        was_up, warned = state.up, list(state.warnings)
        try:
            await engine.probe()
            state.up, state.detail = True, "answers" if state.called else "not called yet"
            state.problem = None
        except EngineError as error:
            state.up, state.detail = False, f"{error.message} {cause_of(error) or ''}".rstrip()
            state.problem = "engine_asleep" if state.asleep else error.label
        except Exception:
            # Continue after any error: without probes the recovery of the engine would not be noticed.
            log.exception("probe_failed", engine=engine.name)
            state.up, state.detail = False, "the probe failed with an internal error; see the log event probe_failed"
            state.problem = "internal"
        wait_s = interval.up_s if state.up else retry_s
        retry_s = interval.first_retry_s if state.up else min(interval.max_retry_s, retry_s * 2)
        metrics.engine_up.labels(engine.name).set(int(state.up))
        if state.up != was_up:
            state.since = time.time()
            log.log(20 if state.up else 30, "engine", engine=engine.name, up=state.up, detail=state.detail)
        for warning in state.warnings:
            if warning not in warned:
                log.warning("engine_differs", engine=engine.name, warning=warning)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await probe_now.wait()
        probe_now.clear()


async def wait_until_probed(engines: Iterable[Engine], within_s: float) -> None:
    """Wait until each engine was probed once, whether or not it is up, for at most `within_s`."""
    engines, loop = list(engines), asyncio.get_running_loop()
    give_up = loop.time() + within_s
    while any(engine.state.up is None for engine in engines) and loop.time() < give_up:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)
