"""Wait for results of a gateway's background work."""

from __future__ import annotations

import time
from typing import Any

import httpx

LIMIT_S = 60.0


def detail(admin_url: str) -> dict[str, Any]:
    reply: dict[str, Any] = httpx.get(f"{admin_url}/readyz").json()
    return reply


def wait_until_probed(admin_url: str, *engines: str) -> dict[str, Any]:
    """Wait until every engine, or each of `engines`, is up and its continuation is known; return detailed readiness.

    Without `engines` the process has started, too: /readyz answers 200.
    """
    return _wait(admin_url, "up", "continuation", engines=engines)


def wait_until_up(admin_url: str) -> dict[str, Any]:
    """Wait until every engine was checked and is up; return detailed readiness."""
    return _wait(admin_url, "up")


def _wait(admin_url: str, *fields: str, engines: tuple[str, ...] = ()) -> dict[str, Any]:
    give_up = time.monotonic() + LIMIT_S
    while True:
        seen = detail(admin_url)
        checked = [seen["engines"][one] for one in engines or seen["engines"]]
        has_started = bool(engines) or seen["status"] != "starting"  # the process has more to do than to ask engines
        if has_started and all(engine[name] for engine in checked for name in fields):
            return seen
        assert time.monotonic() < give_up, f"not probed in {LIMIT_S:g} s: {seen}"
        time.sleep(0.1)


def wait_until_looked_at(admin_url: str) -> dict[str, Any]:
    """Wait until every engine was checked, up or not; return detailed readiness."""
    give_up = time.monotonic() + LIMIT_S
    while (seen := detail(admin_url))["status"] == "starting":
        assert time.monotonic() < give_up, f"not looked at in {LIMIT_S:g} s: {seen}"
        time.sleep(0.1)
    return seen
