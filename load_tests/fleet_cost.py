"""Measure the costs of a request in a fleet of 1, 2 and 4 gateways that share one Redis, and the limit of that Redis.

    PYTHONPATH=. python load_tests/fleet_cost.py
    PYTHONPATH=. python load_tests/fleet_cost.py --fleets 1,2 --rates 100,400 --seconds 3

The gateways call nginx, which answers at once as teacher and as student. Each gateway has its own callers. Together the
callers make a fixed number of requests per second, so a larger fleet has fewer requests per gateway. Receipts go to one
usage worker. The first table has CPU time and Redis commands of the whole fleet per second without requests. The second
table has those of a request. CPU times do not depend on the number of cores. All requests are of one tenant, so
requests that arrive together share calls of scripts.

For the third table, prepared calls of the admission script go to Redis as fast as it answers. Only loopback is used.
The run ends by itself; Ctrl-C ends it and its processes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from redis import Redis
from rich.console import Console
from rich.table import Table

from gateway.local.redis import find_server
from load_tests import redis_limit, wrk
from load_tests.children import ChildProcess, interruptible
from load_tests.machine import machine
from load_tests.systems import GatewayProcess, Site, run_gateway, start_upstream

if TYPE_CHECKING:
    from collections.abc import Sequence

_CALLERS = 64  # of the whole fleet
_WARM_UP_S = 2
_NUMBERS_PER_ROUND = 10_000_000  # each round asks other questions
# Row: route of peers/gateway and key.
_ROWS = {
    "student only": ("student-json", "gk-bench"),
    "guided": ("guided-json", "gk-bench"),
    "guided, limits on": ("guided-json", "gk-bench-limited"),
}
_IDLE = "idle"
# A starting usage worker reads the prices of past days, a hash for each day.
_HASHES_AT_START = 3_000
_REDIS_START_S, _WORKER_START_S = 20.0, 60.0

# In a narrower terminal, rich truncates the words of a table.
out = Console(width=max(150, shutil.get_terminal_size().columns), highlight=False)
err = Console(stderr=True)


@dataclass(frozen=True)
class RedisUse:
    """Counters of a Redis since its start."""

    cpu_s: float
    scripts: int
    hashes: int  # commands that read a whole hash
    commands: int  # those within scripts count, too
    received: int  # bytes
    sent: int

    @classmethod
    def read(cls, redis: Redis) -> RedisUse:
        info: Any = redis.info("all")
        return cls(
            info["used_cpu_sys"] + info["used_cpu_user"],
            _calls(info, "evalsha"),
            _calls(info, "hgetall"),
            info["total_commands_processed"],
            info["total_net_input_bytes"],
            info["total_net_output_bytes"],
        )


@dataclass(frozen=True)
class FleetCost:
    """Costs of one request, or of one second without requests. CPU times are milliseconds."""

    row: str
    gateways: int
    asked_per_s: float  # requested rate
    requests_per_s: float
    errors: int
    gateway_ms: float
    worker_ms: float
    redis_ms: float
    scripts: float
    commands: float
    redis_bytes: float


def _calls(info: Any, command: str) -> int:
    """Return the calls of a command in the reply of INFO."""
    calls: int = info.get(f"cmdstat_{command}", {}).get("calls", 0)
    return calls


def main(
    fleets: Annotated[str, typer.Option(help="Numbers of gateways, measured in turn.")] = "1,2,4",
    rates: Annotated[str, typer.Option(help="Requests per second of the whole fleet.")] = "50,200",
    seconds: Annotated[int, typer.Option(min=2, max=60, help="Duration of each measurement.")] = 8,
    calls: Annotated[int, typer.Option(min=100, max=200_000, help="Requests of each measurement of Redis.")] = 20_000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Measure CPU time and Redis commands per request in a fleet, and the limit of one Redis.

    Needs wrk and nginx (Debian: apt install wrk nginx-light). Run nothing else at the same time.
    """
    if absent := wrk.missing():
        raise typer.BadParameter(f"not installed: {', '.join(absent)} (Debian: apt install wrk nginx-light)")
    sizes, per_s = _numbers(fleets, "--fleets"), _numbers(rates, "--rates")
    costs: list[FleetCost] = []
    with interruptible(), TemporaryDirectory(prefix="gkt-fleet-") as folder:
        for size in sizes:
            costs += _measure_fleet(Path(folder, str(size)), size, per_s, seconds)
        limits = _measure_redis(Path(folder, "redis-limit"), calls)
    _print(costs, limits)
    if json_file is not None:
        figures = {"machine": machine(), "fleet": [*map(asdict, costs)], "redis": [one._asdict() for one in limits]}
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    if any(one.errors for one in costs):
        raise typer.Exit(1)


def _numbers(text: str, option: str) -> list[int]:
    parts = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if not parts or len(parts) != len(text.split(",")) or min(parts) < 1:
        raise typer.BadParameter(f"{option} takes numbers with commas between, not {text!r}")
    return parts


def _measure_fleet(folder: Path, size: int, rates: Sequence[int], seconds: int) -> list[FleetCost]:
    folder.mkdir()
    with ExitStack() as stack:
        site = Site(folder, stack)
        start_upstream(site)
        redis = _start_redis(site)
        url = f"unix://{folder}/redis.sock"
        fleet = [_start_gateway(site, url) for _ in range(size)]
        config = next(folder.glob("gateway-*/gateway/config.yaml"))
        worker = site.start("worker", sys.executable, "-m", "gateway", "usage", "worker", "--config", config,
                            env={"GKT_REDIS_URL": url})  # fmt: skip
        worker.wait_until(lambda: RedisUse.read(redis).hashes > _HASHES_AT_START, _WORKER_START_S)
        err.print(f"{size} gateways, {_IDLE}")
        time.sleep(_WARM_UP_S)
        costs, first = [_measure(fleet, worker, redis, _IDLE, 0, seconds, 0)], 0
        for row in _ROWS:
            for rate in rates:
                err.print(f"{size} gateways, {row}, {rate} requests/s")
                first += _NUMBERS_PER_ROUND
                _load(fleet, row, rate, _WARM_UP_S, first)
                first += _NUMBERS_PER_ROUND
                costs.append(_measure(fleet, worker, redis, row, rate, seconds, first))
        return costs


def _start_redis(site: Site) -> Redis:
    """Start a Redis without persistence."""
    socket = site.folder / "redis.sock"
    child = site.start(
        "redis", find_server(), "--port", "0", "--unixsocket", socket, "--save", "", "--dir", site.folder
    )
    redis = site.stack.enter_context(closing(Redis(unix_socket_path=str(socket))))
    child.wait_until(lambda: socket.exists() and redis.ping(), _REDIS_START_S)
    return redis


def _start_gateway(site: Site, redis_url: str) -> GatewayProcess:
    return run_gateway(site, "usage: {run: command}\n", env={"GKT_REDIS_URL": redis_url})


def _load(fleet: Sequence[GatewayProcess], row: str, rate: float, seconds: float, first: int) -> list[wrk.Reading]:
    """Run the callers of all gateways at the same time."""
    model, key = _ROWS[row]
    callers = max(1, _CALLERS // len(fleet))
    pause_ms = 1000 * callers * len(fleet) / rate
    processes = []
    for number, gateway in enumerate(fleet):
        url = f"{gateway.url}/v1/chat/completions"
        target = wrk.Target(url, model, {"Authorization": f"Bearer {key}"})
        start = first + number * (_NUMBERS_PER_ROUND // len(fleet))
        command = wrk.command(target, "json", concurrency=callers, seconds=seconds, first=start, pause_ms=pause_ms)
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    return [wrk.read(process.communicate(timeout=seconds + 60)[0]) for process in processes]


def _measure(
    fleet: Sequence[GatewayProcess],
    worker: ChildProcess,
    redis: Redis,
    row: str,
    rate: float,
    seconds: float,
    first: int,
) -> FleetCost:
    cpu, written, before = sum(one.child.cpu_s() for one in fleet), worker.cpu_s(), RedisUse.read(redis)
    began = time.monotonic()
    readings = _load(fleet, row, rate, seconds, first) if rate else []
    if not rate:
        time.sleep(seconds)
    took_s = time.monotonic() - began
    cpu = sum(one.child.cpu_s() for one in fleet) - cpu
    written, after = worker.cpu_s() - written, RedisUse.read(redis)
    requests = sum(reading.requests for reading in readings)
    count = max(1, requests) if rate else took_s
    return FleetCost(
        row=row,
        gateways=len(fleet),
        asked_per_s=rate,
        requests_per_s=requests / took_s,
        errors=sum(reading.refused + reading.broken for reading in readings),
        gateway_ms=1000 * cpu / count,
        worker_ms=1000 * written / count,
        redis_ms=1000 * (after.cpu_s - before.cpu_s) / count,
        scripts=(after.scripts - before.scripts) / count,
        commands=(after.commands - before.commands) / count,
        redis_bytes=(after.received + after.sent - before.received - before.sent) / count,
    )


def _measure_redis(folder: Path, calls: int) -> list[redis_limit.RedisLimit]:
    folder.mkdir()
    with ExitStack() as stack:
        site = Site(folder, stack)
        redis = _start_redis(site)
        limits = []
        for limited in (False, True):
            for together in redis_limit.TOGETHER:
                err.print(f"Redis alone, {together} requests per call, limits {'on' if limited else 'off'}")
                redis.flushall()
                prepared = redis_limit.prepare(calls, together, limited=limited)
                before, sent = RedisUse.read(redis), redis_limit.send(site.folder / "redis.sock", redis, prepared)
                cpu_s = RedisUse.read(redis).cpu_s - before.cpu_s
                limits.append(
                    redis_limit.RedisLimit(limited, together, sent.requests / sent.seconds, sent.requests / cpu_s)
                )
        return limits


def _print(costs: Sequence[FleetCost], limits: Sequence[redis_limit.RedisLimit]) -> None:
    idle = [one for one in costs if one.row == _IDLE]
    out.print(_table("Costs of one second without requests", idle))
    out.print(_table("Costs of one request", [one for one in costs if one not in idle]))
    table = Table(
        "limits", "requests per call", "requests/s", "requests per CPU second", title="The limit of one Redis"
    )
    for limit in limits:
        table.add_row(
            "on" if limit.limited else "off", str(limit.together), f"{limit.per_s:.0f}", f"{limit.per_cpu_s:.0f}"
        )
    out.print(table)
    out.print(machine())


def _table(title: str, costs: Sequence[FleetCost]) -> Table:
    columns = "gateways, ms CPU", "usage worker, ms", "Redis, ms", "scripts", "commands", "Redis, bytes"
    table = Table("route", "gateways", "asked/s", "requests/s", "errors", *columns, title=title)
    for one in costs:
        load = one.row, one.gateways, f"{one.asked_per_s:.0f}", f"{one.requests_per_s:.0f}", one.errors
        times = (f"{value:.2f}" for value in (one.gateway_ms, one.worker_ms, one.redis_ms, one.scripts))
        table.add_row(*map(str, load), *times, f"{one.commands:.1f}", f"{one.redis_bytes:,.0f}")
    return table


if __name__ == "__main__":
    typer.run(main)
