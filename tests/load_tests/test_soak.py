"""The soak test: a short one passes, a gateway with defects fails, and a long one passes.

The output of the soak tests is in the output of pytest (`pytest -rP`, or `-s`).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from load_tests.soak import INTERRUPTED, exit_status
from load_tests.soaking.books import none
from load_tests.soaking.flatness import Measure, Trend
from load_tests.soaking.report import SoakReport, record, shown
from load_tests.soaking.traffic import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
TIMES = {"p50", "p95"}  # a machine that is busier at the end says nothing of the gateway
LEAKS = {"resident memory", "open files", "tasks"}


@contextmanager
def soaking(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command. Wait for its first line on stderr."""
    command = [sys.executable, "-m", "load_tests.soak", "--json", str(folder / "soak.json"), *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("started: ")
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str], folder: Path, limit_s: float) -> tuple[int, str, dict[str, Any]]:
    """Return the exit status, the output and the report."""
    printed, errors = process.communicate(timeout=limit_s)
    print(printed, errors)
    found: dict[str, Any] = json.loads((folder / "soak.json").read_text())
    return process.returncode, printed, found


def not_held(found: dict[str, Any]) -> set[str]:
    checks = {one["name"] for one in found["checks"] if not one["holds"]}
    return checks | {f"{one['measure']} of {one['of']}" for one in found["trends"] if not one["holds"]}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_short_soak_passes(tmp_path: Path) -> None:
    """The run is too short for verdicts on Redis and times, but long enough for all counts and process growth."""
    with soaking(tmp_path, "--minutes", "0.5", "--rate", "20") as process:
        status, printed, found = ended(process, tmp_path, 400)
    assert not_held(found) == set()
    assert status == 0
    assert found["requests"] > 50
    assert found["left"] > 0
    assert len(found["disturbed"]) >= 4
    judged = {(one["measure"], one["of"]) for one in found["trends"] if one["judged_s"]}
    assert judged >= {(measure, name) for measure in LEAKS for name in ("one", "two")}
    assert "| receipts missing | 0 | 0 | yes |" in printed
    assert "too short to judge" in printed
    assert "The soak test passed." in printed


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_leaking_gateway_fails_an_interrupted_soak(tmp_path: Path) -> None:
    """The other gateway passes. Ctrl-C ends the run with a report."""
    leaking = ("--second", "tests.load_tests.leaking_gateway", "--patience", "3")
    with soaking(tmp_path, "--minutes", "2", "--rate", "20", *leaking) as process:
        assert process.stderr is not None
        for _ in range(4):  # half a minute
            assert process.stderr.readline().endswith(" left\n")
        process.send_signal(signal.SIGINT)
        status, printed, found = ended(process, tmp_path, 400)
    assert status == 1
    assert found["ended"] == "interrupted"
    assert found["ran_s"] < found["planned_s"]
    bad = not_held(found)
    assert bad >= {f"{measure} of two" for measure in LEAKS}
    assert bad >= {"receipts missing", "intents left", "gkt_requests_total = receipts"}
    assert not any(name.endswith(" of one") for name in bad)
    assert "ended early: interrupted" in printed
    assert "The soak test FAILED: " in printed


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_soak_of_twenty_minutes_passes(tmp_path: Path) -> None:
    """All kinds of requests and disturbances occur, and all counts and trends pass."""
    with soaking(tmp_path, "--minutes", "20") as process:
        _, _, found = ended(process, tmp_path, 2000)
    held = {name for name in not_held(found) if name.partition(" of ")[0] not in TIMES}
    assert held == set()
    assert {one["measure"] for one in found["trends"] if one["judged_s"]} >= LEAKS | {
        "threads", "memory", "keys", "p50", "p95",
    }  # fmt: skip
    assert len(found["disturbed"]) == 7
    answered = {name.rpartition(": ")[0] for name in found["replies"]}
    assert answered >= {kind.name for kind in KINDS if not kind.leaves}
    statuses = {int(name.rpartition(": ")[2]) for name in found["replies"]}
    assert statuses >= {200, 400, 401, 404, 429, 502, 503, 504}
    assert set(found["receipts"]) >= {"ok", "client_gone", "engine_timeout", "engine_unreachable", "store_unavailable"}


FLAT = Trend(Measure("tasks", "", 1, 0.1, 8), "one", 50, 51, 1, 0.5, 13, 60)
RISING = Trend(Measure("tasks", "", 1, 0.1, 8), "two", 50, 80, 30, 25, 13, 60)


def a_soak(*, trend: Trend = FLAT, missing: int = 0, ended: str = "", counted: bool = True) -> SoakReport:
    checks = [none("receipts missing", missing)] if counted else []
    return SoakReport(60, 30, ended, 9, 1, 0, checks, [trend], [], [], [], {("student", 200): 8}, {"ok": 9}, {})


@pytest.mark.long
@pytest.mark.parametrize(("found", "status", "last_line"), [
    (a_soak(), 0, "The soak test passed."),
    (a_soak(trend=RISING), 1, "The soak test FAILED: tasks of two."),
    (a_soak(missing=2), 1, "The soak test FAILED: receipts missing."),
    (a_soak(ended="interrupted"), INTERRUPTED, "The soak test passed."),
    (a_soak(ended="interrupted", missing=1), 1, "The soak test FAILED: receipts missing."),
    (a_soak(ended="gateway two is gone", counted=False), 1, "The soak test FAILED: no counts."),
])  # fmt: skip
def test_the_exit_status_is_the_result(found: SoakReport, status: int, last_line: str) -> None:
    assert exit_status(found) == status
    assert list(shown(found))[-1] == last_line
    assert json.loads(json.dumps(record(found)))["holds"] is (status in {0, INTERRUPTED})
