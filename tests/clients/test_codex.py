"""The unmodified Codex CLI through a gateway: scripted tasks in a folder of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.clients.agent_gateway import AgentGateway, AgentRun, run_agent
from tests.clients.environments import node_modules
from tests.clients.fault_gateway import RESPONSES
from tests.clients.task_engine import ToolCall, Turn, text_of
from tests.gateway_process import KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]  # it is installed on first use

CONFIG = """
model = "agent"
model_provider = "gateway"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false

[analytics]
enabled = false

[feedback]
enabled = false

[features]
plugins = false

[model_providers.gateway]
name = "gateway"
base_url = "{url}/v1"
env_key = "GATEWAY_KEY"
wire_api = "responses"
request_max_retries = 2
stream_max_retries = 1
"""
PATCH = "*** Begin Patch\n*** Add File: notes.txt\n+first line\n+second line\n*** End Patch\n"


class CodexRun:
    """The events of `codex exec --json`."""

    def __init__(self, run: AgentRun, folder: Path) -> None:
        self.run = run
        self.work = folder / "work"
        self.events: list[dict[str, Any]] = [orjson.loads(line) for line in run.stdout.splitlines() if line[:1] == "{"]

    def items(self, kind: str) -> list[dict[str, Any]]:
        items = [event["item"] for event in self.events if event["type"] == "item.completed"]
        return [item for item in items if item["type"] == kind]

    @property
    def messages(self) -> list[str]:
        return [item["text"] for item in self.items("agent_message")]


def results_in(request: dict[str, Any]) -> list[str]:
    """Return the results of tools in a request to the engine."""
    return [text_of(message) for message in request["messages"] if message["role"] == "tool"]


@pytest.fixture
def codex(agent_gateway: AgentGateway, tmp_path: Path) -> Callable[..., CodexRun]:
    """Return a function that gives Codex a task and returns what came of it."""
    program = node_modules("codex") / ".bin" / "codex"
    (tmp_path / "codex").mkdir()
    (tmp_path / "codex" / "config.toml").write_text(CONFIG.format(url=agent_gateway.tap.url))

    def run(task: str, *options: Any, interrupt_when: Any = None) -> CodexRun:
        command = [program, "exec", "--json", "--skip-git-repo-check", *options, task]
        environment = {"CODEX_HOME": str(tmp_path / "codex"), "GATEWAY_KEY": KEY}
        done = run_agent(command, folder=tmp_path, environment=environment, interrupt_when=interrupt_when)
        return CodexRun(done, tmp_path)

    return run


def test_a_question_is_answered_in_a_stream(agent_gateway: AgentGateway, codex: Callable[..., CodexRun]) -> None:
    """Codex makes one call of the Responses API, which has a receipt, and contacts no other host."""
    agent_gateway.script("codex question", Turn("The answer is forty-two."))
    seen = codex("codex question")
    assert (seen.messages, seen.run.status) == (["The answer is forty-two."], 0), seen.run.stderr
    assert [(call.path, call.json["stream"]) for call in agent_gateway.calls("codex question")] == [(RESPONSES, True)]
    assert [receipt["status"] for receipt in agent_gateway.receipts("codex question")] == ["ok"]
    usage = next(event["usage"] for event in seen.events if event["type"] == "turn.completed")
    assert usage["input_tokens"] > 0
    assert usage["output_tokens"] > 0
    assert seen.run.refused == []


def test_a_task_runs_commands(agent_gateway: AgentGateway, codex: Callable[..., CodexRun]) -> None:
    """The engine reasons, calls the shell, also twice in one turn, and answers. Results reach the next request."""
    task = "codex task: make made.txt"
    make, read = "echo from-the-shell > made.txt; cat made.txt", "cat made.txt"
    agent_gateway.script(
        task,
        Turn("I make the file.", (ToolCall("exec_command", {"cmd": make}),), reasoning="A file is missing."),
        Turn(calls=(ToolCall("exec_command", {"cmd": read}), ToolCall("exec_command", {"cmd": "exit 3"}))),
        Turn("The file is made."),
    )
    seen = codex(task)
    assert seen.run.status == 0, seen.run.stderr
    assert seen.messages == ["I make the file.", "The file is made."]
    assert (seen.work / "made.txt").read_text() == "from-the-shell\n"
    assert sorted(item["exit_code"] for item in seen.items("command_execution")) == [0, 0, 3]
    assert [item["text"] for item in seen.items("reasoning")] == ["A file is missing."]
    assert len(agent_gateway.requests(task)) == 3
    results = results_in(agent_gateway.requests(task)[-1])
    assert len(results) == 3
    assert all("from-the-shell" in result for result in results[:2])
    assert [receipt["status"] for receipt in agent_gateway.receipts(task)] == ["ok"] * 3
    assert agent_gateway.tasks.rejections == []


def test_a_task_patches_files_with_a_custom_tool(agent_gateway: AgentGateway, codex: Callable[..., CodexRun]) -> None:
    """`apply_patch` is a custom tool with a grammar. The engine sees a function with the argument `input`."""
    task = "codex task: write notes.txt"
    agent_gateway.script(task, Turn(calls=(ToolCall("apply_patch", {"input": PATCH}),)), Turn("The notes are written."))
    seen = codex(task, "--model", "gpt-5.5")
    assert seen.messages == ["The notes are written."], seen.run.stderr
    assert (seen.work / "notes.txt").read_text() == "first line\nsecond line\n"
    sent = agent_gateway.calls(task)[0].json["tools"]
    assert {"custom", "function", "tool_search"} <= {tool["type"] for tool in sent}
    assert "notes.txt" in results_in(agent_gateway.requests(task)[-1])[0]
    assert [item["status"] for item in seen.items("file_change")] == ["completed"]
    assert agent_gateway.tasks.rejections == []


def test_a_task_runs_a_program_of_tool_calls(agent_gateway: AgentGateway, codex: Callable[..., CodexRun]) -> None:
    """The tools are in an item `additional_tools`. The custom tool `exec` is in the namespace `functions`."""
    task = "codex task: run a program"
    program = 'const run = await tools.exec_command({cmd: "echo from-the-program > made.txt"}); text("ran it");'
    agent_gateway.script(task, Turn(calls=(ToolCall("exec", {"input": program}),)), Turn("The program ran."))
    seen = codex(task, "--model", "gpt-6.2-sol")
    assert seen.messages == ["The program ran."], seen.run.stderr
    assert (seen.work / "made.txt").read_text() == "from-the-program\n"
    call = agent_gateway.calls(task)[0].json
    assert "tools" not in call
    assert call["input"][0]["type"] == "additional_tools"
    assert "ran it" in results_in(agent_gateway.requests(task)[-1])[0]
    assert agent_gateway.tasks.rejections == []


def test_the_next_turn_of_a_session_has_the_conversation(
    agent_gateway: AgentGateway, codex: Callable[..., CodexRun]
) -> None:
    """`codex exec resume` sends the items of the first turn again."""
    agent_gateway.script(
        "codex session", Turn(calls=(ToolCall("exec_command", {"cmd": "echo 17"}),)), Turn("It is 17.")
    )
    agent_gateway.script("codex later", Turn("It was 17."))
    assert codex("codex session").messages == ["It is 17."]
    assert codex("codex later", "resume", "--last").messages == ["It was 17."]
    messages = agent_gateway.requests("codex later")[0]["messages"]
    assert "It is 17." in [text_of(message) for message in messages if message["role"] == "assistant"]


def test_an_answer_has_the_tasks_schema(
    agent_gateway: AgentGateway, codex: Callable[..., CodexRun], tmp_path: Path
) -> None:
    """`--output-schema` sends `text.format`, which reaches the engine as `response_format`."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    (tmp_path / "schema.json").write_bytes(orjson.dumps(schema))
    agent_gateway.script("codex schema", Turn('{"n": 3}'))
    assert codex("codex schema", "--output-schema", tmp_path / "schema.json").messages == ['{"n": 3}']
    sent = agent_gateway.requests("codex schema")[0]["response_format"]
    assert (sent["type"], sent["json_schema"]["schema"]) == ("json_schema", schema)


def test_an_error_of_the_gateway_is_shown(agent_gateway: AgentGateway, codex: Callable[..., CodexRun]) -> None:
    """An unknown model fails at once, with the gateway's message."""
    seen = codex("codex elsewhere", "--model", "nowhere")
    assert seen.run.status == 1
    failed = next(event for event in seen.events if event["type"] == "turn.failed")
    assert "nowhere" in failed["error"]["message"]
    assert [call.status for call in agent_gateway.calls("codex elsewhere")] == [404]


def test_a_refused_call_is_repeated(agent_gateway: AgentGateway, codex: Callable[..., CodexRun]) -> None:
    """The engine is full twice; the third call is answered."""
    agent_gateway.script("codex patience", Turn("At last.", refused=2))
    assert codex("codex patience").messages == ["At last."]
    assert [call.status for call in agent_gateway.calls("codex patience")] == [503, 503, 200]


def test_a_broken_stream_is_repeated(agent_gateway: AgentGateway, codex: Callable[..., CodexRun]) -> None:
    """The first stream ends in `response.failed`; Codex asks again."""
    agent_gateway.script("codex broken", Turn("All of it.", broken=1))
    assert codex("codex broken").messages == ["All of it."]
    statuses = [receipt["status"] for receipt in agent_gateway.receipts("codex broken")]
    assert statuses == ["engine_failed", "ok"]


def test_an_interrupted_task_ends_the_request(agent_gateway: AgentGateway, codex: Callable[..., CodexRun]) -> None:
    """SIGINT during a stream: the gateway detects that the client has gone."""
    agent_gateway.script("codex long", Turn("word " * 600), word_pause_s=0.1)

    def begun() -> bool:
        return any(call.status for call in agent_gateway.calls("codex long"))

    codex("codex long", interrupt_when=begun)
    assert [receipt["status"] for receipt in agent_gateway.receipts("codex long")] == ["client_gone"]
