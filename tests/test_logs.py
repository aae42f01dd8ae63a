"""What reaches the log, and what must not."""

from __future__ import annotations

import subprocess
import sys

import pytest

BROKEN = """
import logging
import structlog
from gateway.logs import set_up_logs

set_up_logs("info", "{form}")

def fails(api_key):
    raise RuntimeError("broken")

try:
    fails("sk-can" "ary-in-a-local")
except RuntimeError:
    structlog.get_logger().exception("it_broke")
    logging.getLogger("some.library").exception("it broke there")
logging.getLogger("some.library").info("chatter")
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exception_is_logged_without_the_values_of_local_variables(form: str) -> None:
    """They hold keys and prompts. Libraries speak up down the same path, but only when something is wrong."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN.format(form=form)], capture_output=True, text=True, timeout=30, check=True
    )
    assert "it_broke" in done.stderr
    assert "it broke there" in done.stderr
    assert "RuntimeError: broken" in done.stderr
    assert "canary" not in done.stderr
    assert "chatter" not in done.stderr
