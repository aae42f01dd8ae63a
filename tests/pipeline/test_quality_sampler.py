"""The quality sampler: guided answers are compared with each engine's own answer, and every call has a receipt."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from gateway.accounting.answer_length import MIN_ANSWERS
from gateway.local.redis import EmbeddedRedis
from gateway.pipeline.quality_sampler import QualitySampler
from gateway.protocol.capabilities.anthropic import MessagesFields, answering, messages_fields
from gateway.protocol.chat import parse_chat
from tests.fakes import says
from tests.gateway_process import guided, local_models, running_gateway
from tests.quality_world import ADMIN_KEY, ALL, Guarded, Held, World, fails, goes_on, is_opening, opens, running_world
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx
    from aiohttp import web

    from gateway.local.stack import LocalStack


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("guard"), redis_url) as world:
        yield world


@pytest.fixture
def world(running: World) -> World:
    """Reset the engines: all of them answer."""
    running.teacher.behave = opens("One two three four five")
    running.student.behave = goes_on(" four five", "One six")
    running.judge.behave = says("0.75")
    for engine in (running.teacher, running.student, running.judge):
        engine.requests.clear()
    return running


async def test_a_judge_gets_no_fields_of_the_callers_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thinking budget above the judge's limit would be rejected."""
    seen = []

    async def run(*_: Any) -> str:
        seen.append(messages_fields())
        return "0.75"

    monkeypatch.setattr(QualitySampler, "_run", run)
    request = parse_chat(b'{"model": "chat", "messages": [{"role": "user", "content": "Why?"}]}')
    sample: Any = SimpleNamespace(request=request, quality=SimpleNamespace(rule=None, judge="a plan"))
    with answering(MessagesFields({"anthropic-beta": "x"}, {"thinking": {"type": "enabled"}})):
        assert await QualitySampler._agreement(object.__new__(QualitySampler), sample, "A", "B", "guided") == 0.75
        assert messages_fields() is not None
    assert seen == [None]


def runs_of(world: Guarded, answer: httpx.Response, *names: str) -> list[str]:
    """Wait for the receipts of these runs. Return the runs beside an answer, in order."""
    for name in names:
        world.run_of(answer, name)
    return world.runs_beside(answer)


@pytest.mark.parametrize("stream", [False, True])
def test_both_engines_answer_alone_and_each_call_has_a_receipt(world: World, *, stream: bool) -> None:
    answer = world.compared("made", stream=stream, temperature=0.5, seed=3)
    served = world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
    assert served["mode"] == answer.headers["x-gkt-mode"] == "guided"
    assert runs_of(world, answer, "teacher", "student") == ["teacher", "student"]
    teacher, student = (world.run_of(answer, name) for name in ("teacher", "student"))
    for run, role in ((teacher, "teacher"), (student, "student")):
        assert (run["mode"], run["status"], run["shadow_of"], run["stream"]) == ("shadow", "ok", served["id"], False)
        assert (run["tenant"], run["key"], run["route"]) == ("acme", "only", "chat")
        assert [name for name in ("teacher", "student") if run[name] is not None] == [role]
        assert (run["guidance"], run["unguided"], run["finish_reason"]) == (None, None, "stop")
        assert Decimal(run["cost_usd"]) > 0
    # The request and sampling are unchanged, without guidance and without a stream.
    alone = world.student.requests[-1]
    assert [message["role"] for message in alone["messages"]] == ["user"]
    assert (alone["temperature"], alone["seed"], alone["max_tokens"]) == (0.5, 3, 50)
    assert "stream" not in alone


@pytest.mark.parametrize("stream", [False, True])
def test_the_teachers_own_answer_measures_the_baseline_of_its_request(world: World, *, stream: bool) -> None:
    """The measurement is in a receipt of its own, in the request's period. The request's receipt keeps the estimate."""
    answer = world.compared("made", stream=stream)
    served = world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
    teacher, student = (world.run_of(answer, name) for name in ("teacher", "student"))
    measured = teacher["measured"]
    assert Decimal(measured["baseline_usd"]) == Decimal(teacher["cost_usd"]) > 0, "it had cached nothing"
    assert measured["estimated_usd"] == served["baseline_usd"]
    assert measured["estimated_error_usd"] == served["baseline_error_usd"]
    difference = Decimal(measured["baseline_usd"]) - Decimal(served["baseline_usd"])
    assert Decimal(teacher["savings_usd"]) == difference - Decimal(teacher["cost_usd"])
    assert (teacher["savings_class"], teacher["created"]) == ("measuring", served["created"])
    assert (student["savings_class"], student["measured"]) == ("measuring", None)
    assert Decimal(student["savings_usd"]) == -Decimal(student["cost_usd"]) < 0
    assert Decimal(served["savings_usd"]) == Decimal(served["baseline_usd"]) - Decimal(served["cost_usd"])


def test_an_answer_cut_by_the_samples_own_limit_measures_nothing(world: World) -> None:
    """The caller set no limit, so the teacher's full answer would have been longer and more expensive."""
    world.teacher.behave = opens("One two three four five", "length")
    assert world.run_of(world.compared("made", max_tokens=None), "teacher")["measured"] is None
    assert world.run_of(world.compared("made", max_tokens=50), "teacher")["measured"] is not None


def test_a_rambling_student_saves_nothing_until_the_teachers_lengths_are_measured(world: World) -> None:
    """The student's loop has 364 tokens. The teacher alone writes five."""
    loop = " four five and then the whole story from its very beginning once more" * 28
    world.student.behave = goes_on(loop, loop)

    def served(answer: httpx.Response) -> dict[str, Any]:
        return world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])

    for _ in range(MIN_ANSWERS):
        receipt = served(world.compared("made", "chat-rambling", max_tokens=1000))
        assert receipt["student"]["output_tokens"] == 364
        assert (receipt["savings_class"], receipt["length_rule"]) == ("guided", "repeats")
        assert (Decimal(receipt["savings_usd"]), receipt["baseline_usd"]) == (0, receipt["cost_usd"])
        assert Decimal(receipt["baseline_error_usd"]) > Decimal(receipt["cost_usd"])
    give_up = time.monotonic() + 40
    while (receipt := served(answer := world.compared("made", "chat-rambling", max_tokens=1000)))[
        "length_rule"
    ] == "repeats":
        assert time.monotonic() < give_up
        time.sleep(0.2)
    assert receipt["length_rule"] == "measured_mean"
    assert world.run_of(answer, "student")["length_rule"] == "measured_mean", "answers of the student alone as well"
    teacher = receipt["teacher"]
    usd_per_token = Decimal(teacher["cost_usd"]) / (teacher["input_tokens"] + teacher["output_tokens"])
    assert Decimal(receipt["baseline_usd"]) == usd_per_token * (teacher["input_tokens"] + 5)


def test_agreement_is_counted_by_route_and_length(world: World) -> None:
    """The guided answer equals the teacher's. The student alone shares one word of two with the teacher's five."""
    before = world.rows("chat").get("16", {"samples": 0})
    world.compared("made")
    row = world.rows("chat")["16"]
    assert (row["tenant"], row["compare"], row["samples"]) == ("acme", "words", before["samples"] + 1)
    assert row["guided_teacher"] == 1
    assert row["student_teacher"] == pytest.approx(2 / 7, abs=1e-3)
    assert row["difference"] == pytest.approx(5 / 7, abs=1e-3)
    assert world.rows("chat")["all"] == row | {"length": "all"}
    text = world.metrics()
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


def test_the_short_form_shadow_samples_a_guided_route(world: World) -> None:
    answer = world.compared("made", "chat-short")
    assert runs_of(world, answer, "teacher", "student") == ["teacher", "student"]


def test_raw_prompts_are_compared_as_well(world: World) -> None:
    answer = world.compared("made", path="/v1/completions")
    assert runs_of(world, answer, "teacher", "student") == ["teacher", "student"]


def test_numbers_are_compared_if_the_policy_selects_numeric(world: World) -> None:
    world.teacher.behave = opens("It is 12 and so the answer is 18.")
    world.student.behave = goes_on(" four 18", "it is 17")
    world.compared("made", "chat-numeric")
    row = world.rows("chat-numeric")["all"]
    assert (row["guided_teacher"], row["student_teacher"], row["compare"]) == (1, 0, "numeric")


def test_a_teachers_answer_without_a_number_is_unscored(world: World) -> None:
    answer = world.compared("unscored", "chat-numeric")
    assert runs_of(world, answer, "teacher", "student") == ["teacher", "student"]


def test_a_judge_grades_each_answer_and_has_receipts(world: World) -> None:
    answer = world.compared("made", "chat-judged")
    runs = ["teacher", "student", "judge-guided", "judge-student"]
    assert runs_of(world, answer, *runs) == runs
    judged = world.run_of(answer, "judge-guided")
    assert judged["student"]["model"] == "grader"
    assert Decimal(judged["cost_usd"]) > 0
    guided, alone = world.judge.requests
    assert (guided["temperature"], guided["max_tokens"], guided["messages"][0]["role"]) == (0, 16, "system")
    assert "<reference>\nOne two three four five\n</reference>" in guided["messages"][1]["content"]
    assert "<answer>\nOne two three four five\n</answer>" in guided["messages"][1]["content"]
    assert "<answer>\nOne six\n</answer>" in alone["messages"][1]["content"]
    assert world.rows("chat-judged")["all"]["guided_teacher"] == 0.75


@pytest.mark.parametrize("reply", ["1.5", "0.5 because", "", "one", "-1", "nan"])
def test_a_judges_reply_without_a_grade_is_unscored(world: World, reply: str) -> None:
    before = world.rows("chat-judged")
    world.judge.behave = says(reply)
    world.compared("unscored", "chat-judged")
    assert world.rows("chat-judged") == before


@pytest.mark.parametrize(("engine_name", "started"), [("teacher", ["teacher"]), ("student", ["teacher", "student"])])
def test_a_failed_engine_leaves_one_receipt_for_each_started_call(
    world: World, engine_name: str, started: list[str]
) -> None:
    """The engine fails after the caller got its answer. No call is retried."""
    good = world.teacher.behave if engine_name == "teacher" else world.student.behave

    async def later(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        guided = is_opening(body) or body["messages"][-1]["role"] == "assistant"
        return await (good if guided else fails)(request, body)

    engine = world.teacher if engine_name == "teacher" else world.student
    engine.behave = later
    answer = world.compared("failed")
    assert (answer.status_code, answer.headers["x-gkt-mode"]) == (200, "guided")
    assert runs_of(world, answer, *started) == started
    assert world.run_of(answer, engine_name)["status"] == "engine_failed"


def test_no_comparison_starts_above_the_daily_budget(world: World) -> None:
    """Calls are counted at their cost, and their maximum cost never exceeds the budget."""
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

    def logged() -> Decimal:
        lines = [line for line in world.gateway.log if line.get("route") == "chat-poor" and line.get("shadow_of")]
        return sum((Decimal(line["cost_usd"]) for line in lines), Decimal(0))

    while logged() < spent[-1]:
        assert time.monotonic() < give_up, logged()
        time.sleep(0.02)
    assert logged() == spent[-1]


def test_a_full_limit_rejects_the_sample_and_not_the_caller(world: World) -> None:
    answer = world.compared("refused", key="limited")
    assert answer.status_code == 200
    assert runs_of(world, answer, "teacher") == ["teacher"], "the second run had no room in two a minute"


def test_a_budget_above_its_soft_threshold_is_kept_for_callers(world: World) -> None:
    world.compared("made", key="softly")
    answer = world.compared("refused", key="softly")
    assert answer.headers["x-gkt-budget"] == "soft"
    assert world.runs_beside(answer) == []


def test_no_text_of_a_comparison_is_logged(world: World) -> None:
    """Even if a tenant's content is logged, only the caller's answer is."""
    world.student.behave = goes_on(" four five", "W0rds of the student alone")
    world.teacher.behave = opens("W0rds of the teacher alone")
    answer = world.compared("made", "chat-judged", "secrets")
    served = world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
    assert "s3cret" in str(served["content"])
    assert "content" not in world.run_of(answer, "judge-student")
    assert "W0rds" not in world.gateway.raw_log
    assert "W0rds" not in world.metrics()


def test_callers_never_wait_and_samples_above_the_limit_are_dropped(world: World) -> None:
    world.teacher.behave = held = Held(opens("One two"))
    before = world.counted()
    answers = [world.ask("chat-one") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    world.wait_until_counted("dropped", before["dropped"] + 2)
    held.free.set()
    world.wait_until_counted("made", before["made"] + 1)


@pytest.mark.long
def test_a_drain_waits_for_the_whole_comparison(tmp_path: Path, redis_url: str) -> None:
    """The drain waits for the call that has not started yet, too. The row is written."""
    with running_world(tmp_path / "guarddrain", redis_url) as world:
        world.teacher.behave = held = Held(opens("One two"))
        answer = world.ask()
        assert held.holds.wait(10)
        stopping = threading.Thread(target=world.gateway.terminate)
        stopping.start()
        world.gateway.wait_for_log("draining", in_flight=1)
        held.free.set()
        stopping.join(20)
        assert world.gateway.process.returncode == 0
        assert [world.run_of(answer, name)["status"] for name in ("teacher", "student")] == ["ok", "ok"]


@pytest.mark.long
def test_a_comparison_that_outlasts_a_drain_is_canceled_and_has_one_receipt(tmp_path: Path, redis_url: str) -> None:
    with running_world(tmp_path / "guardcut", redis_url, drain_timeout="200ms") as world:
        world.teacher.behave = held = Held(opens("One two"))
        answer = world.ask()
        assert held.holds.wait(10)
        assert world.gateway.terminate() == 0
        assert world.run_of(answer, "teacher")["status"] == "shutdown"
        assert world.runs_beside(answer) == ["teacher"]
        assert "s3cret" not in world.gateway.raw_log


async def test_without_redis_no_comparison_starts_and_callers_are_answered(tmp_path: Path) -> None:
    async with EmbeddedRedis() as redis:
        with running_world(tmp_path / "guardredis", redis.url, redis={"timeout": "300ms"}) as world:
            await redis.stop()
            before = world.counted()["refused"]
            answer = world.ask()
            assert (answer.status_code, answer.headers["x-gkt-mode"]) == (200, "guided")
            world.wait_until_counted("refused", before + 1)
            assert world.runs_beside(answer) == []
            await redis.start()


async def test_a_lost_redis_loses_the_row_and_no_receipt(tmp_path: Path) -> None:
    """The running call has its receipt, no further call starts, and the metric counts no more than the rows."""
    async with EmbeddedRedis() as redis:
        with running_world(tmp_path / "guardlost", redis.url, redis={"timeout": "5s"}) as world:
            world.teacher.behave = held = Held(opens("One two"))
            answer = await asyncio.to_thread(world.ask)
            assert held.holds.wait(10)
            await redis.stop()
            held.free.set()
            world.wait_until_counted("refused", 1)
            assert runs_of(world, answer, "teacher") == ["teacher"]
            assert world.run_of(answer, "teacher")["status"] == "ok"
            assert "gkt_quality_agreement_count{" not in world.metrics()
            await redis.start()


@pytest.mark.long
def test_two_workers_count_all_comparisons(tmp_path: Path, redis_url: str) -> None:
    with running_world(tmp_path / "guardworkers", redis_url, workers=2) as world:
        for _ in range(12):
            world.ask()
        give_up = time.monotonic() + 20
        while sum(world.counted().values()) < 12:
            assert time.monotonic() < give_up, world.counted()
            time.sleep(0.05)
        made = world.counted()["made"]
        assert made > 0
        assert world.rows("chat")["all"]["samples"] == made
        text = world.metrics()
        counts = re.findall(r'gkt_quality_agreement_count\{[^}]*pair="guided_teacher"[^}]*\} (\S+)', text)
        assert sum(map(float, counts)) == made


@pytest.mark.models
@pytest.mark.timeout(180)
def test_real_models_in_both_roles_are_compared(engines: LocalStack, redis_url: str, tmp_path: Path) -> None:
    """One model plays both roles greedily, so all answers are the same, and guidance makes no difference."""
    with running_gateway(
        tmp_path,
        redis_url=redis_url,
        usage={"run": "host"},
        redis={"prefix": "guardreal"},
        admin={"key": "env:GUARD_ADMIN_KEY"},
        environ={"GUARD_ADMIN_KEY": ADMIN_KEY},
        models=local_models(engines),
        routes=[guided() | {"quality": ALL}],
    ) as gateway:
        wait_until_probed(gateway.admin_url)
        world = Guarded(gateway)
        for stream in (False, True):
            answer = world.compared("made", max_tokens=24, temperature=0, stream=stream)
            assert answer.headers["x-gkt-mode"] == "guided"
            for name in ("teacher", "student"):
                run = world.run_of(answer, name)
                assert run["status"] == "ok"
                assert run[name]["output_tokens"] > 0
        row = world.rows("chat")["16"]
        assert row["samples"] == 2
        assert row["student_teacher"] == pytest.approx(1, abs=0.2)
        assert row["guided_teacher"] == pytest.approx(1, abs=0.2)
