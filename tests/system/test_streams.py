"""Unit tests of load_tests/streams.py: its counts and its results."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from load_tests.slow_upstream import Clock, UpstreamConnection
from load_tests.stream_client import Stream, open_streams, request
from load_tests.streams import Step, StreamResults, best, slope_per_s
from load_tests.systems import BARE, GUIDED, STUDENT


def step(received: float, *, due: float = 1000.0, p99_ms: float = 10.0) -> Step:
    return Step(due, received, received, (5.0, p99_ms, 20.0), {}, [], streams=10)


def slow(cores: float, rss_mb: float = 100.0, streams: int = 1000) -> Step:
    """Return a step of 4,000 events/s, or of one event per second for each of 10,000 streams."""
    due = 10_000.0 if streams == 10_000 else 4000.0
    return Step(due, due, due, (5.0, 10.0, 20.0), {"gateway": cores}, [90.0, rss_mb], streams)


@pytest.mark.parametrize(
    ("student", "guided", "holds"),
    [
        (slow(0.20), slow(0.22), [True, True, True]),
        (slow(0.21), slow(0.22), [False, True, True]),
        (slow(0.20), slow(0.23), [True, False, True]),
        (slow(0.20), slow(0.22, rss_mb=251), [True, True, False]),
        (slow(0.20, streams=200), slow(0.22, rss_mb=900, streams=200), [True, True]),
        (slow(0.90, streams=10_000), slow(0.90, rss_mb=1201, streams=10_000), [False]),
    ],
)
def test_cpu_per_event_is_relative_to_bare_and_memory_depends_on_the_streams(
    student: Step, guided: Step, holds: list[bool]
) -> None:
    found = StreamResults({STUDENT: student, GUIDED: guided, BARE: slow(0.10)}, 0, [], [])
    assert [gate.holds for gate in found.gates()] == holds


class Wire:
    """A transport that keeps all written bytes."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        pass


def stream() -> Stream:
    one: Any = Stream(b"POST / HTTP/1.1\r\n\r\n")
    one.connection_made(Wire())
    read: Stream = one
    return read


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
EVENT = b'data: {"choices":[]}\n\n'


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
async def test_every_event_is_counted_once_in_any_split(size: int) -> None:
    one = stream()
    one.data_received(HEAD)
    whole = EVENT * 5 + b"data: [DONE]\n\n"
    for start in range(0, len(whole), size):
        one.data_received(whole[start : start + size])
    assert (one.status, one.events, one.done, one.lost) == (200, 5, True, False)


async def test_the_gap_of_a_silent_stream_grows() -> None:
    one = stream()
    one.data_received(HEAD + EVENT)
    one.measure()
    await asyncio.sleep(0.02)
    assert one.longest_s == 0.0
    assert one.gap_s() >= 0.015


async def test_a_connection_that_ends_early_is_lost_and_one_that_ends_properly_is_not() -> None:
    early, proper = stream(), stream()
    early.data_received(HEAD + EVENT)
    proper.data_received(HEAD + EVENT + b"data: [DONE]\n\n")
    early.connection_lost(None)
    proper.connection_lost(None)
    assert (early.lost, proper.lost) == (True, False)


async def test_the_slow_upstream_streams_at_its_rate_until_end() -> None:
    clock = Clock(interval_s=0.02)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: UpstreamConnection(clock), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions"
    ticking = loop.create_task(clock.run())
    try:
        streams = await open_streams(url, request(url, "static", {"Authorization": "Bearer x"}), 3, 1000)
        async with asyncio.timeout(10):
            while min(one.events for one in streams) < 5:
                await asyncio.sleep(0.01)
        clock.end()
        async with asyncio.timeout(10):
            while not all(one.done for one in streams):
                await asyncio.sleep(0.01)
        # In addition to the tokens: the first event with the role, the finish and the usage.
        assert sum(one.events for one in streams) == clock.sent + 3 * 3
    finally:
        ticking.cancel()
        server.close()
        for one in streams:
            one.close()


def test_the_slow_upstream_reads_a_request_that_comes_in_pieces_and_answers_json_without_a_stream() -> None:
    wire: Any = Wire()
    connection = UpstreamConnection(Clock())
    connection.connection_made(wire)
    body = json.dumps({"messages": []}).encode()
    raw_request = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    connection.data_received(raw_request[:30])
    connection.data_received(raw_request[30:-1])
    assert wire.written == b""
    connection.data_received(raw_request[-1:])
    assert wire.written.startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(wire.written.partition(b"\r\n\r\n")[2])["choices"]


def test_the_slope_is_that_of_the_line_through_all_samples() -> None:
    assert slope_per_s([100.0, 102.0, 104.0, 106.0]) == pytest.approx(2.0)
    assert slope_per_s([100.0, 130.0, 100.0, 130.0, 100.0]) == pytest.approx(0.0)


def test_the_best_pace_is_the_fastest_that_came_through_evenly() -> None:
    kept, late, uneven = step(980), step(2000, due=4000), step(3000, due=3000, p99_ms=900)
    assert best([kept, late, uneven]) is kept
    assert best([late, uneven]) is None
