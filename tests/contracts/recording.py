"""Results of the contract suite: the outcome of each test, by row of the table."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
ROWS = {
    "continuation": "the student continues the teacher's text, in JSON and SSE",
    "seam equality": "greedy, m = 5, 10, 20, 40: the guided answer is the engine's own, in JSON and SSE",
    "stop strings": "before, across and behind the seam: text and finish reason are the engine's own",
    "exact usage": "`usage` is the engine's own, at a limit and at a stop string",
    "error mapping": "a prompt that is too long is the caller's 400",
    "constraints": "a JSON schema, forbidden tokens and conditions of the end hold for the whole answer",
    "tools": "a forced tool call is the engine's own, in JSON and SSE",
    "disconnect": "the engine stops generating when the caller leaves, in JSON and SSE",
    "kill and restart": "a killed engine is an error for the caller; after the restart answers are guided again",
}
KINDS = ("fails", "not tested", "not supported", "pass")
"""Kinds of outcomes, the worst first. Not tested: the suite could not observe the contract with this server."""

_MAX_REASON_CHARS = 160


@dataclass
class EngineResults:
    """Results of one run.

    Attributes:
        settings: hardware and settings of the engine.
        rows: by row, the outcome of each test by its name: `pass`, or a kind of `KINDS` with its reason.
    """

    version: str
    date: str
    model: str
    settings: str
    rows: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, row: str, test: str, outcome: str) -> None:
        """Record the outcome of a test: `pass`, or a kind with a reason. A failure stays, whatever follows."""
        tests = self.rows.setdefault(row, {})
        if _kind(tests.get(test, "pass")) != "fails":
            tests[test] = outcome if _kind(outcome) in KINDS else f"not tested: {outcome}"

    def test_outcome(self, row: str, test: str) -> str:
        """Return the outcome of a test; "" if it did not run."""
        return self.rows.get(row, {}).get(test, "")

    def outcome(self, row: str) -> str | None:
        """Return the worst outcome of the row's tests and how many tests have its kind; None if no test ran."""
        outcomes = list(self.rows.get(row, {}).values())
        for kind in KINDS:
            if same := [outcome for outcome in outcomes if _kind(outcome) == kind]:
                share = "" if len(same) == len(outcomes) else f" ({len(same)} of {len(outcomes)} tests)"
                return f"{kind}{share}{same[0].removeprefix(kind)}"
        return None


def _kind(outcome: str) -> str:
    return outcome.partition(":")[0]


def read_results() -> dict[str, EngineResults]:
    """Return the recorded results by engine."""
    if not RESULTS.exists():
        return {}
    return {name: EngineResults(**found) for name, found in json.loads(RESULTS.read_text()).items()}


def write_result(name: str, results: EngineResults) -> None:
    """Replace the results of one engine."""
    everything: dict[str, Any] = {engine: asdict(found) for engine, found in read_results().items()}
    everything[name] = asdict(results)
    RESULTS.write_text(json.dumps(dict(sorted(everything.items())), indent=2, ensure_ascii=False) + "\n")


def reason(text: str) -> str:
    """Return the first line of a failure, without the class of the exception and shortened."""
    line = next((line for line in text.splitlines() if line.strip()), "no message")
    line = re.sub(r"^(AssertionError|Failed|Skipped): *", "", line.strip())
    return line if len(line) <= _MAX_REASON_CHARS else f"{line[: _MAX_REASON_CHARS - 3]}..."
