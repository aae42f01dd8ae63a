"""`gkt-gateway eval run`, as it is called."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from gateway.cli import eval_run_session
from gateway.cli.interrupts import INTERRUPTED
from gateway.errors import StartupError
from gateway.local import weights
from tests.cli.in_process import run
from tests.evaluation.run_world import QUESTIONS
from tests.fakes import recording_proxy
from tests.gateway_process import KEY

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.local.stack import LocalStack
    from tests.gateway_process import GatewayProcess

_PRICE = "{input_per_1m: 1, output_per_1m: 1}"


def config(folder: Path, teacher_url: str, student_url: str) -> Path:
    patience = "{first_token: 600s, idle: 600s, total: 900s}"
    file = folder / "config.yaml"
    file.write_text(
        "models:\n"
        f"  - {{name: big, protocol: openai, api_base: '{teacher_url}/v1', price: {_PRICE}, timeouts: {patience}}}\n"
        f"  - {{name: small, protocol: openai, api_base: '{student_url}/v1', price: {_PRICE}, timeouts: {patience}}}\n"
    )
    return file


def data(folder: Path) -> Path:
    file = folder / "ours.jsonl"
    rows = [{"id": one.id, "question": one.text, "answer": one.answer, "scorer": one.scorer} for one in QUESTIONS]
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return file


def lines(file: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def test_the_help_of_the_group_explains_its_commands_in_order() -> None:
    done = run("eval", "--help")
    assert done.returncode == 0
    places = [done.stdout.index(f"eval {name}") for name in ("run", "report", "recommend")]
    assert places == sorted(places)
    assert "Measure accuracy, cost and speed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--local", "--config", "config.yaml"], "--local: cannot be combined with --config"),
        (["--gateway", "http://127.0.0.1:9", "--rescore"], "--gateway: cannot be combined with --rescore"),
        (["--gateway", "http://127.0.0.1:9"], "needs --route, once for each route, and --key env:NAME"),
        (["--mode", "nobody"], "the command line: mode[0]: must be teacher, student or guided"),
        (["--tokens", "20,many"], "the command line: tokens[1]: "),
        (["--projection", "cutof"], "There is no projection 'cutof'; known: cutoff, concise, hint, primed. Did you"),
        (["--tokens", "400"], "tokens 400 is more than max_tokens 300"),
        (["--shots", "64"], "--shots 64: there are"),
        (["--samples", "2"], "samples: needs a temperature above 0"),
        (["--limit", "0"], "Input should be greater than or equal to 1"),
        (["--sample", "0"], "Input should be greater than or equal to 1"),
        (["--offset", "-1"], "Input should be greater than or equal to 0"),
        (["--limit", "1", "--sample", "1"], "--limit and --sample exclude each other"),
        (["--teacher", "no-such-model"], "no-such-model"),
        (["--judge", "big"], "--judge big is a model of a configuration: name the configuration with --config"),
        (["--data", "gsm9k"], "Did you mean 'gsm8k'?"),
        (["--gateway", "ftp://host", "--route", "chat", "--key", "env:K"], "must be http(s)://host:port"),
        (["--gateway", "http://u:p@host", "--route", "chat", "--key", "env:K"], "without a password"),
        (
            ["--gateway", "http://127.0.0.1:9", "--route", "chat", "--key", "gk-it"],
            "must not be written on the command line",
        ),
        (["--gateway", "http://127.0.0.1:9", "--route", "chat", "--key", "env:NONE"], "NONE is not set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line_before_anything_starts(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors are reported before weights are fetched."""
    fetched: list[str] = []
    monkeypatch.setattr(weights, "fetch", fetched.append)
    done = run("eval", "run", str(tmp_path / "run"), "--limit", "2", *arguments)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert [secret for secret in ("gk-it", "u:p@") if secret in done.stderr + done.stdout] == []
    assert fetched == []


@pytest.mark.parametrize(
    ("load", "arguments", "warned"),
    [(1.2, ["--local"], True), (0.9, ["--local"], False), (1.2, ["--rescore"], False)],
    ids=["busy", "idle", "no model is asked"],
)
def test_a_busy_machine_is_reported_before_local_models_start(
    load: float, arguments: list[str], warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From half of the cores on. Nor is it said of models elsewhere."""

    def stop(_: str) -> None:
        raise StartupError("no further")

    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(eval_run_session, "usable_cores", lambda: 2)
    monkeypatch.setattr(weights, "fetch", stop)
    done = run("eval", "run", str(tmp_path / "run"), "--limit", "2", *arguments)
    assert ("the load of the last minute was 1.2, and the models here have 2 cores" in done.stderr) == warned
    assert ("no further" in done.stderr) == ("--rescore" not in arguments)


def test_an_unknown_model_is_an_error_with_the_known_ones(tmp_path: Path) -> None:
    file = config(tmp_path, "http://127.0.0.1:9", "http://127.0.0.1:9")
    pair = ["--config", str(file), "--teacher", "big", "--student", "tiny"]
    done = run("eval", "run", str(tmp_path / "run"), *pair)
    assert done.returncode == 1
    assert "--student tiny: the configuration has no such model. Models: big, small." in done.stderr


def test_a_large_run_shows_size_and_time_and_requires_confirmation(tmp_path: Path) -> None:
    """The time is told from what calls took in this folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "stages.jsonl").write_text(
        "".join(
            json.dumps({"stage": stage, "setting": "s", "calls": 2, "seconds": seconds, "concurrency": 2, "at": 1})
            + "\n"
            for stage, seconds in (("teacher", 20), ("student", 4))
        )
    )
    file = config(tmp_path, "http://127.0.0.1:9", "http://127.0.0.1:9")
    pair = ["--config", str(file), "--teacher", "big", "--student", "small"]
    done = run("eval", "run", str(folder), *pair, "--data", str(data(tmp_path)), "--most-calls", "5")
    assert done.returncode == 1
    message = " ".join(done.stderr.split())
    assert (
        "5 settings, 4 questions: 4 calls of the teacher, up to 16 calls of the student, about 1 min 12 s." in message
    )
    assert "note: 4 questions are few for `eval recommend`. About 450 questions show with 80 % confidence" in message
    assert "add --yes, or make the grid smaller" in message
    assert not (folder / "run.json").exists()


@pytest.mark.models
@pytest.mark.timeout(300)
def test_a_large_run_in_a_new_folder_measures_its_first_calls_for_the_estimate(
    tmp_path: Path, engines: LocalStack
) -> None:
    """The run keeps the answers of the measured calls."""
    folder = tmp_path / "run"
    pair = ["--config", str(config(tmp_path, engines.teacher.url, engines.student.url)), "--teacher", "big"]
    grid = ["--data", str(data(tmp_path)), "--max-tokens", "6", "--tokens", "2,4", "--concurrency", "1"]
    done = run("eval", "run", str(folder), *pair, "--student", "small", *grid, "--most-calls", "5")
    assert done.returncode == 1
    message = " ".join(done.stderr.split())
    assert re.search(r"3 calls of the teacher, up to 10 calls of the student, about (\d+ min )?\d+ s\.", message), (
        message
    )
    assert "add --yes" in message
    # One question: the teacher alone, the student alone, and guided at one length.
    assert len(lines(folder / "generations.jsonl")) == 3


@pytest.mark.models
@pytest.mark.timeout(300)
def test_a_running_gateway_is_called_by_its_routes(tmp_path: Path, gateway: GatewayProcess) -> None:
    folder = tmp_path / "run"
    routes = ["--route", "chat", "--route", "chat-student"]
    ours = ["--data", str(data(tmp_path)), "--limit", "1", "--max-tokens", "8"]
    at = ["--gateway", gateway.url, "--key", "env:OUR_KEY"]
    done = run("eval", "run", str(folder), *at, *routes, *ours, OUR_KEY=KEY)
    assert done.returncode == 0, done.stderr
    found = lines(folder / "examples.jsonl")
    assert [line["setting"] for line in found] == ["route chat, chat, 8 tokens", "route chat-student, chat, 8 tokens"]
    assert all(line["total_s"] > 0 and line["text"] for line in found)
    assert json.loads((folder / "run.json").read_bytes())["live"] is True
    assert KEY not in done.stdout + done.stderr + (folder / "run.json").read_text()


@pytest.mark.models
@pytest.mark.timeout(300)
@pytest.mark.long
def test_a_killed_run_resumes_without_repeated_calls(tmp_path: Path, engines: LocalStack) -> None:
    """Killed at once, then ended by Ctrl-C, then left alone; beside it a run that nobody disturbs."""
    with (
        recording_proxy(engines.teacher.url) as (teacher, teacher_request),
        recording_proxy(engines.student.url) as (student, to_student),
    ):
        command = [
            *(sys.executable, "-m", "gateway", "eval", "run", str(tmp_path / "killed")),
            *("--config", str(config(tmp_path, teacher, student)), "--teacher", "big", "--student", "small"),
            *("--data", str(data(tmp_path)), "--max-tokens", "12", "--tokens", "4,8", "--concurrency", "1"),
        ]
        kept = tmp_path / "killed" / "generations.jsonl"
        assert end_when(command, signal.SIGKILL, lambda: len(lines(kept)) >= 2) == -signal.SIGKILL
        before = kept.read_bytes()
        assert end_when(command, signal.SIGINT, lambda: len(lines(kept)) >= 7) == INTERRUPTED
        assert kept.read_bytes().startswith(before)
        last = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        assert last.returncode == 0, last.stderr
        assert "eval report" in last.stdout
        # One call was in flight when either signal came; a probe of what the student can do is no question.
        calls = Counter(orjson.dumps(body) for body in (*teacher_request, *to_student) if is_question(body))
        assert sum(calls.values()) <= len(calls) + 2
        assert set(Counter(line.get("opening") or line["answer"] for line in lines(kept)).values()) == {1}
        command[5] = str(tmp_path / "whole")
        whole = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        assert whole.returncode == 0, whole.stderr
    timeless = [
        [without_times_and_cache_reads(line) for line in lines(tmp_path / name / "examples.jsonl")]
        for name in ("killed", "whole")
    ]
    assert timeless[0] == timeless[1]
    assert len(timeless[0]) == 4 * len(QUESTIONS)


def end_when(command: list[str], number: signal.Signals, ready: Any) -> int:
    """Start it, send the signal as soon as it is `ready`, and return its status."""
    environment = os.environ | {"NO_COLOR": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        while not ready():
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.005)
        process.send_signal(number)
        return process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()


def is_question(body: dict[str, Any]) -> bool:
    return any(question.text in orjson.dumps(body).decode() for question in QUESTIONS)


def without_times_and_cache_reads(line: dict[str, Any]) -> dict[str, Any]:
    varying = {"teacher_s", "student_s", "total_s", "teacher_cached_tokens", "student_cached_tokens"}
    return {name: value for name, value in line.items() if name not in varying}
