"""The warm-up of the student's prefix cache: when it is sent, what it contains, and what it costs."""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web
from msgspec import structs

from gateway.engines.base import EngineState
from gateway.pipeline.student_warmup import RETRY_AFTER_S, StudentWarmup
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import MESSAGES, builder, chat, engine_set, plan
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.policy.plan import Plan
    from gateway.protocol.body import Json

OPENING = "First we look at it from all sides and then we think"
BUSY_AT = 4
CALM = {"breaker": {"failures": 1000}}
_numbers = itertools.count()


class Student:
    """A guarded engine that answers at once, and its state."""

    name = "small"

    def __init__(self, **state: Any) -> None:
        self.state = EngineState(max_concurrency=state.pop("max_concurrency", None))
        self.calls, self.paused = 0, ""
        self.bodies: list[Json] = []
        for name, value in state.items():
            setattr(self, name, value)

    def is_closed_for(self, tenant: str) -> bool:
        return tenant != self.paused

    async def complete(self, body: Json) -> Json:
        self.bodies.append(body)
        await asyncio.sleep(0)
        return {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 1}}


def warming() -> StudentWarmup:
    return StudentWarmup(Metrics(), BackgroundTasks())


def request_of(student: Student, plan: Plan, **more: Any) -> ReceiptBuilder:
    models: Any = {"small": SimpleNamespace(max_concurrency=BUSY_AT)}
    return builder(plan, engine_set=engine_set({"small": student}, models=models), **more)


def warm_plan(*, warm: bool = True) -> Plan:
    guidance = plan().guidance
    assert guidance is not None
    return structs.replace(plan(), guidance=structs.replace(guidance, warm_student=warm))


async def test_the_warmup_requests_one_token_of_the_callers_prompt() -> None:
    """Fields that change only the answer are not sent."""
    student = Student()
    one = request_of(student, warm_plan())
    tools = [{"type": "function", "function": {"name": "f"}}]
    request = chat(body={"tools": tools, "n": 2, "stop": ["x"], "logprobs": True, "stream": True, "max_tokens": 90})
    task = warming().start(request, one)
    assert task is not None
    await task
    body = {"messages": MESSAGES, "tools": tools, request.limit_field: 1, "temperature": 0}
    assert student.bodies == [body]
    assert one.warmup is not None
    assert one.warmup.usage is not None
    assert (one.warmup.role, one.warmup.usage.input_tokens) == ("warmup", 30)


@pytest.mark.parametrize(
    "state",
    [
        {"paused": "acme"},
        {"calls": BUSY_AT},
        {"calls": 2, "max_concurrency": 2},
    ],
)
async def test_an_engine_in_cooldown_or_at_its_limit_is_not_warmed(state: dict[str, Any]) -> None:
    one = request_of(Student(**state), warm_plan())
    assert warming().start(chat(), one) is None
    assert one.warmup is None


async def test_an_engine_that_another_tenant_may_not_call_is_warmed() -> None:
    assert warming().start(chat(), request_of(Student(paused="globex"), warm_plan())) is not None


async def test_a_caller_that_left_and_a_policy_without_it_warm_nothing() -> None:
    for one in (
        request_of(Student(), warm_plan(), caller_left=True),
        request_of(Student(), warm_plan(warm=False)),
        request_of(Student(), plan("student")),
    ):
        assert warming().start(chat(), one) is None
        assert one.warmup is None


async def test_an_engine_is_not_warmed_for_prompts_that_it_does_not_read_in_time() -> None:
    """Shorter prompts are still read. After a minute, a long one is tried again."""
    now = 1000.0
    student, warmup = Student(), StudentWarmup(Metrics(), BackgroundTasks(), clock=lambda: now)
    warmup.outlasted(chat(size_bytes=400), request_of(student, warm_plan()))
    other = structs.replace(request_of(student, warm_plan()), tenant="globex")
    assert warmup.start(chat(size_bytes=400), other) is not None
    for size_bytes, warm in ((399, True), (400, False), (4000, False)):
        assert (warmup.start(chat(size_bytes=size_bytes), request_of(student, warm_plan())) is not None) == warm
    now += RETRY_AFTER_S
    assert warmup.start(chat(size_bytes=400), request_of(student, warm_plan())) is not None


def is_warmup(body: dict[str, Any]) -> bool:
    return body.get("max_tokens") == 1 and (body.get("messages") or [{"role": "user"}])[-1]["role"] == "user"


def student_that(warmup: str, handled: threading.Event) -> Any:
    """Return a student that answers, and does this with a warm-up: ok, fail, refuse or stall.

    `handled` is set when a warm-up was answered, or received where it stalls.
    """

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not is_warmup(body):
            return await says(" and" if body.get("max_tokens") == 1 else " and so on.")(request, body)
        if warmup == "stall":
            handled.set()
            await asyncio.sleep(30)
        answer: web.StreamResponse
        if warmup in {"fail", "refuse"}:
            answer = web.json_response({"error": {"message": "no"}}, status=500 if warmup == "fail" else 400)
        else:
            answer = await says(" and")(request, body)
        await answer.prepare(request)
        await answer.write_eof()
        handled.set()
        return answer

    return behave


def slow_teacher(after_s: float, status: int = 200) -> Any:
    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(after_s)
        if status != 200:
            return web.json_response({"error": {"message": "no"}}, status=status)
        return await says(OPENING, "length")(request, body)

    return behave


def teacher_after(warmup_handled: threading.Event, status: int = 200) -> Any:
    """Return a teacher that answers after the student handled a warm-up, or after 10 s."""
    answers = slow_teacher(0.3, status)  # meanwhile, the gateway reads the reply to the warm-up

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        with suppress(TimeoutError):
            async with asyncio.timeout(10):
                while not warmup_handled.is_set():
                    await asyncio.sleep(0.01)
        return await answers(request, body)

    return behave


@dataclass
class World:
    """A gateway between a fake teacher and a fake student."""

    teacher: FakeEngine
    student: FakeEngine
    gateway: GatewayProcess
    warmup_handled: threading.Event = field(default_factory=threading.Event)

    def answer_after_warmup(self, status: int = 200) -> None:
        """Let the teacher answer after the student handled the warm-up of the next request."""
        self.warmup_handled.clear()
        self.teacher.behave = teacher_after(self.warmup_handled, status)

    def ask(
        self, route: str = "chat", *, question: str | None = None, path: str = "chat/completions", **more: Any
    ) -> Any:
        """Return the reply's status, the receipt, and the warm-ups that the student got."""
        self.student.requests.clear()
        question = question or f"What do people do on day {next(_numbers)}?"
        prompt = (
            {"prompt": question} if path == "completions" else {"messages": [{"role": "user", "content": question}]}
        )
        headers = {"Authorization": f"Bearer {KEY}"}
        body = {"model": route} | prompt | more
        answer = httpx.post(f"{self.gateway.url}/v1/{path}", headers=headers, json=body, timeout=20)
        receipt = self.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
        shares = [receipt["teacher"], receipt["student"], receipt.get("warmup")]
        assert sum(Decimal(one["cost_usd"]) for one in shares if one) == Decimal(receipt["cost_usd"])
        receipt.setdefault("warmup", None)
        return answer.status_code, receipt, [one for one in self.student.requests if is_warmup(one)]


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    warm = {"warm_student": True, "cache_ttl": "0s"}
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(slow_teacher(0.3)).running())
        student = stack.enter_context(FakeEngine(student_that("ok", threading.Event())).running())
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("warming"),
                redis_url=redis_url,
                redis={"prefix": "warming"},
                models=[
                    model(
                        "big", "openai", f"{teacher.url}/v1", price={"input_per_1m": 1.0, "output_per_1m": 1.0}, **CALM
                    ),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False, **CALM),
                    # An engine is not warmed for a while after a warm-up that did not end.
                    *(
                        model(
                            f"small-{case}", "openai", f"{student.url}/v1", continuation="trailing", echo=False, **CALM
                        )
                        for case in "abcdef"
                    ),
                    model("other", "openai", f"{student.url}/v1", continuation="none", **CALM),
                ],
                routes=[
                    guided(**warm),
                    guided("cold", cache_ttl="0s"),
                    guided("cached", warm_student=True),
                    guided("context", placement="context", **warm),
                    guided("cannot", student="other", **warm),
                    guided("stalled-json", student="small-a", **warm),
                    guided("stalled-stream", student="small-b", **warm),
                    guided("hurried", student="small-c", deadline="1s", **warm),
                    guided("broken", student="small-d", **warm),
                    guided("unread", student="small-e", **warm),
                    guided("unlucky", student="small-f", **warm),
                    {
                        "model": "second",
                        "mode": "guided",
                        "teacher": "big",
                        "students": ["small", "other"],
                        "guidance": warm,
                    },
                ],
            )
        )
        for name in ("small", *(f"small-{case}" for case in "abcdef")):
            wait_until_probed(gateway.admin_url, name)
        yield World(teacher, student, gateway)


@pytest.fixture
def world(running: World) -> World:
    running.teacher.behave, running.student.behave = slow_teacher(0.3), student_that("ok", running.warmup_handled)
    return running


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["chat", "second"])
def test_the_first_student_is_warmed_and_the_receipt_has_its_share(world: World, route: str, *, stream: bool) -> None:
    world.answer_after_warmup()
    status, receipt, warmups = world.ask(route, stream=stream)
    assert (status, receipt["mode"], len(warmups)) == (200, "guided", 1)
    share = receipt["warmup"]
    assert (share["model"], share["output_tokens"]) == ("small", 1)
    assert "estimated" not in share
    assert receipt["estimated"] is False


def test_a_raw_prompt_is_warmed_too(world: World) -> None:
    world.answer_after_warmup()
    status, receipt, _ = world.ask(path="completions")
    assert (status, receipt["mode"], receipt["warmup"]["output_tokens"]) == (200, "guided", 1)
    assert sorted(one.get("max_tokens") == 1 for one in world.student.requests) == [False, True]


@pytest.mark.parametrize(("route", "mode"), [("cold", "guided"), ("context", "guided"), ("cannot", "guided")])
def test_routes_that_do_not_warm_their_student(world: World, route: str, mode: str) -> None:
    """The switch is off, no prefix is continued, or the probe has warmed the student already."""
    status, receipt, warmups = world.ask(route)
    assert (status, receipt["mode"], receipt["warmup"]) == (200, mode, None)
    assert warmups == []


def test_guidance_from_the_cache_warms_nothing(world: World) -> None:
    world.answer_after_warmup()
    first, second = (world.ask("cached", question="Why is it so on Sundays?") for _ in range(2))
    assert (len(first[2]), first[1]["warmup"] is None) == (1, False)
    assert (second[1]["teacher"]["shared"], second[1]["warmup"], second[2]) == ("cache", None, [])


async def test_of_identical_requests_only_the_one_that_pays_warms(world: World) -> None:
    world.teacher.behave = slow_teacher(2.0)  # on a busy machine, the third request follows late
    receipts = await asyncio.gather(
        *(asyncio.to_thread(world.ask, question="Why is it so on Mondays?") for _ in range(3))
    )
    shared = [receipt["teacher"].get("shared", "") for _, receipt, _ in receipts]
    assert sorted(shared) == ["", "flight", "flight"]
    assert [receipt["warmup"] is not None for _, receipt, _ in receipts] == [not one for one in shared]


@pytest.mark.parametrize("warmup", ["fail", "refuse"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_warmup_changes_only_the_receipt(world: World, warmup: str, *, stream: bool) -> None:
    """An engine that failed may have read the prompt, which is charged. One that rejected the call has not."""
    world.student.behave = student_that(warmup, world.warmup_handled)
    world.answer_after_warmup()
    status, receipt, warmups = world.ask(stream=stream)
    assert (status, receipt["status"], receipt["mode"], len(warmups)) == (200, "ok", "guided", 1)
    assert (receipt["attempts"], receipt["unguided"]) == ([], None)
    assert (receipt["warmup"] is not None) == (warmup == "fail")
    assert receipt["estimated"] == (warmup == "fail")


@pytest.mark.parametrize("stream", [False, True])
def test_no_request_waits_for_its_warmup(world: World, *, stream: bool) -> None:
    """It is canceled when the guidance is complete, and charged its upper bound."""
    world.student.behave = student_that("stall", world.warmup_handled)
    world.student.cancelled.clear()
    world.answer_after_warmup()
    route = "stalled-stream" if stream else "stalled-json"
    status, receipt, warmups = world.ask(route, stream=stream)
    assert (status, receipt["mode"], len(warmups)) == (200, "guided", 1)
    assert receipt["timings"]["total_ms"] < 15_000
    assert world.student.cancelled.wait(5)
    assert receipt["warmup"]["estimated"]
    assert receipt["warmup"]["output_tokens"] == 1
    assert receipt["warmup"]["input_tokens"] >= 8
    world.teacher.behave = slow_teacher(0.3)
    status, receipt, warmups = world.ask(route, stream=stream, question="What do people do on every single day?")
    assert (status, receipt["mode"], receipt["warmup"], warmups) == (200, "guided", None, [])


@pytest.mark.parametrize(("route", "status_sent"), [("hurried", 200), ("broken", 503)])
def test_without_guidance_the_student_answers_alone(world: World, route: str, status_sent: int) -> None:
    if status_sent == 200:
        world.teacher.behave = slow_teacher(30)
    else:
        world.answer_after_warmup(status_sent)
    status, receipt, warmups = world.ask(route)
    assert (status, receipt["mode"], len(warmups)) == (200, "student", 1)
    assert receipt["unguided"].startswith("teacher_")


def test_a_student_that_reads_longer_than_the_teacher_writes_is_not_warmed_again(world: World) -> None:
    world.student.behave = student_that("stall", world.warmup_handled)
    world.answer_after_warmup()
    assert len(world.ask("unread")[2]) == 1
    world.teacher.behave = slow_teacher(0.3)
    assert world.ask("unread")[2] == []


def test_a_failed_teacher_is_no_evidence_against_the_students_reading(world: World) -> None:
    """The warm-up was canceled because the teacher failed at once. The next request warms the student."""
    world.student.behave = student_that("stall", world.warmup_handled)
    world.answer_after_warmup(status=400)
    assert len(world.ask("unlucky")[2]) == 1
    world.answer_after_warmup()
    assert len(world.ask("unlucky")[2]) == 1
