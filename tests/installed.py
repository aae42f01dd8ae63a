"""Programs that tests need and that scripts/system installs where it can."""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str) -> str:
    """Return the path of a program. Without it the test is skipped with a reason; in CI it fails."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is not None:
        return found
    reason = f"did not run: there is no {name} here, which scripts/system installs"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
