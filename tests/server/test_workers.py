"""`serve --workers 2` as users run it: two processes behind one port, and their supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import FakeEngine, reply, says
from tests.gateway_process import COMMAND, KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway
from tests.readiness import detail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT_S = 30.0
HEADERS = {"Authorization": f"Bearer {KEY}"}


@contextmanager
def two_workers(folder: Path, engine: FakeEngine, redis_url: str, **config: Any) -> Iterator[GatewayProcess]:
    with running_gateway(
        folder,
        **{
            "entry": COMMAND,
            "models": [model("big", "tgi", engine.url), model("small", "openai", f"{engine.url}/v1")],
            "routes": [STUDENT_ONLY],
            "redis_url": redis_url,
            "redis": {"prefix": folder.name[-32:]},
            "server": {"workers": 2},
        }
        | config,
    ) as process:
        yield process


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(says("A ship sails.")).running() as engine:
        yield engine


@pytest.fixture
def gateway(tmp_path: Path, engine: FakeEngine, redis_url: str) -> Iterator[GatewayProcess]:
    with two_workers(tmp_path, engine, redis_url) as process:
        yield process


def ask(url: str) -> httpx.Response:
    """Send a request on a new connection, so that the kernel selects a worker again."""
    body = {"model": "chat-student", "messages": [{"role": "user", "content": "Write."}]}
    # The connections use no TLS: loading certificates for each of them would only take time.
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=HEADERS, timeout=LIMIT_S, verify=False)


def measured(admin_url: str, sample: str) -> float:
    """Return a metric from any worker, summed over its labels."""
    try:
        text = httpx.get(f"{admin_url}/metrics", verify=False).text
    except httpx.TransportError:  # the kernel selected a worker that was just killed
        return measured(admin_url, sample)
    families = list(text_string_to_metric_families(text))
    return sum(found.value for family in families for found in family.samples if found.name == sample)


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def details_of_both(gateway: GatewayProcess) -> dict[int, dict[str, Any]]:
    """Return the detailed readiness by worker. Repeat the request until both have answered."""
    seen: dict[int, dict[str, Any]] = {}

    def ask_again() -> bool:
        readiness = detail(gateway.admin_url)
        seen[readiness["worker"]] = readiness
        return len(seen) == 2

    until(ask_again, "one worker never answers")
    return seen


def pids(gateway: GatewayProcess) -> dict[int, int]:
    """Return the latest process id of each worker."""
    return {line["worker"]: line["pid"] for line in list(gateway.log) if line["event"] == "worker_ready"}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def logged(gateway: GatewayProcess, event: str) -> list[dict[str, Any]]:
    return [line for line in list(gateway.log) if line["event"] == event]


@pytest.mark.long
def test_both_workers_answer_on_both_ports(gateway: GatewayProcess) -> None:
    """Each request is logged with its worker's number. `listening` is logged once, when both workers are ready."""
    assert set(details_of_both(gateway)) == {1, 2}

    def both_worked() -> bool:
        assert ask(gateway.url).status_code == 200
        return {line["worker"] for line in logged(gateway, "request")} == {1, 2}

    until(both_worked, "one worker gets no requests")
    events = [line["event"] for line in gateway.log]
    assert events.count("listening") == 1
    assert events.index("listening") > max(i for i, event in enumerate(events) if event == "worker_ready")


@pytest.mark.long
def test_any_worker_returns_the_sums_of_all(gateway: GatewayProcess) -> None:
    for _ in range(24):
        assert ask(gateway.url).status_code == 200
    until(lambda: len(logged(gateway, "request")) == 24, "a request is not recorded")
    assert {line["worker"] for line in logged(gateway, "request")} == {1, 2}
    for sample in ("gkt_requests_total", "gkt_stage_seconds_count"):
        readiness = {measured(gateway.admin_url, sample) for _ in range(12)}
        assert len(readiness) == 1
    assert measured(gateway.admin_url, "gkt_requests_total") == 24
    assert measured(gateway.admin_url, "gkt_redis_up") == 1


def test_a_killed_worker_is_restarted_and_counters_never_decrease(gateway: GatewayProcess) -> None:
    """Meanwhile the other worker answers every new connection."""
    for _ in range(12):
        assert ask(gateway.url).status_code == 200
    until(lambda: len(logged(gateway, "request")) == 12, "a request is not recorded")
    killed = pids(gateway)[1]
    os.kill(killed, signal.SIGKILL)
    ended = gateway.wait_for_log("worker_ended", worker=1)
    assert ended["exit_code"] == -signal.SIGKILL
    assert ended["restart_in_s"] > 0
    for _ in range(12):
        assert ask(gateway.url).status_code == 200
        assert measured(gateway.admin_url, "gkt_requests_total") >= 12
    until(lambda: pids(gateway)[1] != killed, "the worker does not come back")
    assert set(details_of_both(gateway)) == {1, 2}
    until(lambda: measured(gateway.admin_url, "gkt_requests_total") == 24, "a request is not counted")
    for _ in range(12):
        assert ask(gateway.url).status_code == 200
    until(lambda: measured(gateway.admin_url, "gkt_requests_total") == 36, "a request is not counted")
    assert gateway.terminate() == 0


async def hang(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


def holder(gateway: GatewayProcess) -> int:
    """Return the worker of the only request in flight."""
    held = {worker: readiness["in_flight"] for worker, readiness in details_of_both(gateway).items()}
    assert sorted(held.values()) == [0, 1]
    return max(held, key=lambda worker: held[worker])


INHERITING = """
from gateway.cli import main
from gateway.server import ports
ports.DISTRIBUTES_CONNECTIONS = False
main()
"""


@pytest.mark.long
def test_workers_inherit_sockets_where_the_kernel_distributes_no_connections(
    tmp_path: Path, engine: FakeEngine, redis_url: str
) -> None:
    """Both workers serve, a killed worker comes back, and the command drains."""
    with two_workers(tmp_path, engine, redis_url, entry=("-c", INHERITING)) as gateway:
        assert set(details_of_both(gateway)) == {1, 2}
        killed = pids(gateway)[1]
        os.kill(killed, signal.SIGKILL)
        gateway.wait_for_log("worker_ended", worker=1)
        assert [ask(gateway.url).status_code for _ in range(12)] == [200] * 12
        until(lambda: pids(gateway)[1] != killed, "the worker does not come back")
        assert set(details_of_both(gateway)) == {1, 2}
        assert gateway.terminate() == 0
        with pytest.raises(httpx.ConnectError):
            ask(gateway.url)


@pytest.mark.long
def test_gauges_of_a_killed_worker_are_removed_from_the_sums(tmp_path: Path, redis_url: str) -> None:
    with (
        FakeEngine(hang).running() as engine,
        two_workers(tmp_path, engine, redis_url, server={"workers": 2, "drain_timeout": "0s"}) as gateway,
        ThreadPoolExecutor() as pool,
    ):
        pending = pool.submit(ask, gateway.url)
        until(lambda: measured(gateway.admin_url, "gkt_in_flight") == 1, "nothing is in flight")
        os.kill(pids(gateway)[holder(gateway)], signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            pending.result(LIMIT_S)
        until(lambda: measured(gateway.admin_url, "gkt_in_flight") == 0, "it is still counted")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_every_worker(tmp_path: Path, redis_url: str, number: signal.Signals) -> None:
    """Requests in flight are finished, the command exits with 0, and no process remains."""
    finish = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def when_told(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        loops.append(asyncio.get_running_loop())
        await finish.wait()
        return web.json_response(reply("At last."))

    with (
        FakeEngine(when_told).running() as engine,
        two_workers(tmp_path, engine, redis_url) as gateway,
        ThreadPoolExecutor(16) as pool,
    ):
        pending = [pool.submit(ask, gateway.url) for _ in range(16)]
        until(lambda: measured(gateway.admin_url, "gkt_in_flight") == 16, "not all are under way")
        workers = pids(gateway)
        assert all(readiness["in_flight"] for readiness in details_of_both(gateway).values())
        gateway.process.send_signal(number)
        for worker in (1, 2):
            gateway.wait_for_log("draining", worker=worker)
        assert not any(each.done() for each in pending)
        loops[0].call_soon_threadsafe(finish.set)
        assert [each.result(LIMIT_S).status_code for each in pending] == [200] * 16
        assert gateway.process.wait(LIMIT_S) == 0
        assert {line["worker"] for line in logged(gateway, "stopped")} == {1, 2}
        assert not any(alive(pid) for pid in workers.values())


@pytest.mark.long
def test_new_connections_during_a_drain_are_served_by_the_other_worker(tmp_path: Path, redis_url: str) -> None:
    """A draining worker stops listening. On open connections it answers 503, and closes them."""
    body = {"model": "chat-student", "messages": [{"role": "user", "content": "Write."}]}
    with (
        FakeEngine(hang).running() as engine,
        two_workers(tmp_path, engine, redis_url) as gateway,
        ThreadPoolExecutor(1) as pool,
        ExitStack() as stack,
    ):
        held = pool.submit(ask, gateway.url)
        until(lambda: measured(gateway.admin_url, "gkt_in_flight") == 1, "nothing is in flight")
        worker = holder(gateway)
        clients = [
            stack.enter_context(httpx.Client(base_url=gateway.url, headers=HEADERS, timeout=LIMIT_S, verify=False))
            for _ in range(12)
        ]
        for client in clients:
            assert client.get("/v1/models").status_code == 200
        os.kill(pids(gateway)[worker], signal.SIGTERM)
        gateway.wait_for_log("draining", worker=worker)
        engine.behave = says("A ship sails.")
        assert [ask(gateway.url).status_code for _ in range(16)] == [200] * 16
        first = [client.post("/v1/chat/completions", json=body) for client in clients]
        refused = [answer for answer in first if answer.status_code != 200]
        assert refused, "none of twelve connections was to the worker that drains"
        assert {(answer.status_code, answer.headers.get("connection")) for answer in refused} == {(503, "close")}
        again = [client.post("/v1/chat/completions", json=body).status_code for client in clients]
        assert again == [200] * 12
        os.kill(pids(gateway)[worker], signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            held.result(LIMIT_S)


@pytest.mark.long
def test_a_worker_that_does_not_drain_sets_the_exit_code(tmp_path: Path, redis_url: str) -> None:
    """The test kills it during its request, like a supervisor kills a worker that exceeds the time limit."""
    with (
        FakeEngine(hang).running() as engine,
        two_workers(tmp_path, engine, redis_url) as gateway,
        ThreadPoolExecutor() as pool,
    ):
        pending = pool.submit(ask, gateway.url)
        until(lambda: measured(gateway.admin_url, "gkt_in_flight") == 1, "nothing is in flight")
        worker = holder(gateway)
        gateway.process.send_signal(signal.SIGTERM)
        gateway.wait_for_log("draining", worker=worker)
        os.kill(pids(gateway)[worker], signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            pending.result(LIMIT_S)
        assert gateway.process.wait(LIMIT_S) == 1
        gateway.wait_for_log("worker_not_drained", worker=worker, exit_code=-signal.SIGKILL)


@pytest.mark.long
def test_no_worker_outlives_a_killed_supervisor(
    tmp_path: Path, engine: FakeEngine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers drain themselves."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a killed supervisor does not remove its folder
    with two_workers(tmp_path, engine, redis_url) as gateway:
        workers = pids(gateway).values()
        assert all(alive(pid) for pid in workers)
        gateway.process.kill()
        until(lambda: not any(alive(pid) for pid in workers), "a worker lives on")
        assert {line["worker"] for line in logged(gateway, "stopped")} == {1, 2}


@pytest.mark.long
def test_a_worker_that_cannot_restart_is_retried_while_the_other_serves(
    tmp_path: Path, gateway: GatewayProcess
) -> None:
    """The log has the error of its start, and the pause grows."""
    policy = tmp_path / "policies" / "acme.yaml"
    text = policy.read_text()
    policy.write_text(text.replace("student: small", "student: smal"))
    killed = pids(gateway)[2]
    os.kill(killed, signal.SIGKILL)
    until(lambda: len(logged(gateway, "worker_ended")) == 3, "it is not tried again")
    first, second, third = logged(gateway, "worker_ended")
    assert "Did you mean 'small'" in second["error"]
    assert first["restart_in_s"] < second["restart_in_s"] < third["restart_in_s"]
    assert ask(gateway.url).status_code == 200
    policy.write_text(text)
    until(lambda: pids(gateway)[2] != killed, "the worker does not come back")


@pytest.mark.long
def test_workers_share_the_embedded_redis(tmp_path: Path, engine: FakeEngine) -> None:
    """Any worker returns a receipt. The flag takes precedence over the file."""
    with two_workers(tmp_path, engine, "embedded", server={"workers": 1}, arguments=("--workers", "2")) as gateway:
        assert gateway.wait_for_log("listening")["workers"] == 2
        receipt = f"{gateway.url}/v1/receipts/{ask(gateway.url).headers['x-request-id']}"
        until(
            lambda: {httpx.get(receipt, headers=HEADERS, verify=False).status_code for _ in range(16)} == {200},
            "a worker does not know the receipt",
        )


def test_a_process_alone_is_worker_1(tmp_path: Path, engine: FakeEngine, redis_url: str) -> None:
    """A single worker has a supervisor, too, which starts others after an edit."""
    with two_workers(tmp_path, engine, redis_url, server={"workers": 1}) as gateway:
        assert detail(gateway.admin_url)["worker"] == 1
        assert ask(gateway.url).status_code == 200
        until(lambda: measured(gateway.admin_url, "gkt_requests_total") == 1, "a request is not counted")
        assert [line["worker"] for line in logged(gateway, "worker_ready")] == [1]
