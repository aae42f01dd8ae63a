"""The quality guard: guided answers beside those of each engine alone, compared, accounted for, and seen by nobody."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from contextlib import ExitStack
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web

from tests.fakes import FakeEngine, begin_events, chunk, event, says
from tests.gateway_process import KEY, GatewayProcess, model, running_gateway, sha256
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fakes import Handler

CHATS = "/v1/chat/completions"
ADMIN_KEY = "admin-key-of-the-guard"
WORDS = "One two three four"  # what the teacher opens with, of which the last word is cut
GUIDED = {
    "mode": "guided",
    "teacher": "big",
    "student": "small",
    "retries": {"num_retries": 0},
    "guidance": {"tokens": 6, "deadline": "20s", "cache_ttl": "0s"},
}
ALL = {"sample": 1, "max_budget": 5, "max_in_flight": 8}
TENANTS = {
    "secrets": {"log_content": True, "keys": [{"id": "only", "sha256": sha256("secrets")}]},
    "limited": {"limits": {"rpm_limit": 2}, "keys": [{"id": "only", "sha256": sha256("limited")}]},
    "softly": {
        "budget": {"max_budget": 1, "soft_budget": 0.000001, "budget_duration": "1d"},
        "keys": [{"id": "only", "sha256": sha256("softly")}],
    },
}


def _is_opening(body: dict[str, Any]) -> bool:
    return 6 in (body.get("max_tokens"), body.get("parameters", {}).get("max_new_tokens"))


def opens(alone: str) -> Handler:
    """A teacher: an opening for whoever asks for as few tokens as guidance has, else an answer of its own."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (says(WORDS, "length") if _is_opening(body) else says(alone))(request, body)

    return behave


def goes_on(guided: str, alone: str) -> Handler:
    """A student: it goes on with an opening, or answers by itself."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        opened = "messages" in body and body["messages"][-1]["role"] == "assistant"
        opened = opened or str(body.get("prompt", "")).endswith("three")
        return await says(guided if opened else alone)(request, body)

    return behave


async def fails(_: web.Request, __: dict[str, Any]) -> web.Response:
    return web.json_response({"error": {"message": "no"}}, status=500)


class World:
    """A gateway before a teacher, a student and a judge."""

    def __init__(self, engines: list[FakeEngine], gateway: GatewayProcess) -> None:
        self.teacher, self.student, self.judge = engines
        self.gateway = gateway

    def ask(self, route: str = "chat", key: str = KEY, path: str = CHATS, **more: Any) -> httpx.Response:
        said = {"messages": [{"role": "user", "content": "my s3cret"}]} if path == CHATS else {"prompt": "my s3cret"}
        headers = {"Authorization": f"Bearer {key}"}
        body = {"model": route, "max_tokens": 50} | said | more
        return httpx.post(self.gateway.url + path, headers=headers, json=body, timeout=30)

    def run_of(self, answer: httpx.Response, name: str) -> dict[str, Any]:
        """The log line of the receipt of one run beside a request."""
        return self.gateway.wait_for_log("request", id=f"{answer.headers['x-request-id']}-shadow-{name}")

    def runs_beside(self, answer: httpx.Response) -> list[str]:
        beside = answer.headers["x-request-id"]
        found = [line for line in self.gateway.log if line.get("shadow_of") == beside and line["event"] == "request"]
        return [line["id"].removeprefix(f"{beside}-shadow-") for line in found]

    def counted(self) -> dict[str, float]:
        text = httpx.get(f"{self.gateway.admin_url}/metrics").text
        return {
            result: float(number)
            for result, number in re.findall(r'gkt_quality_samples_total\{result="(\w+)"\} (\S+)', text)
        }

    def wait_until_counted(self, result: str, number: float) -> None:
        give_up = time.monotonic() + 20
        while self.counted().get(result, 0) < number:
            assert time.monotonic() < give_up, self.counted()
            time.sleep(0.02)

    def compared(self, result: str, *arguments: Any, **more: Any) -> httpx.Response:
        """The answer to a request whose comparison has ended so."""
        before = self.counted()[result]
        answer = self.ask(*arguments, **more)
        self.wait_until_counted(result, before + 1)
        return answer

    def quality(self, **query: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        found: dict[str, Any] = httpx.get(f"{self.gateway.admin_url}/quality", headers=headers, params=query).json()
        return found

    def rows(self, route: str) -> dict[str, dict[str, Any]]:
        """By length."""
        return {row["length"]: row for row in self.quality()["rows"] if row["route"] == route}


class running_world:  # noqa: N801  used as the function that it is
    def __init__(self, folder: Path, redis_url: str, redis: dict[str, Any] | None = None, **server: Any) -> None:
        self._folder, self._redis_url, self._server = folder, redis_url, server
        self._redis = redis or {}
        self._stack = ExitStack()

    def __enter__(self) -> World:
        engines = [self._stack.enter_context(FakeEngine(says("0.75")).running()) for _ in range(3)]
        teacher, student, judge = engines
        teacher.behave, student.behave = opens("One two three four five"), goes_on(" four five", "One six")
        gateway = self._stack.enter_context(
            running_gateway(
                self._folder,
                redis_url=self._redis_url,
                redis={"prefix": self._folder.name.replace("-", "_")[:32], "timeout": "5s"} | self._redis,
                admin={"key": "env:GUARD_ADMIN_KEY"},
                environ={"GUARD_ADMIN_KEY": ADMIN_KEY},
                server=self._server,
                tenants=TENANTS,
                models=[
                    model("big", "tgi", teacher.url, breaker={"failures": 1000}),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False,
                          breaker={"failures": 1000}),
                    model("grader", "openai", f"{judge.url}/v1", continuation="none", breaker={"failures": 1000}),
                ],
                routes=[
                    GUIDED | {"model": "chat", "quality": ALL},
                    GUIDED | {"model": "chat-short", "shadow": "100%"},
                    GUIDED | {"model": "chat-none"},
                    GUIDED | {"model": "chat-numeric", "quality": ALL | {"compare": "numeric"}},
                    GUIDED | {"model": "chat-judged", "quality": ALL | {"compare": "judge", "judge": "grader"}},
                    GUIDED | {"model": "chat-poor", "quality": ALL | {"max_budget": 0.00065}},
                    GUIDED | {"model": "chat-one", "quality": ALL | {"max_in_flight": 1}},
                ],
            )
        )  # fmt: skip
        wait_until_looked_at(gateway.admin_url)
        return World(engines, gateway)

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("guard"), redis_url) as world:
        yield world


@pytest.fixture
def world(running: World) -> World:
    """As it was: engines that answer."""
    running.teacher.behave = opens("One two three four five")
    running.student.behave = goes_on(" four five", "One six")
    running.judge.behave = says("0.75")
    for engine in (running.teacher, running.student, running.judge):
        engine.asked.clear()
    return running


@pytest.mark.parametrize("stream", [False, True])
def test_both_engines_are_asked_alone_and_each_run_has_its_receipt(world: World, *, stream: bool) -> None:
    answer = world.compared("made", stream=stream, temperature=0.5, seed=3)
    served = world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
    assert served["mode"] == answer.headers["x-gkt-mode"] == "guided"
    assert sorted(world.runs_beside(answer)) == ["student", "teacher"]
    teacher, student = (world.run_of(answer, name) for name in ("teacher", "student"))
    for run, role in ((teacher, "teacher"), (student, "student")):
        assert (run["mode"], run["status"], run["shadow_of"], run["stream"]) == ("shadow", "ok", served["id"], False)
        assert (run["tenant"], run["key"], run["route"]) == ("acme", "only", "chat")
        assert [name for name in ("teacher", "student") if run[name] is not None] == [role]
        assert (run["guidance"], run["unguided"], run["finish_reason"]) == (None, None, "stop")
        assert Decimal(run["cost_usd"]) > 0
    # The same request and sampling, with no opening, and for nobody to hear.
    alone = world.student.asked[-1]
    assert [message["role"] for message in alone["messages"]] == ["user"]
    assert (alone["temperature"], alone["seed"], alone["max_tokens"]) == (0.5, 3, 50)
    assert "stream" not in alone


def test_what_guidance_is_worth_is_told_by_route_and_length(world: World) -> None:
    """Guided it says what the teacher says; the student alone shares one word of two with the teacher's five."""
    before = world.rows("chat").get("16", {"samples": 0})
    world.compared("made")
    row = world.rows("chat")["16"]
    assert (row["tenant"], row["compare"], row["samples"]) == ("acme", "words", before["samples"] + 1)
    assert row["guided_teacher"] == 1
    assert row["student_teacher"] == pytest.approx(2 / 7, abs=1e-3)
    assert row["difference"] == pytest.approx(5 / 7, abs=1e-3)
    assert world.rows("chat")["all"] == row | {"length": "all"}
    text = httpx.get(f"{world.gateway.admin_url}/metrics").text
    for pair, score in (("guided_teacher", 1.0), ("student_teacher", 2 / 7)):
        labels = f'{{length="16",pair="{pair}",route="chat",tenant="acme"}}'
        count = float(text.partition(f"gkt_quality_agreement_count{labels} ")[2].partition("\n")[0])
        total = float(text.partition(f"gkt_quality_agreement_sum{labels} ")[2].partition("\n")[0])
        assert count == row["samples"], "the dashboard and the metrics tell of the same comparisons"
        assert total / count == pytest.approx(score)


def test_ten_comparisons_have_an_interval(world: World) -> None:
    for _ in range(10):
        world.compared("made")
    row = world.rows("chat")["all"]
    assert row["samples"] >= 10
    assert row["low"] <= row["difference"] <= row["high"]


def test_a_shadow_in_short_is_a_guard_of_a_guided_route(world: World) -> None:
    answer = world.compared("made", "chat-short")
    assert sorted(world.runs_beside(answer)) == ["student", "teacher"]


def test_raw_prompts_are_compared_as_well(world: World) -> None:
    answer = world.compared("made", path="/v1/completions")
    assert sorted(world.runs_beside(answer)) == ["student", "teacher"]


def test_a_route_without_a_rule_and_an_answer_without_guidance_have_no_guard(world: World) -> None:
    before = world.counted()
    plain = world.ask("chat-none")
    tools = world.ask("chat", tools=[{"type": "function", "function": {"name": "f"}}])
    several = world.ask("chat", n=2)
    world.teacher.behave = fails
    alone = world.ask("chat")
    assert alone.headers["x-gkt-mode"] == "student"
    world.teacher.behave = opens("One")
    world.compared("made")
    for answer in (plain, tools, several, alone):
        assert answer.status_code == 200
        assert world.runs_beside(answer) == []
    assert world.counted() == before | {"made": before["made"] + 1}


def test_numbers_are_compared_where_the_policy_says_so(world: World) -> None:
    world.teacher.behave = opens("It is 12 and so the answer is 18.")
    world.student.behave = goes_on(" four 18", "it is 17")
    world.compared("made", "chat-numeric")
    row = world.rows("chat-numeric")["all"]
    assert (row["guided_teacher"], row["student_teacher"], row["compare"]) == (1, 0, "numeric")


def test_a_teacher_that_states_no_number_leaves_nothing_to_compare(world: World) -> None:
    answer = world.compared("unscored", "chat-numeric")
    assert sorted(world.runs_beside(answer)) == ["student", "teacher"]


def test_a_judge_grades_each_answer_against_the_teachers_and_is_paid_by_receipt(world: World) -> None:
    answer = world.compared("made", "chat-judged")
    assert world.runs_beside(answer) == ["teacher", "student", "judge-guided", "judge-student"]
    judged = world.run_of(answer, "judge-guided")
    assert judged["student"]["model"] == "grader"
    assert Decimal(judged["cost_usd"]) > 0
    guided, alone = world.judge.asked
    assert (guided["temperature"], guided["max_tokens"], guided["messages"][0]["role"]) == (0, 16, "system")
    assert "<reference>\nOne two three four five\n</reference>" in guided["messages"][1]["content"]
    assert "<answer>\nOne two three four five\n</answer>" in guided["messages"][1]["content"]
    assert "<answer>\nOne six\n</answer>" in alone["messages"][1]["content"]
    assert world.rows("chat-judged")["all"]["guided_teacher"] == 0.75


@pytest.mark.parametrize("said", ["1.5", "0.5 because", "", "one", "-1", "nan"])
def test_a_judge_that_says_no_grade_is_counted_and_adds_nothing(world: World, said: str) -> None:
    before = world.rows("chat-judged")
    world.judge.behave = says(said)
    world.compared("unscored", "chat-judged")
    assert world.rows("chat-judged") == before


@pytest.mark.parametrize(("who", "begun"), [("teacher", ["teacher"]), ("student", ["teacher", "student"])])
def test_an_engine_that_is_down_leaves_one_receipt_for_each_run_that_was_begun(
    world: World, who: str, begun: list[str]
) -> None:
    """It fails once the caller has its answer; nobody is asked a second time."""
    good = world.teacher.behave if who == "teacher" else world.student.behave

    async def later(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        guided = _is_opening(body) or body["messages"][-1]["role"] == "assistant"
        return await (good if guided else fails)(request, body)

    engine = world.teacher if who == "teacher" else world.student
    engine.behave = later
    answer = world.compared("failed")
    assert (answer.status_code, answer.headers["x-gkt-mode"]) == (200, "guided")
    assert world.run_of(answer, who)["status"] == "engine_failed"
    assert world.runs_beside(answer) == begun


def test_beyond_its_budget_of_the_day_nothing_is_begun(world: World) -> None:
    """What runs cost is counted as it is, and what they may cost is never beyond."""
    spent = []
    for _ in range(20):
        before = world.counted()
        world.ask("chat-poor")
        give_up = time.monotonic() + 20
        while sum(world.counted().values()) <= sum(before.values()):
            assert time.monotonic() < give_up
            time.sleep(0.02)
        (entry,) = [one for one in world.quality()["spent_today"] if one["route"] == "chat-poor"]
        spent.append(Decimal(entry["usd"]))
        if world.counted()["over_budget"] > before["over_budget"]:
            break
    assert world.counted()["over_budget"] >= 1
    assert max(spent) <= Decimal("0.00065")
    lines = [line for line in world.gateway.log if line.get("route") == "chat-poor" and line.get("shadow_of")]
    assert sum(Decimal(line["cost_usd"]) for line in lines) == spent[-1]


def test_a_tenants_limit_without_room_refuses_the_run_and_no_caller(world: World) -> None:
    answer = world.compared("refused", key="limited")
    assert answer.status_code == 200
    assert world.runs_beside(answer) == ["teacher"], "the second run had no room in two a minute"


def test_a_budget_past_its_soft_line_is_kept_for_callers(world: World) -> None:
    world.compared("made", key="softly")
    answer = world.compared("refused", key="softly")
    assert answer.headers["x-gkt-budget"] == "soft"
    assert world.runs_beside(answer) == []


def test_no_text_of_a_comparison_is_logged(world: World) -> None:
    """Not where content may be logged either: there it is the caller's answer alone."""
    world.student.behave = goes_on(" four five", "W0rds of the student alone")
    world.teacher.behave = opens("W0rds of the teacher alone")
    answer = world.compared("made", "chat-judged", "secrets")
    served = world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
    assert "s3cret" in str(served["content"])
    assert "content" not in world.run_of(answer, "judge-student")
    assert "W0rds" not in world.gateway.raw_log
    assert "W0rds" not in httpx.get(f"{world.gateway.admin_url}/metrics").text


def test_a_caller_that_leaves_midway_has_no_guard(world: World) -> None:
    gone = threading.Event()

    async def slowly(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        for word in (" four", " five") * 500:
            await response.write(event(chunk({"content": word})))
            if gone.is_set():
                break
        return response

    world.student.behave = slowly
    before = world.counted()
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 50}
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", f"{world.gateway.url}/v1/chat/completions", headers=headers, json=body) as answer:
        next(answer.iter_lines())
        request_id = answer.headers["x-request-id"]
    gone.set()
    assert world.gateway.wait_for_log("request", id=request_id)["status"] in {"client_gone", "engine_garbled"}
    assert world.counted() == before
    assert not any(line.get("shadow_of") == request_id for line in world.gateway.log)


class Held:
    """An engine that holds back what nobody waits for, until it may."""

    def __init__(self, answer: Handler) -> None:
        self._answer = answer
        self.free = threading.Event()
        self.holds = threading.Event()

    async def __call__(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not _is_opening(body):
            self.holds.set()
            while not self.free.is_set():
                await asyncio.sleep(0.01)
        return await self._answer(request, body)


def test_callers_never_wait_and_those_beyond_the_bound_are_dropped(world: World) -> None:
    world.teacher.behave = held = Held(opens("One two"))
    before = world.counted()
    answers = [world.ask("chat-one") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    world.wait_until_counted("dropped", before["dropped"] + 2)
    held.free.set()
    world.wait_until_counted("made", before["made"] + 1)


def test_what_is_under_way_at_a_stop_is_finished_or_cut_and_has_one_receipt(tmp_path: Path, redis_url: str) -> None:
    with running_world(tmp_path / "guardcut", redis_url, drain_timeout="200ms") as world:
        world.teacher.behave = held = Held(opens("One two"))
        answer = world.ask()
        assert held.holds.wait(10)
        assert world.gateway.terminate() == 0
        assert world.runs_beside(answer) == ["teacher"]
        assert world.run_of(answer, "teacher")["status"] == "shutdown"
        assert "s3cret" not in world.gateway.raw_log
