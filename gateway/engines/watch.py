"""Looks after one engine in the background. The gateway starts, and stays ready, without its engines."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from gateway.engines.failures import cause_of
from gateway.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.engines.base import Engine
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ProbeInterval:
    """Seconds between two probes: of an engine that is up, and, doubling from first to last, of one that is not."""

    look_every_s: float = 30.0
    first_retry_s: float = 0.5
    last_retry_s: float = 10.0


async def watch(
    engine: Engine,
    metrics: Metrics,
    pace: ProbeInterval = ProbeInterval(),
    at_once: asyncio.Event | None = None,
    saw: Callable[[str, bool], None] | None = None,
) -> None:
    """Probe for ever; without waiting when `at_once` is set, which is then cleared.

    `saw` hears after each probe of which engine it was, and whether that is up.
    """
    at_once = at_once or asyncio.Event()
    retry_s = pace.first_retry_s
    while True:
        state = engine.state
        was_up, warned = state.up, list(state.warnings)
        try:
            await engine.probe()
        except EngineError as error:
            state.up, state.detail = False, f"{error.message} {cause_of(error) or ''}".rstrip()
            wait_s, retry_s = retry_s, min(pace.last_retry_s, retry_s * 2)
        except Exception:
            # Whatever it is, the watch lives on: nobody else would see the engine come back.
            log.exception("probe_broke", engine=engine.name)
            state.up, state.detail = False, "the probe broke; the log says how"
            wait_s, retry_s = retry_s, min(pace.last_retry_s, retry_s * 2)
        else:
            state.up, state.detail = True, "answers" if state.called else "not called yet"
            wait_s, retry_s = pace.look_every_s, pace.first_retry_s
        metrics.engine_up.labels(engine.name).set(int(state.up))
        if saw is not None:
            saw(engine.name, state.up)
        if state.up != was_up:
            log.log(20 if state.up else 30, "engine", engine=engine.name, up=state.up, detail=state.detail)
        for warning in state.warnings:
            if warning not in warned:
                log.warning("engine_differs", engine=engine.name, warning=warning)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await at_once.wait()
        at_once.clear()
