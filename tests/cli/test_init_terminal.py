"""`gkt-gateway init` as people run it: on a terminal, with Ctrl-C, and with `serve` in the written folder."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web
from ruamel.yaml import YAML

from gateway.cli.guided_answer import QUESTION
from gateway.cli.init_answers import Answers
from gateway.policy.book import check_all
from tests.cli.init_world import LIMIT_S, PRICES, command, environ, modelled, terminal
from tests.fakes import FakeEngine, says, served
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[str, str]]:
    """A teacher with TGI's API and a student with vLLM's."""
    with (
        modelled(model="org/large", dialect="tgi", prefill={}, decode={"fixed": "2ms"}) as teacher,
        modelled(model="org/small", continuation="vllm") as student,
    ):
        yield teacher, student


def test_from_an_empty_folder_to_a_guided_answer_and_a_gateway(engines: tuple[str, str], tmp_path: Path) -> None:
    """The last lines are the next commands. `serve` then answers their request."""
    teacher, student = engines
    done = subprocess.run(
        command("init", "--teacher", teacher, "--student", student, *PRICES),
        cwd=tmp_path,
        env=environ(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert QUESTION in done.stdout
    guidance = done.stdout.partition("by the teacher, then the student\n\n[")[2].partition("]")[0]
    assert len(guidance.split()) > 20, "the teacher's part is in brackets where there is no color"
    for fact in ("teacher org/large", "student org/small", "the teacher alone (estimate)", "saved", "mode guided"):
        assert fact in done.stdout
    checked = subprocess.run(
        command("check"), cwd=tmp_path, env=environ(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (
        *(0, "ok: 2 models, 1 tenant, 1 route, 1 key, 0 warnings\n"),
        "",
    )
    last = done.stdout.partition("\nNext:\n\n")[2]
    assert last.startswith("gkt-gateway serve\n")
    assert last.rstrip().splitlines()[-1] == "Documentation: gkt-gateway docs quickstart#your-own-engines"
    (key,) = re.findall(r"gk-[\w-]{43}", done.stdout)
    call = re.search(rf"curl (\S+) -H 'Authorization: Bearer {key}' \\\n  -d '(.*)'\n", last)
    assert call is not None
    (policy,) = (tmp_path / "policies").iterdir()
    assert hashlib.sha256(key.encode()).hexdigest() in policy.read_text()
    assert key not in policy.read_text() + (tmp_path / "config.yaml").read_text()
    admin_key = (tmp_path / "admin.key").read_text().strip()
    assert (tmp_path / "admin.key").stat().st_mode & 0o777 == 0o600
    assert admin_key not in done.stdout + (tmp_path / "config.yaml").read_text()
    assert "The dashboard is at http://127.0.0.1:" in last
    with _served(tmp_path) as (url, admin_url):
        reply = httpx.post(
            url + "/v1/chat/completions",
            content=call[2],
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            timeout=LIMIT_S,
        )
        assert (reply.status_code, reply.headers["x-gkt-mode"]) == (200, "guided"), reply.text
        assert httpx.get(url + "/v1/models", headers={"Authorization": "Bearer gk-another"}).status_code == 401
        with httpx.Client(base_url=admin_url, headers={"Authorization": f"Bearer {admin_key}"}) as operator:
            assert operator.get("/summary").status_code == 200


@contextmanager
def _served(folder: Path) -> Iterator[tuple[str, str]]:
    """Run `gkt-gateway serve` in a folder, on free ports. Yield both URLs once it has probed the engines."""
    process = subprocess.Popen(
        command("serve"),
        cwd=folder,
        env=environ(GKT_PORT="0", GKT_ADMIN_PORT="0"),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        events = (json.loads(line) for line in process.stderr)
        listening = next(event for event in events if event["event"] == "listening")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        wait_until_probed(listening["admin"])
        yield listening["public"], listening["admin"]
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


def test_a_terminal_asks_for_what_is_missing_until_it_is_valid(engines: tuple[str, str], tmp_path: Path) -> None:
    teacher, student = engines
    with terminal("init", "--no-question", folder=tmp_path) as run:
        run.answer("URL of the teacher", "http://127.0.0.1:9")
        run.wait_for("is not reachable (connection refused)")
        run.answer("URL of the teacher", teacher)
        run.wait_for("teacher  org/large: Text Generation Inference")
        run.answer("URL of the student", student.removeprefix("http://"))
        run.wait_for("student  org/small: an OpenAI-compatible server")
        run.answer("Price of the teacher in USD per 1M tokens", "cheap")
        run.wait_for("--teacher-price must be IN,OUT or IN,OUT,CACHED")
        run.answer("Price of the teacher in USD per 1M tokens", "0.90,0.90")
        run.answer("Price of the student in USD per 1M tokens", "0.10, 0.10, 0.05")
        run.answer("Redis", "")
        assert run.end() == 0, run.screen
    assert "probing the teacher" in run.screen
    assert check_all(tmp_path / "config.yaml")[2] == []
    config = YAML(typ="safe").load(tmp_path / "config.yaml")
    assert config["redis"]["url"] == "embedded"
    assert config["models"][1]["api_base"] == f"{student}/v1"
    assert config["models"][1]["price"]["cached_input_per_1m"] == 0.05


def test_a_terminal_asks_for_the_key_and_the_model_that_an_engine_requires(
    engines: tuple[str, str], tmp_path: Path
) -> None:
    @web.middleware
    async def keyed(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer teacher-secret":
            raise web.HTTPUnauthorized
        return await handler(request)  # type: ignore[no-any-return]

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "org/one"}, {"id": "org/two"}]})

    engine = FakeEngine(says("One two three four", "length"))
    app = web.Application(middlewares=[keyed])
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", engine._behave)
    options = ("--student", engines[1], *PRICES, "--redis", "embedded", "--no-question")
    with served(app) as url, terminal("init", *options, folder=tmp_path, TEACHER_KEY="teacher-secret") as run:
        run.answer("URL of the teacher", url)
        run.answer("The teacher requires a key", "teacher-secret")
        run.wait_for("--teacher-key must be env:NAME")
        run.answer("The teacher requires a key", "env:TEACHER_KEY")
        run.answer("Model of the teacher (org/one, org/two)", "org/three")
        run.wait_for("has no model org/three")
        run.answer("Model of the teacher (org/one, org/two)", "org/two")
        assert run.end() == 0, run.screen
    big, _ = YAML(typ="safe").load(tmp_path / "config.yaml")["models"]
    assert (big["api_key"], big["model"]) == ("env:TEACHER_KEY", "org/two")


@pytest.mark.parametrize("key", ["Ctrl-C", "Ctrl-D"])
def test_a_prompt_that_is_interrupted_writes_nothing(key: str, tmp_path: Path) -> None:
    with terminal("init", folder=tmp_path) as run:
        run.wait_for("URL of the teacher")
        run.wait_for(": ")
        if key == "Ctrl-C":
            run.interrupt()
        else:
            run.type("\x04")
        assert run.end() == 130
    assert "Stopped. Nothing was written." in run.screen
    assert "Traceback" not in run.screen
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_signal_during_the_probes_writes_nothing(
    engines: tuple[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    called = threading.Event()

    async def hang(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        called.set()
        await asyncio.sleep(3600)
        raise AssertionError

    with FakeEngine(hang).running() as engine:
        process = subprocess.Popen(
            command("init", "--teacher", engine.url, "--student", engines[1], *PRICES),
            cwd=tmp_path,
            env=environ(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert called.wait(LIMIT_S)
        process.send_signal(number)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, errors) == (130, "\nStopped. Nothing was written.\n")
    assert not any(tmp_path.iterdir())


def test_only_a_terminal_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    for is_terminal in (True, False):
        monkeypatch.setattr("sys.stdin", type("Input", (), {"isatty": lambda _, it=is_terminal: it})())
        assert Answers.of_terminal(Console(), tmp_path).interactive is is_terminal
