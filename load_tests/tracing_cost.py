"""Measure the CPU time per guided request with and without tracing, side by side.

    PYTHONPATH=. python load_tests/tracing_cost.py --help

Three gateways differ only in the section `tracing`. They use a teacher and a student without latency, wrk, and a
collector in this process that accepts everything. They take turns in rotating order. Only loopback is used.
"""

from __future__ import annotations

import json
import statistics
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import httpx
import typer

from load_tests import markdown, wrk
from load_tests.children import interruptible
from load_tests.engine_process import fake_engine
from load_tests.machine import machine
from load_tests.systems import Site, run_gateway, unguided_so_far

if TYPE_CHECKING:
    from collections.abc import Iterator

    from load_tests.systems import GatewayProcess

OFF, NONE, ALL = "off", "on, none sampled", "on, all sampled"
HEAD = ("traces", "requests/s", "CPU of a request", "more than off", "p50", "errors", "spans sent", "dropped")
_NUMBERS_PER_ROUND = 10_000_000


class _Takes(BaseHTTPRequestHandler):
    """A collector that reads and discards its input."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@contextmanager
def collector() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Takes) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def main(
    callers: Annotated[int, typer.Option(min=1, max=256, help="Callers, each with one request at a time.")] = 16,
    seconds: Annotated[int, typer.Option(min=1, max=60, help="Length of a round.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Rounds of each method, for the median.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")] = False,
) -> None:
    """Print the CPU time of a guided JSON request, Redis included, with tracing off, on, and sampled out.

    With full sampling, a request has five spans. A thread of the same process encodes and sends them, so its CPU time
    includes them. On a machine with other load, compare CPU times and not requests/s.

    Needs wrk (Debian: apt install wrk). The table is Markdown. A run takes about a minute.
    """
    if "wrk" in wrk.missing():
        raise typer.BadParameter("not installed: wrk (Debian: apt install wrk)")
    with interruptible():
        figures = measure(callers, seconds, rounds)
    typer.echo(json.dumps(figures, indent=2) if as_json else shown(figures, callers))


def measure(callers: int, seconds: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Return the figures of each method: medians over the rounds."""
    with ExitStack() as stack:
        for_s = 120.0 + 6 * seconds * (1 + rounds)
        big = urlsplit(stack.enter_context(fake_engine("instant", dialect="tgi", for_s=for_s))).port
        small = urlsplit(stack.enter_context(fake_engine("instant", dialect="openai", for_s=for_s))).port
        assert big is not None
        assert small is not None
        url = stack.enter_context(collector())
        ways = {OFF: "", NONE: f"{{endpoint: '{url}', sample: 0}}", ALL: f"{{endpoint: '{url}'}}"}
        gateways: dict[str, GatewayProcess] = {}
        for way, tracing in ways.items():
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="gkt-tracing-cost-")))
            site = Site(folder, stack, {"json": small, "stream": small, "teacher": big, "teacher_stream": big})
            gateways[way] = run_gateway(site, f"tracing: {tracing}" if tracing else "")
        seen: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        names = list(ways)
        for turn in range(-1, rounds):  # the first round is the warm-up
            for place, way in enumerate(names[turn:] + names[:turn] if turn > 0 else names):
                first = (len(names) * (turn + 1) + place) * _NUMBERS_PER_ROUND
                one = _round(gateways[way], callers, 1 if turn < 0 else seconds, first)
                if turn >= 0:
                    seen[way].append(one)
        figures: dict[str, dict[str, Any]] = {}
        for way, of_way in seen.items():
            figures[way] = {name: statistics.median(one[name] for one in of_way) for name in of_way[0]}
            figures[way]["errors"] = sum(one["errors"] for one in of_way)
            figures[way]["spans"] = _spans(gateways[way])
    return figures


def _round(gateway: GatewayProcess, callers: int, seconds: int, first: int) -> dict[str, float]:
    target = wrk.Target(f"{gateway.url}/v1/chat/completions", "guided-json", gateway.headers)
    used, unguided = gateway.child.cpu_s(), unguided_so_far(gateway.admin_url)
    reading = wrk.run(target, "json", concurrency=callers, seconds=seconds, first=first)
    failed = reading.refused + reading.broken + unguided_so_far(gateway.admin_url) - unguided
    answered = reading.requests - failed
    return {
        "per_second": answered / reading.seconds,
        "cpu_us": (gateway.child.cpu_s() - used) * 1e6 / answered,
        "p50_ms": reading.p50_ms,
        "errors": failed,
    }


def _spans(gateway: GatewayProcess) -> dict[str, float]:
    """Return the number of spans by result."""
    lines = httpx.get(f"{gateway.admin_url}/metrics").text.splitlines()
    found = (line.removeprefix('gkt_spans_total{outcome="') for line in lines if line.startswith("gkt_spans_total{"))
    return {outcome: float(number) for outcome, _, number in (line.partition('"} ') for line in found)}


def shown(figures: dict[str, dict[str, Any]], callers: int) -> str:
    """Return the figures as a Markdown table."""
    off = figures[OFF]["cpu_us"]
    rows = [
        (
            way,
            f"{seen['per_second']:.0f}",
            f"{seen['cpu_us']:.0f} us",
            f"{seen['cpu_us'] - off:.0f} us" if way != OFF else "",
            f"{seen['p50_ms']:.1f} ms",
            f"{seen['errors']:.0f}",
            f"{seen['spans'].get('sent', 0):.0f}",
            f"{seen['spans'].get('dropped', 0):.0f}",
        )
        for way, seen in figures.items()
    ]
    return "\n".join((markdown.table(HEAD, rows), "", f"Guided JSON, {callers} callers. {machine()}"))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.command()(main)
    app()
