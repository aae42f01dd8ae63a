"""A gateway process imports SQLAlchemy with its first query, and does so in a thread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# It prints the thread that imports SQLAlchemy, and what the first queries find.
_FIRST_QUERIES = """
import asyncio, sys, threading
from pathlib import Path
import gateway.server.listeners
from gateway.telemetry.metrics import Metrics
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.config.settings import Settings
from gateway.usage.access import UsageAccess

class Watching:
    def find_spec(self, name, path=None, target=None):
        if name == "sqlalchemy":
            print("imported in", threading.current_thread().name.partition("_")[0])
sys.meta_path.insert(0, Watching())

async def run():
    settings, metrics = Settings.model_validate({"data": Path(sys.argv[1]), "models": [MODEL]}), Metrics()
    redis = RedisClient("redis://127.0.0.1:1", timeout_s=0.1, metrics=metrics)
    usage = UsageAccess(settings, redis, RedisKeys("t"), "owner", metrics)
    print("built")
    database = usage.database
    found = await asyncio.gather(usage.receipts.find("acme", "req_0"), database.uptime([]), database.comparisons(0))
    print(*found)
    await usage.close()
    await redis.close()

MODEL = {"name": "m", "protocol": "openai", "api_base": "http://127.0.0.1:1", "model": "m"}
MODEL["price"] = {"input_per_1m": 1, "output_per_1m": 1}
asyncio.run(run())
"""


def test_the_first_query_imports_sqlalchemy_in_its_thread(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_QUERIES, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.stdout.splitlines() == ["built", "imported in usage-query", "None [] {}"], done.stderr
