"""The unmodified `llm` command on the fault_gateway: its output, exit status and retries."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from tests.clients.environments import python_environment
from tests.clients.fault_gateway import PERSON, REST, WHOLE, FaultGateway, a_question
from tests.clients.programs import run
from tests.clients.refusals import TRIES
from tests.gateway_process import KEY

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.clients.tap import Call

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]  # it is installed on first use

WEATHER = 'def weather(city: str) -> str:\n    "The weather in a city."\n    return "sunny in " + city\n'
# Questions by model and options. All commands run concurrently, since each takes a second to start.
QUICK: dict[str, tuple[str, ...]] = {
    "streamed": ("chat", "--usage"),
    "whole": ("chat", "--no-stream", "--usage", "-o", "max_tokens", "50", "-o", "temperature", "0.5"),
    "unknown": ("gpt-5-at-the-gateway",),
    "broken": ("broken", "--no-stream"),
    "breaks": ("breaks",),
}
LONG: dict[str, tuple[str, ...]] = {
    "schema": ("person", "--schema", "name, born int"),
    "tool": ("tools", "--functions", WEATHER),
    "stranger": ("chat", "--key", "gk-stranger"),
    "wrong": ("chat", "-o", "max_tokens", "0"),
    "busy-twice": ("busy-twice",),
    "ends-early": ("ends-early",),
    "wire-cut": ("wire-cut",),
}


class Answers:
    """The output, the exit status and the calls of each command."""

    def __init__(
        self, fault_gateway: FaultGateway, commands: dict[str, tuple[str, ...]], bin_folder: Path, user_folder: Path
    ) -> None:
        self._fault_gateway = fault_gateway
        self.questions = {name: a_question(name) for name in commands}

        def ask(name: str) -> subprocess.CompletedProcess[str]:
            model, *options = commands[name]
            command: list[Any] = [bin_folder / "llm", "-m", f"gkt/{model}", *options, self.questions[name]]
            # Each with a copy: the first commands of one user, given all at once, get in each other's way in its log.
            folder = shutil.copytree(user_folder, user_folder.with_name(f"{user_folder.name}-{name}"))
            return run(command, cwd=folder, LLM_USER_PATH=str(folder))

        with fault_gateway.audited(), ThreadPoolExecutor(4) as pool:
            pending: dict[str, Future[subprocess.CompletedProcess[str]]] = {n: pool.submit(ask, n) for n in commands}
            self.of = {name: future.result() for name, future in pending.items()}

    def calls(self, name: str) -> list[Call]:
        return self._fault_gateway.calls(question=self.questions[name])


@pytest.fixture(scope="module")
def user_folder(fault_gateway: FaultGateway, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a user's folder with the fault_gateway's models and a key."""
    folder = tmp_path_factory.mktemp("llm")
    models = [
        {"model_id": f"gkt/{name}", "model_name": name.removesuffix("-at-the-gateway"), "api_base": fault_gateway.url,
         "api_key_name": "gkt", "supports_tools": True, "supports_schema": True}
        for name in ("chat", *FaultGateway.ROUTES, "gpt-5-at-the-gateway")
    ]  # fmt: skip
    YAML().dump(models, folder / "extra-openai-models.yaml")
    (folder / "keys.json").write_text(json.dumps({"gkt": KEY}), "utf-8")
    return folder


@pytest.fixture(scope="module")
def llm(fault_gateway: FaultGateway, user_folder: Path) -> Answers:
    return Answers(fault_gateway, QUICK, python_environment("llm"), user_folder)


@pytest.fixture(scope="module")
def llm_long(fault_gateway: FaultGateway, user_folder: Path) -> Answers:
    return Answers(fault_gateway, LONG, python_environment("llm"), user_folder)


@pytest.mark.long
@pytest.mark.parametrize("name", ["streamed", "whole"])
def test_an_answer_is_printed_and_counted(llm: Answers, name: str) -> None:
    """Streamed, which is the default, and whole. It requests usage by default, and `--usage` prints it."""
    done = llm.of[name]
    assert (done.stdout, done.returncode) == (WHOLE + "\n", 0)
    assert "Token usage: 5 input, 9 output" in done.stderr
    sent = llm.calls(name)[0].json
    assert bool(sent.get("stream")) is (name == "streamed")
    assert sent.get("stream_options") == ({"include_usage": True} if name == "streamed" else None)


def test_options_reach_the_gateway(llm: Answers) -> None:
    """`-o` sets OpenAI's parameters by name."""
    sent = llm.calls("whole")[0].json
    assert (sent["max_tokens"], sent["temperature"]) == (50, 0.5)


@pytest.mark.parametrize(
    ("name", "message", "calls"),
    [("unknown", "There is no model 'gpt-5' for this key", 1), ("broken", "Engine 'broken' answered 500", TRIES)],
)
def test_a_rejection_is_printed_verbatim(llm: Answers, name: str, message: str, calls: int) -> None:
    """Exit status 1, the message on stderr, nothing on stdout. Only retryable errors are retried."""
    _check_refusal(llm, name, message, calls)


def _check_refusal(llm: Answers, name: str, message: str, calls: int) -> None:
    done = llm.of[name]
    assert (done.stdout, done.returncode) == ("", 1)
    assert message in done.stderr
    assert len(llm.calls(name)) == calls


def test_a_broken_stream_is_an_error(llm: Answers) -> None:
    """The received words are printed, and the exit status reports the failure."""
    _check_break(llm, "breaks")
    assert llm.of["breaks"].stdout == " two words"
    assert "Engine 'breaks' failed during its answer" in llm.of["breaks"].stderr


def _check_break(llm: Answers, name: str) -> None:
    done = llm.of[name]
    assert done.returncode == 1
    assert "Error" in done.stderr
    assert len(llm.calls(name)) == 1


@pytest.mark.long
def test_a_schema_is_filled_in(llm_long: Answers) -> None:
    """The student gets the schema as a json_schema."""
    assert json.loads(llm_long.of["schema"].stdout) == PERSON
    assert llm_long.calls("schema")[0].json["response_format"]["type"] == "json_schema"


@pytest.mark.long
def test_a_function_is_called_and_its_result_answered(llm_long: Answers) -> None:
    """Two calls of the gateway: one with the question, one with the function's result."""
    assert llm_long.of["tool"].stdout.strip() == "It is sunny in Oslo."


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "message"),
    [("stranger", "Unknown API key"), ("wrong", "'max_tokens': expected an integer >= 1")],
)
def test_a_request_error_is_not_retried(llm_long: Answers, name: str, message: str) -> None:
    """The client sends one call. The error names the field."""
    _check_refusal(llm_long, name, message, 1)


@pytest.mark.long
def test_a_retrying_client_gets_its_answer(llm_long: Answers) -> None:
    """The engine is full twice; the third call is answered."""
    assert llm_long.of["busy-twice"].stdout == REST + "\n"
    assert [call.status for call in llm_long.calls("busy-twice")] == [503, 503, 200]


@pytest.mark.long
@pytest.mark.parametrize("name", ["ends-early", "wire-cut"])
def test_a_stream_without_an_end_is_an_error(llm_long: Answers, name: str) -> None:
    """Both kinds of broken streams are errors."""
    _check_break(llm_long, name)
