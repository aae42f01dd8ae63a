"""Listeners prepare the process for many connections."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from gateway.config.settings import Settings
from gateway.server import listeners

if TYPE_CHECKING:
    from collections.abc import Callable

ENGINE = {
    "name": "small",
    "protocol": "openai",
    "api_base": "http://127.0.0.1:1",
    "price": {"input_per_1m": 1, "output_per_1m": 1},
}
SETTINGS = Settings.model_validate({"models": [ENGINE]})


def limits_up_to(maximum: int, taken: list[tuple[int, int]]) -> Callable[[int, tuple[int, int]], None]:
    def setrlimit(_: int, limits: tuple[int, int]) -> None:
        if limits[0] > maximum:
            raise ValueError("current limit exceeds maximum limit")
        taken.append(limits)

    return setrlimit


@pytest.mark.parametrize(
    ("maximum", "allowed", "warns"), [(1_000_000, 8704, False), (10_240, 8704, False), (8000, None, True)]
)
def test_open_files_are_raised_as_far_as_the_system_allows(
    maximum: int, allowed: int | None, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", limits_up_to(maximum, taken))
    with capture_logs() as logs:
        listeners._allow_open_files(SETTINGS)
    assert [soft for soft, _ in taken] == ([allowed] if allowed else [])
    assert [line["event"] for line in logs] == (["few_open_files"] if warns else [])


def test_a_system_with_a_lower_maximum_than_needed_gets_macos_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, int]] = []
    busy = Settings.model_validate({"models": [ENGINE], "server": {"max_connections": 50_000}})
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", limits_up_to(24_576, taken))
    with capture_logs() as logs:
        listeners._allow_open_files(busy)
    assert taken == [(10_240, resource.RLIM_INFINITY)]
    assert [line["allowed"] for line in logs] == [10_240]
