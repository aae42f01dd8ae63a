"""The content of logs, and the content that they must not have."""

from __future__ import annotations

import subprocess
import sys

import pytest

BROKEN = """
import logging
import structlog
from gateway.telemetry.logs import set_up_logs

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
    """Values may be keys and prompts. Libraries' warnings and errors have the same format."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN.format(form=form)], capture_output=True, text=True, timeout=30, check=True
    )
    assert "it_broke" in done.stderr
    assert "it broke there" in done.stderr
    assert "RuntimeError: broken" in done.stderr
    assert "canary" not in done.stderr
    assert "chatter" not in done.stderr


QUOTING = """
import asyncio, contextvars, gc, logging, sys, threading, warnings
import structlog
from gateway.telemetry.logs import allow_content_in_logs, set_up_logs, log_loop_exception

set_up_logs("debug", "{form}")
log = structlog.get_logger()

def fails():
    try:
        int("can" "ary")
    except ValueError as error:
        raise KeyError("can" "ary") from error

class Odd:
    def __del__(self):
        raise ValueError("can" "ary")

async def never_awaited():
    raise ValueError("can" "ary")

async def handle():
    allow_content_in_logs(allowed={quotes})
    try:
        fails()
    except KeyError as error:
        error.add_note("can" "ary")
        log.exception("it_broke")
        logging.getLogger("some.library").exception("it broke there")

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_loop_exception)
    task = loop.create_task(handle())
    await task
    lost = loop.create_task(never_awaited())
    await asyncio.wait([lost])
    del lost
    loop.call_soon(lambda word: int(word), "can" "ary")
    await asyncio.sleep(0)
    gc.collect()

asyncio.run(main())
Odd()
thread = threading.Thread(target=int, args=("can" "ary",))
thread.start()
thread.join()
warnings.warn("can" "ary")
"""


def quoting(form: str, *, quotes: bool) -> str:
    script = QUOTING.format(form=form, quotes=quotes)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    return done.stderr


@pytest.mark.parametrize("form", ["json", "console"])
def test_tracebacks_are_logged_without_messages_that_may_quote_the_request(form: str) -> None:
    """Tracebacks have every frame and every kind of error, also of tasks, threads and finalizers."""
    output = quoting(form, quotes=False)
    assert "canary" not in output
    for kept in (
        "it_broke",
        "it broke there",
        "in fails",
        "KeyError: (message omitted",
        "ValueError: (message omitted",
    ):
        assert kept in output
    for event in ("never retrieved", "Exception in callback", "exception_ignored", "thread_failed"):
        assert event in output


def test_tracebacks_are_complete_for_tenants_with_log_content() -> None:
    assert quoting("json", quotes=True).count("canary") >= 4
