"""Run each contract with the stand-in, or with the engine that `scripts/engines` selects.

Environment: `GKT_ENGINE` is a name in the catalog; `GKT_ENGINE_URL` the address of a server that already runs;
`GKT_ENGINE_RESULTS` the file for the results. With `GKT_TESTS=full`, the contracts also run with each installed engine.
"""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.contracts.catalog import CATALOG, REAL, STAND_IN, Engine
from tests.contracts.recording import EngineResults, read_results, reason
from tests.contracts.running import RunningEngine
from tests.gateway_process import STUDENT_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

LENGTHS = (5, 10, 20, 40)
KNOWN_FAILURES = {
    "test_usage_at_a_stop_string_is_the_engines_own[stand-in-json]": (
        "a JSON student generates to its limit if the stop string begins in the guidance, and all of it counts"
    ),
}
"""Tests with the stand-in that fail, with the reason."""

_recorded: dict[str, EngineResults] = {}


def selected() -> list[str]:
    if name := os.environ.get("GKT_ENGINE"):
        return [name]
    installed = [name for name in REAL if CATALOG[name].is_installed()] if os.environ.get("GKT_TESTS") == "full" else []
    return [STAND_IN, *installed]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize by engine. Known failures of an installed engine do not fail `scripts/test --full`."""
    if "engine" not in metafunc.fixturenames:
        return
    marker = next((mark for mark in metafunc.function.pytestmark if mark.name == "contract"), None)
    known = {} if os.environ.get("GKT_ENGINE") else read_results()
    params = []
    for name in selected():
        marks: list[pytest.MarkDecorator] = []
        if name != STAND_IN:
            marks += [pytest.mark.long, pytest.mark.models]
        outcome = known[name].rows.get(marker.args[0], "") if name in known and marker is not None else ""
        if outcome.startswith("fails"):
            marks.append(pytest.mark.xfail(reason=outcome, strict=False))
        params.append(pytest.param(name, marks=marks))
    metafunc.parametrize("engine", params, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect the known failures."""
    for item in items:
        if (why := KNOWN_FAILURES.get(item.name)) is not None and "GKT_ENGINE" not in os.environ:
            item.add_marker(pytest.mark.xfail(reason=why, strict=True))


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """A running engine."""
    entry: Engine = CATALOG[request.param]
    log_path = tmp_path_factory.mktemp("engine") / "engine.log"
    running = RunningEngine(entry, log_path, url=os.environ.get("GKT_ENGINE_URL"))
    try:
        running.start()
        now = datetime.datetime.now(datetime.UTC).date().isoformat()
        _recorded[entry.name] = EngineResults(running.version(), now, running.model)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def gateway(
    engine: RunningEngine, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway whose teacher and student are the same engine. Route `m5` has guidance of 5 tokens, and so on."""
    protocol = engine.engine.protocol
    named = {"model": engine.model} if protocol == "openai" else {"continuation": "auto"}
    models = [model(name, protocol, engine.api_base, **named) for name in ("big", "small")]
    listed = {"batch": {"calls": "list", "low_water": 0}} if protocol == "openai" else {}
    models.append(model("listed", protocol, engine.api_base, **named, **listed))
    with running_gateway(
        tmp_path_factory.mktemp("gateway"),
        redis_url=redis_url,
        models=models,
        routes=[
            *(guided(f"m{m}", tokens=m, cache_ttl="0s") for m in LENGTHS),
            guided("listed", teacher="listed", tokens=10, cache_ttl="0s", max_wait="500ms"),
            STUDENT_ONLY,
        ],
    ) as process:
        wait_until_probed(process.admin_url)
        yield process


@pytest.fixture(autouse=True)
def _supported(request: pytest.FixtureRequest) -> None:
    """Skip contracts that the engine does not offer."""
    if "engine" not in request.fixturenames:
        return
    marker = request.node.get_closest_marker("contract")
    lacks = CATALOG[request.node.callspec.params["engine"]].lacks
    if marker is not None and marker.args[0] in lacks:
        pytest.skip(f"not supported: {lacks[marker.args[0]]}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record the outcome of a contract."""
    report = yield
    marker = item.get_closest_marker("contract")
    name = item.callspec.params["engine"] if marker is not None and hasattr(item, "callspec") else None
    if name in _recorded and marker is not None:
        if report.failed:
            text = call.excinfo.exconly() if call.excinfo is not None else str(report.longrepr)
            _recorded[name].add(marker.args[0], f"fails: {reason(text)}")
        elif report.skipped and isinstance(report.longrepr, tuple):
            _recorded[name].add(marker.args[0], reason(report.longrepr[2]))
        elif report.when == "call" and report.passed:
            _recorded[name].add(marker.args[0], "pass")
    return report


def pytest_sessionfinish() -> None:
    """Write the results."""
    target = os.environ.get("GKT_ENGINE_RESULTS")
    if target and _recorded:
        Path(target).write_text(json.dumps({name: asdict(found) for name, found in _recorded.items()}))
