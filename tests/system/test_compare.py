"""The arithmetic and the processes of load_tests/compare.py; it measures nothing here."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import typer

from gateway.redis.keys import RedisKeys
from load_tests import compare, installs, proc, systems, wrk
from load_tests.children import NotStarted, free_ports, running
from load_tests.figures import (
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
from load_tests.peer_systems import PEER_NAMES
from load_tests.systems import (
    BARE,
    GUIDED,
    GUIDED_LIMITED,
    GUIDED_TWO,
    MESSAGES,
    OTHER_APIS,
    RESPONSES,
    STUDENT,
    STUDENT_LIMITED,
    STUDENT_TWO,
    UPSTREAM,
    StartUp,
)
from tests.installed import program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def reading(requests: int = 100, p50_ms: float = 1.0, p99_ms: float = 2.0, **errors: int) -> wrk.Reading:
    return wrk.Reading(requests, 2.0, p50_ms, p99_ms, errors.get("refused", 0), errors.get("broken", 0))


def figures(
    per_second: float = 100.0, p50_ms: float = 1.0, backlog_s: float = 0.0, per_cpu_s: float | None = None
) -> CaseFigures:
    return CaseFigures(per_second, per_cpu_s, p50_ms, 2.0, 0.5, 0.0, 0, 0, 0, backlog_s, (per_second,))


def measured(
    *, student_ms: float = 0.4, guided_ms: float = 1.0, backlog_s: float = 0.0, two: float = 1000.0, **rates: float
) -> dict[BenchCase, CaseFigures]:
    """Return all values that the gates need: 1,000 requests/s of the bare pass-through, 0.1 ms of the upstream."""
    given = {
        (STUDENT, "json"): rates.get("student", 600),
        (GUIDED, "json"): rates.get("guided", 300),
        (STUDENT_LIMITED, "json"): rates.get("limited", 500),
        (GUIDED_LIMITED, "json"): rates.get("guided_limited", 250),
        (STUDENT, "stream"): rates.get("student_stream", 400),
        (GUIDED, "stream"): rates.get("guided_stream", 200),
        (RESPONSES, "json"): rates.get("responses", 540),
        (MESSAGES, "json"): rates.get("messages", 540),
        (RESPONSES, "stream"): rates.get("responses_stream", 360),
        (MESSAGES, "stream"): rates.get("messages_stream", 360),
        (BARE, "json"): 1000,
        (BARE, "stream"): 1000,
    }
    seen: dict[BenchCase, CaseFigures] = {
        BenchCase(name, "stream" if kind == "stream" else "json", 32): figures(rate, per_cpu_s=1000.0)
        for (name, kind), rate in given.items()
    }
    return seen | {
        BenchCase(UPSTREAM, "json", 1): figures(p50_ms=0.1),
        BenchCase(STUDENT, "json", 1): figures(p50_ms=student_ms + 0.1),
        BenchCase(GUIDED, "json", 1): figures(p50_ms=guided_ms + 0.1),
        BenchCase(STUDENT_TWO, "json", 32): figures(per_cpu_s=two),
        BenchCase(GUIDED_TWO, "json", 32): figures(per_cpu_s=1000.0, backlog_s=backlog_s),
    }


def judge(
    seen: dict[BenchCase, CaseFigures], student_p99_ms: float = 4.0, ready_s: float = 1.0, rss_mb: float = 100.0
) -> list[Gate]:
    """Return the gates for these figures, with a p99 of 2 ms of the bare pass-through."""
    return gates(seen, {BARE: 2.0, STUDENT: student_p99_ms, GUIDED: 4.0}, [StartUp(ready_s, rss_mb)])


def test_the_figures_of_a_round_are_read_from_wrks_output() -> None:
    output = (
        "Running 2s test @ http://127.0.0.1:9000\n  1 threads and 32 connections\n"
        'figures {"requests":5000,"duration_us":2000000,"p50_us":950.0,"p99_us":4200.5,"refused":3,"broken":2}\n'
    )
    assert wrk.read(output) == wrk.Reading(5000, 2.0, 0.95, 4.2005, 3, 2)


def test_a_round_without_an_answer_has_no_latency_that_could_be_taken_for_a_good_one() -> None:
    figures_line = 'figures {"requests":0,"duration_us":5000000,"p50_us":0.0,"p99_us":0.0,"refused":0,"broken":0}'
    assert wrk.read(figures_line) == wrk.Reading(0, 5.0, math.inf, math.inf, 0, 0)


def test_output_without_figures_is_an_error_that_quotes_it() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        wrk.read("unable to connect to 127.0.0.1:9000 Connection refused\n")


@pytest.mark.parametrize("kind", ["json", "stream"])
@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
async def test_wrk_sends_the_request_with_unique_prompts(kind: wrk.Kind, api: wrk.Api) -> None:
    program("wrk")
    bodies: list[bytes] = []
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
                heads.append(head)
                bodies.append(await reader.readexactly(length))
                status = b"503 Busy" if len(bodies) == 5 else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        target = wrk.Target(f"http://127.0.0.1:{port}/v1", "chat", {"Authorization": "Bearer gk-a"}, api)
        seen = await asyncio.to_thread(wrk.run, target, kind, concurrency=2, seconds=1, first=10_000_000)
    assert seen.refused == 1
    assert seen.broken == 0
    assert 5 < seen.requests <= len(bodies)
    assert len(set(bodies)) == len(bodies)
    assert all(b"Bearer gk-a" in head for head in heads)
    body = json.loads(bodies[0])
    assert body["model"] == "chat"
    # wrk draws one request to look at it before it sends any.
    question = body["input"] if api == "responses" else body["messages"][-1]["content"]
    assert "question 001000000" in question
    assert body.get("stream", False) is (kind == "stream")


def test_a_system_that_is_gone_has_broken_calls_and_holds_no_gate() -> None:
    program("wrk")
    (port,) = free_ports(1)
    gone = wrk.run(wrk.Target(f"http://127.0.0.1:{port}/", "chat", {}), "json", concurrency=3, seconds=1, first=0)
    seen = over_rounds([RoundResult(gone, cores=0.0)])
    assert (seen.per_second, seen.broken) == (0.0, 3)
    judged = judge(measured() | {BenchCase(STUDENT, "json", 1): seen, BenchCase(STUDENT, "json", 32): seen})
    assert [gate.name for gate in judged if not gate.holds] == [
        f"{STUDENT}, json: requests/s, times bare's",
        f"{RESPONSES}, json: requests/s, times chat completions'",
        f"{MESSAGES}, json: requests/s, times chat completions'",
        f"{STUDENT}: added p50, ms, one caller",
        f"{STUDENT_TWO}: requests per CPU second, times one worker's",
    ]
    assert compare.finite({"p50_ms": seen.p50_ms, "per_second": seen.per_second})["p50_ms"] is None


def test_a_case_is_the_median_of_its_rounds_and_the_sum_of_its_errors() -> None:
    rounds = [
        RoundResult(reading(100, p50_ms=3, p99_ms=9, refused=20, broken=1), cores=0.9),
        RoundResult(reading(400, p50_ms=1, p99_ms=8), cores=0.5, unguided=4, backlog_s=0.7),
        RoundResult(reading(300, p50_ms=2, p99_ms=7), cores=0.7),
    ]
    seen = over_rounds(rounds)
    assert (seen.per_second, seen.p50_ms, seen.p99_ms, seen.cores) == (150.0, 2.0, 8.0, 0.7)
    assert (seen.refused, seen.broken, seen.unguided, seen.errors) == (20, 1, 4, 25)
    assert seen.backlog_s == 0.7


def test_requests_for_a_cpu_second_are_those_of_the_systems_own_processes() -> None:
    rounds = [
        RoundResult(reading(100), cores=0.5),
        RoundResult(reading(300), cores=1.0),
        RoundResult(reading(500), cores=1.0),
    ]
    assert over_rounds(rounds).per_cpu_s == 150.0
    assert over_rounds([RoundResult(reading(100), cores=0.0)]).per_cpu_s is None


def test_refused_requests_are_not_counted_as_answered() -> None:
    assert over_rounds([RoundResult(reading(100, refused=40), cores=0.1)]).per_second == 30.0


def test_added_latency_is_relative_to_the_upstream() -> None:
    seen = {BenchCase(UPSTREAM, "json", 1): figures(p50_ms=0.5), BenchCase(GUIDED, "json", 1): figures(p50_ms=13.0)}
    assert added_ms(seen, BenchCase(GUIDED, "json", 1)) == 12.5
    assert added_ms({BenchCase(GUIDED, "json", 1): figures()}, BenchCase(GUIDED, "json", 1)) is None


def test_the_ratio_is_to_the_bare_pass_through_of_the_same_kind_and_concurrency() -> None:
    seen = {
        BenchCase(BARE, "json", 32): figures(1000),
        BenchCase(BARE, "stream", 32): figures(200),
        BenchCase(STUDENT, "stream", 32): figures(50),
    }
    assert of_bare(seen, BenchCase(STUDENT, "stream", 32)) == 0.25
    assert of_bare(seen | {BenchCase(STUDENT, "json", 1): figures()}, BenchCase(STUDENT, "json", 1)) is None


def test_the_ratio_to_chat_completions_is_of_the_other_apis_alone() -> None:
    seen = {BenchCase(name, "json", 32): figures(rate) for name, rate in ((STUDENT, 200), (MESSAGES, 150), (BARE, 400))}
    assert of_chat(seen, BenchCase(MESSAGES, "json", 32)) == 0.75
    assert of_chat(seen, BenchCase(BARE, "json", 32)) is None
    assert of_chat({BenchCase(MESSAGES, "json", 1): figures()}, BenchCase(MESSAGES, "json", 1)) is None


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """The ratio of the medians, 160 to 300, would compare different rounds."""
    counts = [100, 300, 400], [50, 200, 160]
    bare, own = (over_rounds([RoundResult(reading(one), cores=1.0) for one in system]) for system in counts)
    seen = {BenchCase(BARE, "json", 32): bare, BenchCase(STUDENT, "json", 32): own}
    assert of_bare(seen, BenchCase(STUDENT, "json", 32)) == 0.5


@pytest.mark.parametrize(
    ("worse", "failing"),
    [
        ({}, []),
        ({"student": 499, "responses": 499, "messages": 499}, [f"{STUDENT}, json"]),
        ({"student": 500}, []),
        ({"guided": 249}, [f"{GUIDED}, json"]),
        ({"guided": 250}, []),
        ({"limited": 419}, [f"{STUDENT_LIMITED}, json"]),
        ({"guided_limited": 209}, [f"{GUIDED_LIMITED}, json"]),
        ({"student_stream": 279}, [f"{STUDENT}, stream"]),
        ({"responses": 509}, [f"{RESPONSES}, json"]),
        ({"messages": 509}, [f"{MESSAGES}, json"]),
        ({"responses_stream": 339}, [f"{RESPONSES}, stream"]),
        ({"messages_stream": 339}, [f"{MESSAGES}, stream"]),
        ({"messages_stream": 340}, []),
        ({"guided_stream": 139}, [f"{GUIDED}, stream"]),
        ({"student_ms": 0.61}, [STUDENT]),
        ({"guided_ms": 1.21}, [GUIDED]),
        ({"two": 899}, [STUDENT_TWO]),
        ({"backlog_s": 0.9}, []),
        ({"backlog_s": 1.1}, ["usage worker"]),
    ],
)
def test_a_gate_fails_beyond_its_limit_and_only_there(worse: dict[str, float], failing: list[str]) -> None:
    judged = judge(measured(**worse))
    assert len(judged) == 19
    assert [gate.name.partition(":")[0] for gate in judged if not gate.holds] == failing


@pytest.mark.parametrize(
    ("worse", "failing"),
    [
        ({"student_p99_ms": 6.1}, f"{STUDENT}: p99 at 70% of the largest rate, times bare's"),
        ({"ready_s": 1.6}, "start until /readyz, s"),
        ({"rss_mb": 121}, "memory of an idle gateway, MB"),
    ],
)
def test_latency_start_and_memory_have_gates(worse: dict[str, float], failing: str) -> None:
    assert [gate.name for gate in judge(measured(), **worse) if not gate.holds] == [failing]


def test_paced_callers_together_make_the_share_of_the_largest_rate() -> None:
    """128 callers with pauses of 183 ms make 700 requests/s."""
    assert pause_ms(1000) == pytest.approx(182.86, abs=0.01)


def test_a_gate_can_hold_and_miss_its_goal() -> None:
    (student, guided, *_) = judge(measured(student=550, guided=300))
    assert (student.holds, student.reaches_goal) == (True, False)
    assert (guided.holds, guided.reaches_goal) == (True, True)


@pytest.mark.parametrize("lacking", sorted(needed_by_gates(), key=str), ids=str)
def test_gates_require_their_figures(lacking: BenchCase) -> None:
    seen = measured()
    del seen[lacking]
    with pytest.raises(KeyError):
        judge(seen)


@pytest.mark.parametrize("text", ["", "a", "0", "1,,32", "1,5000"])
def test_a_concurrency_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        compare.parse_levels(text)


def test_gates_are_refused_when_their_systems_are_left_out() -> None:
    with pytest.raises(typer.BadParameter, match="--gates needs ours, guided"):
        compare.main(only="bare,upstream,student", with_gates=True)


def pairs(started: tuple[systems.System, ...]) -> list[tuple[systems.System, systems.System]]:
    started = tuple(system for system in started if system.name not in OTHER_APIS)
    return list(zip(started[::2], started[1::2], strict=True))


def test_our_own_rows_are_guided_in_json_and_in_streams(tmp_path: Path) -> None:
    """The rows are guided with any defaults of the gateway: an unguided row does not start."""
    program("nginx")
    with ExitStack() as stack:
        site = systems.Site(tmp_path, stack)
        systems.start_upstream(site)
        for student, guided in pairs((*systems.start_gateway(site), *systems.start_two_workers(site))):
            assert (student.unguided, guided.unguided and guided.unguided()) == (None, 0)


@pytest.mark.long
def test_the_backlog_is_the_age_of_the_oldest_receipt_that_a_usage_worker_has_not_written(tmp_path: Path) -> None:
    program("nginx")
    with ExitStack() as stack:
        site = systems.Site(tmp_path, stack)
        systems.start_upstream(site)
        ours = systems.run_gateway(site)
        redis = systems.redis_of(ours.child)
        assert systems.backlog_s(redis) == 0.0
        redis.sadd(RedisKeys("gkt").ledger().tenants, "acme")

        def post() -> float:
            redis.xadd(RedisKeys("gkt").outbox("acme"), {"receipt": "{}"}, id=f"{int(time.time() - 90) * 1000}-*")
            return systems.backlog_s(redis)

        assert until(lambda: 89 < post() < 600)  # the worker may be faster than one look
        assert until(lambda: systems.backlog_s(redis) == 0.0), "the usage worker does not read it"


def test_a_text_is_quoted_as_one_word_for_nginx() -> None:
    assert systems.nginx_word('a "b"\\\nc') == '"a \\"b\\"\\\\\\nc"'


@pytest.mark.parametrize("peer", PEER_NAMES)
def test_every_peer_has_pins_with_hashes(peer: str) -> None:
    text = installs.pins(peer).read_text()
    assert "sha256:" in text or '"integrity"' in text


def test_an_environment_made_from_other_pins_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert installs.find("switchyard") is None
    stamp = installs.cache() / "switchyard" / "installed-from"
    stamp.parent.mkdir(parents=True)
    stamp.write_text(installs.pins("switchyard").read_text())
    assert installs.find("switchyard") == stamp.parent
    stamp.write_text("nemo-switchyard==0.1.0\n")
    assert installs.find("switchyard") is None


def alive(pid: int) -> bool:
    # A process that has ended and was not waited for has a state of Z.
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 (one line)
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true: Callable[[], bool]) -> bool:
    give_up = time.monotonic() + 20
    while not true() and time.monotonic() < give_up:
        time.sleep(0.02)
    return true()


def test_children_and_their_descendants_end_on_an_interrupt(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupted() -> None:
        with running("two sleepers", ["sh", "-c", "sleep 100 & sleep 100; true"], tmp_path) as child:
            assert until(lambda: len(child.pids()) == 3)
            pids.extend(child.pids())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert until(lambda: not any(alive(pid) for pid in pids))


def test_a_child_that_ends_at_once_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    with (
        running("broken", ["sh", "-c", "echo no such port; exit 3"], tmp_path) as child,
        pytest.raises(NotStarted, match="status 3: no such port"),
    ):
        child.wait_until(lambda: False, 20)


def test_cpu_and_memory_of_a_process_and_its_children_are_seen() -> None:
    with subprocess.Popen(["sh", "-c", "while :; do :; done"]) as busy:
        try:
            assert busy.pid in proc.tree(os.getpid())
            assert until(lambda: proc.cpu_s(busy.pid) > 0.02)
            assert proc.rss_bytes(busy.pid) > 100_000
            assert "while" in proc.command(busy.pid)
        finally:
            busy.kill()
    assert (proc.cpu_s(busy.pid), proc.rss_bytes(busy.pid), proc.command(busy.pid)) == (0.0, 0, "")
