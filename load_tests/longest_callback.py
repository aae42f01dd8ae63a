"""Measure the CPU time of the longest callbacks of the gateway's event loop, at 70 % of its largest rate.

    PYTHONPATH=. python load_tests/longest_callback.py
    PYTHONPATH=. python load_tests/longest_callback.py --model student-stream --seconds 20

While a callback runs, no other request proceeds. The gateway runs on asyncio's own event loop, whose callbacks are
Python objects that can be measured. They are the same on uvloop. Only loopback is used. The run ends by itself; Ctrl-C
ends it and its processes.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from load_tests import systems, wrk
from load_tests.children import interruptible
from load_tests.compare import gates_table
from load_tests.figures import PACED_AT, Gate, pause_ms
from load_tests.machine import machine
from load_tests.systems import Site

_LIMIT_MS, _GOAL_MS = 20.0, 5.0
_KEPT = 10
_LARGEST_AT = 32
_LARGEST_S = 5
_REPORT_WITHIN_S = 10.0

out = Console(width=120, highlight=False)
err = Console(stderr=True)


class CallbackTimes:
    """The longest callbacks of this process by CPU time in milliseconds. `install` measures all callbacks."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._longest: list[tuple[float, int, str]] = []
        self._count = 0

    def install(self) -> None:
        """Measure each callback of asyncio's event loop. SIGUSR1 forgets all times, SIGUSR2 writes the report."""
        run: Any = asyncio.Handle._run  # noqa: SLF001 - asyncio has no public hook

        def measured(handle: Any) -> None:
            name, began = handle._callback, time.thread_time()  # noqa: SLF001
            run(handle)
            self._note(name, (time.thread_time() - began) * 1000)

        setattr(asyncio.Handle, run.__name__, measured)
        signal.signal(signal.SIGUSR1, lambda *_: self._forget())
        signal.signal(signal.SIGUSR2, lambda *_: self._write())

    def _note(self, callback: Any, spent_ms: float) -> None:
        self._count += 1
        if len(self._longest) < _KEPT:
            heapq.heappush(self._longest, (spent_ms, self._count, _name(callback)))
        elif spent_ms > self._longest[0][0]:
            heapq.heapreplace(self._longest, (spent_ms, self._count, _name(callback)))

    def _forget(self) -> None:
        self._longest, self._count = [], 0

    def _write(self) -> None:
        longest = [{"cpu_ms": spent_ms, "callback": name} for spent_ms, _, name in sorted(self._longest, reverse=True)]
        written = self._report.with_suffix(".new")
        written.write_text(json.dumps({"callbacks": self._count, "longest": longest}))
        written.replace(self._report)


def _name(callback: Any) -> str:
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return f"task {owner.get_name()}: {getattr(owner.get_coro(), '__qualname__', '?')}"
    return getattr(callback, "__qualname__", repr(callback))


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
        site, report = Site(Path(folder), stack), Path(folder) / "report.json"
        systems.start_upstream(site)
        ours = systems.run_gateway(site, program=(Path(__file__), str(report)))
        target = wrk.Target(f"{ours.url}/v1/chat/completions", model, ours.headers)
        err.print("measuring the largest rate")
        largest = wrk.run(target, kind, concurrency=_LARGEST_AT, seconds=_LARGEST_S, first=0)
        rate = largest.requests / largest.seconds
        err.print(f"70 % of {rate:.0f} requests/s for {seconds} s")
        pause = pause_ms(rate)
        ours.signal(signal.SIGUSR1)
        seen = wrk.run(target, kind, concurrency=PACED_AT, seconds=seconds, first=10**9, pause_ms=pause)
        ours.signal(signal.SIGUSR2)
        ours.child.wait_until(report.exists, _REPORT_WITHIN_S)
        found = json.loads(report.read_text())
    table = Table("CPU time, ms", "callback", title=f"{model}: longest of {found['callbacks']} callbacks")
    for one in found["longest"]:
        table.add_row(f"{one['cpu_ms']:.2f}", one["callback"])
    out.print(table)
    out.print(f"{seen.requests / seen.seconds:.0f} requests/s, {seen.refused + seen.broken} errors. {machine()}")
    longest_ms = found["longest"][0]["cpu_ms"]
    gate = Gate("CPU time of the longest callback, ms", longest_ms, _LIMIT_MS, _GOAL_MS, at_least=False)
    out.print(gates_table([gate]))
    if not gate.holds or seen.refused or seen.broken:
        raise typer.Exit(1)


def _serve(report: Path, arguments: list[str]) -> None:
    """Run the gateway's command in this process, on asyncio's event loop, with measured callbacks."""
    from gateway.cli import main as command

    CallbackTimes(report).install()
    uvloop.run = asyncio.run  # type: ignore[assignment]
    sys.argv = ["gkt-gateway", *arguments]
    command()


if __name__ == "__main__":
    if sys.argv[2:3] == ["serve"]:
        _serve(Path(sys.argv[1]), sys.argv[2:])
    else:
        typer.run(main)
