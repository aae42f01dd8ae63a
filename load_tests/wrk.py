"""Run one round of wrk, and read its results."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["json", "stream"]
Api = Literal["chat", "responses", "messages"]

_SCRIPT = Path(__file__).with_name("chat.lua")
_MARK = "figures "
# Far above any latency here: a longer call has stalled.
_TIMEOUT_S = 20


@dataclass(frozen=True)
class Target:
    """URL, model and headers of a system for one kind of answer, and the API of the URL."""

    url: str
    model: str
    headers: Mapping[str, str]
    api: Api = "chat"


@dataclass(frozen=True)
class Reading:
    """Results of wrk in one round.

    Attributes:
        p50_ms, p99_ms: infinite without an answer in the round.
        refused: replies with a status other than 2xx or 3xx.
        broken: failed connections, and calls that took longer than 20 s.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: int
    broken: int


def command(
    target: Target, kind: Kind, *, concurrency: int, seconds: float, first: int, pause_ms: float = 0.0
) -> list[str]:
    """Return the command of wrk with one thread. A second thread would take a core from the measured system.

    Each caller pauses before each request, for a random time with the mean `pause_ms`.
    """
    headers = [f"{name}: {value}" for name, value in target.headers.items()]
    return [
        "wrk", "-t1", f"-c{concurrency}", f"-d{max(1, round(seconds))}s", f"--timeout={_TIMEOUT_S}s",
        "-s", str(_SCRIPT), target.url, "--", target.api, target.model, kind, str(first), str(pause_ms), *headers,
    ]  # fmt: skip


def read(output: str) -> Reading:
    """Parse the line of figures from chat.lua. Raise ValueError if it is missing."""
    line = next((line for line in output.splitlines() if line.startswith(_MARK)), None)
    if line is None:
        raise ValueError(f"wrk printed no figures: {output.strip()[-300:]}")
    figures = json.loads(line.removeprefix(_MARK))
    answered = figures["requests"] > 0  # wrk reports percentiles of 0 without answers
    return Reading(
        requests=figures["requests"],
        seconds=figures["duration_us"] / 1e6,
        p50_ms=figures["p50_us"] / 1e3 if answered else math.inf,
        p99_ms=figures["p99_us"] / 1e3 if answered else math.inf,
        refused=figures["refused"],
        broken=figures["broken"],
    )


def run(target: Target, kind: Kind, *, concurrency: int, seconds: float, first: int, pause_ms: float = 0.0) -> Reading:
    """Run one round. If no server listens, every caller counts as broken, and the latencies are infinite."""
    arguments = command(target, kind, concurrency=concurrency, seconds=seconds, first=first, pause_ms=pause_ms)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds + 4 * _TIMEOUT_S, check=False)
    try:
        return read(done.stdout)
    except ValueError:
        return Reading(0, seconds, math.inf, math.inf, 0, concurrency)


def missing() -> list[str]:
    """Return the system programs that the comparison needs and that are not installed."""
    return [name for name in ("wrk", "nginx") if shutil.which(name) is None]
