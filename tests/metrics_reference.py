"""Update the table of docs/reference/metrics.md: python -m tests.metrics_reference"""

from __future__ import annotations

import re
from pathlib import Path

from gateway.telemetry.metrics import Metrics

PAGE = Path(__file__).parents[1] / "docs/reference/metrics.md"
_TABLE = re.compile(r"^\| metric \|.*?\n\n", re.DOTALL | re.MULTILINE)


def table() -> str:
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for collector in Metrics().registry._collector_to_names:
        for family in collector.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            # Gauges that are computed for each scrape have their labels in the family.
            labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", ())
            shown = ", ".join(f"`{label}`" for label in labels)
            rows.append(f"| `{name}` | {family.type} | {shown} | {family.documentation} |")
    return "\n".join(rows) + "\n\n"


def document() -> str:
    return _TABLE.sub(lambda _: table(), PAGE.read_text("utf-8"), count=1)


if __name__ == "__main__":
    PAGE.write_text(document(), "utf-8")
