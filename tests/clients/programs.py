"""Clients in processes of their own: a program reads its scenarios from stdin and writes the results to stdout."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import orjson

from tests.clients.environments import clean_environment
from tests.clients.fault_gateway import a_question
from tests.clients.refusals import REFUSALS, Attempt
from tests.gateway_process import KEY

if TYPE_CHECKING:
    from pathlib import Path

    from tests.clients.fault_gateway import FaultGateway
    from tests.clients.tap import Call

LIMIT_S = 120.0


def run(command: list[str | Path], *, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a client to its end, without the user's own settings."""
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=LIMIT_S, check=False, stdin=subprocess.DEVNULL,
        env=clean_environment() | environment,
    )  # fmt: skip


class ClientRun:
    """The results of a program: all its scenarios and refusals, played concurrently, and each call with its receipt.

    A program writes `ready` to stdout when its imports are done. It reads one JSON object from stdin: `base_url`,
    `key`, `questions` (by scenario) and `refusals` (each with its question). It writes one JSON object to stdout.
    `scenarios` has the result of each scenario. `refusals` has the exception of each refusal: `raised` (the class),
    `status`, `code`, `param`.
    """

    def __init__(
        self, fault_gateway: FaultGateway, command: list[str | Path], scenarios: list[str], *, cwd: Path
    ) -> None:
        self._fault_gateway = fault_gateway
        self.questions = {scenario: a_question(scenario) for scenario in scenarios}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd, env=clean_environment()
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n", "its stderr stands above"
                with fault_gateway.crowd(), fault_gateway.audited():
                    self.attempts = {refusal.name: Attempt(fault_gateway, refusal) for refusal in REFUSALS}
                    plan = {
                        "base_url": fault_gateway.url,
                        "key": KEY,
                        "questions": self.questions,
                        "refusals": [attempt.as_dict() for attempt in self.attempts.values()],
                    }
                    written, _ = process.communicate(orjson.dumps(plan).decode(), timeout=LIMIT_S)
            finally:
                process.kill()
        assert process.returncode == 0, "its stderr stands above"
        seen = orjson.loads(written)
        self._scenes: dict[str, Any] = seen["scenarios"]
        self.refusals: dict[str, dict[str, Any]] = seen["refusals"]

    def saw(self, scenario: str) -> Any:
        """Return the result of a scenario; fail if it raised."""
        seen = self._scenes[scenario]
        assert "raised" not in seen, seen
        return seen["value"]

    def raised(self, scenario: str) -> dict[str, Any]:
        """Return the exception of a scenario; fail if it returned."""
        seen: dict[str, Any] = self._scenes[scenario]
        assert "raised" in seen, seen
        return seen

    def calls(self, scenario: str) -> list[Call]:
        """Return the calls with the scenario's question."""
        return self._fault_gateway.calls(question=self.questions[scenario])
