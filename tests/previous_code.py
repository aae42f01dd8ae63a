"""The code of previous versions, from this repository's history."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMIT = "bbfe3b3cb1a41e3a3f5afe55eea3f23111bce3ab"
"""The last commit whose gateway keeps sums in Redis and receipts in an archive."""

WITHOUT_LABELS = "1cefd3674e6a015f4b16a083fb05731c86e039e3"
"""The last commit without labels, callers' identities and partitions."""

_ROOT = Path(__file__).parents[1]


def extract_previous(folder: Path, commit: str = COMMIT) -> Mapping[str, str]:
    """Write a previous version to a folder. Return the environment in which `python -m gateway` runs it.

    Skips the test in a shallow clone, which does not have that commit.
    """
    archive = folder / "previous.tar"
    command = ["git", "-C", str(_ROOT), "archive", "-o", str(archive), commit, "gateway"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (
            f"did not run: commit {commit[:7]} cannot be read here, a shallow clone lacks it ({done.stderr.strip()})"
        )
        pytest.skip(reason)
    with tarfile.open(archive) as files:
        files.extractall(folder / "previous", filter="data")
    archive.unlink()
    # Without PYTHONSAFEPATH the current folder, with the new version, comes first.
    return {**os.environ, "PYTHONPATH": str(folder / "previous"), "PYTHONSAFEPATH": "1"}
