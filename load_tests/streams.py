"""Measure many slow streams through one gateway process: CPU per event, stalls, memory, and the maximum event rate.

    PYTHONPATH=. python load_tests/streams.py
    PYTHONPATH=. python load_tests/streams.py --streams 200 --seconds 10 --step 2
    PYTHONPATH=. python load_tests/streams.py --streams 10000 --interval 1000 --no-ramp

First all streams run at one token per interval for `--seconds`: student only, guided, and through the bare
pass-through. Then the upstream becomes faster step by step, until the gateway's events per second stop rising. The same
streams directly from the upstream show the limit of upstream and client. Only loopback is used. The run ends by itself;
Ctrl-C ends it and its processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import statistics
import sys
import time
import urllib.request
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
import uvloop
from rich import box
from rich.console import Console
from rich.table import Table

from load_tests import proc
from load_tests.children import free_ports, interruptible
from load_tests.compare import gates_table
from load_tests.figures import Gate
from load_tests.machine import machine
from load_tests.stream_client import Stream, open_streams, request
from load_tests.systems import BARE, GUIDED, STUDENT, Site, run_bare, run_gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

# Opening a stream costs far more than an event, so the streams are opened at a limited rate.
_OPENED_PER_S = 200
_FASTER_BY = 1.25
_MAX_STEPS = 20
# Delivered part of the rate at which a step counts as sustained.
_SUSTAINED = 0.97
# Maximum p99 of the longest gaps of a sustained step, as a multiple of the interval.
_UNEVEN_BY_MS = 100
# An unsustained step with less than this gain over the best one is the last.
_RISES_BY = 1.03
_SETTLE_S = 1.0
_ENDS_WITHIN_S = 20.0
_PATH = "/v1/chat/completions"
# CPU per event, times the bare pass-through's, and the goals.
_CPU_GATES = {STUDENT: (2.0, 1.3), GUIDED: (2.2, 1.5)}
_CPU_GATES_AT = 4000.0  # events per second: 1,000 streams at 4 events per second
# The largest memory of the gateway in MB, by the number of streams, and the goals.
_MEMORY_GATES = {1000: (250, 180), 10_000: (1200, 800)}

# In a narrower terminal, rich truncates the words of a table.
out = Console(width=max(150, shutil.get_terminal_size().columns), highlight=False)
err = Console(stderr=True)


@dataclass(frozen=True)
class Step:
    """A measurement at a constant rate. CPU is in cores, by process."""

    paced_per_s: float
    sent_per_s: float
    received_per_s: float
    gaps_ms: tuple[float, float, float]  # p50, p99 and maximum of the longest gaps of the streams
    cores: Mapping[str, float]
    rss_mb: Sequence[float]  # the gateway's, once a second

    streams: int

    @property
    def cpu_us(self) -> float:
        """Return the CPU time of the measured process per received event, in microseconds."""
        return self.cores["gateway"] / self.received_per_s * 1e6

    @property
    def sustained(self) -> bool:
        """Return whether the gateway delivered the rate evenly, without bursts."""
        interval_ms = self.streams * 1000 / self.paced_per_s
        even = self.gaps_ms[1] <= interval_ms + _UNEVEN_BY_MS
        return even and self.received_per_s >= _SUSTAINED * self.paced_per_s


@dataclass
class StreamResults:
    """Results of a run.

    Attributes:
        slow: at a constant pace, by system.
        broken: slow streams without a proper end.
        direct, ramp: at increasing paces, without the gateway and through it.
    """

    slow: dict[str, Step]
    broken: int
    direct: list[Step]
    ramp: list[Step]

    def gates(self) -> list[Gate]:
        """Return the gates on CPU per event, and on memory for the numbers of streams that have one."""
        ours, bare_us = self.slow[STUDENT], self.slow[BARE].cpu_us
        found = []
        if ours.paced_per_s == _CPU_GATES_AT:
            for name, (limit, goal) in _CPU_GATES.items():
                ratio = self.slow[name].cpu_us / bare_us
                found.append(Gate(f"{name}: CPU per event, times bare's", ratio, limit, goal, at_least=False))
        if (memory := _MEMORY_GATES.get(ours.streams)) is not None:
            name = f"memory of the gateway with {ours.streams} streams, MB"
            largest_mb = max(max(self.slow[system].rss_mb) for system in _CPU_GATES)
            found.append(Gate(name, largest_mb, *memory, at_least=False))
        return found


@dataclass(frozen=True)
class StreamTarget:
    """URL, model and headers of the streams' requests, and the process that answers them."""

    pid: int
    url: str
    model: str
    headers: Mapping[str, str]


class Upstream:
    """Control of the slow upstream."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def pace(self, interval_ms: float) -> None:
        await self._call("/pace", {"interval_ms": interval_ms})

    async def end(self) -> None:
        await self._call("/end", {})

    async def sent(self) -> int:
        return int((await self._call("/sent"))["sent"])

    async def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await asyncio.to_thread(self.call, path, body)

    def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=10) as reply:
            reply_body: dict[str, Any] = json.load(reply)
            return reply_body


def main(
    streams: Annotated[int, typer.Option(min=1, max=10_000, help="Streams at once.")] = 1000,
    interval_ms: Annotated[int, typer.Option("--interval", min=10, max=5000, help="ms between tokens.")] = 250,
    seconds: Annotated[int, typer.Option(min=2, max=200, help="How long the slow streams run.")] = 60,
    step: Annotated[int, typer.Option(min=2, max=30, help="Seconds at each pace of the ramp.")] = 5,
    stall_s: Annotated[float, typer.Option("--stall", help="A gap of this many seconds is a stall.")] = 2.0,
    with_ramp: Annotated[bool, typer.Option("--ramp/--no-ramp", help="Also increase the rate step by step.")] = True,
    with_gates: Annotated[
        bool, typer.Option("--gates", help="Also exit with 1 if a gate fails (docs/design/benchmarks.md).")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all results to this file.")] = None,
) -> None:
    """Hold many slow streams through one gateway process, then increase the rate. Exit with 1 if one stalls or breaks.

    A thousand streams at 250 ms are 4,000 events per second. A run with the defaults takes about six minutes.
    """
    _allow_files(4 * streams + 200)
    with interruptible(), TemporaryDirectory(prefix="gkt-streams-") as folder, ExitStack() as stack:
        site = Site(Path(folder), stack)
        (port,) = free_ports(1)
        site.ports.update(json=port, stream=port, teacher=port, teacher_stream=port)
        slow = site.start(
            "slow upstream", sys.executable, Path(__file__).with_name("slow_upstream.py"), "--port", str(port)
        )
        upstream = Upstream(f"http://127.0.0.1:{port}")
        slow.wait_until(lambda: upstream.call("/sent"), 20)
        bare = run_bare(site)
        err.print("starting the gateway")
        ours = run_gateway(site, max_requests=max(4096, 2 * streams))
        watched = {"upstream": slow.pids()[0], "client": os.getpid()}
        # Its parent watch has the same command line, and comes before it.
        watched["redis"] = [pid for pid in ours.child.pids() if "unixsocket" in proc.command(pid)][-1]
        pid, url = ours.child.main_pid(), f"{ours.url}{_PATH}"
        targets = {
            STUDENT: StreamTarget(pid, url, "student-stream", ours.headers),
            GUIDED: StreamTarget(pid, url, "guided-stream", ours.headers),
            BARE: StreamTarget(bare.child.pids()[0], f"{bare.url}{_PATH}", "static", {}),
        }
        direct = StreamTarget(slow.pids()[0], f"{upstream.url}{_PATH}", "static", {})
        bench = StreamBench(upstream, watched, streams)
        found = uvloop.run(bench.run(direct, targets, interval_ms, seconds, step if with_ramp else 0))
    _show(found, streams, stall_s)
    judged = found.gates()
    out.print(gates_table(judged))
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": machine(), "streams": streams, **_record(found)}, indent=2) + "\n")
    longest_ms = max(found.slow[name].gaps_ms[2] for name in _CPU_GATES)
    if found.broken or longest_ms >= stall_s * 1000:
        err.print(f"[bold red]failed:[/] {found.broken} streams broke; longest gap {longest_ms:.0f} ms")
        raise typer.Exit(1)
    if with_gates and (failed := [gate.name for gate in judged if not gate.holds]):
        err.print(f"[bold red]gate failed:[/] {'; '.join(failed)}", highlight=False)
        raise typer.Exit(1)


class StreamBench:
    """The streams, and samples of the processes.

    Args:
        watched: process ids by name, without the measured process.
    """

    def __init__(self, upstream: Upstream, watched: Mapping[str, int], streams: int) -> None:
        self._upstream = upstream
        self._watched = dict(watched)
        self._streams = streams

    async def run(
        self, direct: StreamTarget, targets: Mapping[str, StreamTarget], interval_ms: float, seconds: int, step: int
    ) -> StreamResults:
        """Measure all targets at a slow pace, then the first one and the upstream alone at increasing paces.

        `step` is the time at each pace; 0: the pace is not increased.
        """
        found = StreamResults({}, 0, [], [])
        for name, target in targets.items():
            _say(f"{name}: {self._streams} streams, a token each {interval_ms:g} ms, {seconds} s")
            async with self._open(target, interval_ms) as streams:
                found.slow[name] = await self._step(streams, interval_ms, seconds)
                await self._upstream.end()
                found.broken += await self._broken(streams)
        if step:
            _say("straight from the upstream, at increasing rates")
            async with self._open(direct, interval_ms) as streams:
                found.direct.extend(await self._ramp(streams, interval_ms, min(step, 2)))
            _say("through the gateway, at increasing rates")
            async with self._open(next(iter(targets.values())), interval_ms) as streams:
                found.ramp.extend(await self._ramp(streams, interval_ms, step))
        return found

    @asynccontextmanager
    async def _open(self, route: StreamTarget, interval_ms: float) -> AsyncIterator[list[Stream]]:
        self._watched["gateway"] = route.pid
        await self._upstream.pace(interval_ms)
        payload = request(route.url, route.model, route.headers)
        streams = await open_streams(route.url, payload, self._streams, _OPENED_PER_S)
        try:
            await asyncio.sleep(_SETTLE_S)
            yield streams
        finally:
            for stream in streams:
                stream.close()
            await asyncio.sleep(_SETTLE_S)

    async def _ramp(self, streams: list[Stream], interval_ms: float, seconds: int) -> list[Step]:
        """Increase the rate until events per second stop rising."""
        steps: list[Step] = []
        while len(steps) < _MAX_STEPS:
            await self._upstream.pace(interval_ms)
            await asyncio.sleep(_SETTLE_S)
            steps.append(await self._step(streams, interval_ms, seconds))
            seen = steps[-1]
            _say(f"  {seen.paced_per_s:.0f} events/s due, {seen.received_per_s:.0f} received")
            if not seen.sustained and seen.received_per_s < _RISES_BY * max(
                one.received_per_s for one in steps[:-1] or steps
            ):
                break
            interval_ms /= _FASTER_BY
        return steps

    async def _step(self, streams: list[Stream], interval_ms: float, seconds: int) -> Step:
        """Measure at the current rate."""
        for stream in streams:
            stream.measure()
        events, sent = sum(stream.events for stream in streams), await self._upstream.sent()
        used, began = self._cpu_s(), time.monotonic()
        rss = [proc.rss_bytes(self._watched["gateway"]) / 1e6]
        for second in range(1, seconds + 1):
            await asyncio.sleep(max(0.0, began + second - time.monotonic()))
            rss.append(proc.rss_bytes(self._watched["gateway"]) / 1e6)
        took = time.monotonic() - began
        gaps = sorted(stream.gap_s() * 1000 for stream in streams)
        return Step(
            paced_per_s=len(streams) * 1000 / interval_ms,
            sent_per_s=(await self._upstream.sent() - sent) / took,
            received_per_s=(sum(stream.events for stream in streams) - events) / took,
            gaps_ms=(gaps[len(gaps) // 2], gaps[len(gaps) * 99 // 100], gaps[-1]),
            cores={name: (now - used[name]) / took for name, now in self._cpu_s().items()},
            rss_mb=rss,
            streams=len(streams),
        )

    def _cpu_s(self) -> dict[str, float]:
        seen = {name: proc.cpu_s(pid) for name, pid in self._watched.items()}
        return {**seen, "others": proc.busy_s() - sum(seen.values())}

    @staticmethod
    async def _broken(streams: list[Stream]) -> int:
        """Return the number of streams without a proper end, after the upstream has ended all of them."""
        for _ in range(round(_ENDS_WITHIN_S / _SETTLE_S)):
            if all(stream.done or stream.lost for stream in streams):
                break
            await asyncio.sleep(_SETTLE_S)
        return sum(not stream.done for stream in streams)


def slope_per_s(samples: Sequence[float]) -> float:
    """Return the slope per second of samples taken once a second (least squares)."""
    return statistics.linear_regression(range(len(samples)), samples).slope


def best(steps: Sequence[Step]) -> Step | None:
    """Return the fastest sustained step; None without one."""
    return max((one for one in steps if one.sustained), key=lambda one: one.received_per_s, default=None)


def _show(found: StreamResults, streams: int, stall_s: float) -> None:
    title = f"{streams} streams through one process; the last columns are cores used, of the measured process `gateway`"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    names = sorted(found.slow[STUDENT].cores)
    table.add_column("system", no_wrap=True)
    columns = (
        "ms between tokens",
        "events/s due",
        "received",
        "gap p50, ms",
        "p99",
        "max",
        "CPU per event, us",
        *names,
    )
    for name in columns:
        table.add_column(name, justify="right")
    for system, one in (*found.slow.items(), *((STUDENT, step) for step in found.ramp)):
        gaps = [f"{gap:.0f}" for gap in one.gaps_ms]
        cores = [f"{one.cores[name]:.2f}" for name in names]
        interval = f"{one.streams * 1000 / one.paced_per_s:.0f}"
        paces = interval, f"{one.paced_per_s:.0f}", f"{one.received_per_s:.0f}"
        table.add_row(system, *paces, *gaps, f"{one.cpu_us:.0f}", *cores)
    out.print(table)
    longest_ms = max(found.slow[name].gaps_ms[2] for name in _CPU_GATES)
    stalled = longest_ms >= stall_s * 1000
    out.print(f"Stalled (a gap of {stall_s:g} s or more): {'yes' if stalled else 'none'}. Broken: {found.broken}.")
    for name in _CPU_GATES:
        rss = found.slow[name].rss_mb
        out.print(
            f"{name}: the gateway's memory over {len(rss) - 1} s: {rss[0]:.0f} MB, then {rss[-1]:.0f} MB, "
            f"{slope_per_s(rss) * 60:+.1f} MB a minute."
        )
    for what, steps in (("Through the gateway", found.ramp), ("Without it", found.direct)):
        if steps:
            top = max(one.received_per_s for one in steps)
            held = best(steps)
            sustained = f"{held.received_per_s:.0f}" if held is not None else "none of these paces"
            out.print(f"{what}: {sustained} events/s sustained, {top:.0f} at most in bursts.")
    out.print(machine())


def _record(found: StreamResults) -> dict[str, Any]:
    held = best(found.ramp)
    return {
        **asdict(found),
        "rss_slope_mb_per_minute": slope_per_s(found.slow[STUDENT].rss_mb) * 60,
        "gates": [asdict(gate) | {"holds": gate.holds} for gate in found.gates()],
        "sustained_events_per_s": held.received_per_s if held is not None else None,
    }


def _allow_files(count: int) -> None:
    """Raise the limits of open files of this process and its children to `count`. Only root may raise the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, count))
            hard = count
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def _say(text: str) -> None:
    err.print(text, highlight=False)


if __name__ == "__main__":
    typer.run(main)
