"""A gateway of two workers before engines that fail, under load, and a real Prometheus that scrapes it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from ruamel.yaml import YAML

from gateway.accounting.receipt import Receipt
from load_tests.children import free_ports
from load_tests.engine_process import fake_engine
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, TEACHER_ONLY, GatewayProcess, guided, model
from tests.gateway_process import running_gateway as running
from tests.installed import program
from tests.readiness import detail, wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEPLOY = Path(__file__).parents[1] / "deploy"
PREFIX = "under-prometheus"
LIMIT_S = 30.0
_SCRAPE_S = 1.0
_CALLERS = 12
_REQUESTS = 150

_TEACHER = """
model: teacher
dialect: tgi
prefill: {fixed: 2ms}
decode: {fixed: 1ms, per_sequence: 0.1ms}
seed: 1
faults: {fail_424: 0.5, hang: 0.1, break_off: 0.05}
"""
_STUDENT = """
model: student
dialect: openai
answer_tokens: [20, 60]
seed: 2
faults: {fail_500: 0.1}
"""
_SHORT = {"connect": "500ms", "first_token": "500ms", "idle": "500ms", "total": "1s"}
_SHORT_COOLDOWN = {"cooldown": "50ms"}
"""The teacher fails so often that cooldowns of up to 30 s would outlast several loads."""
_HUNG = """
model: hung
dialect: openai
faults: {hang: 1.0}
"""


def until(true: Callable[[], object], what: object, limit_s: float = LIMIT_S) -> None:
    give_up = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


@contextmanager
def faulty_gateway(folder: Path, redis_url: str) -> Iterator[GatewayProcess]:
    """Run two workers before four engines, of which one is unreachable, with a budgeted and a limited tenant."""
    profiles = {}
    for name, text in (("teacher", _TEACHER), ("student", _STUDENT), ("hung", _HUNG)):
        profiles[name] = folder / f"{name}.yaml"
        profiles[name].write_text(text)
    with (
        fake_engine(profiles["teacher"]) as teacher,
        fake_engine(profiles["student"]) as student,
        fake_engine(profiles["hung"]) as hung,
        running(
            folder / "gateway",
            usage={"run": "host"},
            models=[
                # So few at a time, and so many that hang, that tickets expire in its queue.
                model("big", "tgi", teacher, max_concurrency=3, batch={"max_size": 2, "low_water": 1}, timeouts=_SHORT)
                | {"breaker": _SHORT_COOLDOWN},
                model("small", "openai", f"{student}/v1", continuation="trailing", timeouts=_SHORT),
                model("gone", "openai", f"http://127.0.0.1:{free_ports(1)[0]}/v1"),
                model("hung", "openai", f"{hung}/v1", continuation="none"),
            ],
            routes=[
                guided(deadline="300ms", tokens=8) | {"quality": {"sample": 1, "max_in_flight": 4}},
                STUDENT_ONLY,
                TEACHER_ONLY,
                {"model": "hung", "mode": "student", "student": "hung"},
                {"model": "gone", "mode": "student", "student": "gone"},
                {
                    "model": "shadowed",
                    "mode": "shadow",
                    "shadow": {"serves": "student", "sample": 1},
                    "teacher": "big",
                    "student": "small",
                    "guidance": {"deadline": "300ms", "tokens": 8},
                },
            ],
            redis_url=redis_url,
            redis={"prefix": PREFIX, "lease": "2s"},
            server={"workers": 2},
            log={"requests": {"sample": 0.2}},
            tenants={"acme": {"budget": {"max_budget": 5}}, "globex": {"limits": {"rpm_limit": 4}}},
        ) as gateway,
    ):
        wait_until_looked_at(gateway.admin_url)
        yield gateway


async def load(gateway: GatewayProcess, part: int, statuses: dict[int, int]) -> None:
    """Send requests of every kind, some in each part. Count replies by status; 0 counts disconnects."""
    numbers = iter(range(part * _REQUESTS, (part + 1) * _REQUESTS))
    async with aiohttp.ClientSession(
        # Each on a connection of its own, so that both workers get some.
        connector=aiohttp.TCPConnector(force_close=True),
        timeout=aiohttp.ClientTimeout(30),
    ) as session:

        async def caller() -> None:
            for number in numbers:
                status = await _ask(session, gateway.url, number)
                statuses[status] = statuses.get(status, 0) + 1

        await asyncio.gather(*(caller() for _ in range(_CALLERS)))


async def _ask(session: aiohttp.ClientSession, url: str, number: int) -> int:
    route = ("chat", "chat", "chat", "chat-student", "chat-teacher", "shadowed")[number % 6]
    body: dict[str, Any] = {
        "model": route,
        # Two and two may share a call of the teacher's: with fewer calls, half of the load may meet no fault of it.
        "messages": [{"role": "user", "content": f"Write a story about {number // 2} ships."}],
        "max_tokens": 30,
        "stream": number % 4 == 0,
    }
    key, patience_s = KEY, 30.0
    match number % 30:
        case 7:
            key = "gk-of-nobody"
        case 8 | 14:
            key = OTHER_KEY
        case 13:
            body["model"] = "no-such-route"
        case 16 | 22 | 28:
            body["model"] = "gone"
        case 19:
            body["tools"] = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
        case 25:
            body["model"], patience_s = "hung", 0.2
    try:
        async with (
            asyncio.timeout(patience_s),
            session.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}) as reply,
        ):
            await reply.read()
            return reply.status
    except TimeoutError:
        return 0
    except aiohttp.ClientPayloadError:
        return reply.status


def samples_of(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Return the samples of a metric in an exposition, by labels."""
    families = text_string_to_metric_families(text)
    return [(one.labels, one.value) for family in families for one in family.samples if one.name == name]


def total(gateway: GatewayProcess, name: str) -> float:
    """Return the current value of a metric, summed over its labels."""
    return sum(value for _, value in samples_of(httpx.get(f"{gateway.admin_url}/metrics").text, name))


def kept_receipts(redis_url: str) -> list[Receipt]:
    """Return all receipts that Redis holds of the world's tenants."""
    with Redis.from_url(redis_url) as redis:
        names = list(redis.scan_iter(f"{{{PREFIX}:tenant:*}}:v1:receipt:*", count=1000))
        raws: Any = redis.mget(names) if names else []
    return [Receipt.from_json(raw) for raw in raws if raw is not None]


def settled(gateway: GatewayProcess, redis_url: str) -> list[Receipt]:
    """Return the receipts when every started request has ended and is counted and stored."""
    found: list[Receipt] = []

    def over() -> bool:
        nonlocal found
        quiet = not total(gateway, "gkt_in_flight") and not total(gateway, "gkt_receipts_waiting")
        found = kept_receipts(redis_url)
        return quiet and len(found) == total(gateway, "gkt_requests_total")

    until(over, "what is counted and what is kept do not become the same number")
    return found


def usd(receipts: list[Receipt], field: str) -> Decimal:
    return sum((getattr(receipt, field) for receipt in receipts), Decimal(0))


def kill_a_busy_worker(gateway: GatewayProcess) -> None:
    """Send SIGKILL to worker 1 while it holds requests. Another process settles them."""
    pids = {line["worker"]: line["pid"] for line in list(gateway.log) if line["event"] == "worker_ready"}

    async def hang() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT_S)) as session:

            async def one() -> None:
                body = {"model": "hung", "messages": [{"role": "user", "content": "Write."}]}
                headers = {"Authorization": f"Bearer {KEY}"}
                async with session.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers):
                    raise AssertionError("the engine hangs")

            asking: list[asyncio.Task[None]] = []
            give_up = time.monotonic() + LIMIT_S
            while True:
                assert time.monotonic() < give_up, "worker 1 gets no requests"
                asking.append(asyncio.get_running_loop().create_task(one()))
                await asyncio.sleep(0.1)
                seen = await asyncio.to_thread(detail, gateway.admin_url)
                if seen["worker"] == 1 and seen["in_flight"]:
                    break
            # Its intent goes out with the next exchange: it must be there before the process is gone.
            await asyncio.sleep(0.5)
            os.kill(pids[1], signal.SIGKILL)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    asyncio.run(hang())
    gateway.wait_for_log("worker_ended", worker=1)
    until(lambda: total(gateway, "gkt_intents_abandoned_total"), "nobody settles what the dead one held")


class Prometheus:
    """A running Prometheus, queried over its API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the current result. Raise AssertionError if `expr` is not valid PromQL."""
        reply = httpx.post(f"{self.url}/api/v1/query", data={"query": expr}).json()
        assert reply["status"] == "success", f"{expr}: {reply.get('error')}"
        result: list[dict[str, Any]] = reply["data"]["result"]
        return result

    def query_range(self, expr: str, since: float) -> list[dict[str, Any]]:
        """Return the values for each second from `since` (Unix time, seconds) until now, as a dashboard's panel reads
        them.

        Raises AssertionError if `expr` is not valid PromQL.
        """
        data = {"query": expr, "start": since, "end": time.time(), "step": 1}
        reply = httpx.post(f"{self.url}/api/v1/query_range", data=data).json()
        assert reply["status"] == "success", f"{expr}: {reply.get('error')}"
        result: list[dict[str, Any]] = reply["data"]["result"]
        return result

    def rules(self) -> list[dict[str, Any]]:
        groups = httpx.get(f"{self.url}/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Run a Prometheus with the shipped files; only the address and the intervals are the test's."""
    config = YAML(typ="safe").load(DEPLOY / "prometheus" / "prometheus.yml")
    config["global"] = {"scrape_interval": f"{round(_SCRAPE_S * 1000)}ms", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    (targets,) = job["static_configs"]
    targets["targets"] = [target.removeprefix("http://")]
    YAML().dump(config, folder / "prometheus.yml")
    (port,) = free_ports(1)
    log = folder / "prometheus.log"
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            running_prometheus = Prometheus(f"http://127.0.0.1:{port}")

            def ready() -> bool:
                assert process.poll() is None, log.read_text()
                try:
                    return httpx.get(f"{running_prometheus.url}/-/ready").status_code == 200
                except httpx.TransportError:
                    return False

            until(ready, "Prometheus is not ready")
            yield running_prometheus
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
