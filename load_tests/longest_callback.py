"""Measure the CPU time of the longest callbacks of the gateway's event loop, at 70 % of its largest rate.

    PYTHONPATH=. python load_tests/longest_callback.py
    PYTHONPATH=. python load_tests/longest_callback.py --model student-stream --seconds 20

While a callback runs, no other request proceeds. tests/timed_gateway.py runs the gateway on asyncio's own event loop,
which can be measured. The callbacks are the same on uvloop. Only loopback is used. The run ends by itself; Ctrl-C ends
it and its processes.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from load_tests import systems, wrk
from load_tests.children import interruptible
from load_tests.compare import gates_table
from load_tests.figures import PACED_AT, Gate, pause_ms
from load_tests.machine import machine
from load_tests.systems import Site
from tests import timed_gateway
from tests.gateway_process import beginning_with

_LIMIT_MS, _GOAL_MS = 20.0, 5.0
_SHOWN_MS = 1.0
_KEPT = 10
_LARGEST_AT = 32
_LARGEST_S = 5

out = Console(width=120, highlight=False)
err = Console(stderr=True)


def longest(log: str) -> list[tuple[float, str]]:
    """Return the slow callbacks in a log of tests/timed_gateway.py, as milliseconds and name, the longest first."""
    lines = [json.loads(line) for line in log.splitlines() if '"slow_callback"' in line]
    return sorted(((line["cpu_ms"], line["callback"]) for line in lines), reverse=True)


def main(
    model: Annotated[
        str, typer.Option(help="Route of peers/gateway: student-json, guided-json, student-stream, guided-stream.")
    ] = "guided-json",
    seconds: Annotated[int, typer.Option(min=5, max=600, help="How long callbacks are measured.")] = 60,
) -> None:
    """Measure the longest callbacks of a gateway under load. Exit with 1 if one takes more than 20 ms of CPU.

    Needs wrk and nginx (Debian: apt install wrk nginx-light).
    """
    if absent := wrk.missing():
        raise typer.BadParameter(f"not installed: {', '.join(absent)} (Debian: apt install wrk nginx-light)")
    kind: wrk.Kind = "stream" if model.endswith("stream") else "json"
    with interruptible(), TemporaryDirectory(prefix="gkt-callbacks-") as folder, ExitStack() as stack:
        site = Site(Path(folder), stack)
        systems.start_upstream(site)
        timed = beginning_with(timed_gateway.AT_START, site.folder / "site")
        ours = systems.run_gateway(site, env={"CALLBACK_BOUND_MS": f"{_SHOWN_MS:g}", **timed})
        target = wrk.Target(f"{ours.url}/v1/chat/completions", model, ours.headers)
        err.print("measuring the largest rate")
        largest = wrk.run(target, kind, concurrency=_LARGEST_AT, seconds=_LARGEST_S, first=0)
        rate = largest.requests / largest.seconds
        err.print(f"70 % of {rate:.0f} requests/s for {seconds} s")
        before = len(ours.child.log_text())
        pause = pause_ms(rate)
        seen = wrk.run(target, kind, concurrency=PACED_AT, seconds=seconds, first=10**9, pause_ms=pause)
        found = longest(ours.child.log_text()[before:])
    table = Table("CPU time, ms", "callback", title=f"{model}: {len(found)} callbacks took more than {_SHOWN_MS:g} ms")
    for spent_ms, name in found[:_KEPT]:
        table.add_row(f"{spent_ms:.1f}", name)
    out.print(table)
    out.print(f"{seen.requests / seen.seconds:.0f} requests/s, {seen.refused + seen.broken} errors. {machine()}")
    longest_ms = found[0][0] if found else _SHOWN_MS
    gate = Gate("CPU time of the longest callback, ms", longest_ms, _LIMIT_MS, _GOAL_MS, at_least=False)
    out.print(gates_table([gate]))
    if not gate.holds or seen.refused or seen.broken:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
