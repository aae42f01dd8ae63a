"""The records of the published evaluations, from the archive in docs/evaluation."""

from __future__ import annotations

import atexit
import shutil
import tarfile
import tempfile
from functools import cache
from pathlib import Path

ARCHIVE = Path(__file__).parents[2] / "docs" / "evaluation" / "records.tar.xz"


@cache
def records() -> Path:
    """Extract the archive once per process, and return the folder of the runs. It is deleted at exit."""
    folder = Path(tempfile.mkdtemp(prefix="gkt-records-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "records"
