"""Tests of one server pass on a cluster of six nodes (GKT_TEST_REDIS=cluster)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("accounting/test_redis_ledger.py", "keys/test_redis_keyring.py", "quality/test_switches.py")
MORE = (
    "accounting/test_budgets.py",
    "accounting/test_limits.py",
    "batching/test_redis_scheduler.py",
    "batching/test_view.py",
    "cli/test_budgets_rebuild.py",
    "cli/test_keys_export.py",
    "collected",
    "keys",
    "quality",
    "stored_responses",
    "usage/test_feed.py",
    "usage/test_trimmer.py",
    "usage/test_uptime.py",
    "usage/test_worker.py",
)

# These tests fill one server, patch its command, or expect a count at once.
WITHOUT = "not full_redis and not despite_a_lost_reply and not of_a_lost_reply"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("files", [FILES, pytest.param(MORE, marks=pytest.mark.long)], ids=["few", "many"])
def test_tests_of_one_server_pass_on_a_cluster(files: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "-m", "not long"]
    done = subprocess.run(
        [*command, "-k", WITHOUT, *(f"tests/{file}" for file in files)],
        cwd=ROOT,
        env={**os.environ, "GKT_TEST_REDIS": "cluster"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
