"""Write the dashboards to this folder: python -m deploy.grafana.build

Their contents are in the modules of DASHBOARDS. Edit those, then run this.
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana.batcher import BATCHER
from deploy.grafana.cost import COST
from deploy.grafana.engines import ENGINES
from deploy.grafana.latency import LATENCY
from deploy.grafana.overview import OVERVIEW

FOLDER = Path(__file__).parent
DASHBOARDS = {"overview": OVERVIEW, "cost": COST, "latency": LATENCY, "batcher": BATCHER, "engines": ENGINES}


def text(name: str) -> str:
    """Return the file of a dashboard."""
    return json.dumps(DASHBOARDS[name].json(), indent=2) + "\n"


if __name__ == "__main__":
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(text(name), "utf-8")
