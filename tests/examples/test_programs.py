"""The programs of examples/, unchanged, before a gateway between fake engines."""

from __future__ import annotations

import re
import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.clients.environments import node_modules
from tests.clients.programs import run
from tests.fakes import FakeEngine, begin_events, chunk, event, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from aiohttp import web

pytestmark = pytest.mark.timeout(300)  # the client for Node.js is installed on first use

EXAMPLES = Path(__file__).parents[2] / "examples"
OPENING = "The answer to your question begins"
REST = " here and ends there."
WHOLE = "The answer to your question here and ends there."


@dataclass
class Scene:
    gateway: GatewayProcess
    student: FakeEngine
    folder: Path

    def play(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return run([*command], cwd=self.folder, GKT_URL=f"{self.gateway.url}/v1", GKT_KEY=KEY)


@pytest.fixture(scope="module")
def scene(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says(OPENING, "length")).running())
        student = stack.enter_context(FakeEngine(says(REST)).running())
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("gateway"),
                redis_url=redis_url,
                redis={"prefix": "examples"},
                models=[
                    model("big", "tgi", teacher.url),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
                ],
                routes=[guided(tokens=6)],
            )
        )
        yield Scene(gateway, student, tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.long
def test_an_answer_and_its_headers(scene: Scene) -> None:
    done = scene.play(sys.executable, EXAMPLES / "openai_chat.py", "What is it?")
    assert done.returncode == 0, done.stderr
    answer, _, account = done.stdout.partition("\n\n")
    assert answer == WHOLE
    facts = dict(re.split(r" {2,}|(?<=teacher) ", line, maxsplit=1) for line in account.splitlines())
    assert facts["mode"] == "guided"
    assert re.fullmatch(r"\d+ tokens", facts["by the teacher"])
    assert re.fullmatch(r"0\.\d+", facts["cost, USD"])
    assert scene.gateway.wait_for_log("request", id=facts["request"])["status"] == "ok"


def test_a_stream_and_its_account(scene: Scene) -> None:
    done = scene.play(sys.executable, EXAMPLES / "streaming.py", "What is it, piece by piece?")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(re.escape(WHOLE) + r"\nguided for 0\.\d+\n", done.stdout)


def test_a_broken_stream_is_reported(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student is called once more and breaks off again. The program exits with 1, since the answer is not whole."""

    async def ends_early(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        await response.write(event(chunk({"content": " here and"})))
        return response

    monkeypatch.setattr(scene.student, "behave", ends_early)
    done = scene.play(sys.executable, EXAMPLES / "streaming.py", "What is it, and no more?")
    assert done.returncode == 1
    assert done.stdout == "The answer to your question here and here and"
    assert "broke off: engine_failed" in done.stderr


def test_a_receipt_in_money(scene: Scene) -> None:
    """The program prints the amounts of the receipt."""
    done = scene.play(sys.executable, EXAMPLES / "receipt_and_cost.py", "What did it cost?")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    request_id, what = lines[0].split("  ")
    assert what == "guided, ok"
    receipt = httpx.get(
        f"{scene.gateway.url}/v1/receipts/{request_id}", headers={"Authorization": f"Bearer {KEY}"}
    ).json()
    shown = {line.split()[0]: re.findall(r"(\S+) USD", line)[0] for line in lines[1:]}
    assert shown == {
        "teacher": receipt["teacher"]["cost_usd"],
        "student": receipt["student"]["cost_usd"],
        "together": receipt["cost_usd"],
        "big": receipt["baseline_usd"],
        "saved": receipt["savings_usd"],
    }


def test_the_client_for_node(scene: Scene) -> None:
    modules = scene.folder / "node_modules"
    if not modules.exists():
        modules.symlink_to(node_modules())
    shutil.copy(EXAMPLES / "chat.mjs", scene.folder)  # packages are searched in the folder of the program
    done = scene.play("node", "chat.mjs", "What is it in Node?")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(re.escape(WHOLE) + r"\nguided for 0\.\d+\n", done.stdout)


def test_every_program_is_run() -> None:
    """Every program has a test and is in the list of examples."""
    source = Path(__file__).read_text("utf-8")
    programs = [path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".mjs"}]
    assert [name for name in programs if f'"{name}"' not in source] == []
    listed = re.findall(r"^\| \[.+?\]\((.+?)\) \|", (EXAMPLES / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.iterdir() if path.name != "README.md")
