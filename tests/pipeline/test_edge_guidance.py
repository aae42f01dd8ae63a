"""A device gets guidance, completes the answer itself, and reports it once. The gateway has two workers."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from gateway.edge.link import EdgeGuidance
from gateway.local.redis import EmbeddedRedis
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aiohttp import web

WROTE = "The baker sells 24 rolls in the"
OPENING = "The baker sells 24 rolls in"
USAGE = {"input_tokens": 20, "output_tokens": 9, "student": "phone-1b", "finish_reason": "stop", "total_ms": 700}
NO_CACHE = {"cache_ttl": "0s"}


async def is_stuck(*_: object) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError


def questions(engine: FakeEngine) -> int:
    """Return how many calls of an engine contain a device's question."""
    return sum("How many rolls" in json.dumps(request) for request in engine.requests)


class World:
    """A gateway with two workers before a teacher, and a student that must not be called."""

    def __init__(self, teacher: FakeEngine, student: FakeEngine, gateway: GatewayProcess) -> None:
        self.teacher, self.student, self.gateway = teacher, student, gateway

    def post(self, path: str, body: Any, key: str = KEY, **headers: str) -> httpx.Response:
        # A new connection for each request, so that either worker may get it.
        sent = {"Authorization": f"Bearer {key}", **headers}
        return httpx.post(f"{self.gateway.url}/v1/guidance{path}", headers=sent, json=body, timeout=60)

    def ask(self, route: str = "chat", key: str = KEY, **more: Any) -> httpx.Response:
        question = [{"role": "user", "content": f"How many rolls are left? {uuid.uuid4()}"}]
        return self.post("", {"model": route, "messages": question} | more, key)

    def report(self, receipt_id: str, key: str = KEY, **more: Any) -> httpx.Response:
        return self.post(f"/{receipt_id}/usage", USAGE | more, key)

    def receipt(self, receipt_id: str) -> dict[str, Any]:
        """Return the settled receipt as its tenant reads it."""
        self.gateway.wait_for_log("request", 60, id=receipt_id)
        give_up = time.monotonic() + 30
        while True:
            found = httpx.get(
                f"{self.gateway.url}/v1/receipts/{receipt_id}", headers={"Authorization": f"Bearer {KEY}"}
            )
            if found.status_code == 200:
                receipt: dict[str, Any] = found.json()
                return receipt
            assert time.monotonic() < give_up, found.text
            time.sleep(0.05)

    def counted(self, outcome: str) -> float:
        text = httpx.get(f"{self.gateway.admin_url}/metrics", timeout=30).text
        found = re.search(rf'gkt_edge_closings_total{{outcome="{outcome}"}} (\S+)', text)
        return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with (
        FakeEngine(says(WROTE, "length")).running() as teacher,
        FakeEngine(says("Nobody asked me.")).running() as student,
        running_gateway(
            tmp_path_factory.mktemp("handover"),
            redis_url=redis_url,
            usage={"run": "host"},
            redis={"prefix": f"edge{uuid.uuid4().hex[:8]}", "timeout": "5s"},
            server={"workers": 2},
            models=[
                model("big", "tgi", teacher.url, breaker={"failures": 1000}),
                model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[
                guided(**NO_CACHE),
                guided("chat-whole", stream=False, **NO_CACHE),
                guided("chat-context", placement="context", **NO_CACHE),
                guided("chat-late", deadline="300ms", **NO_CACHE),
                guided("chat-strict", deadline="300ms", on_failure="reject", **NO_CACHE),
                guided("chat-dear", **NO_CACHE) | {"show_cost": True},
                guided("chat-kept"),
                guided("chat-short", **NO_CACHE) | {"max_tokens_limit": 20},
                STUDENT_ONLY,
            ],
            tenants={"acme": {"key_device": {"max_daily_savings": 1}}, "globex": {"limits": {"rpm_limit": 2}}},
        ) as gateway,
    ):
        wait_until_looked_at(gateway.admin_url)
        yield World(teacher, student, gateway)


@pytest.fixture
def world(running: World) -> Iterator[World]:
    """Reset the engines. Afterwards, check that the student was not called."""
    running.teacher.behave = says(WROTE, "length")
    running.teacher.requests.clear()
    running.student.requests.clear()
    yield running
    # The gateway probes it in the background with a question of its own.
    assert questions(running.student) == 0


@pytest.mark.long
def test_a_device_gets_guidance_the_seam_and_a_receipt_of_the_teacher_alone(world: World) -> None:
    answer = world.ask("chat-dear", max_tokens=50, temperature=1.5)
    body = answer.json()
    receipt_id = answer.headers["x-request-id"]
    assert (body["id"], body["object"], body["model"]) == (f"guid-{receipt_id}", "guidance", "chat-dear")
    guidance = body["guidance"]
    assert (guidance["text"], guidance["seam"]) == (OPENING, {"owed": " ", "trimmed": "the"})
    assert (guidance["placement"], guidance["projection"], guidance["tokens"]) == ("prefix", "cutoff", 12)
    assert (guidance["complete"], guidance["finish_reason"], body["unguided"]) == (False, None, None)
    assert body["messages"] is None
    assert body["close"]["most_output_tokens"] == 50 - guidance["kept_tokens"]
    assert body["close"]["by"] == body["created"] + 86_400
    assert answer.headers["x-gkt-mode"] == "guidance"
    assert (answer.headers["x-gkt-teacher"], "x-gkt-student" in answer.headers) == ("big", False)
    (request,) = world.teacher.requests
    assert request.get("temperature", request.get("parameters", {}).get("temperature")) != 1.5, (
        "the teacher's is the policy's"
    )

    receipt = world.receipt(receipt_id)
    assert (receipt["mode"], receipt["status"], receipt["edge"]) == ("guidance", "ok", "open")
    assert (receipt["student"], receipt["close"]) == (None, body["close"])
    assert Decimal(receipt["cost_usd"]) > 0
    assert receipt["cost_usd"] == answer.headers["x-gkt-cost-usd"].ljust(len(receipt["cost_usd"]), "0")


def test_a_report_closes_the_account_and_has_a_receipt(world: World) -> None:
    body = world.ask().json()
    report = world.report(body["receipt"])
    assert report.status_code == 200
    closing, guidance = report.json(), world.receipt(body["receipt"])
    assert (closing["mode"], closing["edge_of"]) == ("edge", guidance["id"])
    assert (closing["student"]["model"], closing["student"]["output_tokens"]) == ("phone-1b", 9)
    assert (guidance["edge"], guidance["edge_of"]) == ("closed", None)
    assert world.receipt(closing["id"]) == closing
    # The teacher costs one dollar per million tokens.
    assert (Decimal(closing["cost_usd"]), Decimal(closing["savings_usd"])) == (Decimal(0), Decimal("0.000009"))


def test_of_concurrent_reports_one_is_stored_and_the_others_are_rejected(world: World) -> None:
    """The reports arrive before either worker has stored the guidance."""
    before = world.counted("closed_twice")
    receipt_id = world.ask().json()["receipt"]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: world.report(receipt_id), range(8)))
    assert sorted(reply.status_code for reply in replies) == [200] + [409] * 7
    refused = next(reply for reply in replies if reply.status_code == 409)
    assert (refused.json()["error"]["code"], refused.headers["x-should-retry"]) == ("edge_closed", "false")
    assert world.counted("closed_twice") - before == 7


def test_another_tenants_guidance_is_not_found(world: World) -> None:
    before = world.counted("unknown")
    receipt_id = world.ask().json()["receipt"]
    world.receipt(receipt_id)
    strange = world.report(receipt_id, OTHER_KEY)
    unknown = world.report("req_" + "0" * 24)
    odd = [world.report(one) for one in ("..%2F..%2Fsecrets", "%00", f"{receipt_id}%0A")]
    replies = [strange, unknown, *odd]
    assert all(reply.json() == unknown.json() for reply in replies)
    assert {reply.status_code for reply in replies} == {404}
    assert world.counted("unknown") - before == len(replies)
    assert world.report(receipt_id).status_code == 200, "it is open still"


@pytest.mark.parametrize("asked", [{}, {"max_tokens": 50}])
def test_the_routes_maximum_limits_what_the_device_may_report(world: World, asked: dict[str, int]) -> None:
    answer = world.ask("chat-short", **asked)
    body = answer.json()
    assert body["close"]["most_output_tokens"] == 20 - body["guidance"]["kept_tokens"]
    assert answer.headers.get("x-gkt-max-tokens") == ("20" if asked else None)


def test_only_receipts_of_guidance_can_be_closed(world: World) -> None:
    body = world.ask().json()
    closing = world.report(body["receipt"]).json()
    assert world.report(closing["id"]).status_code == 404


def test_too_many_reported_tokens_are_rejected_and_the_account_stays_open(world: World) -> None:
    before = world.counted("too_many_tokens")
    body = world.ask(max_tokens=20).json()
    limit = body["close"]["most_output_tokens"]
    refused = world.report(body["receipt"], output_tokens=limit + 1)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "output_tokens")
    assert f"limit, {limit} tokens" in error["message"]
    assert world.counted("too_many_tokens") - before == 1
    assert world.report(body["receipt"], output_tokens=limit).status_code == 200


@pytest.mark.parametrize("route", ["chat", "chat-context"])
def test_a_complete_answer_of_the_teacher_leaves_nothing_to_report(world: World, route: str) -> None:
    world.teacher.behave = says("Twelve.", "stop")
    body = world.ask(route).json()
    assert EdgeGuidance.read(body).finish_reason == "stop", "as the client has it"
    guidance = body["guidance"]
    assert (guidance["text"], guidance["complete"], guidance["finish_reason"]) == ("Twelve.", True, "stop")
    assert body["close"]["most_output_tokens"] == 0
    receipt = world.receipt(body["receipt"])
    assert (receipt["finish_reason"], receipt["close"], receipt["edge"]) == ("stop", None, "closed")
    assert world.report(body["receipt"]).status_code == 409


def test_guidance_is_batched_cached_and_limited_like_a_chats(world: World) -> None:
    """The report of a device counts toward no limit."""
    body = {"model": "chat-kept", "messages": [{"role": "user", "content": f"How many rolls? {uuid.uuid4()}"}]}
    first, again, refused = (world.post("", body, OTHER_KEY) for _ in range(3))
    assert (first.headers["x-gkt-batch-size"], "x-gkt-shared" in first.headers) == ("1", False)
    assert again.headers["x-gkt-shared"] in ("cache", "flight")  # the cache is written after the first reply
    assert again.json()["guidance"] == first.json()["guidance"]
    assert len(world.teacher.requests) == 1
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    for body in (first.json(), again.json()):
        assert world.report(body["receipt"], OTHER_KEY).status_code == 200


def test_with_placement_context_the_device_gets_the_whole_prompt(world: World) -> None:
    body = world.ask("chat-context").json()
    assert body["guidance"]["placement"] == "context"
    (message,) = body["messages"]
    assert message["content"].startswith("How many rolls")
    assert OPENING in message["content"]
    assert body["close"]["most_output_tokens"] is None


@pytest.mark.parametrize(("route", "pieces"), [("chat", True), ("chat-whole", False)])
def test_a_stream_sends_pieces_if_the_route_streams_and_then_all_guidance(
    world: World, route: str, *, pieces: bool
) -> None:
    answer = world.ask(route, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-gkt-mode"] == "guidance"
    *events, last = re.findall(r"^data: (.*)$", answer.text, re.MULTILINE)
    assert last == "[DONE]"
    *chunks, whole = map(json.loads, events)
    assert bool(chunks) == pieces
    assert {(one["object"], one["id"]) for one in chunks} <= {("guidance.chunk", whole["id"])}
    assert (whole["object"], whole["guidance"]["text"]) == ("guidance", OPENING)
    assert OPENING.startswith("".join(one["delta"] for one in chunks))
    assert whole["gkt"]["mode"] == "guidance"
    receipt = world.receipt(whole["receipt"])
    assert (receipt["stream"], receipt["edge"]) == (True, "open")
    assert ("first_token_ms" in receipt["timings"]) == pieces
    assert world.report(whole["receipt"]).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_with_a_late_teacher_the_account_stays_open(world: World, *, stream: bool) -> None:
    world.teacher.behave = is_stuck
    answer = world.ask("chat-late", stream=stream)
    body = json.loads(re.findall(r"^data: (.*)$", answer.text, re.MULTILINE)[0]) if stream else answer.json()
    assert (body["unguided"], body["guidance"]["text"], body["messages"]) == ("teacher_late", "", None)
    receipt = world.receipt(body["receipt"])
    assert (receipt["mode"], receipt["unguided"], receipt["edge"]) == ("guidance", "teacher_late", "open")
    closing = world.report(body["receipt"], guided=False).json()
    assert closing["unguided"] == "teacher_late"


@pytest.mark.parametrize("stream", [False, True])
def test_a_policy_that_requires_guidance_fails_the_request(world: World, *, stream: bool) -> None:
    world.teacher.behave = is_stuck
    answer = world.ask("chat-strict", stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "guidance_unavailable")
    receipt = world.receipt(answer.headers["x-request-id"])
    assert (receipt["status"], receipt["close"], receipt["edge"]) == ("guidance_unavailable", None, "closed")


def test_a_request_that_cannot_be_guided_does_not_call_the_teacher(world: World) -> None:
    body = world.ask(tools=[{"type": "function", "function": {"name": "f"}}]).json()
    assert (body["unguided"], body["guidance"]["text"]) == ("tools", "")
    assert world.teacher.requests == []
    assert Decimal(world.receipt(body["receipt"])["cost_usd"]) == 0


def test_the_error_of_a_route_without_guidance_names_the_setting(world: World) -> None:
    for refused in (
        world.ask("chat-student"),
        world.post("/usage", USAGE | {"model": "chat-student", "id": str(uuid.uuid4())}),
    ):
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (400, "route_without_guidance", "model")
        assert "mode: guided" in error["message"]


@pytest.mark.parametrize("version", ["0", "2", "99999999999", "one", "-1", "1.0", ""])
@pytest.mark.parametrize("path", ["", "/req_000000000000000000000000/usage", "/usage"])
def test_the_error_of_an_unsupported_version_names_the_supported_ones(world: World, path: str, version: str) -> None:
    refused = world.post(path, {}, **{"X-GKT-Edge": version})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "edge_version")
    assert "version 1" in error["message"]
    assert version not in {"0", "2"} or f"version {version}" in error["message"]


def test_a_current_client_is_served_and_versions_are_hidden_without_a_key(world: World) -> None:
    question = {"model": "chat", "messages": [{"role": "user", "content": f"Hi {uuid.uuid4()}"}]}
    assert world.post("", question, **{"X-GKT-Edge": "1"}).status_code == 200
    assert world.post("", question, "gk-wrong", **{"X-GKT-Edge": "0"}).status_code == 401


def test_an_answer_that_was_made_offline_is_accounted_for_once(world: World) -> None:
    before = world.counted("offline")
    body = USAGE | {"model": "chat", "id": str(uuid.uuid4()), "at": time.time() - 3600}
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: world.post("/usage", body), range(4)))
    assert sorted(reply.status_code for reply in replies) == [200, 409, 409, 409]
    receipt = next(reply for reply in replies if reply.status_code == 200).json()
    assert (receipt["mode"], receipt["unguided"], receipt["edge_of"]) == ("edge", "offline", None)
    assert Decimal(receipt["baseline_usd"]) == Decimal("0.000029"), "the teacher would have read 20 and written 9"
    assert (receipt["savings_class"], Decimal(receipt["savings_usd"])) == ("reported", Decimal("0.000029"))
    assert world.receipt(receipt["id"]) == receipt
    assert world.counted("offline") - before == 1


def test_old_answers_and_unknown_routes_are_rejected(world: World) -> None:
    before = world.counted("expired")
    body = USAGE | {"model": "chat", "id": str(uuid.uuid4())}
    late = world.post("/usage", body | {"at": time.time() - 90_000})
    assert (late.status_code, late.json()["error"]["code"]) == (410, "edge_expired")
    assert world.counted("expired") - before == 1
    nowhere = world.post("/usage", body | {"model": "nowhere"})
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "model_not_found")


def test_a_device_that_disconnects_has_one_receipt_and_may_report(world: World) -> None:
    stuck = threading.Event()

    async def tell(*_: object) -> web.StreamResponse:
        stuck.set()
        return await is_stuck()

    world.teacher.behave = tell
    where = urlsplit(world.gateway.url)
    body = json.dumps({"model": "chat", "messages": [{"role": "user", "content": f"Hi {uuid.uuid4()}"}]}).encode()
    with socket.create_connection((where.hostname or "", where.port or 0)) as device:
        head = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}"
        device.sendall(f"POST /v1/guidance HTTP/1.1\r\n{head}\r\n\r\n".encode() + body)
        assert stuck.wait(30)
    line = world.gateway.wait_for_log("request", 60, mode="guidance", status="client_gone")
    assert world.receipt(line["id"])["edge"] == "open"
    assert world.report(line["id"]).status_code == 200


def test_usage_counts_each_request_once_and_the_savings(world: World) -> None:
    give_up = time.monotonic() + 50

    def by_mode() -> dict[str, dict[str, Any]]:
        """Return the rows by mode. Retry while a worker that imports its database library replies 503."""
        while True:
            answer = httpx.get(
                f"{world.gateway.url}/v1/usage",
                params={"by": "mode,student", "since": "1h", "model": "chat-dear"},
                headers={"Authorization": f"Bearer {KEY}"},
                timeout=30,
            )
            if answer.status_code != 503:
                assert answer.status_code == 200, answer.text
                return {row["mode"]: row for row in answer.json()["rows"]}
            assert time.monotonic() < give_up, answer.text
            time.sleep(0.2)

    def counts(rows: dict[str, dict[str, Any]]) -> tuple[int, int]:
        """Return the requests for guidance, and the tokens that devices reported."""
        reported = rows["edge"]["tokens"]["student"]["output"] if "edge" in rows else 0
        return rows.get("guidance", {}).get("requests", 0), reported

    requests, tokens = counts(by_mode())
    body = world.ask("chat-dear").json()
    assert world.report(body["receipt"]).status_code == 200
    expected = (requests + 1, tokens + 9)
    while counts(now := by_mode()) < expected:
        assert time.monotonic() < give_up, now
        time.sleep(0.2)
    assert counts(now) == expected
    edge = now["edge"]
    assert (edge["requests"], edge["student"], Decimal(edge["cost_usd"])) == (0, "(edge)", Decimal(0))
    assert Decimal(edge["savings_usd"]) >= Decimal("0.000009")


@pytest.mark.long
async def test_devices_are_served_without_redis_and_a_drain_leaves_no_open_account(
    tmp_path: Path,
) -> None:
    """Each request has one receipt, whatever fails."""
    loop = asyncio.get_running_loop()
    with FakeEngine(says(WROTE, "length")).running() as teacher:
        async with EmbeddedRedis() as redis:
            with running_gateway(
                tmp_path / "gone",
                redis_url=redis.url,
                redis={"timeout": "500ms"},
                server={"drain_timeout": "0s"},
                # The tokenizer is loaded at the start, so that canceled calls are counted before the process ends.
                models=[
                    model("big", "tgi", teacher.url, tokenizer="o200k_base"),
                    model("small", "openai", f"{teacher.url}/v1"),
                ],
                routes=[guided(**NO_CACHE)],
            ) as gateway:
                world = World(teacher, teacher, gateway)
                body = (await loop.run_in_executor(None, world.ask)).json()
                await redis.stop()
                gateway.wait_for_log("redis", 60, up=False)
                alone = await loop.run_in_executor(None, world.ask)
                assert alone.json()["guidance"]["text"] == OPENING
                for receipt_id in (body["receipt"], "req_" + "0" * 24):
                    refused = await loop.run_in_executor(None, world.report, receipt_id)
                    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
                teacher.behave = is_stuck
                request = loop.run_in_executor(None, world.ask)
                while questions(teacher) < 3:
                    await asyncio.sleep(0.05)
                await loop.run_in_executor(None, gateway.terminate)
                cut = await request
                assert (cut.status_code, cut.json()["error"]["code"]) == (503, "overloaded")
                lines = [line for line in gateway.log if line.get("event") == "request"]
                assert [(one["status"], one["close"] is None) for one in lines] == [
                    ("ok", False),
                    ("ok", False),
                    ("shutdown", True),
                ]
