"""The gateway retries a failed engine, calls another one, or gives up; the receipt has every call."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
from aiohttp import web

from tests.fakes import FakeEngine, begin_events, chunk, event, says
from tests.gateway_process import KEY, GatewayProcess, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fakes import Handler

OPENING = "The answer to your question begins"
KEPT = "The answer to your question"
_numbers = itertools.count()


@dataclass
class Script:
    """An engine that behaves as the next entry states each time, and as the last one from then on."""

    steps: list[Handler]
    taken: int = field(default=0)

    async def __call__(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        step = self.steps[min(self.taken, len(self.steps) - 1)]
        self.taken += 1
        return await step(request, body)


def answers(code: int, **headers: str) -> Handler:
    async def behave(_: web.Request, __: dict[str, Any]) -> web.Response:
        body = orjson.dumps({"error": {"message": "no"}})
        return web.Response(status=code, body=body, content_type="application/json", headers=headers)

    return behave


async def hangs_up(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Close after the head. Before the head, the client would resend a call on a reused connection unnoticed."""
    kind = "text/event-stream" if body.get("stream") else "application/json"
    response = web.StreamResponse(headers={"Content-Type": kind})
    await response.prepare(request)
    await response.write(b"{" if kind == "application/json" else b": hello\n\n")
    assert request.transport is not None
    request.transport.close()
    return response


async def only_a_role(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    """Send a role without words, as vLLM does first, and close the connection."""
    response = await begin_events(request)
    await response.write(event(chunk({"role": "assistant", "content": ""})))
    assert request.transport is not None
    request.transport.abort()
    return response


async def two_words(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    response = await begin_events(request)
    await response.write(event(chunk({"content": " two words"})))
    assert request.transport is not None
    request.transport.close()
    return response


@dataclass
class World:
    teacher: FakeEngine
    first: FakeEngine
    second: FakeEngine
    gateway: GatewayProcess

    def ask(self, route: str, **more: Any) -> httpx.Response:
        body = {"model": route, "messages": [{"role": "user", "content": f"What is {next(_numbers)}?"}]} | more
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(f"{self.gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=20)

    def receipt(self, answer: httpx.Response) -> dict[str, Any]:
        return self.gateway.wait_for_log("request", id=answer.headers["x-request-id"])

    def detail(self, engine: str) -> dict[str, Any]:
        detail: dict[str, Any] = httpx.get(f"{self.gateway.admin_url}/readyz").json()["engines"][engine]
        return detail


def engine(name: str, url: str, **more: Any) -> dict[str, Any]:
    """Return a student that continues prefixes. By default its breaker opens late."""
    return model(
        name,
        "openai",
        f"{url}/v1",
        **{"continuation": "trailing", "echo": False, "breaker": {"failures": 1000}} | more,
    )


def route(name: str, students: list[str], mode: str = "student", **more: Any) -> dict[str, Any]:
    return {
        "model": name,
        "mode": mode,
        "teacher": "big",
        "students": students,
        "retries": {"num_retries": 2, "backoff": "10ms"},
        "guidance": {"tokens": 6, "deadline": "60s"},
    } | more


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        teacher, first, second = (stack.enter_context(FakeEngine(says("x")).running()) for _ in range(3))
        fast = {"failures": 3, "cooldown": "2s"}
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("resilience"),
                redis_url=redis_url,
                redis={"prefix": "resilience"},
                models=[
                    model("big", "tgi", teacher.url, breaker={"failures": 1000}),
                    engine("first", first.url),
                    engine("second", second.url),
                    engine("mute", second.url, continuation="none"),
                    engine("fragile", first.url, breaker=fast),
                    engine("slow", second.url, breaker=fast),
                    engine("slow-teacher", second.url, breaker=fast),
                    engine("busy", first.url),
                    engine("gone", "http://127.0.0.1:9"),
                    engine("down", "http://127.0.0.1:9", breaker={"failures": 2, "cooldown": "60s"}),
                ],
                routes=[
                    route("alone", ["first"]),
                    route("both", ["first", "second"]),
                    route("named", ["first", "second"], reply_model="engine", retries={"num_retries": 0}),
                    route("named-guided", ["first", "second"], "guided", reply_model="engine"),
                    route("first-mute", ["first", "mute"], retries={"num_retries": 0}),
                    route("guided", ["first", "second"], "guided"),
                    route("guided-mute", ["first", "mute"], "guided"),
                    route("limited", ["first"], "guided", max_tokens_limit=50),
                    route("guided-gone", ["gone", "second"], "guided"),
                    route("guided-down", ["down"], "guided", retries={"num_retries": 0}),
                    route("fragile", ["fragile"], retries={"num_retries": 0}),
                    route("slow", ["slow"], retries={"num_retries": 0}),
                    route(
                        "slow-teacher",
                        ["first"],
                        "guided",
                        teacher="slow-teacher",
                        guidance={"tokens": 6, "deadline": "60s", "on_failure": "reject"},
                    ),
                    route("busy", ["busy", "second"]),
                ],
            )
        )
        wait_until_looked_at(gateway.admin_url)
        world = World(teacher, first, second, gateway)
        with ThreadPoolExecutor(8) as callers:  # all tests share the retry budget, a share of recent successes
            assert all(one.status_code == 200 for one in callers.map(world.ask, ["alone"] * 300))
        yield world


@pytest.fixture
def world(running: World) -> World:
    running.teacher.behave = says(OPENING, "length")
    running.first.behave, running.second.behave = says(" here."), says(" there.")
    for one in (running.teacher, running.first, running.second):
        one.requests.clear()
    return running


def text_of(answer: httpx.Response) -> str:
    """Return the words of a reply, streamed or not."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        text: str = answer.json()["choices"][0]["message"]["content"]
        return text
    choices = [choice for part in events_of(answer) for choice in part.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [orjson.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", [answers(500), answers(503), answers(429), hangs_up])
def test_a_failed_student_is_retried(world: World, failure: Handler, stream: bool) -> None:
    """A header shows the retry to the caller; the receipt has each call."""
    world.first.behave = Script([failure, failure, says("Well.")])
    answer = world.ask("alone", stream=stream)
    assert (answer.status_code, text_of(answer)) == (200, "Well.")
    assert len(world.first.requests) == 3
    receipt = world.receipt(answer)
    assert receipt["status"] == "ok"
    assert [attempt["engine"] for attempt in receipt["attempts"]] == ["first", "first"]
    assert answer.headers["x-gkt-failed-attempts"] == "2"


def test_a_failing_student_is_retried_up_to_the_policys_limit(world: World) -> None:
    """Three calls, one error, one receipt."""
    world.first.behave = answers(500)
    answer = world.ask("alone")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_failed")
    assert len(world.first.requests) == 3
    assert [attempt["error"] for attempt in world.receipt(answer)["attempts"]] == ["engine_failed"] * 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("code", "calls"), [(500, 3), (401, 1), (404, 1)])
def test_the_next_student_is_called_after_the_first_failed(world: World, code: int, calls: int, stream: bool) -> None:
    """The gateway calls it at once if a retry would not help."""
    world.first.behave = answers(code)
    answer = world.ask("both", stream=stream)
    assert text_of(answer) == " there."
    assert (len(world.first.requests), len(world.second.requests)) == (calls, 1)
    assert world.receipt(answer)["student"]["model"] == "second"


@pytest.mark.parametrize("code", [400, 422])
def test_a_request_that_is_wrong_is_refused_once(world: World, code: int) -> None:
    world.first.behave = answers(code)
    answer = world.ask("both")
    assert answer.status_code == 400
    assert (len(world.first.requests), len(world.second.requests)) == (1, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_the_guidance_is_kept_for_the_next_student(world: World, stream: bool) -> None:
    """The teacher is called once, and the caller receives one answer."""
    world.first.behave = answers(500)
    answer = world.ask("guided", stream=stream)
    assert text_of(answer) == KEPT + " there."
    assert len(world.teacher.requests) == 1
    assert world.second.requests[0]["messages"][-1] == {"role": "assistant", "content": KEPT}
    assert world.receipt(answer)["mode"] == "guided"


def test_a_student_that_cannot_continue_gets_the_guidance_as_context(world: World) -> None:
    """No part of a JSON reply was sent yet. The receipt has the placement of the guidance."""
    world.first.behave = answers(500)
    answer = world.ask("guided-mute")
    assert text_of(answer) == " there."
    assert KEPT in world.second.requests[0]["messages"][-1]["content"]
    assert world.receipt(answer)["guidance"]["placement"] == "context"
    assert answer.headers["x-gkt-placement"] == "context"


def test_after_shown_guidance_only_continuing_students_are_called(world: World) -> None:
    """A student without continuation would write a second answer."""
    world.first.behave = answers(500)
    answer = world.ask("guided-mute", stream=True)
    assert text_of(answer) == KEPT
    assert events_of(answer)[-1]["error"]["code"] == "engine_failed"
    assert world.second.requests == []


def test_a_student_that_is_not_there_costs_nothing(world: World) -> None:
    """The student never received the call."""
    answer = world.ask("guided-gone")
    receipt = world.receipt(answer)
    assert text_of(answer) == KEPT + " there."
    assert {attempt["error"] for attempt in receipt["attempts"]} == {"engine_unreachable"}
    assert not any("share" in attempt for attempt in receipt["attempts"])


def test_no_teacher_is_called_while_all_student_circuits_are_open(world: World) -> None:
    codes = [world.ask("guided-down").json()["error"]["code"] for _ in range(3)]
    assert codes[-1] == "engine_circuit_open"  # failed probes open the circuit, too
    world.teacher.requests.clear()
    for stream in (False, True):
        refused = world.ask("guided-down", stream=stream)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_circuit_open")
        assert int(refused.headers["Retry-After"]) > 1
        assert world.receipt(refused)["cost_usd"] == "0"
    assert world.teacher.requests == []


def test_a_role_without_text_allows_another_student(world: World) -> None:
    """Another student can write text that the caller has not received."""
    world.first.behave = only_a_role
    assert text_of(world.ask("both", stream=True)) == " there."


@pytest.mark.parametrize("mode", ["both", "guided"])
def test_the_next_student_continues_a_broken_stream(world: World, mode: str) -> None:
    world.first.behave = two_words
    answer = world.ask(mode, stream=True, stream_options={"include_usage": True})
    shown = KEPT if mode == "guided" else ""
    assert text_of(answer) == f"{shown} two words there."
    assert answer.text.rstrip().endswith("[DONE]")
    assert (len(world.first.requests), len(world.second.requests)) == (1, 1)
    last = world.second.requests[0]["messages"][-1]
    assert (last["role"], last["content"]) == ("assistant", f"{shown} two words".strip())
    receipt = world.receipt(answer)
    assert (receipt["status"], receipt["student"]["model"]) == ("ok", "second")
    assert [(one["engine"], one["error"]) for one in receipt["attempts"]] == [("first", "engine_unreachable")]
    assert receipt["continued_tokens"] == events_of(answer)[-1]["gkt"]["continued_tokens"] == 2


def test_after_the_first_text_only_students_that_continue_are_called(world: World) -> None:
    """The caller gets half an answer and an error, never parts of two answers."""
    world.first.behave = two_words
    answer = world.ask("first-mute", stream=True)
    assert text_of(answer) == " two words"
    assert "error" in events_of(answer)[-1]
    assert "[DONE]" not in answer.text
    assert (len(world.first.requests), len(world.second.requests)) == (1, 0)


@pytest.mark.parametrize("name", ["named", "named-guided"])
@pytest.mark.parametrize("stream", [False, True])
def test_replies_name_the_engine_that_answers_if_the_route_says_so(world: World, name: str, stream: bool) -> None:
    """A stream keeps one name where another student continues the text of the first one."""

    def models_of(answer: httpx.Response) -> set[str]:
        return {part["model"] for part in (events_of(answer) if stream else [answer.json()])}

    assert models_of(world.ask(name, stream=stream)) == {"first"}
    assert models_of(world.ask("both", stream=stream)) == {"both"}
    world.first.behave = two_words
    if stream:
        assert models_of(world.ask(name, stream=True)) == {"first"}
    world.first.behave = answers(401)
    if not (stream and name == "named-guided"):
        assert models_of(world.ask(name, stream=stream)) == {"second"}
    world.teacher.behave = says(KEPT, "stop")
    if name == "named-guided" and not stream:
        assert models_of(world.ask(name)) == {"big"}


@pytest.mark.parametrize(
    ("opening", "finish_reason", "completed_by"), [(OPENING, "length", "second"), (KEPT, "stop", "big")]
)
def test_a_guided_stream_names_the_engine_that_completes_it(
    world: World, opening: str, finish_reason: str, completed_by: str
) -> None:
    """The guidance was sent before another engine was known to complete the answer."""
    world.teacher.behave, world.first.behave = says(opening, finish_reason), answers(401)
    chunks = events_of(world.ask("named-guided", stream=True, stream_options={"include_usage": True}))
    models = [chunk["model"] for chunk in chunks]
    assert list(dict.fromkeys(models)) == ["first", completed_by]
    assert "first" not in models[models.index(completed_by) :]
    assert all(chunk["choices"][0]["delta"].get("content") in KEPT for chunk in chunks[: models.index(completed_by)])


@pytest.mark.parametrize("stream", [False, True])
def test_a_limit_above_the_policys_maximum_is_reduced(world: World, stream: bool) -> None:
    """The engines get the reduced limit. The header and the receipt state it."""
    answer = world.ask("limited", stream=stream, max_tokens=128_000)
    receipt = world.receipt(answer)
    assert (answer.headers["x-gkt-max-tokens"], receipt["max_tokens"]) == ("50", 50)
    assert world.first.requests[0]["max_tokens"] == 50 - receipt["guidance"]["kept_tokens"]
    within = world.ask("limited", stream=stream, max_tokens=40)
    assert "x-gkt-max-tokens" not in within.headers
    assert "max_tokens" not in world.receipt(within)


def test_failed_calls_are_part_of_the_cost(world: World) -> None:
    """An engine that failed may have generated tokens up to the limit."""
    world.first.behave = Script([hangs_up, says("Well.")])
    receipt = world.receipt(world.ask("alone", max_tokens=50))
    (attempt,) = receipt["attempts"]
    assert attempt["share"]["output_tokens"] == 50
    assert float(receipt["cost_usd"]) == pytest.approx(
        float(receipt["student"]["cost_usd"]) + float(attempt["share"]["cost_usd"])
    )


@pytest.mark.parametrize("failure", [answers(500), answers(424), hangs_up])
def test_a_failed_teacher_is_retried_once(world: World, failure: Handler) -> None:
    world.teacher.behave = Script([failure, says(OPENING, "length")])
    answer = world.ask("guided")
    assert text_of(answer) == KEPT + " here."
    assert [attempt["engine"] for attempt in world.receipt(answer)["attempts"]] == ["big"]


def test_a_teacher_is_not_pressed(world: World) -> None:
    """An overloaded teacher is not retried, nor one that failed twice: the student answers without it."""
    for failure, calls, reason in ((answers(429), 1, "teacher_overloaded"), (answers(500), 2, "teacher_failed")):
        world.teacher.requests.clear()
        world.teacher.behave = failure
        answer = world.ask("guided")
        assert (answer.headers["x-gkt-unguided"], len(world.teacher.requests)) == (reason, calls)


def test_a_student_that_keeps_failing_is_left_alone_tried_and_taken_back(world: World) -> None:
    """For the tenant of the failed calls: in replies, detailed readiness, the metric and the log."""
    world.first.behave = answers(500)
    assert [world.ask("fragile").json()["error"]["code"] for _ in range(3)] == ["engine_failed"] * 3
    refused = world.ask("fragile")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_circuit_open")
    assert refused.headers["Retry-After"] in {"1", "2", "3"}
    assert len(world.first.requests) == 3, "it was not called"
    fragile = world.detail("fragile")
    assert (fragile["breaker"], fragile["paused_tenants"]) == ("closed", 1)
    assert world.gateway.wait_for_log("tenant_paused", engine="fragile")
    give_up = time.monotonic() + 10
    while 'gkt_engine_paused_tenants{engine="fragile"} 1.0' not in httpx.get(f"{world.gateway.admin_url}/metrics").text:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    world.first.behave = says("Well.")
    time.sleep(int(refused.headers["Retry-After"]))
    assert text_of(world.ask("fragile")) == "Well."
    assert world.detail("fragile")["paused_tenants"] == 0


def test_an_engine_without_connection_has_an_open_breaker(world: World) -> None:
    """In detailed readiness, the metric and the log."""
    codes = [world.ask("guided-down").json()["error"]["code"] for _ in range(3)]
    assert codes[-1] == "engine_circuit_open"
    assert world.detail("down")["breaker"] == "open"
    assert 'gkt_engine_breaker{engine="down"} 2.0' in httpx.get(f"{world.gateway.admin_url}/metrics").text
    assert world.gateway.wait_for_log("breaker", engine="down", state="open")


@pytest.mark.parametrize("mode", ["slow", "slow-teacher"])
def test_no_request_is_rejected_while_the_trial_of_a_recovered_engine_runs(world: World, mode: str) -> None:
    """The others wait for its outcome, as a student and as a teacher whose guidance the policy requires."""
    release = threading.Event()

    async def slowly(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        while not release.is_set():
            await asyncio.sleep(0.01)
        return await says("Well.")(request, body)

    def in_flight() -> int:
        number: int = httpx.get(f"{world.gateway.admin_url}/readyz").json()["in_flight"]
        return number

    world.second.behave = answers(500)
    failed = [world.ask(mode) for _ in range(4)]
    assert all(one.status_code >= 500 for one in failed)
    time.sleep(int(failed[-1].headers["Retry-After"]))
    give_up = time.monotonic() + 60
    world.second.behave = slowly
    world.second.requests.clear()
    with ThreadPoolExecutor(6) as pool:
        try:
            asked = [pool.submit(world.ask, mode) for _ in range(6)]
            while in_flight() < 6 and not any(one.done() for one in asked):
                assert time.monotonic() < give_up
                time.sleep(0.05)
            assert len(world.second.requests) == 1
        finally:
            release.set()
        assert [one.result().status_code for one in asked] == [200] * 6
    assert world.detail(mode)["paused_tenants"] == 0


def test_an_engine_with_retry_after_gets_a_trial_per_second_until_it_answers(world: World) -> None:
    """The other student answers meanwhile."""
    world.first.behave = answers(429, **{"Retry-After": "60"})
    began, asked = time.monotonic(), 0
    while len(world.first.requests) < 3:
        assert text_of(world.ask("busy")) == " there."
        asked += 1
        assert time.monotonic() < began + 60
    assert len(world.first.requests) <= 1 + time.monotonic() - began
    assert asked > 3
    world.first.behave = says(" here.")
    while text_of(world.ask("busy")) != " here.":
        assert time.monotonic() < began + 60, "its success ends the pause"
    assert text_of(world.ask("busy")) == " here."
