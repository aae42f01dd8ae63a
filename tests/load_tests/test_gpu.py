"""The comparison on GPUs, with stand-ins for the engines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from socket import socket
from typing import TYPE_CHECKING

import pytest

from load_tests import gpu
from tests.contracts.catalog import CATALOG, ROOT, STAND_IN
from tests.contracts.running import RunningEngine

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import ClientSession

    from load_tests.chat_client import Timed


def test_the_last_number_of_an_answer_is_its_result() -> None:
    assert gpu.is_right("12 * 3 = 36, so 36 - 2 = 34.", 34)
    assert gpu.is_right("The result is 1,234", 1234)
    assert not gpu.is_right("34 pens of 36", 34)
    assert not gpu.is_right("I do not know.", 34)


def test_the_questions_are_the_same_in_each_run_and_differ() -> None:
    made = gpu.questions(2000)
    assert made == gpu.questions(2000)
    assert len({question.text for question in made}) == 2000


def test_the_results_of_the_questions_follow_from_their_numbers() -> None:
    for question in gpu.questions():
        a, b, c = map(int, re.findall(r"\d+", question.text))
        assert question.result == (a * b - c if "sells" in question.text else a * b + c)


@pytest.mark.process
async def test_every_mode_is_measured_with_every_number_of_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real_ask = gpu.ask

    async def recording(session: ClientSession, url: str, model: str, question: str, max_tokens: int) -> Timed:
        asked.append(question)
        return await real_ask(session, url, model, question, max_tokens)

    monkeypatch.setattr(gpu, "ask", recording)
    engine = RunningEngine(CATALOG[STAND_IN], tmp_path / "engine.log")
    engine.start()
    try:
        found = await gpu.run((engine.url, engine.url), (engine.model, engine.model), (0.4, 0.05), 10, 24, [1, 4], 4)
    finally:
        engine.stop()
    assert [(row.mode, row.callers) for row in found.speed] == [(mode, n) for n in (1, 4) for mode in gpu.MODES]
    assert [len(row.answers) for row in found.speed] == [4, 4, 4, 12, 12, 12]
    assert [(row.mode, len(row.answers)) for row in found.accuracy] == [(mode, 4) for mode in gpu.MODES]
    for row in (*found.speed, *found.accuracy):
        assert all(answer.tokens == 24 for answer in row.answers)
        assert row.unguided() == ("0" if row.mode == "guided" else "")
        assert not any("shared" in answer.facts for answer in row.answers)
        assert float(row.speed_cells()[5]) > 0
    same, timed = Counter(asked[-12:]), asked[:-12]
    assert set(same.values()) == {3}
    assert len({*timed, *same}) == len(timed) + 4, "a timed call shares its question with another call"
    report = gpu.report(found, (0.4, 0.05), 10, 24)
    assert "m = 10, at most 24 tokens" in report
    assert "0.4 USD (teacher), 0.05 USD (student)" in report


@pytest.fixture
def script_environ(tmp_path: Path) -> dict[str, str]:
    """Variables for load_tests/gpu.sh, with a program nvidia-smi and two free ports."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'Stand-in GPU, 1 MiB'\n")
    smi.chmod(0o755)
    with socket() as first, socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        ports = first.getsockname()[1], second.getsockname()[1]
    return {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "VLLM": "/bin/false",  # otherwise the script installs vLLM
        "TEACHER_PORT": str(ports[0]),
        "STUDENT_PORT": str(ports[1]),
    }


def run_script(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["load_tests/gpu.sh"], cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("name", ["TEACHER_PORT", "STUDENT_PORT"])
def test_no_engine_starts_on_a_port_in_use(script_environ: dict[str, str], name: str) -> None:
    with socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        script_environ[name] = str(other.getsockname()[1])
        done = run_script(script_environ)
    assert done.returncode == 1
    assert f"port {script_environ[name]} is in use" in done.stderr


def test_another_server_on_the_port_is_not_measured(script_environ: dict[str, str], tmp_path: Path) -> None:
    """The program leaves a server behind that answers for it, and ends."""
    engine = tmp_path / "engine"
    engine.write_text(
        f"#!{sys.executable}\n"
        "import os, sys, time\n"
        "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "class Healthy(BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        "server = HTTPServer(('127.0.0.1', int(sys.argv[sys.argv.index('--port') + 1])), Healthy)\n"
        "server.timeout = 20\n"
        "print('bind: address already in use', flush=True)\n"
        "engine = os.getpid()\n"
        "if os.fork() == 0:\n"
        "    while os.getppid() == engine:\n"
        "        time.sleep(0.02)\n"
        "    server.handle_request()\n"
    )
    engine.chmod(0o755)
    done = run_script({**script_environ, "VLLM": str(engine)})
    assert done.returncode == 1
    assert "the teacher ended; its log ends:\nbind: address already in use" in done.stderr
