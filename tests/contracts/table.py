"""The page docs/reference/engine-tests.md, from the recorded results of the contract suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.contracts.catalog import CATALOG, REAL, ROOT
from tests.contracts.recording import ROWS, read_results

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.contracts.recording import EngineResults

PAGE = ROOT / "docs" / "reference" / "engine-tests.md"
NOT_VERIFIED = "not verified"
_HEAD = """# Engine tests

Results of the contract suite with real engines. `scripts/engines --table` generates this page. `scripts/engines`
[installs the engines](../engines.md#test-an-engine) and runs the suite ([tests/contracts](../../tests/contracts)).

Teacher and student are the same engine, and a gateway process is between the suite and the engine. Engines without a
column were not run.

- *Not verified*: the test was not run with this engine.
- *Not tested*: the suite could not observe the contract with this server.
- *Not supported*: the engine does not offer it, with or without the gateway.
"""


def page(results: Mapping[str, EngineResults]) -> str:
    """Return the page."""
    titles = [CATALOG[name].title for name in REAL]
    lines = [_HEAD, f"| contract | {' | '.join(titles)} |", f"|---|{'---|' * len(REAL)}"]
    for label in ("version", "date", "model", "settings"):
        cells = [str(getattr(results[name], label)) if name in results else NOT_VERIFIED for name in REAL]
        lines.append(_row(label, cells))
    for row in ROWS:
        found = (results[name].outcome(row) if name in results else None for name in REAL)
        lines.append(_row(row, [outcome or NOT_VERIFIED for outcome in found]))
    lines.append("\n| contract | meaning |\n|---|---|")
    lines += [f"| {row} | {meaning} |" for row, meaning in ROWS.items()]
    missing = [f"- {CATALOG[name].title}: {CATALOG[name].unavailable}." for name in REAL if CATALOG[name].unavailable]
    lines.append("\n`scripts/engines` does not install:\n\n" + "\n".join(missing))
    return "\n".join(lines) + "\n"


def _row(label: str, cells: list[str]) -> str:
    return f"| {label} | {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def write() -> None:
    """Write the page from the recorded results."""
    PAGE.write_text(page(read_results()))
