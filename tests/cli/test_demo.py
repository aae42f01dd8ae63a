"""The demo, as a newcomer runs it, with the smallest model in both roles."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from gateway.cli import demo
from gateway.errors import StartupError
from gateway.local import weights

pytestmark = pytest.mark.models

DEMO = [sys.executable, "-m", "gateway", "demo", "--port", "0", "--tokens", "6"]
SMALL = ["--teacher", "smollm2-135m-instruct", "--student", "smollm2-135m-instruct"]


def test_ask_prints_a_guided_answer_its_receipt_and_how_to_call_and_leaves() -> None:
    """All of the teacher's part stands in brackets where there is no colour."""
    question = "List the planets."
    done = subprocess.run(
        [*DEMO, *SMALL, "--ask", question], capture_output=True, text=True, timeout=120, check=False, env=_wide()
    )
    assert done.returncode == 0, done.stderr
    output = done.stdout
    assert question in output
    guidance = output.partition("then the student\n\n[")[2].partition("]")[0]
    assert len(guidance.split()) > 1, "all of it, in however many chunks it came"
    assert "mode guided" in output
    assert "batch b1 of 1" in output
    assert "curl http://127.0.0.1:" in output
    assert "OpenAI(base_url=" in output


@pytest.mark.long
@pytest.mark.timeout(150)
def test_the_same_model_in_both_roles_stays_two_engines_each_at_its_price() -> None:
    """A model's file may be called anything, too."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a model+v2 [x].gguf")
        file.symlink_to(weights.fetch("smollm2-135m-instruct"))
        pair = ["--teacher", str(file), "--student", str(file)]
        done = subprocess.run(
            [*DEMO, *pair, "--ask", "List the planets."],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=_wide(),
        )
    assert done.returncode == 0, done.stderr
    for role, per_1m in (("teacher", "0.90"), ("student", "0.10")):
        rows = re.findall(rf"^ *{role} a model\+v2 \[x\] +(\d+) +(\d+) +([0-9.]+) *$", done.stdout, re.MULTILINE)
        ((read, written, cost),) = rows
        assert cost == f"{(int(read) + int(written)) * Decimal(per_1m) / 1_000_000:.7f}"


def test_ctrl_c_during_the_start_leaves_the_terminal_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(demo, "EmbeddedRedis", stopped)
    terminal = io.StringIO()
    setup = demo._Setup("a.gguf", "b.gguf", 6, "cutoff", 0)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(demo._demo(setup, None, Console(file=terminal, force_terminal=True)))
    assert "\x1b[?25l" in terminal.getvalue()
    assert terminal.getvalue().rpartition("\x1b[?25")[2].startswith("h")


def test_a_port_in_use_is_reported_before_any_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(name: str) -> None:
        pytest.fail(f"{name} was fetched")

    monkeypatch.setattr(demo.weights, "fetch", fetched)
    monkeypatch.setattr(demo, "set_up_logs", lambda *_: None)  # the log of this process is the tests'
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match=f"127.0.0.1:{port} is already in use.*another port: --port\\.$"):
            demo.demo(port=port)


def _wide() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200"}


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_demo_and_its_processes(number: signal.Signals) -> None:
    """Without --ask it serves until then."""
    process = subprocess.Popen([*DEMO, *SMALL], stdout=subprocess.PIPE, text=True, env=_wide(), start_new_session=True)
    assert process.stdout is not None
    url = teacher = admin = admin_key = ""
    try:
        for line in process.stdout:
            if line.startswith("gateway "):
                admin = line.partition("admin ")[2].partition("/readyz")[0]
            if line.startswith("teacher "):
                teacher = line.split()[1]
            if line.startswith("pages "):
                admin_key = line.split()[-1]
            if line.startswith("curl "):
                url = line.split()[1].partition("/v1")[0]
            if "Ctrl-C" in line:
                break
        children = _descendants(process.pid)
        assert len(children) >= 3, "Redis, the teacher and the student"
        assert httpx.get(f"{url}/readyz").text == "ready\n"
        models = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {demo.KEY}"}).json()["data"]
        assert [model["id"] for model in models] == ["chat", "chat-student", "chat-teacher"]
        engines = httpx.get(f"{admin}/readyz").json()["engines"]
        assert {role: engine["facts"]["owned_by"] for role, engine in engines.items()} == {
            "teacher": "llamacpp",
            "student": "llamacpp",
        }
        assert httpx.get(f"{teacher}/models").json()["data"][0]["id"] == "smollm2-135m-instruct"
        shown = httpx.get(f"{admin}/playground/options", headers={"Authorization": f"Bearer {admin_key}"}).json()
        assert shown["base_url"] == f"{url}/v1"
        assert shown["tenants"][0]["routes"][0]["callers_may"]["modes"] == ["teacher", "student"]
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    give_up = time.monotonic() + 10
    while alive := [pid for pid in children if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)]:
        assert time.monotonic() < give_up, alive
        time.sleep(0.05)


def _descendants(pid: int) -> list[int]:
    """Children, and theirs."""
    found: list[int] = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *_descendants(int(child))]
    return found


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_demos_own_pair_answers_a_sum() -> None:
    """The models a newcomer gets: 1.6 GB, fetched once. The opening is the teacher's, the sum is right."""
    question = (
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
        "How many clips did Natalia sell altogether?"
    )
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "demo", "--port", "0", "--ask", question],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=_wide(),
    )
    assert done.returncode == 0, done.stderr
    assert "mode guided" in done.stdout
    assert "teacher qwen2.5-coder-1.5b-instruct" in done.stdout
    assert "72" in done.stdout.partition("]")[2]
