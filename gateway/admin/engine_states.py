"""The state of each engine over all workers, so that the dashboard does not depend on the worker that answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from gateway.api.keys import ENGINES, METRICS
from gateway.telemetry.engine_figures import BREAKER_STATES, EngineFigures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web


class SharedEngineState(NamedTuple):
    """The state of an engine: whether a probe of some worker failed, and the highest state of all circuit breakers.

    `is_down_here` is the part of this worker.
    """

    is_down: bool
    is_down_here: bool
    breaker: str

    @property
    def is_open(self) -> bool:
        """Return whether the circuit breaker of some worker refuses calls."""
        return self.breaker == "open"


async def engine_states(app: web.Application) -> Mapping[str, SharedEngineState]:
    """Return the state of each engine."""
    fleet = await asyncio.to_thread(app[METRICS].engine_figures)
    states = {}
    for name, engine in app[ENGINES].by_name.items():
        of_all, is_down = fleet.get(name, EngineFigures()), engine.state.up is False
        breaker = max(engine.breaker, of_all.breaker, key=BREAKER_STATES.index)
        states[name] = SharedEngineState(is_down or of_all.is_down, is_down, breaker)
    return states
