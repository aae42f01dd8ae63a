"""Disturb Redis, engines and policies in turn, repeatedly."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from gateway.local import ChildFailed
from load_tests.children import NotStarted
from load_tests.soaking.traffic import stopped
from load_tests.soaking.world import policies, policy
from tests.gateway_process import write_policy
from tests.redis_faults import paused

if TYPE_CHECKING:
    from load_tests.soaking.world import World


class Disturbances:
    """Args:
    gap_s: seconds between two disturbances.
    lasts_s: duration of an outage of an engine or Redis. It must be shorter than a process's lease, or the other
        process would rightly consider it dead.
    """

    def __init__(self, world: World, gap_s: float, lasts_s: float) -> None:
        self.met: Counter[str] = Counter()
        self.broke: str | None = None
        self._world = world
        self._gap_s = gap_s
        self._lasts_s = lasts_s
        self._edits = itertools.count(1)
        self._restarts = itertools.count()

    async def run(self, stop: asyncio.Event) -> None:
        """Disturb until `stop` is set. Repair an unfinished disturbance first.

        If the repair fails, `broke` has the error, and nothing more is done.
        """
        acts = {
            "Redis stands still": self._pause_redis,
            "policies edited": self._edit,
            "the teacher dies": self._kill_teacher,
            "a tenant comes or goes": self._visitor,
            "Redis restarts": self._restart_redis,
            "a broken edit": self._break_policies,
            "the student dies": self._kill_student,
        }
        for name, act in itertools.cycle(acts.items()):
            if await stopped(stop, self._gap_s):
                return
            try:
                await act()
            except (NotStarted, ChildFailed, RedisError, OSError) as error:
                self.broke = f"{name}, and the repair failed: {error}"
                return
            self.met[name] += 1

    async def _pause_redis(self) -> None:
        async with paused(self._world.server.url):
            await asyncio.sleep(self._lasts_s)

    async def _restart_redis(self) -> None:
        """Kill Redis every second time: only its append-only file remains."""
        if next(self._restarts) % 2:
            pid = (await self._world.redis.info("server"))["process_id"]
            os.kill(pid, signal.SIGKILL)
        await self._world.server.stop()
        await asyncio.sleep(self._lasts_s / 2)
        await self._world.server.start()

    async def _kill_teacher(self) -> None:
        await self._kill("big")

    async def _kill_student(self) -> None:
        await self._kill("small")

    async def _kill(self, name: str) -> None:
        engine = self._world.engines[name]
        await asyncio.to_thread(engine.die)
        await asyncio.sleep(self._lasts_s)
        await asyncio.to_thread(engine.start)

    async def _edit(self) -> None:
        """Change a route in the file of the busiest tenant, in turn."""
        content = policies()["acme"]
        route = {"model": f"edit-{next(self._edits)}", "mode": "student", "student": "small"}
        content["routes"] = [*content["routes"], route]
        write_policy(self._world.policies / "acme.yaml", content)

    async def _visitor(self) -> None:
        file = self._world.policies / "visitor.yaml"
        if file.exists():
            file.unlink()
        else:
            write_policy(file, policy("visitor", "main"))

    async def _break_policies(self) -> None:
        """Write an invalid policy file: the previous policies stay in effect."""
        file = self._world.policies / "broken.yaml"
        file.write_text("tenant: broken\nroutes: [\n")
        await asyncio.sleep(self._lasts_s)
        with suppress(FileNotFoundError):
            file.unlink()
