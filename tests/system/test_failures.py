"""Every path ends in a correct reply and exactly one receipt, whichever part fails."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import openai
import orjson
import pytest
from aiohttp import web
from openai import OpenAI

from tests.fakes import FakeEngine, begin_events, chunk, event, reply, says
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at, wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Iterator

OPENING = "The answer to your question begins"
REST = " here and ends there."
ASKED = [{"role": "user", "content": "What is it?"}]
_numbers = itertools.count()
# Each failure is tested separately: without circuit breakers and without retries.
ENGINE = {"breaker": {"failures": 1000}}
# Only the timeouts under test are short: on a busy machine, everything may take a second.
IMPATIENT = ENGINE | {"timeouts": {"idle": "500ms"}}
ONCE = {"retries": {"num_retries": 0}}


def a_question() -> list[dict[str, str]]:
    """Return a new question, for which no cached guidance exists."""
    return [{"role": "user", "content": f"What is number {next(_numbers)}?"}]


@dataclass
class World:
    """A gateway between a teacher and a student with configurable behavior."""

    teacher: FakeEngine
    student: FakeEngine
    gateway: GatewayProcess

    def ask(self, route: str = "chat", **more: Any) -> httpx.Response:
        body = {"model": route, "messages": a_question()} | more
        return httpx.post(
            f"{self.gateway.url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {KEY}"},
            json=body,
            timeout=10,
        )

    def receipt(self, answer: httpx.Response) -> dict[str, Any]:
        """Return the request's only receipt line in the log."""
        request_id = answer.headers["x-request-id"]
        line = self.gateway.wait_for_log("request", id=request_id)
        assert Counter(seen.get("id") for seen in self.gateway.log if seen["event"] == "request")[request_id] == 1
        return line

    def last_receipt(self, count_before: int) -> dict[str, Any]:
        """Return the next receipt after the first `count_before`, for a caller that received no id."""
        give_up = time.monotonic() + 5
        while time.monotonic() < give_up:
            lines = [line for line in self.gateway.log if line["event"] == "request"]
            if len(lines) > count_before:
                assert len(lines) == count_before + 1
                return lines[-1]
            time.sleep(0.01)
        raise AssertionError("no receipt came")

    def receipts(self) -> int:
        return sum(line["event"] == "request" for line in self.gateway.log)


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says(OPENING, "length")).running())
        student = stack.enter_context(FakeEngine(says(REST)).running())
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("failures"),
                redis_url=redis_url,
                redis={"prefix": "failures"},
                models=[
                    model("big", "tgi", teacher.url, **ENGINE),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False, **ENGINE),
                    model("busy", "openai", f"{student.url}/v1", **ENGINE),
                    model("impatient", "openai", f"{student.url}/v1", continuation="trailing", echo=False, **IMPATIENT),
                    # Nothing listens on port 9.
                    model("gone", "openai", "http://127.0.0.1:9/v1", continuation="trailing", **ENGINE),
                    model("gone-teacher", "tgi", "http://127.0.0.1:9", **ENGINE),
                ],
                routes=[
                    ONCE | route
                    for route in (
                        guided(tokens=6),
                        guided("chat-must", tokens=6, on_failure="reject"),
                        guided("chat-hurried", tokens=6, deadline="500ms"),
                        # The permit comes before the deadline, even on a busy machine.
                        guided("chat-called-late", tokens=6, deadline="2s"),
                        guided("chat-hurried-must", tokens=6, deadline="500ms", on_failure="reject"),
                        guided("chat-impatient", student="impatient", tokens=6),
                        guided("chat-no-teacher", teacher="gone-teacher"),
                        guided("chat-no-student", student="gone"),
                        {"model": "student-busy", "mode": "student", "student": "busy"},
                        {"model": "student-gone", "mode": "student", "student": "gone"},
                        guided("chat-hint", projection="hint"),
                        guided("chat-context", placement="context"),
                        guided("chat-hidden") | {"show_cost": False},
                        STUDENT_ONLY,
                    )
                ],
            )
        )
        wait_until_looked_at(gateway.admin_url)
        yield World(teacher, student, gateway)


@pytest.fixture
def world(running: World) -> World:
    """Return the world with the normal behavior of both engines."""
    running.teacher.behave, running.student.behave = says(OPENING, "length"), says(REST)
    for engine in (running.teacher, running.student):
        engine.requests.clear()
        engine.cancelled.clear()
    return running


def status(code: int, body: Any, **headers: str) -> Any:
    async def behave(_: web.Request, __: dict[str, Any]) -> web.Response:
        return web.Response(status=code, body=orjson.dumps(body), content_type="application/json", headers=headers)

    return behave


async def hang(_: web.Request, __: dict[str, Any]) -> web.Response:
    await asyncio.sleep(30)
    return web.Response()


def test_the_normal_case_for_comparison(world: World) -> None:
    """The reply is the guidance, then the student's text. One receipt has status ok."""
    answer = world.ask()
    assert answer.json()["choices"][0]["message"]["content"] == "The answer to your question" + REST
    receipt = world.receipt(answer)
    assert (receipt["mode"], receipt["status"]) == ("guided", "ok")


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (status(429, {"error": "busy", "error_type": "overloaded"}), "teacher_overloaded"),
        (status(424, {"error": "oops", "error_type": "generation"}), "teacher_failed"),
        (status(500, {"error": "oops"}), "teacher_failed"),
        (status(401, {"error": "who"}), "teacher_rejected"),
        (status(200, {"no": "choices"}), "teacher_protocol_error"),
        (hang, "teacher_late"),
        (says("   ", "stop"), "guidance_empty"),
        (says("Unfinished", "length"), "guidance_empty"),
    ],
)
def test_a_failed_teacher_gives_an_unguided_answer_or_an_error_by_policy(
    world: World, behave: Any, reason: str
) -> None:
    """`student`: an unguided answer, marked as such. `reject`: 503 with Retry-After. Neither hangs."""
    world.teacher.behave = behave
    lenient, strict = ("chat-hurried", "chat-hurried-must") if behave is hang else ("chat", "chat-must")
    answer = world.ask(lenient)
    assert answer.status_code == 200
    assert answer.headers["x-gkt-unguided"] == reason
    assert answer.json()["choices"][0]["message"]["content"] == REST
    receipt = world.receipt(answer)
    assert (receipt["mode"], receipt["status"], receipt["unguided"]) == ("student", "ok", reason)

    refused = world.ask(strict)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["code"] == "guidance_unavailable"
    assert world.receipt(refused)["status"] == "guidance_unavailable"


def test_a_teacher_that_blames_the_request_blames_the_caller_only_where_guidance_is_a_must(world: World) -> None:
    """A retry would not help: 400, not 503."""
    world.teacher.behave = status(422, {"error": "inputs too long", "error_type": "validation"})
    assert world.ask().headers["x-gkt-unguided"] == "teacher_rejected"
    refused = world.ask("chat-must")
    assert refused.status_code == 400
    assert "inputs too long" in refused.json()["error"]["message"]
    assert world.receipt(refused)["status"] == "invalid_request"


def test_an_identical_request_gets_the_cached_guidance_for_free(world: World) -> None:
    """The teacher is called once for both, JSON or stream. Other tenants and other messages cause new calls."""
    same = a_question()
    first, again, streamed = world.ask(messages=same), world.ask(messages=same), world.ask(messages=same, stream=True)
    assert len(world.teacher.requests) == 1
    assert again.json()["choices"] == first.json()["choices"]
    assert "x-gkt-shared" not in first.headers
    for answer in (again, streamed):
        assert answer.headers["x-gkt-shared"] == "cache"
        receipt = world.receipt(answer)
        assert (receipt["teacher"]["shared"], Decimal(receipt["teacher"]["cost_usd"])) == ("cache", 0)
        assert receipt["batch"] is None
    paid = world.receipt(first)["teacher"]
    assert Decimal(paid["cost_usd"]) > 0
    assert receipt["teacher"]["output_tokens"] == paid["output_tokens"]

    globex = httpx.post(
        f"{world.gateway.url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {OTHER_KEY}"},
        json={"model": "chat", "messages": same},
        timeout=10,
    )
    assert (globex.status_code, len(world.teacher.requests)) == (200, 2)
    assert "x-gkt-shared" not in globex.headers


@pytest.mark.long
def test_a_full_queue_is_429_or_an_unguided_answer_by_policy(redis_url: str, tmp_path: Any) -> None:
    """One call is in flight and one request waits; further requests are rejected at once."""

    async def slowly(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(1.5)
        return await says(OPENING, "length")(request, body)

    with (
        FakeEngine(slowly).running() as teacher,
        FakeEngine(says(REST)).running() as student,
        running_gateway(
            tmp_path,
            redis_url=redis_url,
            redis={"prefix": "full"},
            models=[
                model("big", "tgi", teacher.url, max_concurrency=1, batch={"max_size": 1, "max_queue": 1}),
                model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[guided(), guided("chat-must", on_queue_full="reject")],
        ) as gateway,
        ThreadPoolExecutor() as pool,
    ):
        world = World(teacher, student, gateway)
        first = pool.submit(world.ask)
        while not teacher.requests:
            time.sleep(0.01)
        second = pool.submit(world.ask)
        give_up = time.monotonic() + 5
        while 'gkt_queue_depth{teacher="big"} 1' not in httpx.get(f"{gateway.admin_url}/metrics").text:
            assert time.monotonic() < give_up
            time.sleep(0.02)
        refused, unguided = world.ask("chat-must"), world.ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["Retry-After"]) >= 1
        assert world.receipt(refused)["status"] == "queue_full"
        assert (unguided.status_code, unguided.headers["x-gkt-unguided"]) == (200, "queue_full")
        assert world.receipt(unguided)["teacher"] is None
        assert {answer.result().headers["x-gkt-mode"] for answer in (first, second)} == {"guided"}
    assert len(teacher.requests) == 2


def test_a_late_teacher_is_hung_up_on(world: World) -> None:
    """The call is canceled at the deadline. The receipt estimates the tokens that the teacher may have generated."""
    world.teacher.behave = hang
    receipt = world.receipt(world.ask("chat-called-late"))
    assert world.teacher.cancelled.wait(10)
    assert receipt["teacher"]["estimated"] is True
    assert receipt["teacher"]["output_tokens"] == 6


def test_an_absent_teacher_is_nothing_but_a_reason(world: World) -> None:
    """Connection refused: the answer is unguided and the teacher costs nothing."""
    answer = world.ask("chat-no-teacher")
    receipt = world.receipt(answer)
    assert (answer.status_code, receipt["unguided"], receipt["teacher"]) == (200, "teacher_unreachable", None)


def test_a_teacher_that_ends_by_itself_has_answered(world: World) -> None:
    """cutoff: no student call. hint: the student still gets the hint."""
    world.teacher.behave = says("It is 42.", "stop")
    answer = world.ask()
    assert answer.json()["choices"][0]["message"]["content"] == "It is 42."
    assert answer.headers["x-gkt-mode"] == "teacher_complete"
    assert world.student.requests == []
    assert world.receipt(answer)["student"] is None

    for more in ({"tools": [{"type": "function", "function": {"name": "f"}}]}, {"n": 2}, {"logprobs": True}):
        world.student.requests.clear()
        context_reply = world.ask("chat-context", **more)
        assert context_reply.headers["x-gkt-mode"] == "guided", more
        assert "It is 42." in world.student.requests[0]["messages"][-1]["content"], "only the student can answer this"

    hinted = world.ask("chat-hint")
    assert hinted.json()["choices"][0]["message"]["content"] == REST
    assert "It is 42." in world.student.requests[0]["messages"][-1]["content"]


@pytest.mark.parametrize("route", ["student-gone", "chat-no-student"])
def test_a_student_that_is_down_is_502(world: World, route: str) -> None:
    """The message contains the name of the engine, but not its address."""
    answer = world.ask(route)
    assert answer.status_code == 502
    error = answer.json()["error"]
    assert error["code"] == "engine_unreachable"
    assert "gone" in error["message"]
    assert "127.0.0.1" not in error["message"]
    assert world.receipt(answer)["status"] == "engine_unreachable"
    if route == "student-gone":
        assert world.ask(route, stream=True).status_code == 502


def test_a_student_that_is_down_ends_a_begun_stream_with_an_error(world: World) -> None:
    """The guidance was sent, so only an error event can follow, without [DONE]."""
    answer = world.ask("chat-no-student", stream=True)
    events = _events(answer)
    words = [part["choices"][0]["delta"]["content"] for part in events[:-1]]
    assert "".join(words) == "The answer to your question"
    assert events[-1]["error"]["code"] == "engine_unreachable"
    assert "[DONE]" not in answer.text
    assert world.receipt(answer)["status"] == "engine_unreachable"


@pytest.mark.parametrize(
    ("code", "expected", "field"),
    [(400, 400, "invalid_request"), (422, 400, "invalid_request"), (401, 502, "engine_rejected"),
     (429, 503, "engine_overloaded"), (500, 502, "engine_failed")],
)  # fmt: skip
def test_only_400_and_422_of_a_student_are_request_errors(world: World, code: int, expected: int, field: str) -> None:
    """400 and 422 blame the request; all other statuses are engine errors."""
    world.student.behave = status(code, {"error": {"message": "top_k must not be 7"}}, **{"Retry-After": "7"})
    # One that says for how long it is busy is left alone for so long, and is a student of its own.
    answer = world.ask("student-busy" if code == 429 else "chat-student", top_k=7)
    assert answer.status_code == expected
    assert world.receipt(answer)["status"] == field
    message = answer.json()["error"]["message"]
    assert ("top_k must not be 7" in message) is (code != 401)
    if code == 429:
        assert answer.headers["Retry-After"] == "7"


@pytest.mark.parametrize("code", [429, 503])
def test_an_overloaded_student_is_503_with_retry_after(world: World, code: int) -> None:
    """TGI sends no Retry-After."""
    world.student.behave = status(code, {"error": "Model is overloaded", "error_type": "overloaded"})
    answer = world.ask("chat-student")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_overloaded")
    assert answer.headers["Retry-After"] == "1"


def _events(answer: httpx.Response) -> list[Any]:
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [orjson.loads(line) for line in data if line != "[DONE]"]


async def cut(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    """Send two words and reset the connection."""
    response = await begin_events(request)
    await response.write(event(chunk({"role": "assistant", "content": " two"})) + event(chunk({"content": " words"})))
    await asyncio.sleep(0.05)
    assert request.transport is not None
    request.transport.abort()
    return response


async def ends_early(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    """Send two words and close the connection cleanly, without finish_reason or [DONE]."""
    response = await begin_events(request)
    await response.write(event(chunk({"content": " two"})) + event(chunk({"content": " words"})))
    await response.write_eof()
    return response


async def stalls(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    """Send two words, then nothing."""
    response = await begin_events(request)
    await response.write(event(chunk({"content": " two"})) + event(chunk({"content": " words"})))
    await asyncio.sleep(30)
    return response


async def reports_an_error(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    """Send two words, then an error event under status 200."""
    response = await begin_events(request)
    await response.write(event(chunk({"content": " two"})) + event(chunk({"content": " words"})))
    await response.write(event({"error": {"message": "CUDA out of memory"}}))
    await response.write_eof()
    return response


@pytest.mark.parametrize(
    ("behave", "label"),
    [
        (cut, "engine_unreachable"),
        (ends_early, "engine_failed"),
        (stalls, "engine_timeout"),
        (reports_an_error, "engine_failed"),
    ],
)
def test_a_stream_that_breaks_is_never_passed_off_as_whole(world: World, behave: Any, label: str) -> None:
    """The caller has the received words, then an OpenAI error event; the SDK raises."""
    world.student.behave = behave
    route = "chat-impatient" if behave is stalls else "chat"
    with OpenAI(base_url=f"{world.gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        stream = client.chat.completions.create(model=route, messages=a_question(), stream=True)  # type: ignore[arg-type]
        parts: list[Any] = []
        with pytest.raises(openai.APIError) as raised:
            _collect(stream, parts)
    assert "".join(part.choices[0].delta.content for part in parts) == "The answer to your question two words"
    assert all(part.choices[0].finish_reason is None for part in parts)
    assert raised.value.code == label
    receipt = world.gateway.wait_for_log("request", id=stream.response.headers["x-request-id"])
    assert receipt["status"] == label
    assert receipt["student"]["estimated"] is True
    assert receipt["student"]["output_tokens"] > 0


def _collect(stream: Any, parts: list[Any]) -> None:
    """Keep the received parts, also if the stream raises."""
    for part in stream:
        parts.append(part)  # noqa: PERF402


async def hang_up_on(world: World, engine: FakeEngine) -> None:
    """Send a request and disconnect as soon as the engine has the call."""
    body = {"model": "chat", "messages": a_question()}
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=10) as client:
        calling = asyncio.ensure_future(client.post(f"{world.gateway.url}/v1/chat/completions", json=body))  # noqa: TID251
        while not engine.requests:
            assert not calling.done()
            await asyncio.sleep(0.01)
        calling.cancel()
        await asyncio.wait([calling])


def test_a_caller_that_hangs_up_still_gets_a_receipt_and_frees_the_student(world: World) -> None:
    """JSON: the student's call is canceled."""
    world.student.behave = hang
    before = world.receipts()
    asyncio.run(hang_up_on(world, world.student))
    assert world.student.cancelled.wait(10)
    receipt = world.last_receipt(before)
    assert (receipt["status"], receipt["mode"]) == ("client_gone", "guided")
    assert receipt["teacher"]["output_tokens"] == 6
    assert receipt["student"]["at_least"] is True, "it may have written anything, and says so"


def test_a_disconnect_during_the_teacher_call_is_charged_up_to_its_limit(world: World) -> None:
    """The receipt estimates up to m tokens, so a disconnect does not make them free."""
    world.teacher.behave = hang
    before = world.receipts()
    asyncio.run(hang_up_on(world, world.teacher))
    receipt = world.last_receipt(before)
    assert (receipt["status"], receipt["teacher"]["output_tokens"]) == ("client_gone", 6)
    assert receipt["teacher"]["estimated"] is True
    assert receipt["student"] is None


def test_a_disconnect_during_a_stream_is_charged_for_the_sent_text(world: World) -> None:
    """SSE: the receipt counts the received words as an estimate."""

    async def for_ever(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        while True:
            await response.write(event(chunk({"content": " word"})))
            await asyncio.sleep(0.02)

    world.student.behave = for_ever
    before = world.receipts()
    with httpx.stream(
        "POST",
        f"{world.gateway.url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {KEY}"},
        json={"model": "chat", "messages": a_question(), "stream": True},
        timeout=5,
    ) as answer:
        seen = 0
        for line in answer.iter_lines():
            seen += '" word"' in line
            if seen == 6:
                break
    receipt = world.last_receipt(before)
    assert receipt["status"] == "client_gone"
    assert receipt["student"]["estimated"] is True
    assert receipt["student"]["output_tokens"] >= 4


def test_a_stop_text_across_the_seam_ends_the_answer(world: World) -> None:
    """`question here` begins in the guidance and ends in the student's text."""
    for stream in (False, True):
        answer = world.ask(stop=["question here"], stream=stream)
        if stream:
            choices = [choice for part in _events(answer) for choice in part["choices"]]
            text = "".join(choice["delta"].get("content", "") for choice in choices)
            finishes = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        else:
            choice = answer.json()["choices"][0]
            text, finishes = choice["message"]["content"], [choice["finish_reason"]]
        assert text == "The answer to your "
        assert finishes == ["stop"]


def test_a_stop_text_inside_the_guidance_ends_the_answer_there(world: World) -> None:
    """The answer is all text before it, with its last blank. No student is called."""
    answer = world.ask(stop=["question"])
    choice = answer.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("The answer to your ", "stop")
    assert answer.headers["x-gkt-mode"] == "teacher_complete"
    assert world.student.requests == []


def test_missing_usage_of_the_student_is_estimated_and_marked(world: World) -> None:
    """An estimate is an upper bound and is marked as an estimate."""

    async def uncounted(_: web.Request, __: dict[str, Any]) -> web.Response:
        return web.json_response({**reply(REST), "usage": None})

    world.student.behave = uncounted
    answer = world.ask()
    receipt = world.receipt(answer)
    assert receipt["student"]["estimated"] is True
    assert 5 <= receipt["student"]["output_tokens"] <= 16
    assert answer.json()["usage"]["completion_tokens"] > 5


def _counted(world: World) -> Counter[str]:
    counted: Counter[str] = Counter()
    for line in httpx.get(f"{world.gateway.admin_url}/metrics").text.splitlines():
        if line.startswith("gkt_requests_total{"):
            labels, _, value = line.partition("} ")
            counted[labels.partition('status="')[2].partition('"')[0]] += int(float(value))
    return counted


def _logged(world: World) -> Counter[str]:
    return Counter(line["status"] for line in world.gateway.log if line["event"] == "request")


def test_metrics_equal_the_receipts(world: World) -> None:
    """Requests by status over this process's life equal the receipts in its log."""
    world.receipt(world.ask())
    # A request of the test before may be at its end: of its two marks one is seen before the other.
    give_up = time.monotonic() + 5
    while (counted := _counted(world)) != (logged := _logged(world)):
        assert time.monotonic() < give_up, (counted, logged)
        time.sleep(0.05)
    assert counted["ok"] > 0


def test_sigterm_finishes_answers_and_stores_their_receipts(redis_url: str, tmp_path: Any) -> None:
    """New callers are rejected, the request in flight is answered, and the process exits with 0."""

    async def slowly(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(1.0)
        return await says(REST)(request, body)

    with (
        FakeEngine(says(OPENING, "length")).running() as teacher,
        FakeEngine(slowly).running() as student,
        running_gateway(
            tmp_path,
            redis_url=redis_url,
            redis={"prefix": "sigterm"},
            models=[
                model("big", "tgi", teacher.url),
                model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[guided()],
        ) as gateway,
        httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=10) as client,
    ):
        wait_until_probed(gateway.admin_url)
        with ThreadPoolExecutor() as pool:
            under_way = pool.submit(client.post, "/v1/chat/completions", json={"model": "chat", "messages": ASKED})
            while not any(body["messages"][0] == ASKED[0] for body in student.requests):
                time.sleep(0.01)
            ended = pool.submit(gateway.terminate)
            answer = under_way.result()
            assert ended.result() == 0
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"].endswith(REST)
        assert gateway.wait_for_log("request", id=answer.headers["x-request-id"])["status"] == "ok"
        assert gateway.wait_for_log("stopped")["cut"] == 0
        assert gateway.wait_for_log("stopped")["receipts_kept"] is True
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{gateway.url}/healthz")


def test_an_empty_student_stream_is_an_empty_answer(world: World) -> None:
    """The student streams only [DONE]: the reply begins, ends with stop, and has its receipt."""

    async def silent(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    world.student.behave = silent
    answer = world.ask("chat-student", stream=True)
    assert [choice["finish_reason"] for part in _events(answer) for choice in part["choices"]] == ["stop"]
    assert answer.text.endswith("data: [DONE]\n\n")
    assert world.receipt(answer)["status"] == "ok"


def test_costs_are_hidden_where_the_policy_hides_them(world: World) -> None:
    """show_cost false: headers, stream and receipt contain no cost."""
    answer = world.ask("chat-hidden")
    assert not [name for name in answer.headers if name.endswith("-usd")]
    receipt_url = f"{world.gateway.url}/v1/receipts/{answer.headers['x-request-id']}"
    give_up = time.monotonic() + 5
    while (found := httpx.get(receipt_url, headers={"Authorization": f"Bearer {KEY}"})).status_code == 404:
        assert time.monotonic() < give_up, "it is kept soon after the answer"
        time.sleep(0.02)
    shown = found.json()
    assert "usd" not in orjson.dumps(shown).decode()
    assert shown["student"]["output_tokens"] == 4
    streamed = world.ask("chat-hidden", stream=True, stream_options={"include_usage": True})
    assert "usd" not in streamed.text
    assert "gkt" in _events(streamed)[-1]


def test_the_cause_of_an_engine_failure_is_logged_with_the_request_id(world: World) -> None:
    """The log contains more detail than the reply."""
    answer = world.ask("student-gone")
    line = world.gateway.wait_for_log("engine_error", id=answer.headers["x-request-id"])
    assert (line["engine"], line["label"]) == ("gone", "engine_unreachable")
    assert "ClientConnectorError" in line["cause"]


def test_an_expired_drain_sends_errors_to_its_callers(redis_url: str, tmp_path: Any) -> None:
    """JSON: 503. Stream: an error event and no clean end. Both have their receipt."""

    async def dribble(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        while True:
            await response.write(event(chunk({"content": " word"})))
            await asyncio.sleep(0.05)

    async def either(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (dribble if body.get("stream") else hang)(request, body)

    with (
        FakeEngine(either).running() as student,
        running_gateway(
            tmp_path,
            redis_url=redis_url,
            redis={"prefix": "cut"},
            server={"drain_timeout": "300ms"},
            models=[
                model("big", "tgi", student.url),
                model("small", "openai", f"{student.url}/v1", continuation="none"),
            ],
            routes=[STUDENT_ONLY],
        ) as gateway,
        httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=10) as client,
        ThreadPoolExecutor() as pool,
    ):
        answers = [
            pool.submit(
                client.post,
                "/v1/chat/completions",
                json={"model": "chat-student", "messages": ASKED, "stream": stream},
            )
            for stream in (False, True)
        ]
        while len(student.requests) < 2:
            time.sleep(0.01)
        assert gateway.terminate() == 0
        whole, stream = (answer.result() for answer in answers)
        assert whole.status_code == 503
        assert whole.json()["error"]["code"] == "overloaded"
        assert _events(stream)[-1]["error"]["code"] == "overloaded"
        assert "[DONE]" not in stream.text
        for answer in (whole, stream):
            line = gateway.wait_for_log("request", id=answer.headers["x-request-id"])
            assert line["status"] == "shutdown"
        assert gateway.wait_for_log("stopped")["cut"] == 2
