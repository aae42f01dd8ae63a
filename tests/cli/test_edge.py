"""`gkt-gateway edge`: a question from a terminal, guided by a gateway and answered on this machine."""

from __future__ import annotations

import io
import json
from functools import partial
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from gateway.cli.edge import AnswerPrinter
from gateway.edge.queue import UsageQueue
from tests.cli import in_process
from tests.edge.devices import NOBODY, toy
from tests.edge.fake_gateway import KEY, FakeGateway
from tests.engines.toy_servers import ANSWER, OPENING, QUESTION, LlamaCpp

if TYPE_CHECKING:
    from pathlib import Path

run = partial(in_process.run, "edge", GKT_KEY=KEY)


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "queue"


def test_the_teachers_words_are_marked_and_the_students_follow(queue: Path) -> None:
    gateway = FakeGateway()
    with gateway.running() as url, toy(LlamaCpp()) as student:
        done = run(QUESTION, "--gateway", url, "--student", f"{student.url}/v1", "--queue", str(queue))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"[{OPENING}]{ANSWER.removeprefix(OPENING)}\n")
    assert "mode guided, guidance 5 tokens, answer 21 tokens, first word " in done.stdout
    assert "receipt req_000000000000000000000001" in done.stdout
    assert gateway.guidance_requests[0]["model"] == "chat"
    assert len(gateway.reports) == 1


def test_on_a_terminal_the_teachers_words_have_a_style_and_no_brackets() -> None:
    screen = io.StringIO()
    printer = AnswerPrinter(Console(file=screen, force_terminal=True, width=100, color_system="standard"))
    for by, text in (("teacher", "The sky"), ("student", " is blue.")):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        printer.show({"choices": [choice], "gkt": {"by": by}})
    assert screen.getvalue() == "\x1b[1;36mThe sky\x1b[0m is blue."


def test_the_users_options_reach_the_student(queue: Path) -> None:
    sampling = (
        "--temperature",
        "0.5",
        "--top-p",
        "0.9",
        "--seed",
        "7",
        "--max-tokens",
        "12",
        "--stop",
        "X",
        "--stop",
        "Y",
    )
    gateway = FakeGateway()
    with gateway.running() as url, toy(LlamaCpp()) as student:
        where = ("--gateway", url, "--student", f"{student.url}/v1", "--queue", str(queue))
        assert run(QUESTION, *where, *sampling, "--route", "tutor").returncode == 0
    (request,) = student.answers
    assert (request["temperature"], request["top_p"], request["seed"]) == (0.5, 0.9, 7)
    assert (request["max_tokens"], request["stop"]) == (7, ["X", "Y"])
    assert gateway.guidance_requests[0]["model"] == "tutor"


def test_json_output_is_one_chat_completion(queue: Path) -> None:
    with FakeGateway().running() as url, toy(LlamaCpp()) as student:
        done = run(QUESTION, "--gateway", url, "--student", f"{student.url}/v1", "--queue", str(queue), "--json")
    reply = json.loads(done.stdout)
    assert reply["choices"][0]["message"]["content"] == ANSWER
    assert reply["gkt"]["mode"] == "guided"


def test_without_the_gateway_the_student_answers_and_the_usage_waits_for_sync(queue: Path) -> None:
    with toy(LlamaCpp()) as student:
        done = run(QUESTION, "--gateway", NOBODY, "--student", f"{student.url}/v1", "--queue", str(queue))
    assert done.returncode == 0
    assert done.stdout.startswith(f"{ANSWER}\n")
    assert "mode student, unguided: gateway_unreachable" in done.stdout
    assert "The student answered alone." in done.stdout
    assert "1 reports wait for the gateway. Send them with gkt-gateway edge --sync" in done.stdout
    away = run("--sync", "--gateway", NOBODY, "--queue", str(queue))
    assert (away.returncode, away.stdout.partition(".")[0]) == (1, "Sync: 1 waiting")
    gateway = FakeGateway()
    with gateway.running() as url:
        synced = run("--sync", "--gateway", url, "--queue", str(queue))
        again = run("--sync", "--gateway", url, "--queue", str(queue))
    assert (synced.returncode, synced.stdout) == (0, "Sync: 1 sent.\n")
    assert (again.returncode, again.stdout) == (0, "Sync: nothing was waiting.\n")
    assert len(gateway.reports) == 1
    assert UsageQueue(queue).count() == 0


def test_errors_of_the_gateway_are_one_line(queue: Path) -> None:
    with FakeGateway().running() as url, toy(LlamaCpp()) as student:
        where = ("--gateway", url, "--student", f"{student.url}/v1", "--queue", str(queue))
        done = run(QUESTION, *where, GKT_KEY="gk-another")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "The gateway rejected the request: This key is not known."


def test_an_unreachable_student_is_reported_in_one_line(queue: Path) -> None:
    with FakeGateway().running() as url:
        done = run(QUESTION, "--gateway", url, "--student", f"{NOBODY}/v1", "--queue", str(queue))
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert done.stderr.endswith("Set --student URL, or run a student with --weights.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "is required without --sync"),
        ((QUESTION,), "Set one of --student URL"),
        ((QUESTION, "--student", NOBODY, "--weights", "a.gguf"), "Set one of --student URL"),
        ((QUESTION, "--weights", "no-such-model"), "unknown model no-such-model"),
        ((QUESTION, "--student", NOBODY, "--key", "gk-demo"), "must be a reference"),
        ((QUESTION, "--student", NOBODY, "--key", "env:NOT_SET_HERE"), "NOT_SET_HERE is not set"),
        ((QUESTION, "--student", NOBODY, "--gateway", "127.0.0.1:8080"), "not a gateway's URL"),
    ],
    ids=["no question", "no student", "two students", "no such weights", "a key in the open", "no key", "no address"],
)
def test_missing_options_are_named(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.replace("│", " ").split())
