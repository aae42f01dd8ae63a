"""Clients in processes of their own: a program reads its scenes from stdin and writes the results to stdout."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import orjson

from tests.clients.environments import clean_environment
from tests.clients.refusals import REFUSALS, Attempt
from tests.clients.stage import a_question
from tests.gateway_process import KEY

if TYPE_CHECKING:
    from pathlib import Path

    from tests.clients.stage import Stage
    from tests.clients.tap import Call

LIMIT_S = 120.0


def run(command: list[str | Path], *, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a client to its end, without the user's own settings."""
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=LIMIT_S, check=False, stdin=subprocess.DEVNULL,
        env=clean_environment() | environment,
    )  # fmt: skip


class Performance:
    """The results of a program: all its scenes and refusals, played concurrently, and each call with its receipt.

    A program writes `ready` to stdout when its imports are done. It reads one JSON object from stdin: `base_url`,
    `key`, `questions` (by scene) and `refusals` (each with its question). It writes one JSON object to stdout.
    `scenes` has the result of each scene. `refusals` has the exception of each refusal: `raised` (the class),
    `status`, `code`, `param`.
    """

    def __init__(self, stage: Stage, command: list[str | Path], scenes: list[str], *, cwd: Path) -> None:
        self._stage = stage
        self.questions = {scene: a_question(scene) for scene in scenes}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd, env=clean_environment()
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n", "its stderr stands above"
                with stage.crowd(), stage.audited():
                    self.attempts = {refusal.name: Attempt(stage, refusal) for refusal in REFUSALS}
                    plan = {
                        "base_url": stage.url,
                        "key": KEY,
                        "questions": self.questions,
                        "refusals": [attempt.as_dict() for attempt in self.attempts.values()],
                    }
                    written, _ = process.communicate(orjson.dumps(plan).decode(), timeout=LIMIT_S)
            finally:
                process.kill()
        assert process.returncode == 0, "its stderr stands above"
        seen = orjson.loads(written)
        self._scenes: dict[str, Any] = seen["scenes"]
        self.refusals: dict[str, dict[str, Any]] = seen["refusals"]

    def saw(self, scene: str) -> Any:
        """Return the result of a scene; fail if it raised."""
        seen = self._scenes[scene]
        assert "raised" not in seen, seen
        return seen["value"]

    def raised(self, scene: str) -> dict[str, Any]:
        """Return the exception of a scene; fail if it returned."""
        seen: dict[str, Any] = self._scenes[scene]
        assert "raised" in seen, seen
        return seen

    def calls(self, scene: str) -> list[Call]:
        """Return the calls with the scene's question."""
        return self._stage.calls(question=self.questions[scene])
