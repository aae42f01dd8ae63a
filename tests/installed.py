"""Programs that tests use and do not bring: scripts/system installs them where it may."""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str) -> str:
    """Where it is. Where it is missing the test did not run, and says so; in CI that is a failure."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is not None:
        return found
    said = f"did not run: there is no {name} here, which scripts/system installs"
    if os.environ.get("CI"):
        pytest.fail(said)
    pytest.skip(said)
