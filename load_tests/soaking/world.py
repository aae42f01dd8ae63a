"""The system under test: two gateways with one Redis, one usage database, and engines that fail in many ways."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import urllib.request
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from redis.asyncio import Redis
from ruamel.yaml import YAML

from gateway.local.redis import EmbeddedRedis
from load_tests.children import ChildProcess, free_ports
from load_tests.soaking.slow_engine import SlowEngine
from tests.fakes import FakeEngine
from tests.fault_engine import FaultEngine
from tests.faults import PLAYS
from tests.gateway_process import STUDENT_ONLY, TEACHER_ONLY, guided, model, sha256, write_policy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

PREFIX = "soak"
ADMIN_KEY = "gk-soak-of-the-operator"
NAMES = ("one", "two")
RECEIPT_TTL_S = 60.0
DATABASE = "usage.db"
ODD = ("reset-between", "closed-halfway", "stall-between", "status-429", "html-502", "no-end")
"""Faults of `tests/faults.py` that have an engine and a route each."""

_ROOT = Path(__file__).parents[2]
_START_WITHIN_S = 180.0  # imports are slow on a busy machine
_SHORT = {"connect": "500ms", "first_token": "500ms", "idle": "500ms", "total": "2s"}
_CALM = {"failures": 5, "cooldown": "100ms"}
_TEACHER = """
model: teacher
dialect: tgi
prefill: {fixed: 2ms}
decode: {fixed: 1ms, per_sequence: 0.1ms}
seed: 1
faults: {fail_424: 0.03, hang: 0.02, break_off: 0.02}
"""
_STUDENT = """
model: student
dialect: openai
answer_tokens: [10, 40]
seed: 2
faults: {fail_500: 0.02, hang: 0.01, break_off: 0.02}
"""


def key(tenant: str, name: str) -> str:
    """Return a caller's key."""
    return f"gk-soak-{tenant}-{name}"


@dataclass(frozen=True, slots=True)
class SoakGateway:
    """A gateway process."""

    name: str
    url: str
    admin_url: str
    child: ChildProcess
    log: Path
    pid: int


class SoakEngine:
    """A modelled engine in a process that can die and restart at the same address."""

    def __init__(self, name: str, profile: str, folder: Path, for_s: float) -> None:
        self.name = name
        (self._port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        file = folder / f"{name}.yaml"
        file.write_text(profile)
        self._command = [sys.executable, "-m", "load_tests.fake_engine", "--profile", str(file)]
        self._command += ["--port", str(self._port), "--for", f"{for_s:.0f}"]
        self._child: ChildProcess | None = None

    def start(self) -> None:
        """Start, and wait until it answers. Raises NotStarted."""
        self._child = ChildProcess(self.name, self._command, self._folder / f"{self.name}.log", _ENVIRON)
        self._child.wait_until(lambda: _get(f"{self.url}/stats"), _START_WITHIN_S)

    def die(self) -> None:
        """Kill the process with SIGKILL."""
        if self._child is not None:
            for pid in self._child.pids():
                os.kill(pid, signal.SIGKILL)
        self.end()

    def end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


@dataclass
class World:
    """The running system."""

    folder: Path
    server: EmbeddedRedis
    redis: Redis
    gateways: tuple[SoakGateway, ...]
    engines: Mapping[str, SoakEngine]
    slow: SlowEngine
    local_engines: tuple[FakeEngine | FaultEngine, ...]

    @property
    def policies(self) -> Path:
        return self.folder / "policies"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def database(self) -> Path:
        return self.folder / DATABASE

    def forget(self) -> None:
        """Delete the recorded requests of engines in this process, so that its memory stays bounded."""
        for engine in self.local_engines:
            engine.requests.clear()
            if isinstance(engine, FakeEngine):
                engine.paths.clear()
                engine.headers.clear()


@asynccontextmanager
async def running(folder: Path, modules: Mapping[str, str], for_s: float) -> AsyncIterator[World]:
    """Run the system for the duration of the block. Raises NotStarted.

    Args:
        modules: by gateway, the module for `python -m`.
        for_s: time limit of engines.
    """
    (folder / "policies").mkdir()
    for tenant, content in policies().items():
        write_policy(folder / "policies" / f"{tenant}.yaml", content)
    async with AsyncExitStack() as later:
        stack = later.enter_context(ExitStack())
        server = await later.enter_async_context(EmbeddedRedis(append_fsync="everysec"))
        redis = await later.enter_async_context(Redis.from_url(server.url))
        slow = SlowEngine()
        local_engines = stack.enter_context(slow.engine.running()), stack.enter_context(FaultEngine(PLAYS).running())
        engines = {
            "big": SoakEngine("big", _TEACHER, folder, for_s),
            "small": SoakEngine("small", _STUDENT, folder, for_s),
        }
        for engine in engines.values():
            stack.callback(engine.end)
            await asyncio.to_thread(engine.start)
        models = _models(engines, *local_engines)
        started = []
        for name, module in modules.items():
            started.append(_Start(folder, name, server.url, models, module))
            stack.callback(started[-1].child.end)
        gateways = [await asyncio.to_thread(one.gateway) for one in started]
        yield World(folder, server, redis, tuple(gateways), engines, slow, local_engines)


_ENVIRON = {"PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1"}


class _Start:
    """A gateway during its start. Both gateways start at the same time."""

    def __init__(self, folder: Path, name: str, redis_url: str, models: list[dict[str, Any]], module: str) -> None:
        self._name, self._ports = name, free_ports(2)
        self._log = folder / f"gateway-{name}.log"
        config = {
            "server": {"host": "127.0.0.1", "port": self._ports[0]},
            "admin": {"port": self._ports[1], "key": "env:SOAK_ADMIN_KEY"},
            "redis": {"url": redis_url, "prefix": PREFIX},
            # With a retention of a day, the number of receipts would grow during the whole run.
            "receipts": {"ttl": f"{RECEIPT_TTL_S:.0f}s"},
            "usage": {"url": f"sqlite:///{folder / DATABASE}", "run": "host"},
            "log": {"format": "json", "requests": {"sample": 0.01}},
            "data": str(folder / "data"),
            "policies": str(folder / "policies"),
            "models": models,
        }
        file = folder / f"{name}.config.yaml"
        YAML().dump(config, file)
        command = [sys.executable, "-m", module, "serve", "--config", str(file)]
        self.child = ChildProcess(f"gateway {name}", command, self._log, {**_ENVIRON, "SOAK_ADMIN_KEY": ADMIN_KEY})

    def gateway(self) -> SoakGateway:
        """Wait until the gateway has probed its engines. Raises NotStarted."""
        url, admin_url = (f"http://127.0.0.1:{port}" for port in self._ports)
        self.child.wait_until(
            lambda: orjson.loads(_get(f"{admin_url}/readyz"))["status"] != "starting", _START_WITHIN_S
        )
        return SoakGateway(self._name, url, admin_url, self.child, self._log, self.child.main_pid())


def _models(engines: Mapping[str, SoakEngine], slow: FakeEngine, odd: FaultEngine) -> list[dict[str, Any]]:
    student = {"continuation": "trailing", "echo": False, "timeouts": _SHORT, "breaker": _CALM}
    batch = {"max_size": 4, "low_water": 2}
    return [
        model("big", "tgi", engines["big"].url, max_concurrency=8, batch=batch, timeouts=_SHORT, breaker=_CALM),
        model("small", "openai", f"{engines['small'].url}/v1", **student),
        model("slow", "openai", f"{slow.url}/v1", continuation="none"),
        *(model(fault, "openai", odd.base(f"openai/{fault}/soak"), **student) for fault in ODD),
    ]


def routes() -> list[dict[str, Any]]:
    """Return the routes of each tenant."""
    guidance: dict[str, Any] = {"tokens": 8, "deadline": "300ms", "cache_ttl": "20s"}
    return [
        guided(**guidance) | {"quality": {"sample": 0.05, "max_in_flight": 2}},
        STUDENT_ONLY,
        TEACHER_ONLY,
        {"model": "shadowed", "mode": "shadow", "shadow": {"serves": "student"}, "teacher": "big", "student": "small",
         "guidance": guidance},
        {"model": "vectors", "mode": "embeddings", "student": "slow"},
        {"model": "slow", "mode": "student", "student": "slow"},
        {"model": "spared", "mode": "student", "students": [ODD[0], "small"]},
        *({"model": fault, "mode": "student", "student": fault} for fault in ODD),
    ]  # fmt: skip


def policies() -> dict[str, dict[str, Any]]:
    """Return the initial policy of each tenant. Budgets are rolling, so no amount expires within a month."""
    budget = {"budget_duration": "30d", "calendar_aligned": False}
    return {
        "acme": policy("acme", "main", "leaver", "hasty")
        | {"budget": {"max_budget": 10_000, **budget}, "key_budget": {"max_budget": 5_000, **budget}},
        "globex": policy("globex", "main")
        | {"limits": {"rpm_limit": 90, "max_parallel_requests": 4}, "on_redis_failure": "reject",
           "budget": {"max_budget": 10_000, **budget}},
        "initech": policy("initech", "main")
        | {"budget": {"max_budget": 0.004, "soft_budget": 0.002, "on_soft": "shorten", **budget}},
    }  # fmt: skip


def policy(tenant: str, *names: str, **more: Any) -> dict[str, Any]:
    """Return the content of a policy file: a tenant with keys."""
    keys = [{"id": name, "sha256": sha256(key(tenant, name))} for name in names]
    return {"tenant": tenant, "keys": keys, "routes": routes(), **more}


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as reply:
        raw: bytes = reply.read()
    return raw
