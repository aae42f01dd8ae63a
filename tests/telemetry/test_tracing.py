"""Traces: the spans of each kind of request, trace headers, no text of requests, and no effect of failures."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web

from gateway.telemetry.trace_export import MAX_BATCH, MAX_QUEUE
from tests.collector import Collector, Trace
from tests.fakes import FakeEngine, begin_events, chunk, event, reply, says
from tests.gateway_process import COMMAND, KEY, GatewayProcess, beginning_with, guided, model, running_gateway
from tests.readiness import detail, wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.collector import Span
    from tests.fakes import Handler

OPENING, REST = "The answer to your question begins", " here and ends there."
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PARENT_TRACE, PARENT_SPAN = PARENT.split("-")[1:3]
QUESTION = "my s3cret question"
EXPORT_KEY = "Bearer the-c0llectors-own-key"
RULE = {"deadline": "20s", "cache_ttl": "0s", "tokens": 6}
TREE = [("admission", []), ("batch_wait", []), ("chat big-1", []), ("chat small-1", [])]


class World:
    """A gateway that exports to a collector, with a teacher, a student and a second student."""

    def __init__(self, gateway: GatewayProcess, collector: Collector, *engines: FakeEngine) -> None:
        self.gateway, self.collector = gateway, collector
        self.engines = engines
        self.teacher, self.student, self.second = engines

    def ask(self, route: str = "chat", headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        body = {"model": route, "messages": [{"role": "user", "content": QUESTION}]} | more
        return self.post("/v1/chat/completions", body, headers)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        sent = {"Authorization": f"Bearer {KEY}"} | (headers or {})
        return httpx.post(self.gateway.url + path, json=body, headers=sent, timeout=30)

    def counted(self, outcome: str) -> float:
        text = httpx.get(f"{self.gateway.admin_url}/metrics").text
        found = re.search(rf'^gkt_spans_total\{{outcome="{outcome}"\}} (\S+)$', text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def wait_until_in_flight(self, requests: int) -> None:
        give_up = time.monotonic() + 20
        while (seen := detail(self.gateway.admin_url)["in_flight"]) != requests:
            assert time.monotonic() < give_up, f"{seen} requests in flight"
            time.sleep(0.02)


def start(folder: Path, redis_url: str, engines: list[FakeEngine], tracing: dict[str, Any], **more: Any) -> Any:
    teacher, student, second = engines
    guidance = {"guidance": RULE, "retries": {"num_retries": 1, "backoff": "1ms"}}
    patient = {"breaker": {"failures": 1000}}
    return running_gateway(
        folder,
        redis_url=redis_url,
        redis={"prefix": folder.name.replace("-", "_")[:32], "timeout": "5s"},
        tracing=tracing,
        models=[
            model("big", "tgi", teacher.url, model="big-1", **patient),
            model("small", "openai", f"{student.url}/v1", model="small-1", continuation="trailing", echo=False)
            | patient,
            model("second", "openai", f"{second.url}/v1", model="second-1", continuation="trailing", echo=False)
            | patient,
        ],
        routes=[
            guided(**RULE) | {"retries": guidance["retries"]},
            guided("chat-compared", **RULE) | {"quality": {"sample": 1}},
            {"model": "chat-two", "mode": "guided", "teacher": "big", "students": ["small", "second"]} | guidance,
            {"model": "chat-shadow", "mode": "shadow", "teacher": "big", "student": "small"} | guidance,
            {"model": "vectors", "mode": "embeddings", "student": "small"},
        ],
        **more,
    )


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    engines = [FakeEngine(says(OPENING, "length")) for _ in range(3)]
    with Collector().running() as collector, engines[0].running(), engines[1].running(), engines[2].running():
        tracing = {"endpoint": collector.url, "headers": {"authorization": "env:COLLECTOR_KEY"}}
        environ = {"COLLECTOR_KEY": EXPORT_KEY, "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
        folder = tmp_path_factory.mktemp("tracing")
        with start(folder, redis_url, engines, tracing, environ=environ, log={"level": "info"}) as gateway:
            wait_until_looked_at(gateway.admin_url)
            yield World(gateway, collector, *engines)


@pytest.fixture
def world(running: World) -> World:
    """Reset the engines: all of them answer."""
    running.teacher.behave = says(OPENING, "length")
    running.student.behave = running.second.behave = says(REST)
    for engine in running.engines:
        engine.requests.clear()
        engine.headers.clear()
    return running


def fails_first(times: int, then: Handler) -> Handler:
    left = [times]

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if left[0]:
            left[0] -= 1
            return web.json_response({"error": {"message": f"cannot do {body}"}}, status=500)
        return await then(request, body)

    return behave


def facts(span: Span, *attribute_names: str) -> dict[str, Any]:
    return {name: span.attributes.get(name) for name in attribute_names}


@pytest.mark.parametrize("stream", [False, True])
def test_a_guided_request_is_one_span_with_its_stages_and_its_two_calls_below(world: World, stream: bool) -> None:
    answer = world.ask(max_tokens=50, temperature=0.5, stream=stream)
    assert answer.status_code == 200
    trace = world.collector.trace_of(answer.headers["x-request-id"])
    assert trace.tree() == TREE
    root = trace.root
    assert (root.name, root.kind, root.parent, root.failed) == ("POST /v1/chat/completions", "server", "", False)
    receipt = world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "gkt",
        "gen_ai.request.model": "chat",
        "gen_ai.request.stream": stream,
        "gen_ai.response.finish_reasons": ["stop"],
        "gkt.request.id": answer.headers["x-request-id"],
        "gkt.tenant": "acme",
        "gkt.key": "only",
        "gkt.mode": "guided",
        "gkt.guidance.tokens": receipt["guidance"]["kept_tokens"],
        "gkt.batch.id": receipt["batch"]["id"],
        "gkt.batch.size": 1,
        "gkt.cost_usd": receipt["cost_usd"],
        "gkt.baseline_usd": receipt["baseline_usd"],
        "gkt.savings_usd": receipt["savings_usd"],
        "gkt.savings_class": "guided",
    }
    teacher, student = trace.named("chat big-1"), trace.named("chat small-1")
    port = int(world.teacher.url.rpartition(":")[2])
    assert (teacher.kind, teacher.failed) == ("client", False)
    told_first = teacher.attributes.pop("gen_ai.response.time_to_first_chunk", None)
    assert (told_first is not None) is stream
    assert teacher.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tgi",
        "gen_ai.request.model": "big-1",
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.stream": stream,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 6,
        "server.address": "127.0.0.1",
        "server.port": port,
        "gkt.engine": "big",
        "gkt.call": "opening",
        "gkt.batch.id": receipt["batch"]["id"],
    }
    assert student.kind == "client"
    attribute_names = (
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.request.temperature",
        "gen_ai.request.stream",
        "gen_ai.response.finish_reasons",
        "gen_ai.usage.input_tokens",
        "gkt.engine",
        "gkt.call",
    )
    assert list(facts(student, *attribute_names).values()) == [
        *("openai", "small-1", 0.5, stream, ["stop"], 10, "small", "answer")
    ]


def test_child_spans_are_within_the_time_of_the_request(world: World) -> None:
    """Stages follow one another and equal the receipt's times."""
    answer = world.ask()
    trace = world.collector.trace_of(answer.headers["x-request-id"])
    admission, wait, teacher, student = trace.below(trace.root)
    in_order = [trace.root.start_ns, admission.start_ns, admission.end_ns, wait.start_ns, wait.end_ns]
    in_order += [teacher.start_ns, teacher.end_ns, student.start_ns, student.end_ns, trace.root.end_ns]
    assert in_order == sorted(in_order)
    times = world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])["timings"]
    assert (admission.end_ns - admission.start_ns) / 1e6 == pytest.approx(times["admission_ms"], abs=0.002)
    assert (wait.end_ns - wait.start_ns) / 1e6 == pytest.approx(times["batch_wait_ms"], abs=0.002)


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_waits_for_a_receipt_whose_tokens_must_be_estimated(world: World, stream: bool) -> None:
    """The trace ends with the reply, and contains the receipt."""

    async def uncounted(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            return web.json_response(reply(REST, usage={}))
        response = await begin_events(request)
        await response.write(event(chunk({"content": REST}, "stop")) + b"data: [DONE]\n\n")
        return response

    world.student.behave = uncounted
    answer = world.ask(stream=stream)
    receipt = world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
    assert receipt["student"]["estimated"]
    trace = world.collector.trace_of(answer.headers["x-request-id"])
    assert trace.tree() == TREE
    assert trace.root.attributes["gkt.cost_usd"] == receipt["cost_usd"]
    assert "gen_ai.usage.output_tokens" not in trace.named("chat small-1").attributes


def test_every_failed_call_has_a_span_with_the_error(world: World) -> None:
    """The student fails twice, and the next student answers."""
    world.student.behave = fails_first(2, says(REST))
    answer = world.ask("chat-two")
    assert answer.status_code == 200
    trace = world.collector.trace_of(answer.headers["x-request-id"])
    assert trace.tree() == [*TREE, ("chat small-1", []), ("chat second-1", [])]
    first, again, other = trace.below(trace.root)[-3:]
    assert [one.failed for one in (first, again, other, trace.root)] == [True, True, False, False]
    for failed in (first, again):
        assert failed.attributes["error.type"] == "engine_failed"
        assert failed.says == ""
    assert trace.root.attributes["gkt.failed_attempts"] == 2
    assert "error.type" not in trace.root.attributes


def test_a_request_that_no_engine_answered_has_failed(world: World) -> None:
    world.student.behave = fails_first(9, says(REST))
    answer = world.ask()
    assert answer.status_code == 502
    root = world.collector.trace_of(answer.headers["x-request-id"]).root
    assert root.failed
    assert facts(root, "error.type", "http.response.status_code") == {
        "error.type": "engine_failed", "http.response.status_code": 502
    }  # fmt: skip


def test_a_stream_that_broke_after_its_first_text_has_an_error_status(world: World) -> None:
    async def breaks(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        await response.write(event(chunk({"content": "Once"})))
        await response.write(b"data: {broken\n\n")
        return response

    world.student.behave = breaks
    answer = world.ask(stream=True)
    trace = world.collector.trace_of(answer.headers["x-request-id"])
    assert trace.root.failed
    assert facts(trace.root, "error.type", "http.response.status_code") == {
        "error.type": "engine_protocol_error", "http.response.status_code": 200
    }  # fmt: skip
    assert trace.named("chat small-1").attributes["error.type"] == "engine_protocol_error"


def test_a_disconnect_is_recorded_without_an_error_status(world: World) -> None:
    left = threading.Event()

    async def dawdles(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        await response.write(event(chunk({"content": " here"})))
        await asyncio.to_thread(left.wait, 20)
        for _ in range(50):
            await response.write(event(chunk({"content": " and"})))
            await asyncio.sleep(0.02)
        return response

    world.student.behave = dawdles
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
    url = f"{world.gateway.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=20) as answer:
        lines = answer.iter_lines()
        while " here" not in next(lines):
            pass
    left.set()
    trace = world.collector.trace_of(answer.headers["x-request-id"])
    assert trace.tree() == TREE
    assert trace.root.attributes["error.type"] == "client_gone"
    assert not trace.root.failed
    student = trace.named("chat small-1")
    assert student.attributes.get("gkt.ended_early") or student.attributes["error.type"] == "cancelled"


def test_a_disconnect_before_the_reply_has_a_span_without_a_status_code(world: World) -> None:
    begun = threading.Event()

    async def sleeps(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        begun.set()
        await asyncio.sleep(20)
        raise AssertionError("nobody hangs up")

    world.student.behave = sleeps
    trace_id = PARENT_TRACE.replace("0af", "2b1")
    with socket.create_connection(tuple(world.gateway.url.removeprefix("http://").split(":"))) as caller:  # type: ignore[arg-type]
        body = json.dumps({"model": "chat", "messages": [{"role": "user", "content": QUESTION}]})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        head += f"traceparent: {PARENT.replace('0af', '2b1')}\r\nContent-Length: {len(body)}\r\n\r\n"
        caller.sendall((head + body).encode())
        assert begun.wait(20)
    root = world.collector.wait_for(lambda one: one.trace == trace_id and one.kind == "server")
    assert not root.failed
    assert facts(root, "error.type", "http.response.status_code", "gkt.mode") == {
        "error.type": "client_gone", "http.response.status_code": None, "gkt.mode": "guided"
    }  # fmt: skip
    student = Trace(root, world.collector.spans).named("chat small-1")
    assert student.attributes["error.type"] == "cancelled"


def test_a_shadow_is_a_child_span_of_its_request_with_its_own_calls(world: World) -> None:
    answer = world.ask("chat-shadow")
    request_id = answer.headers["x-request-id"]
    shadow = world.collector.trace_of(f"{request_id}-shadow").root
    trace = world.collector.trace_of(request_id)
    assert trace.root.attributes["gkt.mode"] == "teacher"
    assert trace.tree() == [("admission", []), ("chat big-1", []), ("shadow", TREE)]
    assert (shadow.kind, shadow.parent) == ("internal", trace.root.id)
    assert facts(shadow, "gkt.mode", "gkt.shadow_of") == {"gkt.mode": "shadow", "gkt.shadow_of": request_id}


def test_comparison_runs_are_sibling_spans_below_the_request(world: World) -> None:
    answer = world.ask("chat-compared")
    request_id = answer.headers["x-request-id"]
    runs = [world.collector.trace_of(f"{request_id}-shadow-{name}").root for name in ("teacher", "student")]
    trace = world.collector.trace_of(request_id)
    alone = [("shadow", [("admission", []), (f"chat {name}-1", [])]) for name in ("big", "small")]
    assert trace.tree() == [*TREE, *alone]
    assert {run.parent for run in runs} == {trace.root.id}


def test_a_follower_is_linked_to_the_call_of_its_leader(world: World) -> None:
    """Two identical requests at once: one call is paid, and the other request's wait links to it."""
    begun, both_in_flight = threading.Event(), threading.Event()

    async def waits(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        begun.set()
        await asyncio.to_thread(both_in_flight.wait, 20)
        await asyncio.sleep(0.5)  # between its slot and the shared call, the second request awaits nothing slow
        return await says(OPENING, "length")(request, body)

    world.teacher.behave = waits
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(world.ask)
        assert begun.wait(20)
        world.wait_until_in_flight(1)
        follower = pool.submit(world.ask)
        world.wait_until_in_flight(2)
        both_in_flight.set()
        paid, shared = leader.result(), follower.result()
    assert shared.headers["x-gkt-shared"] == "flight"
    made = world.collector.trace_of(paid.headers["x-request-id"]).named("chat big-1")
    trace = world.collector.trace_of(shared.headers["x-request-id"])
    assert trace.tree() == [("admission", []), ("batch_wait", []), ("chat small-1", [])]
    wait = trace.named("batch_wait")
    assert wait.links == (made.id,)
    assert wait.attributes["gkt.shared"] == trace.root.attributes["gkt.shared"] == "flight"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": QUESTION}),
        ("/v1/messages", {"max_tokens": 40, "messages": [{"role": "user", "content": QUESTION}]}),
    ],
)
def test_other_apis_have_the_spans_of_a_chat(world: World, path: str, body: dict[str, Any]) -> None:
    """With the route that the caller used."""
    answer = world.post(path, {"model": "chat", **body})
    assert answer.status_code == 200
    trace = world.collector.trace_of(answer.headers["x-request-id"])
    assert trace.tree() == TREE
    assert trace.root.name == f"POST {path}"
    assert facts(trace.root, "http.route", "gen_ai.operation.name") == {
        "http.route": path, "gen_ai.operation.name": "chat"
    }  # fmt: skip


def test_an_embedding_is_one_call(world: World) -> None:
    answer = world.post("/v1/embeddings", {"model": "vectors", "input": QUESTION})
    assert answer.status_code == 200
    trace = world.collector.trace_of(answer.headers["x-request-id"])
    assert trace.tree() == [("admission", []), ("embeddings small-1", [])]
    assert trace.named("embeddings small-1").attributes["gen_ai.operation.name"] == "embeddings"


@pytest.mark.parametrize("stream", [False, True])
def test_a_callers_trace_is_propagated_to_the_engines(world: World, stream: bool) -> None:
    """Each call carries its own span's id and the caller's tracestate, but not its baggage."""
    sent = {"traceparent": PARENT, "tracestate": "vendor=opaque", "baggage": "user=canary"}
    answer = world.ask(headers=sent, stream=stream)
    trace = world.collector.trace_of(answer.headers["x-request-id"])
    assert (trace.root.trace, trace.root.parent) == (PARENT_TRACE, PARENT_SPAN)
    for engine, name in ((world.teacher, "chat big-1"), (world.student, "chat small-1")):
        calls = [headers for headers, path in zip(engine.headers, engine.paths[-len(engine.headers) :], strict=True)
                 if path.endswith("completions")]  # fmt: skip
        mine = [one for one in trace.below(trace.root) if one.name == name]
        assert [headers["traceparent"] for headers in calls] == [f"00-{PARENT_TRACE}-{one.id}-01" for one in mine]
        assert {headers["tracestate"] for headers in calls} == {"vendor=opaque"}
        assert "canary" not in str(calls)


def test_an_unsampled_trace_is_propagated_but_not_exported(world: World) -> None:
    quiet = "00-1bf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    assert world.ask(headers={"traceparent": quiet}).status_code == 200
    loud = world.ask()
    world.collector.trace_of(loud.headers["x-request-id"])
    assert not [one for one in world.collector.spans if one.trace == quiet.split("-")[1]]
    assert world.student.headers[0]["traceparent"].startswith("00-1bf7651916cd43dd8448eb211c80319c-")
    assert world.student.headers[0]["traceparent"].endswith("-00")


@pytest.mark.long
@pytest.mark.parametrize(
    "sent",
    [
        {"traceparent": "canary"},
        {"traceparent": ""},
        {"traceparent": PARENT.upper()},
        {"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01"},
        {"traceparent": "ff-" + PARENT[3:]},
        {"traceparent": PARENT + "-more"},
        {"traceparent": PARENT + "x" * 4000},
        {"tracestate": "vendor=opaque"},
        {"traceparent": PARENT, "tracestate": "no, =good,,==" + "x" * 4000},
    ],
)
def test_a_traceparent_that_is_none_is_no_error(world: World, sent: dict[str, str]) -> None:
    before = len(world.gateway.log)
    answer = world.ask(headers=sent)
    assert answer.status_code == 200
    root = world.collector.trace_of(answer.headers["x-request-id"]).root
    follows = sent.get("traceparent") == PARENT
    assert (root.trace == PARENT_TRACE) is follows
    assert (root.parent != "") is follows
    assert {line["event"] for line in world.gateway.log[before:]} <= {"request"}


def test_a_rejected_request_has_a_span_with_the_reason_and_no_error(world: World) -> None:
    """A request without a receipt has a span, too. No path of a caller is in the trace."""
    refused = world.post("/v1/chat/completions", {"model": "chat"}, {"traceparent": PARENT.replace("0af", "1a1")})
    assert refused.status_code == 400
    stranger = httpx.get(
        f"{world.gateway.url}/v1/receipts/canary-id?x=canary", headers={"traceparent": PARENT.replace("0af", "1a2")}
    )
    assert stranger.status_code == 401
    for trace_id, name, status, error in (
        (PARENT_TRACE.replace("0af", "1a1"), "POST /v1/chat/completions", 400, "invalid_request"),
        (PARENT_TRACE.replace("0af", "1a2"), "GET /v1/receipts/{id}", 401, "not_authenticated"),
    ):
        span = world.collector.wait_for(lambda one, trace_id=trace_id: one.trace == trace_id)  # type: ignore[misc]
        assert (span.name, span.failed) == (name, False)
        assert facts(span, "http.response.status_code", "error.type") == {
            "http.response.status_code": status, "error.type": error
        }  # fmt: skip


def test_the_requests_line_in_the_log_names_its_trace(world: World) -> None:
    answer = world.ask(headers={"traceparent": PARENT})
    assert world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])["trace_id"] == PARENT_TRACE


def test_exported_spans_contain_no_content_and_no_key(world: World) -> None:
    """Questions, answers, stop texts, errors that quote them, and keys."""
    world.teacher.behave = says("An 0pening of the teacher's", "length")
    world.student.behave = fails_first(1, says(" and a t41l.", "because of the r3ason"))
    answers = [world.ask(stop=["st0ptext"], user="us3r"), world.ask(stream=True)]
    for answer in answers:
        world.collector.trace_of(answer.headers["x-request-id"])
    sent = b"".join(world.collector.raw)
    for secret in ("s3cret", "0pening", "t41l", "st0ptext", "us3r", "r3ason", "cannot do", KEY, "c0llectors", "canary"):
        assert secret.encode() not in sent, secret


def test_the_export_has_the_key_and_the_process_attributes(world: World) -> None:
    answer = world.ask()
    resource = world.collector.trace_of(answer.headers["x-request-id"]).root.resource
    assert {headers["authorization"] for headers in world.collector.headers} == {EXPORT_KEY}
    listening, worker = (world.gateway.wait_for_log(name) for name in ("listening", "worker_ready"))
    assert resource["service.name"] == "gkt-gateway"
    assert resource["service.version"] == listening["version"]
    assert resource["service.instance.id"] == worker["process"]
    assert resource["deployment.environment.name"] == "test"
    assert EXPORT_KEY not in world.gateway.raw_log


def test_probes_and_pages_of_operators_are_no_spans(world: World) -> None:
    httpx.get(f"{world.gateway.url}/healthz")
    httpx.get(f"{world.gateway.admin_url}/metrics")
    answer = world.ask()
    world.collector.trace_of(answer.headers["x-request-id"])
    assert {one.name for one in world.collector.spans if not one.parent} <= {
        "POST /v1/chat/completions", "POST /v1/responses", "POST /v1/messages", "POST /v1/embeddings"
    }  # fmt: skip


@pytest.fixture
def engines() -> Iterator[list[FakeEngine]]:
    three = [FakeEngine(says(OPENING, "length")), FakeEngine(says(REST)), FakeEngine(says(REST))]
    with three[0].running(), three[1].running(), three[2].running():
        yield three


def test_queued_spans_are_exported_before_the_process_ends(
    tmp_path: Path, redis_url: str, engines: list[FakeEngine]
) -> None:
    with (
        Collector().running() as collector,
        start(tmp_path, redis_url, engines, {"endpoint": collector.url}) as gateway,
    ):
        world = World(gateway, collector, *engines)
        answers = [world.ask() for _ in range(3)]
        assert gateway.terminate() == 0
        ids = {one.attributes.get("gkt.request.id") for one in collector.spans}
        assert {answer.headers["x-request-id"] for answer in answers} <= ids


@pytest.mark.long
def test_each_worker_exports_its_spans_and_flushes_at_exit(
    tmp_path: Path, redis_url: str, engines: list[FakeEngine]
) -> None:
    with Collector().running() as collector:
        with start(tmp_path, redis_url, engines, {"endpoint": collector.url}, server={"workers": 2}) as gateway:
            world = World(gateway, collector, *engines)
            answers = [world.ask() for _ in range(24)]  # each on its own connection, so that both workers get some
            assert gateway.terminate() == 0
        instances = {
            one.attributes["gkt.request.id"]: one.resource["service.instance.id"]
            for one in collector.spans
            if one.kind == "server"
        }
        assert set(instances) == {answer.headers["x-request-id"] for answer in answers}
        assert len(set(instances.values())) == 2


def test_a_collector_that_refuses_costs_spans_and_nothing_else(
    tmp_path: Path, redis_url: str, engines: list[FakeEngine]
) -> None:
    collector = Collector()
    collector.refuses = 403
    with collector.running(), start(tmp_path, redis_url, engines, {"endpoint": collector.url}) as gateway:
        world = World(gateway, collector, *engines)
        assert world.ask().status_code == 200
        gateway.wait_for_log("Failed to export spans batch code: 403, reason: Forbidden")
        assert (world.counted("sent"), world.counted("failed") > 0) == (0, True)
        assert gateway.terminate() == 0


@pytest.mark.long
def test_a_silent_collector_fills_a_bounded_queue_and_does_not_delay_the_exit(
    tmp_path: Path, redis_url: str, engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector accepts the connection and never replies. Spans beyond the queue are dropped and counted."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(64)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
        tracing = {"endpoint": f"http://127.0.0.1:{mute.getsockname()[1]}"}
        with start(tmp_path, redis_url, engines, tracing) as gateway:
            world = World(gateway, Collector(), *engines)
            with ThreadPoolExecutor(8) as pool:
                # Identical requests would share a call of the teacher.
                said = [[{"role": "user", "content": f"{QUESTION} {number}"}] for number in range(2000)]
                answers = list(pool.map(lambda messages: world.ask(messages=messages).status_code, said))
            assert set(answers) == {200}
            # 2000 requests of five spans each; the queue is full, and at most one batch is with the sending thread.
            assert 10_000 - MAX_QUEUE - MAX_BATCH <= world.counted("dropped") <= 10_000 - MAX_QUEUE
            assert gateway.terminate() == 0
            gateway.wait_for_log("traces_unsent")


def test_nothing_is_sampled_where_the_part_is_0(tmp_path: Path, redis_url: str, engines: list[FakeEngine]) -> None:
    """Except where a caller records its trace. Engines get no headers where that is disabled."""
    with Collector().running() as collector:
        tracing = {"endpoint": collector.url, "sample": 0, "propagate": False}
        with start(tmp_path, redis_url, engines, tracing) as gateway:
            world = World(gateway, collector, *engines)
            world.ask()
            followed = world.ask(headers={"traceparent": PARENT})
            assert collector.trace_of(followed.headers["x-request-id"]).tree() == TREE
            assert {one.trace for one in collector.spans} == {PARENT_TRACE}
            assert "traceparent" not in str([engine.headers for engine in engines])


def test_a_callers_trace_is_ignored_if_configured(tmp_path: Path, redis_url: str, engines: list[FakeEngine]) -> None:
    with Collector().running() as collector:
        tracing = {"endpoint": collector.url, "follow_callers": False}
        with start(tmp_path, redis_url, engines, tracing) as gateway:
            world = World(gateway, collector, *engines)
            root = collector.trace_of(world.ask(headers={"traceparent": PARENT}).headers["x-request-id"]).root
            assert (root.trace != PARENT_TRACE, root.parent) == (True, "")


# redis-py imports parts of the library for its own metrics, where it is installed.
_IMPORTS = (
    "gateway.telemetry.tracing",
    "gateway.telemetry.trace_export",
    "opentelemetry.sdk.trace",
    "opentelemetry.exporter",
    "requests",
)
_TELLS = f"""
import atexit, json, sys
def tell():
    modules = [one for one in {_IMPORTS} if one in sys.modules]
    print(json.dumps({{"event": "imported", "modules": modules}}), file=sys.stderr)
if "gateway.server.worker" in sys.orig_argv:
    atexit.register(tell)
"""
_WITHOUT = "import sys; sys.modules['opentelemetry'] = None\n"


@pytest.mark.long
@pytest.mark.parametrize(("on", "before"), [(False, ""), (False, _WITHOUT), (True, "")])
def test_a_gateway_without_a_collector_does_not_even_import_the_library(
    tmp_path: Path, redis_url: str, engines: list[FakeEngine], on: bool, before: str
) -> None:
    """The library need not be installed, and no trace id is sent to an engine."""
    with Collector().running() as collector:
        tracing = {"endpoint": collector.url} if on else {}
        environ = beginning_with(before + _TELLS, tmp_path / "site")
        with start(tmp_path, redis_url, engines, tracing, entry=COMMAND, environ=environ) as gateway:
            assert World(gateway, collector, *engines).ask(headers={"traceparent": PARENT}).status_code == 200
            assert gateway.terminate() == 0
            assert gateway.wait_for_log("imported")["modules"] == (list(_IMPORTS) if on else [])
    assert ("traceparent" in str([engine.headers for engine in engines])) is on


def test_a_collector_without_the_extra_is_an_issue_with_the_package(
    tmp_path: Path, redis_url: str, engines: list[FakeEngine]
) -> None:
    """OpenTelemetry's environment variable names it."""
    environ = beginning_with(_WITHOUT, tmp_path / "site")
    environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:4318"
    gateway = start(tmp_path, redis_url, engines, {}, entry=COMMAND, environ=environ)
    with pytest.raises(AssertionError, match="no log line 'listening'") as never:
        gateway.__enter__()
    assert "pip install 'gkt-gateway[otel]'" in str(never.value)
