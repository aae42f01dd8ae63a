"""The unmodified Claude Code through a gateway: scripted tasks in a folder of their own."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.clients.agent_gateway import AgentGateway, AgentRun, run_agent
from tests.clients.environments import node_modules
from tests.clients.fault_gateway import MESSAGES
from tests.clients.task_engine import ToolCall, Turn, text_of
from tests.gateway_process import KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]  # it is installed on first use


class ClaudeRun:
    """The result of `claude -p --output-format json`."""

    def __init__(self, run: AgentRun, folder: Path) -> None:
        self.run = run
        self.work = folder / "work"
        self.result: dict[str, Any] = orjson.loads(run.stdout) if run.stdout[:1] == "{" else {}


@pytest.fixture
def claude(agent_gateway: AgentGateway, tmp_path: Path) -> Callable[..., ClaudeRun]:
    """Return a function that gives Claude Code a task and returns what came of it."""
    system, machine = platform.system().lower(), {"x86_64": "x64", "aarch64": "arm64"}[platform.machine()]
    program = node_modules("claude_code") / "@anthropic-ai" / f"claude-code-{system}-{machine}" / "claude"
    environment = {
        "ANTHROPIC_BASE_URL": agent_gateway.tap.url,
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_MODEL": "agent",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "agent",
        "CLAUDE_CONFIG_DIR": str(tmp_path / "claude"),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "2",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_AUTOUPDATER": "1",
    }

    def run(task: str, *options: Any, interrupt_when: Any = None) -> ClaudeRun:
        command = [program, "-p", task, "--output-format", "json", "--allowedTools", "Bash,Write,Read", *options]
        done = run_agent(command, folder=tmp_path, environment=environment, interrupt_when=interrupt_when)
        return ClaudeRun(done, tmp_path)

    return run


def test_a_question_is_answered_in_a_stream(agent_gateway: AgentGateway, claude: Callable[..., ClaudeRun]) -> None:
    """The calls are calls of the Messages API with receipts. Claude Code contacts no other host."""
    agent_gateway.script("claude question", Turn("The answer is forty-two."))
    seen = claude("claude question")
    assert (seen.result.get("result"), seen.run.status) == ("The answer is forty-two.", 0), seen.run.stderr
    calls = agent_gateway.calls("claude question")
    assert {call.path.partition("?")[0] for call in calls} == {MESSAGES}
    assert calls[-1].json["stream"] is True
    assert {receipt["status"] for receipt in agent_gateway.receipts("claude question")} == {"ok"}
    assert seen.result["usage"]["output_tokens"] > 0
    assert seen.run.refused == []


def test_a_task_runs_commands_and_writes_files(
    agent_gateway: AgentGateway, claude: Callable[..., ClaudeRun], tmp_path: Path
) -> None:
    """The engine calls tools, also two in one turn, and answers. Each result reaches the next request."""
    task = "claude task: write notes.txt"
    written = {"file_path": str(tmp_path / "work" / "notes.txt"), "content": "a\nb\n"}
    agent_gateway.script(
        task,
        Turn(calls=(ToolCall("Bash", {"command": "echo from-the-shell > made.txt; cat made.txt"}),)),
        Turn("Now the notes.", (ToolCall("Write", written),)),
        Turn(calls=(ToolCall("Bash", {"command": "cat notes.txt"}), ToolCall("Bash", {"command": "exit 3"}))),
        Turn("The notes are written."),
    )
    seen = claude(task)
    assert seen.result.get("result") == "The notes are written.", seen.run.stdout + seen.run.stderr
    assert (seen.work / "made.txt").read_text() == "from-the-shell\n"
    assert (seen.work / "notes.txt").read_text() == "a\nb\n"
    requests = agent_gateway.requests(task)
    results = [text_of(message) for message in requests[-1]["messages"] if message["role"] == "tool"]
    assert len(results) == 4
    assert "from-the-shell" in results[0]
    assert {receipt["status"] for receipt in agent_gateway.receipts(task)} == {"ok"}
    assert agent_gateway.tasks.rejections == []


def test_an_answer_has_the_tasks_schema(agent_gateway: AgentGateway, claude: Callable[..., ClaudeRun]) -> None:
    """`--json-schema` adds a tool, which the engine calls with the answer."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    agent_gateway.script("claude schema", Turn(calls=(ToolCall("StructuredOutput", {"n": 3}),)), Turn("Done."))
    seen = claude("claude schema", "--json-schema", orjson.dumps(schema).decode())
    assert seen.result.get("structured_output") == {"n": 3}, seen.run.stdout + seen.run.stderr


def test_an_error_of_the_gateway_is_shown(agent_gateway: AgentGateway, claude: Callable[..., ClaudeRun]) -> None:
    """An unknown model fails with one call."""
    seen = claude("claude elsewhere", "--model", "nowhere")
    assert seen.run.status == 1
    assert seen.result["is_error"] is True
    assert "nowhere" in seen.result["result"]
    assert {call.status for call in agent_gateway.calls("claude elsewhere")} == {404}


def test_a_refused_call_is_repeated(agent_gateway: AgentGateway, claude: Callable[..., ClaudeRun]) -> None:
    """The engine is full twice; the third call is answered."""
    agent_gateway.script("claude patience", Turn("At last.", refused=2))
    assert claude("claude patience").result.get("result") == "At last."
    assert [call.status for call in agent_gateway.calls("claude patience")] == [529, 529, 200]


def test_a_broken_stream_is_repeated(agent_gateway: AgentGateway, claude: Callable[..., ClaudeRun]) -> None:
    """The first stream ends in an event `error`; Claude Code asks again."""
    agent_gateway.script("claude broken", Turn("All of it.", broken=1))
    assert claude("claude broken").result.get("result") == "All of it."
    assert [receipt["status"] for receipt in agent_gateway.receipts("claude broken")] == ["engine_failed", "ok"]


def test_an_interrupted_task_ends_the_request(agent_gateway: AgentGateway, claude: Callable[..., ClaudeRun]) -> None:
    """SIGINT during a stream: the gateway detects that the client has gone."""
    agent_gateway.script("claude long", Turn("word " * 600), word_pause_s=0.1)

    def begun() -> bool:
        return any(call.status for call in agent_gateway.calls("claude long"))

    claude("claude long", interrupt_when=begun)
    assert [receipt["status"] for receipt in agent_gateway.receipts("claude long")] == ["client_gone"]
