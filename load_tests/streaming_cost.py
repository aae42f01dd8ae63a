"""Measure the gateway's cost of streamed engine calls: `guidance.stream` and `always_stream`, on and off, side by side.

    PYTHONPATH=. python load_tests/streaming_cost.py --help

A modeled teacher and a student without latency, one gateway process, and wrk. Both methods take turns, in alternating
order. Only loopback is used, and the run ends by itself.
"""

from __future__ import annotations

import json
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from load_tests import markdown, proc, wrk
from load_tests.children import interruptible
from load_tests.engine_process import fake_engine
from load_tests.machine import machine
from load_tests.systems import Site, run_gateway, unguided_so_far

if TYPE_CHECKING:
    from collections.abc import Callable

    from load_tests.systems import GatewayProcess

STREAMED, WHOLE = "streamed", "not streamed"


@dataclass(frozen=True, slots=True)
class StreamingCase:
    """Requests of one kind to two routes of peers/gateway/policies/bench.yaml, with streamed calls and without.

    `teacher` is the file of its timings under timings/.
    """

    teacher: str
    kind: wrk.Kind
    routes: dict[str, str]


_GUIDED = {"guided-40": STREAMED, "guided-40-whole": WHOLE}
CASES = {
    "guidance, all at once": StreamingCase("instant", "stream", _GUIDED),
    "guidance, token by token": StreamingCase("paced", "stream", _GUIDED),
    "JSON answer of a student": StreamingCase(
        "instant", "json", {"student-always-stream": STREAMED, "student-json": WHOLE}
    ),
}
HEAD = ("case", "engine calls", "requests/s", "per CPU s", "of not streamed", "p50", "errors")
# Prompts are numbered. The rounds use disjoint ranges of numbers.
_NUMBERS_PER_ROUND = 10_000_000


@dataclass(frozen=True, slots=True)
class StreamingRound:
    """A round of one method. `cpu_s` is the CPU time of the gateway and its Redis."""

    reading: wrk.Reading
    cpu_s: float
    unguided: int

    @property
    def answered(self) -> int:
        return self.reading.requests - self.reading.refused - self.unguided


def main(
    callers: Annotated[int, typer.Option(min=1, max=256, help="Callers, each with one stream at a time.")] = 32,
    seconds: Annotated[int, typer.Option(min=1, max=60, help="Length of a round.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Rounds of each method, for the median.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")] = False,
) -> None:
    """Print requests per second with streamed engine calls and without, and their ratio.

    **guidance, all at once**: guided streams, m = 40. The teacher's tokens arrive together, so the gateway is
    saturated. Requests/s is its capacity.
    **guidance, token by token**: one token every 5 ms (load_tests/timings/paced.yaml), like a real teacher. Each token
    is read and sent separately, which is the highest cost of streaming. The teacher limits the requests/s, so compare
    **per CPU s**: requests per CPU second of the gateway and its Redis.
    **JSON answer of a student**: 128 tokens in one reply, or with `always_stream` as a stream that the gateway
    collects.

    Needs wrk (Debian: apt install wrk). The table is Markdown, for docs/design/benchmarks.md. A run takes a minute.
    """
    if "wrk" in wrk.missing():
        raise typer.BadParameter("not installed: wrk (Debian: apt install wrk)")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left:"))
    with interruptible(), Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task("starting", total=len(CASES) * 2 * (1 + rounds))

        def on_round(what: str) -> None:
            progress.update(bar, description=what, advance=1)

        began, busy, ours = time.monotonic(), proc.busy_s(), proc.ours_s()
        cases = {name: measure(name, callers, seconds, rounds, on_round) for name in CASES}
        others = (proc.busy_s() - busy - (proc.ours_s() - ours)) / (time.monotonic() - began)
    figures = {"machine": machine(), "callers": callers, "others_cores": max(0.0, others), "cases": cases}
    typer.echo(json.dumps(figures, indent=2) if as_json else shown(figures))


def measure(
    name: str, callers: int, seconds: int, rounds: int, on_round: Callable[[str], None] = lambda _: None
) -> dict[str, dict[str, Any]]:
    """Return the figures of both methods of a case. `on_round` is called after each round."""
    case = CASES[name]
    with ExitStack() as stack:
        for_s = 60.0 + 4 * seconds * (1 + rounds)
        big = stack.enter_context(fake_engine(case.teacher, dialect="tgi", for_s=for_s))
        small = stack.enter_context(fake_engine("instant", dialect="openai", for_s=for_s))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="gkt-streaming-cost-")))
        site = Site(folder, stack)
        site.ports.update(json=_port(small), stream=_port(small), teacher=_port(big), teacher_stream=_port(big))
        gateway = run_gateway(site)
        routes, seen = list(case.routes), dict[str, list[StreamingRound]]()
        for turn in range(-1, rounds):  # the first round is the warm-up
            for place, route in enumerate(routes if turn % 2 else routes[::-1]):
                first = (2 * (turn + 1) + place) * _NUMBERS_PER_ROUND
                one = _round(gateway, route, case.kind, callers, 1 if turn < 0 else seconds, first)
                if turn >= 0:
                    seen.setdefault(case.routes[route], []).append(one)
                on_round(f"{name}, {case.routes[route]}")
    return figures_of(seen)


def _round(
    gateway: GatewayProcess, route: str, kind: wrk.Kind, callers: int, seconds: int, first: int
) -> StreamingRound:
    target = wrk.Target(f"{gateway.url}/v1/chat/completions", route, gateway.headers)
    used, unguided = gateway.child.cpu_s(), unguided_so_far(gateway.admin_url)
    reading = wrk.run(target, kind, concurrency=callers, seconds=seconds, first=first)
    return StreamingRound(reading, gateway.child.cpu_s() - used, unguided_so_far(gateway.admin_url) - unguided)


def figures_of(seen: dict[str, list[StreamingRound]]) -> dict[str, dict[str, Any]]:
    """Return medians over the rounds of each method. Errors are sums."""
    figures: dict[str, dict[str, Any]] = {}
    for way, rounds in seen.items():
        figures[way] = {
            "per_second": statistics.median(one.answered / one.reading.seconds for one in rounds),
            "per_cpu_s": statistics.median(one.answered / one.cpu_s for one in rounds),
            "p50_ms": statistics.median(one.reading.p50_ms for one in rounds),
            "errors": sum(one.reading.refused + one.reading.broken + one.unguided for one in rounds),
        }
    for one_way in figures.values():
        one_way["of_whole"] = one_way["per_cpu_s"] / figures[WHOLE]["per_cpu_s"]
    return figures


def shown(figures: dict[str, Any]) -> str:
    """Return the figures in the format of docs/design/benchmarks.md."""
    rows = [
        (
            case,
            way,
            f"{seen['per_second']:.0f}",
            f"{seen['per_cpu_s']:.0f}",
            f"{seen['of_whole']:.2f}",
            f"{seen['p50_ms']:.1f} ms",
            str(seen["errors"]),
        )
        for case, ways in figures["cases"].items()
        for way, seen in sorted(ways.items(), reverse=True)
    ]
    return "\n".join(
        (
            markdown.table(HEAD, rows),
            "",
            f"{figures['callers']} callers. {figures['machine']}",
            f"Other programs used {figures['others_cores']:.2f} cores meanwhile.",
        )
    )


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.command()(main)
    app()
