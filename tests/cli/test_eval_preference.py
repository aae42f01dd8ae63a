"""Runs on collected requests: `eval run` with a judge, and what other commands make of preferences."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from tests.cli.in_process import Done, run
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, TEACHER_ONLY, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PRICE = "{input_per_1m: 1, output_per_1m: 1}"
TEACHERS, STUDENTS = "Short waves are scattered most.", "It is the sea."
LINES: list[dict[str, Any]] = [
    {"id": f"req_{number}", "route": "chat", "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"Why is the sky blue at {number}?"},
        {"role": "assistant", "content": "Scattering."},
        {"role": "user", "content": "Of what?"},
    ]}
    for number in range(3)
]  # fmt: skip


class Engines:
    """A teacher, a student and a judge that prefers the teacher's text."""

    def __init__(self, folder: Path, teacher: FakeEngine, student: FakeEngine, judge: FakeEngine) -> None:
        self.teacher, self.student, self.judge = teacher, student, judge
        self.folder = folder
        self.config = folder / "config.yaml"
        self.config.write_text(
            "models:\n"
            f"  - {{name: big, protocol: tgi, api_base: '{teacher.url}', price: {PRICE}}}\n"
            f"  - {{name: small, protocol: openai, api_base: '{student.url}/v1', price: {PRICE}, "
            "continuation: trailing, echo: false}\n"
            f"  - {{name: grader, protocol: openai, api_base: '{judge.url}/v1', price: {PRICE}}}\n"
        )
        self.data = folder / "requests.jsonl"
        self.data.write_text("".join(json.dumps(line) + "\n" for line in LINES))

    def run(self, *more: str, judge: bool = True) -> Done:
        arguments = ["--config", str(self.config), "--teacher", "big", "--student", "small", "--data", str(self.data)]
        arguments += ["--tokens", "4", "--max-tokens", "30", *(["--judge", "grader"] if judge else []), *more]
        return run("eval", "run", str(self.folder / "run"), *arguments)

    def scores(self) -> dict[str, list[float]]:
        """Return the scores by mode of the setting, in the order of the questions."""
        found: dict[str, list[float]] = {}
        for line in (self.folder / "run" / "examples.jsonl").read_text().splitlines():
            example = json.loads(line)
            found.setdefault(example["setting"].partition(",")[0], []).append(example["score"])
        return found


async def judges(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Prefer the teacher's text, and of two others the first."""
    prompt = body["messages"][0]["content"]
    better = "B" if f"<answer_b>\n{TEACHERS}" in prompt else "A"
    return await says(f"Better: {better}")(request, body)


async def fails(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"error": {"message": "no"}}, status=400)


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with (
        FakeEngine(says(TEACHERS)).running() as teacher,
        FakeEngine(says(STUDENTS)).running() as student,
        FakeEngine(judges).running() as judge,
    ):
        yield Engines(tmp_path, teacher, student, judge)


@contextmanager
def routes_of(engines: Engines, redis_url: str) -> Iterator[Callable[..., Done]]:
    """Run a gateway with the teacher alone and the student alone. Yield a function that measures both routes."""
    price = {"price": {"input_per_1m": 1, "output_per_1m": 1}}
    with running_gateway(
        engines.folder / "gateway",
        redis_url=redis_url,
        redis={"prefix": f"p{os.urandom(4).hex()}"},
        models=[
            model("big", "tgi", engines.teacher.url) | price,
            model("small", "openai", f"{engines.student.url}/v1", continuation="trailing", echo=False) | price,
        ],
        routes=[STUDENT_ONLY, TEACHER_ONLY],
    ) as gateway:
        routes = ["--route", "chat-student", "--route", "chat-teacher"]
        remote = ["--gateway", gateway.url, "--key", "env:THE_KEY", *routes, "--judge", "grader"]
        arguments = ["--data", str(engines.data), "--config", str(engines.config), "--max-tokens", "30", *remote]
        yield lambda *more: run("eval", "run", str(engines.folder / "run"), *arguments, *more, THE_KEY=KEY)


def test_answers_to_collected_requests_are_compared_with_the_teachers(engines: Engines) -> None:
    done = engines.run()
    assert done.returncode == 0, done.stderr
    assert "points of the comparisons with the teacher" in done.stdout
    scores = engines.scores()
    assert scores["teacher"] == [0.5] * 3
    assert scores["student"] == [0.0] * 3
    assert set(scores["guided"]) <= {0.0, 0.5}
    sent = [body for body in engines.student.requests if "messages" in body]
    texts = [[message["content"] for message in body["messages"][:4]] for body in sent]
    assert [message["content"] for message in LINES[-1]["messages"]] in texts
    calls = len(engines.judge.requests)
    # Both orders of each pair; equal texts need no call.
    assert calls >= 6
    assert engines.run().returncode == 0
    assert len(engines.judge.requests) == calls, "verdicts are stored"


def test_routes_of_a_running_gateway_are_compared_with_its_teacher(engines: Engines, redis_url: str) -> None:
    """The teacher's route answers first, whatever the order of the options."""
    with routes_of(engines, redis_url) as measure:
        done = measure()
        assert done.returncode == 0, done.stderr
        assert engines.scores() == {"route chat-student": [0.0] * 3, "route chat-teacher": [0.5] * 3}
        calls = len(engines.judge.requests)
        assert measure().returncode == 0
    assert len(engines.judge.requests) == calls, "verdicts are stored"


def test_a_report_shows_preferences_and_no_accuracy(engines: Engines) -> None:
    assert engines.run().returncode == 0
    done = run("eval", "report", str(engines.folder / "run"))
    assert done.returncode == 0, done.stderr
    text = (engines.folder / "run" / "report" / "report.md").read_text()
    assert "Preference over the teacher's answer" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| student alone | 3 |")]
    assert row == "| student alone | 3 | 0 | 0 | 0.0\u00a0% | 0.0 to 49.1 |"
    assert "student alone: preferred to the teacher's answer in 0.0\u00a0% (0.0 to 49.1) of 3 comparisons" in text
    for word in ("accuracy |", "accurate", "right |", "counts as a wrong answer", "none pays"):
        assert word not in text, word
    report = json.loads((engines.folder / "run" / "report" / "report.json").read_text())
    (group,) = report["runs"][0]["groups"]
    assert report["runs"][0]["manifest"]["metric"] == "preference"
    assert (group["best"], group["pareto"]) == (None, [])
    for setting in group["settings"]:
        assert "accuracy" not in setting
    both = run("eval", "report", *[str(engines.folder / "run")] * 2, "--out", str(engines.folder / "two"))
    assert both.returncode == 0, both.stderr


def test_recommend_needs_correct_answers_and_refuses_preferences(engines: Engines) -> None:
    assert engines.run().returncode == 0
    done = run("eval", "recommend", str(engines.folder / "run"), "--out", str(engines.folder / "p.yaml"))
    assert done.returncode == 1
    assert "its scores are a judge's preferences, and this command needs correct answers" in done.stderr


def test_a_judge_rates_answers_without_a_reference(engines: Engines) -> None:
    """Its scores are accuracies, so that `eval recommend` accepts them."""
    engines.judge.behave = says("Score: 8")
    done = engines.run("--scorer", "judge")
    assert done.returncode == 0, done.stderr
    assert engines.scores()["student"] == [0.8] * 3
    assert json.loads((engines.folder / "run" / "run.json").read_text())["metric"] == "accuracy"


def test_a_failed_teacher_leaves_nothing_to_compare(engines: Engines) -> None:
    engines.teacher.behave = says("")
    assert engines.run("--mode", "teacher,student").returncode == 0
    examples = [json.loads(line) for line in (engines.folder / "run" / "examples.jsonl").read_text().splitlines()]
    assert {one["error"] for one in examples} == {"no_reference"}
    assert engines.judge.requests == []


def preference_for_the_student(engines: Engines) -> tuple[int, float | None]:
    """Return the number of comparisons with the teacher, and the share that the student won, from the report."""
    assert run("eval", "report", str(engines.folder / "run")).returncode == 0
    report = json.loads((engines.folder / "run" / "report" / "report.json").read_text())
    (student,) = [one for one in report["runs"][0]["groups"][0]["settings"] if one["preference"] is not None]
    return student["preference"]["n"], student["preference"]["share"]


def test_a_failure_of_teacher_and_student_is_no_defeat_of_the_student(engines: Engines) -> None:
    engines.teacher.behave = engines.student.behave = fails
    assert engines.run("--mode", "teacher,student").returncode == 0
    assert preference_for_the_student(engines) == (0, None)


def test_a_failure_of_both_routes_of_a_gateway_is_not_compared(engines: Engines, redis_url: str) -> None:
    with routes_of(engines, redis_url) as measure:
        assert measure("--limit", "1").returncode == 0
        engines.teacher.behave = engines.student.behave = fails
        assert measure().returncode == 0
    assert preference_for_the_student(engines) == (1, 0.0)


def test_a_failure_of_the_student_alone_is_not_preferred(engines: Engines) -> None:
    engines.student.behave = fails
    assert engines.run("--mode", "teacher,student").returncode == 0
    assert preference_for_the_student(engines) == (3, 0.0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mode", "student,guided"], "the run lacks for these requests: add teacher to --mode"),
        (["--form", "completion"], "requests.jsonl:1: messages: a raw prompt has no turns: use --form chat"),
    ],
)
def test_errors_come_before_any_call(engines: Engines, more: list[str], message: str) -> None:
    done = engines.run(*more)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())
    assert engines.teacher.requests == engines.student.requests == []


def test_a_run_without_a_judge_does_not_start(engines: Engines) -> None:
    done = engines.run(judge=False)
    assert done.returncode == 1
    assert "need a judge: name a model with --judge" in done.stderr
    assert engines.teacher.requests == []


def test_other_scores_need_all_settings_of_the_folder(engines: Engines) -> None:
    engines.judge.behave = says("Score: 8")
    assert engines.run("--scorer", "judge").returncode == 0
    engines.judge.behave = judges
    done = engines.run("--mode", "teacher,student")
    assert done.returncode == 1
    assert "its scores are accuracy and would now be preference" in done.stderr
    assert engines.run("--rescore").returncode == 0
    assert engines.scores()["student"] == [0.0] * 3
