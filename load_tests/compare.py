"""Compare the gateway with a bare pass-through and other gateways: requests/s, latency and errors, in one run.

    PYTHONPATH=. python load_tests/compare.py --quick
    PYTHONPATH=. python load_tests/compare.py --peers all --json figures.json

Each system is one process with one worker, in front of the same nginx with fixed answers. wrk generates the load. The
systems take turns within a round, so changes in the machine's speed affect all of them. Only loopback is used. The run
ends by itself; Ctrl-C ends it and its processes. docs/design/benchmarks.md defines the columns.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from load_tests import installs, proc, systems, wrk
from load_tests.children import NotStarted, interruptible
from load_tests.figures import (
    PACE,
    PACED,
    PACED_AT,
    THROUGHPUT_AT,
    BenchCase,
    CaseFigures,
    Gate,
    RoundResult,
    added_ms,
    gates,
    needed_by_gates,
    of_bare,
    of_chat,
    over_rounds,
    pause_ms,
)
from load_tests.machine import machine
from load_tests.peer_systems import PEER_NAMES, STARTERS
from load_tests.systems import OURS, Site, System

KINDS: tuple[wrk.Kind, ...] = ("json", "stream")
# Prompts are numbered. The rounds use disjoint ranges of numbers.
_NUMBERS_PER_ROUND = 10_000_000
_QUIET_CORES = 0.1
_STARTS = 3
Peers = Literal["none", "installed", "all"]

err = Console(stderr=True)
# In a narrower terminal, rich truncates the words of a table.
out = Console(width=max(150, shutil.get_terminal_size().columns))


def main(
    peers: Annotated[
        Peers,
        typer.Option(help="none: only the gateway. installed: also installed peers. all: install missing ones."),
    ] = "installed",
    only: Annotated[
        str | None, typer.Option(help="Systems whose name contains one of these words: --only bare,ours,lite")
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Numbers of concurrent callers, measured in turn.")] = "1,32,256",
    seconds: Annotated[int, typer.Option(min=1, max=60, help="Length of a round.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Rounds. The table shows their median.")] = 3,
    kind: Annotated[Literal["json", "stream", "both"], typer.Option(help="Kind of answer.")] = "both",
    quick: Annotated[bool, typer.Option("--quick", help="One round of 2 s each, at 1 and 32 callers.")] = False,
    with_gates: Annotated[
        bool, typer.Option("--gates", help="Exit with status 1 if a gate fails (docs/design/benchmarks.md).")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all results to this file.")] = None,
) -> None:
    """Measure the gateway, a bare pass-through and other gateways side by side, and print a table.

    Needs wrk and nginx (Debian: apt install wrk nginx-light). `--peers all` installs the other gateways into their own
    environments below ~/.cache/gkt-gateway/peers. load_tests/peers/ pins their versions.

    A whole run takes about 20 minutes, `--quick --peers none` about two minutes. Run nothing else at the same time.
    """
    if quick:
        rounds, seconds, concurrency = 1, 2, "1,32"
    # Without compiled modules, starts would be measured with the compilation of all modules.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    kinds = KINDS if kind == "both" else (kind,)
    levels = parse_levels(concurrency)
    words = only.lower().split(",") if only else []
    names = [name for name in (*OURS, *PEER_NAMES.values()) if not words or any(word in name.lower() for word in words)]
    cases = [BenchCase(name, one, level) for one in kinds for level in levels for name in names]
    if with_gates and (lacking := needed_by_gates() - set(cases)):
        raise typer.BadParameter(
            f"--gates needs {', '.join(sorted(f'{one.system} ({one.kind}, {one.concurrency})' for one in lacking))}"
        )
    if absent := wrk.missing():
        raise typer.BadParameter(f"not installed: {', '.join(absent)} (Debian: apt install wrk nginx-light)")
    judged: list[Gate] = []
    with interruptible(), TemporaryDirectory(prefix="gkt-compare-") as folder, ExitStack() as stack:
        site = Site(Path(folder), stack)
        started, absent_peers = _start(site, names, peers)
        figures = _measure([case for case in cases if case.system in started], started, rounds, seconds)
        if needed_by_gates() <= set(figures):
            _say(f"{_STARTS} starts")
            start_ups = [systems.start_up(site) for _ in range(_STARTS)]
            judged = gates(figures, _paced_p99_ms(figures, started, rounds, seconds), start_ups)
    for one in kinds:
        out.print(_table(one, levels, names, figures, started))
    _legend(names, figures, started, absent_peers)
    out.print(f"Medians of {rounds} round(s) of {seconds} s. {machine()}", highlight=False)
    if judged:
        out.print(gates_table(judged))
    if json_file is not None:
        json_file.write_text(
            json.dumps(_record(figures, started, absent_peers, judged, rounds, seconds), indent=2) + "\n"
        )
    failed = [gate.name for gate in judged if not gate.holds]
    if with_gates and failed:
        err.print(f"[bold red]gate failed:[/] {'; '.join(failed)}", highlight=False)
        raise typer.Exit(1)


def parse_levels(text: str) -> list[int]:
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or not all(1 <= level <= 1000 for level in levels):
        raise typer.BadParameter(f"--concurrency takes numbers from 1 to 1000 with commas between, not {text!r}")
    return levels


def _start(site: Site, names: list[str], peers: Peers) -> tuple[dict[str, System], dict[str, str]]:
    """Start the systems. Return them by name, and the reasons for those that did not start."""
    _say("starting nginx")
    started = {systems.UPSTREAM: systems.start_upstream(site)}
    if systems.BARE in names:
        _say("starting the bare pass-through")
        started[systems.BARE] = systems.start_bare(site)
    two_workers = {systems.STUDENT_TWO, systems.GUIDED_TWO}
    if set(OURS) - {systems.UPSTREAM, systems.BARE} - two_workers & set(names):
        _say("starting the gateway")
        started |= {system.name: system for system in systems.start_gateway(site)}
    if two_workers & set(names):
        _say("starting a gateway of two workers")
        started |= {system.name: system for system in systems.start_two_workers(site)}
    absent: dict[str, str] = {}
    for peer, name in PEER_NAMES.items():
        if name not in names:
            continue
        try:
            home = _home(peer, peers)
            _say(f"starting {name}")
            started[name] = STARTERS[peer](site, home)
        except (NotStarted, installs.NotInstalled) as error:
            absent[name] = str(error)
            _say(f"not run: {name}: {error}")
    return {name: system for name, system in started.items() if name in names}, absent


def _home(peer: str, peers: Peers) -> Path:
    if peers == "none":
        raise installs.NotInstalled("--peers none")
    found = installs.find(peer)
    if found is None and peers == "installed":
        raise installs.NotInstalled("not installed; --peers all installs it")
    return found or installs.install(peer, _say)


def _measure(
    cases: list[BenchCase], started: dict[str, System], rounds: int, seconds: int
) -> dict[BenchCase, CaseFigures]:
    """Warm up and measure every case. Interleave rounds of the same kind and concurrency over the systems."""
    measured: dict[BenchCase, list[RoundResult]] = {case: [] for case in cases}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    first = 0
    with Progress(*columns, console=err) as progress:
        bar = progress.add_task("", total=len(cases) * (rounds + 1))
        for kind, level in dict.fromkeys((case.kind, case.concurrency) for case in cases):
            together = [case for case in cases if (case.kind, case.concurrency) == (kind, level)]
            for turn in range(-1, rounds):  # the first round is the warm-up
                # Another one begins each time, so that nobody always runs behind the same neighbour.
                for case in together[turn:] + together[:turn] if turn > 0 else together:
                    first = (first + _NUMBERS_PER_ROUND) % 10**10
                    progress.update(bar, description=f"{case.system}, {kind}, {level} at a time")
                    if not err.is_terminal:
                        stage = "warm-up" if turn < 0 else f"round {turn + 1}"
                        _say(f"{case.system}, {kind}, {level} at a time, {stage}")
                    seen = _round(case, started[case.system], min(seconds, 2) if turn < 0 else seconds, first)
                    if turn >= 0:
                        measured[case].append(seen)
                    progress.advance(bar)
    return {case: over_rounds(seen) for case, seen in measured.items()}


def _paced_p99_ms(
    figures: dict[BenchCase, CaseFigures], started: dict[str, System], rounds: int, seconds: int
) -> dict[str, float]:
    """Return the median p99 of JSON calls that arrive at random times, at PACE of each system's largest rate."""
    p99_ms: dict[str, list[float]] = {name: [] for name in PACED}
    first = 9 * 10**9
    for turn in range(rounds):
        for name in PACED[turn % len(PACED) :] + PACED[: turn % len(PACED)]:
            largest, first = figures[BenchCase(name, "json", THROUGHPUT_AT)], first + _NUMBERS_PER_ROUND
            pause = pause_ms(largest.per_second)
            _say(f"{name}, json, {PACE:.0%} of {largest.per_second:.0f} requests/s, round {turn + 1}")
            system = started[name]
            unguided = system.unguided() if system.unguided is not None else 0
            target = system.targets["json"]
            seen = wrk.run(target, "json", concurrency=PACED_AT, seconds=2 * seconds, first=first, pause_ms=pause)
            failed = seen.refused + seen.broken
            failed += system.unguided() - unguided if system.unguided is not None else 0
            p99_ms[name].append(math.inf if failed else seen.p99_ms)
    return {name: statistics.median(values) for name, values in p99_ms.items()}


def _round(case: BenchCase, system: System, seconds: int, first: int) -> RoundResult:
    unguided = system.unguided() if system.unguided is not None else 0
    used, all_used, ours, began = system.cpu_s(), proc.busy_s(), proc.ours_s(), time.monotonic()
    reading = wrk.run(system.targets[case.kind], case.kind, concurrency=case.concurrency, seconds=seconds, first=first)
    took = time.monotonic() - began
    backlog_s = system.backlog_s() if system.backlog_s is not None else 0.0
    return RoundResult(
        reading,
        cores=(system.cpu_s() - used) / took,
        others=max(0.0, (proc.busy_s() - all_used) - (proc.ours_s() - ours)) / took,
        unguided=system.unguided() - unguided if system.unguided is not None else 0,
        backlog_s=backlog_s,
    )


def _table(
    kind: wrk.Kind,
    levels: list[int],
    names: list[str],
    figures: dict[BenchCase, CaseFigures],
    started: dict[str, System],
) -> Table:
    title = {"json": "JSON answers", "stream": "Streams of 23 events, read to their end"}[kind]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("system", no_wrap=True)
    table.add_column("at a time", justify="right", no_wrap=True)
    for name in (
        "requests/s",
        "of bare",
        "of chat",
        "p50, ms",
        "p99, ms",
        "added p50, ms",
        "cores",
        "per CPU s",
        "backlog, s",
        "errors",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for name in names:
        for level in levels:
            case = BenchCase(name, kind, level)
            first = level == levels[0]
            if case not in figures:
                if first:
                    table.add_row(name, "", "not run")
                continue
            seen, system = figures[case], started[name]
            ratio, chat, added = of_bare(figures, case), of_chat(figures, case), added_ms(figures, case)
            table.add_row(
                name if first else "",
                str(level),
                f"{seen.per_second:.0f}",
                f"{ratio:.2f}" if ratio is not None else "",
                f"{chat:.2f}" if chat is not None else "",
                _ms(seen.p50_ms),
                _ms(seen.p99_ms),
                _ms(added) if added is not None and name != systems.UPSTREAM else "",
                f"{seen.cores:.2f}" if system.children else "",
                f"{seen.per_cpu_s:.0f}" if seen.per_cpu_s is not None else "",
                f"{seen.backlog_s:.2f}" if system.backlog_s is not None else "",
                str(seen.errors),
            )
    return table


def _ms(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "no answer"


def _legend(
    names: list[str], figures: dict[BenchCase, CaseFigures], started: dict[str, System], absent: dict[str, str]
) -> None:
    """Print a description of each system, the reasons for absent ones, and the load of other processes."""
    for name in names:
        out.print(f"{name}: {started[name].note if name in started else f'not run: {absent[name]}'}", highlight=False)
    others = statistics.mean(seen.others for seen in figures.values())
    busy = others > _QUIET_CORES
    text = f"Other processes used {others:.2f} cores meanwhile" + (": the figures are too low." if busy else ".")
    out.print(text, style="yellow" if busy else "", highlight=False)


def gates_table(judged: list[Gate]) -> Table:
    """Return a table of gates with their limits and goals."""
    table = Table("gate", "measured", "limit", "goal", "", title="Gates", title_justify="left", box=box.SIMPLE_HEAD)
    for gate in judged:
        sign = ">=" if gate.at_least else "<="
        verdict = "goal reached" if gate.reaches_goal else "holds" if gate.holds else "FAILS"
        table.add_row(gate.name, f"{gate.value:.3f}", f"{sign} {gate.limit:.3f}", f"{sign} {gate.goal:.3f}", verdict)
    return table


def _record(
    figures: dict[BenchCase, CaseFigures],
    started: dict[str, System],
    absent: dict[str, str],
    judged: list[Gate],
    rounds: int,
    seconds: int,
) -> dict[str, Any]:
    """Return all results as JSON values."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "rounds": rounds,
        "seconds": seconds,
        "systems": {name: system.note for name, system in started.items()},
        "not_run": absent,
        "figures": [
            finite(
                {
                    **asdict(case),
                    **asdict(seen),
                    "of_bare": of_bare(figures, case),
                    "of_chat": of_chat(figures, case),
                    "added_p50_ms": added_ms(figures, case),
                }
            )
            for case, seen in figures.items()
        ],
        "gates": [finite(asdict(gate)) | {"holds": gate.holds, "reaches_goal": gate.reaches_goal} for gate in judged],
    }


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """Return None for infinity, which JSON does not support."""
    return {key: None if value in {math.inf, -math.inf} else value for key, value in record.items()}


def _say(text: str) -> None:
    err.print(text, highlight=False)


if __name__ == "__main__":
    typer.run(main)
