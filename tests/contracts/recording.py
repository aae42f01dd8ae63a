"""Results of the contract suite, one for each row of the table."""

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
    "constraints": "`response_format` with a JSON schema holds",
    "tools": "a forced tool call is the engine's own, in JSON and SSE",
    "disconnect": "the engine stops generating when the caller leaves, in JSON and SSE",
    "kill and restart": "a killed engine is an error for the caller; after the restart answers are guided again",
    "list calls": "guidance of several requests in one call equals single calls",
    "list counts": "each member of a list call is charged for its own prompt tokens",
}
_MAX_REASON_CHARS = 160


@dataclass
class EngineResults:
    """Results of one run: version, date, model, and by row `pass`, `fails: ...` or `not supported: ...`."""

    version: str
    date: str
    model: str
    rows: dict[str, str] = field(default_factory=dict)

    def add(self, row: str, outcome: str) -> None:
        """Combine the outcome of a test with the row's. Failures precede missing support, which precedes passes."""
        rank = ("fails", "not supported", "pass")
        known = self.rows.get(row)
        if known is None or rank.index(outcome.partition(":")[0]) < rank.index(known.partition(":")[0]):
            self.rows[row] = outcome


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
