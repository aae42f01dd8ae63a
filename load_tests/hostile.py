"""Measure the latency of a well-behaved tenant before, during and after floods of another tenant.

    PYTHONPATH=. python load_tests/hostile.py
    PYTHONPATH=. python load_tests/hostile.py --quick --only JSON,rejected

Each flood runs against the gateway and against a bare pass-through of the same stack. Flood, victim, engine and the
measured system each have their own process. On two or more cores, the measured system has its own core, and the flood's
client has the lowest priority on another core. So the victim waits for the system and not for the client. Only loopback
is used. The run ends by itself; Ctrl-C ends it and its processes. docs/design/benchmarks.md describes the table.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from load_tests import markdown, proc, systems
from load_tests.children import ChildProcess, free_ports, interruptible
from load_tests.floods.kinds import FLOODS, TOGETHER, named
from load_tests.machine import machine
from load_tests.systems import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATH = "/v1/chat/completions"
_OURS, _BARE = "gateway", "bare"
_SETTLE_S = 1.0
_READY_WITHIN_S = 30.0
_SAMPLED_EVERY_S = 0.2
_FLOOD_NICENESS = 10
_OK = 200
# The limit is relative to bare's figures during the same flood, the goal to the victim's figures before it.
_MOST_OF_BARE = 0.5
_GOAL_P50, _GOAL_P99 = 4.0, 5.0
# If a flood does not slow bare down, half of its figures would be below the figures before the flood.
_HURT = 8.0
_HEAD = (
    "flood",
    "system",
    "p50, ms: before / during / after",
    "p99, ms: before / during / after",
    "errors: before / during / after",
    "p50 / p99 during, times before",
    "p50 / p99 during, times bare's",
    "RSS, MB",
)

err = Console(stderr=True)


@dataclass(frozen=True)
class HostileReply:
    """A request of the victim: start on CLOCK_MONOTONIC, seconds, and status (0: connection lost)."""

    began: float
    seconds: float
    status: int


@dataclass(frozen=True)
class Phase:
    """Results of the victim in one phase. Errors are all replies except 200, and broken connections."""

    count: int
    p50_ms: float
    p99_ms: float
    errors: int


@dataclass(frozen=True)
class HostileCase:
    """A flood against a system.

    Attributes:
        rss_mb: maximum resident memory of the measured process, in MB.
        seen: replies by status, and lost connections, on the side of the flood's client.
    """

    flood: str
    system: str
    before: Phase
    during: Phase
    after: Phase
    rss_mb: float
    seen: dict[str, int]


@dataclass(frozen=True)
class Measured:
    """A running system."""

    name: str
    url: str
    child: ChildProcess

    @property
    def pid(self) -> int:
        return self.child.main_pid()


def main(
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Duration of each flood.")] = 6.0,
    quiet: Annotated[float, typer.Option(min=1, max=60, help="Seconds before and after each flood.")] = 3.0,
    only: Annotated[str | None, typer.Option(help="Floods whose name contains one of these: --only JSON,gzip")] = None,
    system: Annotated[str, typer.Option(help="gateway, bare, or both.")] = "both",
    quick: Annotated[bool, typer.Option("--quick", help="1 s each: a smoke test without reliable figures.")] = False,
    pin: Annotated[bool, typer.Option(help="Reserve a core for the measured system.")] = True,
    gates: Annotated[bool, typer.Option("--gates", help="Exit with status 1 if the acceptance fails.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all results to this file.")] = None,
) -> None:
    """Measure a well-behaved tenant during each flood, through the gateway and through a bare pass-through.

    The victim sends at most 50 requests per second, one at a time. p50 and p99 are its latencies. Needs nginx (Debian:
    apt install nginx-light). A whole run takes about eight minutes. Run nothing else at the same time.
    """
    if quick:
        seconds = quiet = 1.0
    words = [word.strip().lower() for word in only.split(",")] if only else [""]
    floods = [
        name for name in (*(flood.name for flood in FLOODS), TOGETHER) if any(word in name.lower() for word in words)
    ]
    names = (_OURS, _BARE) if system == "both" else (system,)
    if not floods or not set(names) <= {_OURS, _BARE}:
        raise typer.BadParameter("--only or --system matches no flood or system")
    if shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists():
        raise typer.BadParameter("not installed: nginx (Debian: apt install nginx-light)")
    cases: list[HostileCase] = []
    busy, ours, began = proc.busy_s(), proc.ours_s(), time.monotonic()
    with interruptible(), TemporaryDirectory(prefix="gkt-hostile-") as folder, ExitStack() as stack:
        site = Site(Path(folder), stack)
        cores = sorted(os.sched_getaffinity(0))
        place = Placement(cores[0], cores[1:]) if pin and len(cores) > 1 else None
        _start_upstreams(site, place)
        for number, flood in enumerate(floods, 1):
            for name in names:
                err.print(f"{number} of {len(floods)}: {flood}, {name}", highlight=False)
                cases.append(_measure(site, flood, name, place, seconds, quiet))
    others = max(0.0, (proc.busy_s() - busy) - (proc.ours_s() - ours)) / (time.monotonic() - began)
    print(markdown.table(_HEAD, _rows(cases)))
    verdicts = judge(cases)
    for text, holds in verdicts:
        print(f"{'holds' if holds else 'FAILS'}: {text}")
    where = "the system on its own core" if place else "no cores assigned"
    print(f"{seconds:g} s each, {where}. Other programs used {others:.2f} cores meanwhile. {machine()}")
    if json_file is not None:
        record = {"machine": machine(), "seconds": seconds, "others": others, "cases": [asdict(case) for case in cases]}
        json_file.write_text(json.dumps(record, indent=2) + "\n")
    if gates and not all(holds for _, holds in verdicts):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Placement:
    """CPU cores of the measured process and of the other processes."""

    system: int
    others: list[int]

    def apply(self, pids: Sequence[int], *, system: bool) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(pid, [self.system] if system else self.others)


def _start_upstreams(site: Site, place: Placement | None) -> None:
    err.print("starting nginx and the slow upstream")
    systems.start_upstream(site)
    (slow,) = free_ports(1)
    site.ports["slow"] = slow
    command = ("--port", str(slow))
    child = site.start("slow upstream", sys.executable, Path(__file__).with_name("slow_upstream.py"), *command)
    child.wait_until(lambda: _listens(slow), 20)
    if place is not None:
        place.apply(proc.tree(os.getpid())[1:], system=False)


def _listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def _start(site: Site, name: str, stack: ExitStack, place: Placement | None) -> Measured:
    """Start a new process of a system, so that earlier floods have no effect on it."""
    inner = Site(site.folder, stack, dict(site.ports))
    if name == _BARE:
        bare = systems.start_bare(inner)
        found = Measured(name, bare.targets["json"].url, bare.children[0])
    else:
        port, admin = free_ports(2)
        config = inner.fill("hostile/config.yaml", port=port, admin=admin)
        for policy in ("victim", "flood"):
            inner.fill(f"hostile/policies/{policy}.yaml")
        child = inner.start("gateway", sys.executable, "-m", "gateway", "serve", "--config", config)
        child.wait_until(lambda: systems.probed(f"http://127.0.0.1:{admin}"), 90)
        found = Measured(name, f"http://127.0.0.1:{port}{_PATH}", child)
    if place is not None:
        place.apply(found.child.pids(), system=False)  # its Redis
        place.apply([found.pid], system=True)
    return found


def _measure(site: Site, flood: str, name: str, place: Placement | None, seconds: float, quiet: float) -> HostileCase:
    with ExitStack() as stack:
        measured = _start(site, name, stack, place)
        whole_s = 2 * quiet + seconds + _READY_WITHIN_S + 20
        victim = _process(stack, "victim", measured.url, whole_s, place)
        time.sleep(_SETTLE_S)
        start = time.monotonic()
        time.sleep(quiet)
        flooded = time.monotonic()
        client = _process(stack, "client", measured.url, whole_s, place, "--flood", flood)
        assert client.stdout is not None
        client.stdout.readline()  # ready
        time.sleep(_SETTLE_S)
        full, rss = time.monotonic(), 0
        while (now := time.monotonic()) < full + seconds:
            rss = max(rss, proc.rss_bytes(measured.pid))
            time.sleep(min(_SAMPLED_EVERY_S, full + seconds - now))
        ended = time.monotonic()
        client.terminate()
        seen: dict[str, int] = json.loads(client.communicate(timeout=_READY_WITHIN_S)[0] or "{}")
        time.sleep(_SETTLE_S)
        calm = time.monotonic()
        time.sleep(quiet)
        victim.terminate()
        answers = _read(victim.communicate(timeout=_READY_WITHIN_S)[0])
    during = phase_between(answers, full, ended)
    ramp = phase_between(answers, flooded, calm)  # errors count from the start to the end of the flood
    return HostileCase(
        flood,
        name,
        phase_between(answers, start, flooded),
        Phase(during.count, during.p50_ms, during.p99_ms, ramp.errors),
        phase_between(answers, calm, math.inf),
        rss / 1e6,
        seen,
    )


def _process(
    stack: ExitStack, module: str, url: str, for_s: float, place: Placement | None, *more: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"load_tests.floods.{module}", "--url", url, "--for", str(for_s), *more]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    stack.callback(process.wait)
    stack.callback(process.kill)
    if place is not None:
        place.apply([process.pid], system=False)
    if module == "client":
        os.setpriority(os.PRIO_PROCESS, process.pid, _FLOOD_NICENESS)
    return process


def _read(lines: str) -> list[HostileReply]:
    found: list[HostileReply] = []
    for line in lines.splitlines():
        fields = line.split()
        if len(fields) == 3:
            found.append(HostileReply(float(fields[0]), float(fields[1]), int(fields[2])))
    return found


def phase_between(answers: Sequence[HostileReply], start: float, end: float) -> Phase:
    """Return the result of the requests that started within the phase."""
    here = [answer for answer in answers if start <= answer.began < end]
    good = sorted(answer.seconds * 1000 for answer in here if answer.status == _OK)
    p50 = statistics.median(good) if good else math.inf
    p99 = good[min(len(good) - 1, math.ceil(len(good) * 0.99) - 1)] if good else math.inf
    return Phase(len(here), p50, p99, len(here) - len(good))


def _rows(cases: Sequence[HostileCase]) -> list[list[str]]:
    rows: list[list[str]] = []
    for case in cases:
        phases = (case.before, case.during, case.after)
        bare = _bare(cases, case)
        rows.append(
            [
                case.flood,
                case.system,
                " / ".join(_ms(phase.p50_ms) for phase in phases),
                " / ".join(_ms(phase.p99_ms) for phase in phases),
                " / ".join(str(phase.errors) for phase in phases),
                _ratios(case.during, case.before),
                _ratios(case.during, bare.during) if bare else "",
                f"{case.rss_mb:.0f}",
            ]
        )
    return rows


def _bare(cases: Sequence[HostileCase], ours: HostileCase) -> HostileCase | None:
    """Return the bare pass-through's case of the same flood."""
    if ours.system == _BARE:
        return None
    return next((case for case in cases if case.system == _BARE and case.flood == ours.flood), None)


def judge(cases: Sequence[HostileCase]) -> list[tuple[str, bool]]:
    """Return the requirements on the gateway, and whether each is met."""
    found: list[tuple[str, bool]] = []
    for case in cases:
        if case.system == _BARE or any(flood.hostile_body for flood in named(case.flood)):
            continue
        p50, p99 = _part(case.during.p50_ms, case.before.p50_ms), _part(case.during.p99_ms, case.before.p99_ms)
        found.append((f"{case.flood}: no errors ({case.during.errors})", case.during.errors == 0))
        found.append((f"{case.flood}: below {_GOAL_P50:g} times the quiet p50 ({p50:.2f})", p50 < _GOAL_P50))
        found.append((f"{case.flood}: below {_GOAL_P99:g} times the quiet p99 ({p99:.2f})", p99 < _GOAL_P99))
        bare = _bare(cases, case)
        if bare is not None and _part(bare.during.p50_ms, bare.before.p50_ms) >= _HURT:
            p50, p99 = _part(case.during.p50_ms, bare.during.p50_ms), _part(case.during.p99_ms, bare.during.p99_ms)
            found.append((f"{case.flood}: at most half of bare's p50 ({p50:.2f})", p50 <= _MOST_OF_BARE))
            found.append((f"{case.flood}: at most half of bare's p99 ({p99:.2f})", p99 <= _MOST_OF_BARE))
    return found


def _part(value: float, whole: float) -> float:
    return value / whole if math.isfinite(value) and whole else math.inf


def _ratios(one: Phase, other: Phase) -> str:
    parts = (_part(one.p50_ms, other.p50_ms), _part(one.p99_ms, other.p99_ms))
    return " / ".join(f"{part:.2f}" if math.isfinite(part) else "none" for part in parts)


def _ms(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "none"


if __name__ == "__main__":
    typer.run(main)
