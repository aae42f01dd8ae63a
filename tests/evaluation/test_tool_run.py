"""Conversations with scripted engines, and the run of the command with its records and its table."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import orjson
import pytest
import typer
from aiohttp import web
from typer.testing import CliRunner

from gateway.cli.eval_report import report
from gateway.cli.eval_tools import tools
from gateway.cli.lazy import SETTINGS
from gateway.errors import StartupError
from gateway.evaluation.record import Example, ToolFacts, read_run
from gateway.evaluation.tool_tasks.conversation import MAX_TURNS, converse, first_messages
from gateway.evaluation.tool_tasks.summary import difference, summarize_role
from gateway.evaluation.tool_tasks.tasks import KINDS, tool_tasks
from tests.fakes import FakeEngine, reply, says

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gateway.evaluation.tool_tasks.tools import ToolCall, ToolTask

    Json = dict[str, Any]

TASKS = tool_tasks(16)
LIMITS: Any = {"max_tokens": 64, "max_turns": MAX_TURNS, "shots": 0}


def calling(*calls: ToolCall, text: str = "", finish: str = "tool_calls") -> Json:
    """Return a reply with calls, whose ids differ in each reply, like those of llama.cpp."""
    answer = reply(text, finish)
    listed = [
        {"id": f"random-{id(one)}", "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
        for one in calls
    ]
    answer["choices"][0]["message"]["tool_calls"] = listed
    return answer


class Script:
    """An engine's replies in order. It keeps the request bodies."""

    def __init__(self, *replies: Json) -> None:
        self.replies = list(replies)
        self.bodies: list[Json] = []

    async def __call__(self, body: Json) -> Json:
        self.bodies.append(orjson.loads(orjson.dumps(body)))
        return self.replies.pop(0)


async def test_an_engine_that_makes_the_reference_calls_solves_each_task() -> None:
    for task in TASKS:
        script = Script(*(calling(one) for one in task.reference), reply("Done."))
        outcome = await converse(task, script, **LIMITS)
        assert outcome.score == 1.0
        count = len(task.reference)
        assert outcome.facts == ToolFacts(task.kind, turns=count + 1, calls=count, errors=0, text_calls=0)
        assert (outcome.text, outcome.input_tokens) == ("Done.", 10 * (count + 1))
        last = script.bodies[-1]
        assert [tool["function"]["name"] for tool in last["tools"]] == [tool.name for tool in KINDS[task.kind].tools]
        assert last["temperature"] == 0
        roles = [message["role"] for message in last["messages"]]
        assert roles == ["system", "user", *["assistant", "tool"] * count]
        ids = [one["id"] for message in last["messages"] for one in message.get("tool_calls", ())]
        assert ids == [message["tool_call_id"] for message in last["messages"] if message["role"] == "tool"]
        assert ids == [f"call_{number}" for number in range(count)]


async def test_several_calls_in_one_reply_run_in_order() -> None:
    task = TASKS[0]
    outcome = await converse(task, Script(calling(*task.reference), reply("Done.")), **LIMITS)
    assert (outcome.score, outcome.turns, outcome.calls) == (1.0, 2, len(task.reference))


async def test_a_rejected_call_is_counted_and_its_cause_is_sent() -> None:
    task = TASKS[1]
    wrong = task.reference[0]._replace(arguments='{"column": ')
    script = Script(calling(wrong), *(calling(one) for one in task.reference), reply("Done."))
    outcome = await converse(task, script, **LIMITS)
    assert (outcome.score, outcome.errors) == (1.0, 1)
    call, output = script.bodies[1]["messages"][-2:]
    # Engines reject a request whose earlier call has invalid JSON.
    assert call["tool_calls"][0]["function"]["arguments"] == "{}"
    assert output["content"] == "Error: the arguments are not valid JSON"


@pytest.mark.parametrize(
    ("text", "text_calls"),
    [
        ("Done.", 0),
        ("The stock is 3.", 0),
        ('{"name": "Ada"}', 0),
        ('```json\n{\n  "name": "find_rows",\n  "arguments": {}\n}\n```', 1),
        ("<tool_call>\n{}", 1),
    ],
)
async def test_a_reply_without_a_call_ends_the_task(text: str, text_calls: int) -> None:
    outcome = await converse(TASKS[1], Script(reply(text)), **LIMITS)
    assert (outcome.score, outcome.turns, outcome.text_calls) == (0.0, 1, text_calls)


async def test_a_truncated_reply_and_the_last_turn_end_a_task() -> None:
    task = TASKS[1]
    again = [calling(task.reference[0])] * 20
    outcome = await converse(task, Script(*again), **LIMITS)
    assert (outcome.score, outcome.turns) == (0.0, MAX_TURNS)
    outcome = await converse(task, Script(calling(task.reference[0], finish="length"), *again), **LIMITS)
    assert (outcome.score, outcome.turns, outcome.finish) == (0.0, 1, "length")


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_is_a_solved_task_of_its_kind(kind: str) -> None:
    assert [message["role"] for message in first_messages(kind, 0)] == ["system"]
    roles = [message["role"] for message in first_messages(kind, 1)]
    count = (len(roles) - 3) // 2
    assert count >= 2
    assert roles == ["system", "user", *["assistant", "tool"] * count, "assistant"]
    outputs = [message["content"] for message in first_messages(kind, 1) if message["role"] == "tool"]
    assert not any(one.startswith("Error") for one in outputs)


def example(task: str, score: float, **more: Any) -> Example:
    costs: dict[str, Any] = dict.fromkeys(("cost_usd", "teacher_usd", "baseline_usd"), 0)
    return Example(setting="s", question=task, mode="teacher", score=score, text="", **costs, **more)


def test_the_difference_is_that_of_common_tasks() -> None:
    teacher = {f"t{at}": example(f"t{at}", float(at < 15)) for at in range(20)}
    student = {f"t{at}": example(f"t{at}", float(at in {0, 1, 16})) for at in range(1, 30)}
    found = difference(teacher, student)
    assert found is not None
    assert (found.n, found.only_first, found.only_second) == (19, 13, 1)
    assert found.difference == pytest.approx(12 / 19)
    assert 0.3 < found.interval.low < 12 / 19 < found.interval.high < 0.9
    assert difference(teacher, {}) is None


def test_a_failed_task_is_not_solved_and_is_counted() -> None:
    facts = ToolFacts("table", turns=3, calls=2, errors=1, text_calls=0)
    total = summarize_role([example("a", 1.0, tools=facts), example("b", 0.0, error="engine_failed")])
    assert (total.n, total.solved, total.failed) == (2, 1, 1)
    assert (total.turns, total.calls, total.tool_errors) == (3, 2, 1)


class Solver:
    """Engine behavior that solves each task of the set by its reference, unless the task is in `unsolved`."""

    def __init__(self, tasks: Sequence[ToolTask], unsolved: Sequence[str] = ()) -> None:
        self.by_request = {task.request: task for task in tasks}
        self.unsolved = unsolved

    async def __call__(self, _: web.Request, body: Json) -> web.StreamResponse:
        # The example before the task has tool messages, too.
        at = max(number for number, one in enumerate(body["messages"]) if one["role"] == "user")
        request = body["messages"][at]["content"]
        if request not in self.by_request:  # the gateway probes how the engine continues text
            return web.json_response(reply("Yes."))
        task = self.by_request[request]
        made = sum(message["role"] == "tool" for message in body["messages"][at:])
        if task.id in self.unsolved or made == len(task.reference):
            return web.json_response(reply("Done."))
        return web.json_response(calling(task.reference[made]))


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[tuple[FakeEngine, FakeEngine, Path]]:
    tasks = tool_tasks(40)
    unsolved = [task.id for task in tasks if task.kind in {"files", "calendar"}]
    with FakeEngine(Solver(tasks)).running() as big, FakeEngine(Solver(tasks, unsolved)).running() as small:
        config = tmp_path / "config.yaml"
        models = "".join(
            f"  - {{name: {name}, protocol: openai, model: fake, api_base: {engine.url}/v1, "
            "price: {input_per_1m: 1, output_per_1m: 2}}\n"
            for name, engine in (("big", big), ("small", small))
        )
        config.write_text(f"redis: {{url: redis://127.0.0.1:9/0}}\nmodels:\n{models}")
        yield big, small, config


def task_calls(*engines: FakeEngine) -> int:
    """Return the number of requests with tools; the others are probes."""
    return sum("tools" in body for engine in engines for body in engine.requests)


def command(*arguments: str) -> Any:
    app = typer.Typer(**SETTINGS)
    app.command("tools")(tools)
    app.command("report")(report)
    with patch("gateway.telemetry.logs.set_up_logs"):  # the log of this process is the tests'
        return CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "COLUMNS": "200"})


def test_the_command_prints_shares_and_the_paired_difference(
    engines: tuple[FakeEngine, FakeEngine, Path], tmp_path: Path
) -> None:
    big, small, config = engines
    folder = str(tmp_path / "run")
    options = ("--config", str(config), "--teacher", "big", "--student", "small")
    done = command("tools", folder, "--limit", "40", *options)
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["teacher", "all", "40", "40", "100.0%"] in [row[:5] for row in rows]
    assert ["student", "all", "40", "20", "50.0%"] in [row[:5] for row in rows]
    assert ["student", "files", "10", "0", "0.0%"] in [row[:5] for row in rows]
    assert "teacher minus student on 40 common tasks: +50.0 points" in done.stdout
    assert "only the teacher solves 20, only the student 0" in done.stdout

    calls = task_calls(big, small)
    examples = read_run(tmp_path / "run").examples
    assert len(examples) == 80
    assert sum(one.tools.turns for one in examples if one.tools) == calls
    lines = [orjson.loads(line) for line in (tmp_path / "run" / "generations.jsonl").read_bytes().splitlines()]
    assert len(lines) == calls
    assert {line["engine"] for line in lines} == {"teacher", "student"}
    prefixes = [body["tools"][0]["function"]["name"] for body in big.requests if "tools" in body]
    # Four tasks are in progress at a time, so those of two kinds alternate for a few requests.
    changes = sum(one != other for one, other in pairwise(prefixes))
    assert changes < 3 * 8, "the tasks of a kind follow each other, for the engine's prompt cache"

    # A stored reply is not requested again, neither with the examples nor from the texts alone.
    assert command("tools", folder, "--limit", "40", *options).stdout == done.stdout
    (tmp_path / "run" / "examples.jsonl").unlink()
    assert command("tools", folder, "--limit", "40", *options).stdout == done.stdout
    assert task_calls(big, small) == calls

    done = command("report", folder, "--out", str(tmp_path / "report"))
    assert done.exit_code == 0, done.output


def test_another_prompt_does_not_fit_the_folder(engines: tuple[FakeEngine, FakeEngine, Path], tmp_path: Path) -> None:
    _, _, config = engines
    options = ("--config", str(config), "--teacher", "big", "--student", "small", "--limit", "4", "--mode", "teacher")
    assert command("tools", str(tmp_path / "run"), *options).exit_code == 0
    done = command("tools", str(tmp_path / "run"), *options, "--turns", "3")
    assert isinstance(done.exception, StartupError)
    assert "the prompt of 'teacher, chat, 1 shots, 256 tokens' differs" in done.exception.message


def test_an_unknown_mode_is_an_error(tmp_path: Path) -> None:
    done = command("tools", str(tmp_path / "run"), "--mode", "guided")
    assert done.exit_code == 2
    assert "must be teacher, student, plan or switch, not 'guided'" in done.output


async def writes_plans(request: web.Request, body: Json) -> web.StreamResponse:
    """Write another plan after each failed call of the task."""
    read = body["messages"][-1]["content"]
    return await says(f"Plan {read.count('Result: Error')}.")(request, body)


class Follower(Solver):
    """Engine behavior that calls an unknown tool until its prompt has the second plan."""

    def __init__(self, tasks: Sequence[ToolTask]) -> None:
        super().__init__(tasks)
        self.plans: set[str] = set()

    async def __call__(self, _: web.Request, body: Json) -> web.StreamResponse:
        at = max(number for number, one in enumerate(body["messages"]) if one["role"] == "user")
        request, _, plan = body["messages"][at]["content"].partition("\n\nAn expert's plan")
        if request not in self.by_request:
            return web.json_response(reply("Yes."))
        self.plans.add(plan.split("\n")[1])
        task = self.by_request[request]
        if "Plan 0." in plan:
            return web.json_response(calling(task.reference[0]._replace(name="guess")))
        made = sum(message["role"] == "tool" for message in body["messages"][at:]) - 1
        if made == len(task.reference):
            return web.json_response(reply("Done."))
        return web.json_response(calling(task.reference[made]))


def test_plans_are_written_for_the_student_and_again_after_a_failed_call(
    engines: tuple[FakeEngine, FakeEngine, Path], tmp_path: Path
) -> None:
    """A stage has one engine: tasks wait for a plan until all others have run."""
    big, small, config = engines
    follower = Follower(tool_tasks(8))
    folder = str(tmp_path / "run")
    options = ("--config", str(config), "--teacher", "big", "--student", "small", "--limit", "8")
    assert command("tools", folder, *options).exit_code == 0
    big.behave, small.behave = writes_plans, follower
    big.requests.clear()
    small.requests.clear()
    done = command("tools", folder, *options, "--mode", "teacher,student,plan")
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["plan", "all", "8", "8", "100.0%"] in [row[:5] for row in rows]
    assert "teacher minus plan on 8 common tasks: +0.0 points" in done.stdout
    assert "student minus plan on 8 common tasks: -50.0 points" in done.stdout
    assert follower.plans == {"Plan 0.", "Plan 1."}

    plans = [body for body in big.requests if "Functions:" in body["messages"][-1]["content"]]
    assert len(plans) == 16
    assert {body["max_tokens"] for body in plans} == {160}
    run = read_run(tmp_path / "run")
    planned = [one for one in run.examples if one.mode == "guided"]
    assert len(planned) == 8
    assert {one.guidance for one in planned} == {"Plan 1."}
    # Two plans of two words each. The engine counts 10 tokens of each prompt.
    assert {(one.teacher_input_tokens, one.teacher_output_tokens) for one in planned} == {(20, 4)}
    assert all(one.cost_usd > one.teacher_usd > 0 for one in planned)

    calls = len(big.requests), task_calls(small)
    (tmp_path / "run" / "examples.jsonl").unlink()
    assert command("tools", folder, *options, "--mode", "teacher,student,plan").stdout == done.stdout
    assert (len([body for body in big.requests if body in plans]), task_calls(small)) == (16, calls[1])
    done = command("report", folder, "--out", str(tmp_path / "report"))
    assert done.exit_code == 0, done.output


def test_a_task_without_its_plan_fails(engines: tuple[FakeEngine, FakeEngine, Path], tmp_path: Path) -> None:
    big, _, config = engines

    async def refuses(_: web.Request, __: Json) -> web.StreamResponse:
        return web.json_response({"error": {"message": "No."}}, status=400)

    big.behave = refuses
    options = ("--config", str(config), "--teacher", "big", "--student", "small", "--limit", "2", "--mode", "plan")
    done = command("tools", str(tmp_path / "run"), *options)
    assert done.exit_code == 0, done.output
    assert {one.error for one in read_run(tmp_path / "run").examples} == {"engine_rejected"}


class Unsure(Solver):
    """A student that reports a first token of low probability in tasks that it does not solve."""

    async def __call__(self, request: web.Request, body: Json) -> web.StreamResponse:
        if not body.get("logprobs"):
            return await super().__call__(request, body)
        at = max(number for number, one in enumerate(body["messages"]) if one["role"] == "user")
        task = self.by_request[body["messages"][at]["content"]]
        asked = reply("Done.", "length")
        probability = 0.5 if task.id in self.unsolved else 0.99
        asked["choices"][0]["logprobs"] = {"content": [{"token": "Done", "logprob": math.log(probability)}]}
        return web.json_response(asked)


def test_the_engine_of_each_turn_is_chosen_as_in_a_gateway(
    engines: tuple[FakeEngine, FakeEngine, Path], tmp_path: Path
) -> None:
    big, small, config = engines
    tasks = tool_tasks(8)
    unsure = [task.id for task in tasks if task.kind in {"files", "calendar"}]
    small.behave = Unsure(tasks, unsure)
    folder = str(tmp_path / "run")
    options = ("--config", str(config), "--teacher", "big", "--student", "small", "--limit", "8", "--mode", "switch")
    done = command("tools", folder, *options)
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["switch", "all", "8", "8", "100.0%"] in [row[:5] for row in rows]

    run = read_run(tmp_path / "run")
    by_task = {task.id: task for task in tasks}
    for one in run.examples:
        assert one.tools is not None
        later = len(by_task[one.question].reference)  # turns after the first one, each with a question
        by_teacher = 1 + (later if one.question in unsure else 0)
        assert (one.tools.turns, one.tools.teacher_turns) == (1 + later, by_teacher)
        # The engines count 10 tokens of each prompt. The question is read by the student in any case.
        assert one.teacher_input_tokens == 10 * by_teacher
        assert one.student_input_tokens == 10 * (later + 1 + later - by_teacher)
        assert one.cost_usd > one.teacher_usd > 0
    by_teacher, turns = (sum(getattr(one.tools, name) for one in run.examples) for name in ("teacher_turns", "turns"))
    assert f"switch: the teacher wrote {by_teacher} of {turns} replies." in done.stdout
    questions = [body for body in small.requests if body.get("logprobs")]
    assert {(body["max_tokens"], body["top_logprobs"]) for body in questions} == {(1, 1)}
    assert len(questions) == turns - len(tasks)
    assert sum(stage.calls for stage in run.stages) == turns + len(questions)

    calls = task_calls(big, small)
    (tmp_path / "run" / "examples.jsonl").unlink()
    assert command("tools", folder, *options).stdout == done.stdout
    assert task_calls(big, small) == calls
    done = command("report", folder, "--out", str(tmp_path / "report"))
    assert done.exit_code == 0, done.output


def test_a_margin_that_no_probability_can_cross_is_an_error(tmp_path: Path) -> None:
    done = command("tools", str(tmp_path / "run"), "--mode", "switch", "--min-probability", "0.9", "--margin", "0.2")
    assert done.exit_code == 2
    assert "must be smaller than --min-probability" in done.output
