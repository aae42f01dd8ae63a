"""Sample the gateways' processes, Redis, and the times of ordinary answers."""

from __future__ import annotations

import asyncio
import re
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
from redis.exceptions import RedisError

from load_tests import proc
from load_tests.soaking.flatness import Measure, Trend, trend
from load_tests.soaking.traffic import stopped
from load_tests.soaking.world import RECEIPT_TTL_S

if TYPE_CHECKING:
    from load_tests.soaking.world import SoakGateway, World

_SETTLED_S = 1.5 * RECEIPT_TTL_S
MEMORY = Measure("resident memory", "MB", 1e6, part=0.05, plus=3e6)
FILES = Measure("open files", "", 1, part=0.1, plus=8)
TASKS = Measure("tasks", "", 1, part=0.1, plus=8)
THREADS = Measure("threads", "", 1, part=0, plus=4)
REDIS_MEMORY = Measure("memory", "MB", 1e6, part=0.1, plus=1e6, settles_s=_SETTLED_S)
REDIS_KEYS = Measure("keys", "", 1, part=0.1, plus=50, settles_s=_SETTLED_S)
P50 = Measure("p50", "ms", 1e-3, part=0.5, plus=0.010, settles_s=120)
P95 = Measure("p95", "ms", 1e-3, part=1.0, plus=0.050, settles_s=120)

_TASKS = re.compile(rb"^gkt_process_tasks\{[^}]*\} (\S+)$", re.MULTILINE)


class Minute(NamedTuple):
    """An interval of the run, a minute if the run is long enough. Times of ordinary answers are in seconds."""

    at_s: float
    answers: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    redis_bytes: int | None = None
    redis_keys: int | None = None


class Sampler:
    """Args:
    every_s: interval between samples of the processes.
    minute_s: length of a `Minute`.
    """

    def __init__(self, world: World, every_s: float, minute_s: float) -> None:
        self.minutes: list[Minute] = []
        self.gone: str | None = None
        self._world = world
        self._every_s = every_s
        self._minute_s = minute_s
        self._samples: dict[tuple[Measure, str], list[tuple[float, float]]] = defaultdict(list)
        self._took: list[float] = []

    def took(self, seconds: float) -> None:
        """Record an ordinary answer."""
        self._took.append(seconds)

    async def run(self, stop: asyncio.Event) -> None:
        """Sample until `stop` is set. A missing gateway ends the run."""
        began = asyncio.get_running_loop().time()
        minute_ends = self._minute_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session:
            while not await stopped(stop, self._every_s):
                now = asyncio.get_running_loop().time() - began
                await asyncio.gather(*(self._sample(session, gateway, now) for gateway in self._world.gateways))
                if self.gone is not None:
                    stop.set()
                if now >= minute_ends:
                    minute_ends += self._minute_s
                    await self._end_minute(now)

    async def _sample(self, session: aiohttp.ClientSession, gateway: SoakGateway, now: float) -> None:
        resident = proc.rss_bytes(gateway.pid)
        if not resident:
            self.gone = gateway.name
            return
        seen = {MEMORY: resident, FILES: proc.open_files(gateway.pid), THREADS: proc.threads(gateway.pid)}
        try:
            async with session.get(f"{gateway.admin_url}/metrics") as reply:
                tasks = _TASKS.search(await reply.read())
        except (aiohttp.ClientError, TimeoutError):
            tasks = None  # the gateway is busy; the other figures come from the kernel
        if tasks is not None:
            seen[TASKS] = int(float(tasks[1]))
        for measure, value in seen.items():
            self._samples[measure, gateway.name].append((now, value))

    async def _end_minute(self, now: float) -> None:
        self._world.forget()
        took, self._took = self._took, []
        p50 = p95 = p99 = None
        if len(took) > 1:
            cuts = statistics.quantiles(took, n=100, method="inclusive")
            p50, p95, p99 = cuts[49], cuts[94], cuts[98]
            self._samples[P50, "ordinary answers"].append((now, p50))
            self._samples[P95, "ordinary answers"].append((now, p95))
        minute = Minute(now, len(took), p50, p95, p99)
        try:
            minute = minute._replace(**await self._redis())
        except (RedisError, OSError):
            pass  # a disturbance of Redis
        else:
            assert minute.redis_bytes is not None
            assert minute.redis_keys is not None
            self._samples[REDIS_MEMORY, "Redis"].append((now, minute.redis_bytes))
            self._samples[REDIS_KEYS, "Redis"].append((now, minute.redis_keys))
        self.minutes.append(minute)

    async def _redis(self) -> dict[str, int]:
        """Return its memory and keys."""
        async with self._world.redis.pipeline(transaction=False) as pipe:
            pipe.info("memory")
            pipe.dbsize()
            info, keys = await pipe.execute()
        return {"redis_bytes": info["used_memory"], "redis_keys": keys}

    def trends(self, warm_up_s: float) -> list[Trend]:
        """Return the trend of each measure."""
        return [trend(measure, of, samples, warm_up_s) for (measure, of), samples in self._samples.items()]
