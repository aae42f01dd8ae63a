"""docs/clients.md: its programs run unchanged with real models, and its tables are correct."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import httpx
import orjson
import pytest

from gateway.config.settings import check_settings
from tests.clients.environments import HERE, node_modules, python_environment
from tests.clients.programs import run
from tests.clients.refusals import RAISES, REFUSALS, TRIES
from tests.config.test_cors import MODEL
from tests.docs.test_docs import page
from tests.gateway_process import KEY, GatewayProcess

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.models, pytest.mark.timeout(300)]  # clients are installed on first use

PAGE = page("docs/clients.md")
BLOCKS = dict(re.findall(r"^```\w+\n(?:#|//) (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
SHOWN = r"guided 0\.\d+"


@pytest.fixture(scope="module")
def answer(gateway: GatewayProcess) -> str:
    """Return the answer to the page's question through a plain HTTP client."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 80,
            "temperature": 0}  # fmt: skip
    headers = {"Authorization": f"Bearer {KEY}"}
    reply = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=60).raise_for_status()
    text: str = reply.json()["choices"][0]["message"]["content"]
    assert reply.headers["x-gkt-mode"] == "guided"
    assert text
    return text


def written(folder: Path, gateway: GatewayProcess, *names: str) -> None:
    """Write the page's blocks to files, with this gateway's address and a valid key."""
    for name in names:
        text = BLOCKS[name]
        here = text.replace("http://127.0.0.1:8080", gateway.url).replace("gk-demo", KEY)
        assert here != text or name == "ask.sh"
        (folder / name).write_text(here, "utf-8")


def check(shown: str, *parts: str) -> None:
    """Compare each line with a text, or with a pattern for the whole line."""
    assert re.fullmatch("\n".join((*parts, "")), shown), shown


@pytest.mark.long
def test_openai_for_python(gateway: GatewayProcess, answer: str, tmp_path: Path) -> None:
    """Whole and streamed: the answer, the mode and the cost."""
    written(tmp_path, gateway, "ask.py")
    done = run([sys.executable, "ask.py"], cwd=tmp_path)
    check(done.stdout, re.escape(answer), SHOWN, re.escape(answer), SHOWN)


def test_openai_for_node(gateway: GatewayProcess, answer: str, tmp_path: Path) -> None:
    """Whole and streamed: the answer, the mode and the cost."""
    (tmp_path / "node_modules").symlink_to(node_modules())
    written(tmp_path, gateway, "ask.mjs")
    done = run(["node", "ask.mjs"], cwd=tmp_path)
    check(done.stdout, re.escape(answer), SHOWN, re.escape(answer), SHOWN)


@pytest.mark.long
def test_langchain(gateway: GatewayProcess, answer: str, tmp_path: Path) -> None:
    """Whole: the answer, the mode and the cost. Streamed: the answer."""
    written(tmp_path, gateway, "ask_langchain.py")
    done = run([python_environment("langchain") / "python", "ask_langchain.py"], cwd=tmp_path)
    check(done.stdout, re.escape(answer), SHOWN, re.escape(answer))


@pytest.mark.long
def test_litellm(gateway: GatewayProcess, answer: str, tmp_path: Path) -> None:
    """Whole: the answer, the mode and the cost. Streamed: the answer."""
    written(tmp_path, gateway, "ask_litellm.py")
    done = run([sys.executable, "ask_litellm.py"], cwd=tmp_path)
    check(done.stdout, re.escape(answer), SHOWN, re.escape(answer))


@pytest.mark.long
def test_llm(gateway: GatewayProcess, answer: str, tmp_path: Path) -> None:
    """Streamed and whole: the answer, and the tokens on stderr."""
    written(tmp_path, gateway, "extra-openai-models.yaml", "ask.sh")
    (tmp_path / "user").mkdir()
    path = f"{python_environment('llm')}:/usr/bin:/bin"
    done = run(["sh", "-e", "ask.sh"], cwd=tmp_path, LLM_USER_PATH=str(tmp_path / "user"), PATH=path)
    check(done.stdout, re.escape(answer), re.escape(answer))
    assert re.search(r"Token usage: \d+ input, 80 output", done.stderr)


def test_the_configuration_for_web_pages_is_valid(tmp_path: Path) -> None:
    """The block on origins is a part of config.yaml."""
    (tmp_path / "config.yaml").write_text(MODEL + BLOCKS["config.yaml"])
    settings, _, issues = check_settings(tmp_path / "config.yaml", {})
    assert issues == []
    assert settings is not None
    assert settings.server.cors is not None


def test_every_program_on_the_page_is_run() -> None:
    """Every block of a program or its configuration has a name, and a test that runs it."""
    programs = re.findall(r"^```(?:python|js|sh|yaml)$", PAGE, re.MULTILINE)
    assert len(programs) == len(BLOCKS)
    tests = (HERE / "test_page.py", HERE.parent / "examples" / "test_guides.py")
    source = "".join(path.read_text("utf-8") for path in tests)
    assert [name for name in BLOCKS if f'"{name}"' not in source] == []


def test_the_versions_on_the_page_are_those_that_are_tested() -> None:
    """The page's versions are those of the locks."""
    node = orjson.loads((HERE / "node" / "package.json").read_bytes())["dependencies"]
    locked = {
        ("OpenAI for Python", "openai"): version("openai"),
        ("OpenAI for Node.js", "openai"): node["openai"],
        ("LiteLLM", "litellm"): version("litellm"),
        ("AI SDK", "ai"): node["ai"],
        ("Anthropic for Python", "anthropic"): version("anthropic"),
        ("Anthropic for Node.js", "@anthropic-ai/sdk"): node["@anthropic-ai/sdk"],
    }
    for client, package, folder in (
        ("Codex CLI", "@openai/codex", "codex"),
        ("Claude Code", "@anthropic-ai/claude-code", "claude_code"),
    ):
        locked[client, package] = orjson.loads((HERE / folder / "package.json").read_bytes())["dependencies"][package]
    for client, package, lock in (
        ("LangChain", "langchain-openai", "langchain"),
        ("llm", "llm", "llm"),
        ("OpenAI Agents SDK", "openai-agents", "agents_sdk"),
        ("pydantic-ai", "pydantic-ai-slim", "pydantic_ai"),
    ):
        found = re.search(rf"^{package}==(\S+)", (HERE / f"{lock}.lock").read_text("utf-8"), re.MULTILINE)
        assert found is not None
        locked[client, package] = found[1]
    rows = re.findall(r"^\| \[(.+?)\]\(#.+?\) \| `(.+?)` (\S+) \|", PAGE, re.MULTILINE)
    assert {(client, package): tested for client, package, tested in rows} == locked


def test_the_page_lists_the_errors_of_each_client() -> None:
    """The page has the table of expected errors and the numbers of attempts."""
    rows = re.findall(r"^\| (\d{3}) \| .+? \| (.+) \| (\d) \|$", PAGE, re.MULTILINE)
    shown = {
        int(status): ([cell.strip("` ") for cell in cells.split("|")], int(calls)) for status, cells, calls in rows
    }
    calls = {refusal.status: TRIES if refusal.retried else 1 for refusal in REFUSALS}
    assert shown == {status: ([of[status] for of in RAISES.values()], calls[status]) for status in calls}
