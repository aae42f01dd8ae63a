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
    from collections.abc import Generator, Iterator, Mapping

LENGTHS = (5, 10, 20, 40)
_recorded: dict[str, EngineResults] = {}


def selected() -> list[str]:
    if name := os.environ.get("GKT_ENGINE"):
        return [name]
    installed = [name for name in REAL if CATALOG[name].is_installed()] if os.environ.get("GKT_TESTS") == "full" else []
    return [STAND_IN, *installed]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize by engine."""
    if "engine" not in metafunc.fixturenames:
        return
    real = (pytest.mark.long, pytest.mark.models)
    params = [pytest.param(name, marks=() if name == STAND_IN else real) for name in selected()]
    metafunc.parametrize("engine", params, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow the recorded failures of installed engines."""
    if "GKT_ENGINE" in os.environ:
        return
    recorded = read_results()
    for item in items:
        if (why := recorded_failure(item, recorded)) is not None:
            item.add_marker(pytest.mark.xfail(reason=why, strict=False))


def recorded_failure(item: pytest.Item, recorded: Mapping[str, EngineResults]) -> str | None:
    """Return how this test failed in the engine's recorded run; None if it did not fail."""
    marker, engine = item.get_closest_marker("contract"), engine_of(item)
    if marker is None or engine not in recorded:
        return None
    outcome = recorded[engine].test_outcome(marker.args[0], item.name)
    return outcome if outcome.startswith("fails") else None


def engine_of(item: pytest.Item) -> str:
    """Return the name of the engine that a test runs with; "" without one."""
    callspec = getattr(item, "callspec", None)
    return "" if callspec is None else str(callspec.params.get("engine", ""))


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """A running engine."""
    entry: Engine = CATALOG[request.param]
    log_path = tmp_path_factory.mktemp("engine") / "engine.log"
    running = RunningEngine(entry, log_path, url=os.environ.get("GKT_ENGINE_URL"))
    try:
        running.start()
        now = datetime.datetime.now(datetime.UTC).date().isoformat()
        _recorded[entry.name] = EngineResults(running.version(), now, running.model_id, running.settings())
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
    with running_gateway(
        tmp_path_factory.mktemp("gateway"),
        redis_url=redis_url,
        models=models,
        routes=[
            *(guided(f"m{m}", tokens=m, cache_ttl="0s") for m in LENGTHS),
            STUDENT_ONLY,
        ],
    ) as process:
        wait_until_probed(process.admin_url)
        yield process


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record the outcome of a contract. The stand-in has no excuse: a test that skips it tests nothing."""
    report = yield
    if engine_of(item) == STAND_IN and report.when == "call" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
    marker = item.get_closest_marker("contract")
    results = _recorded.get(engine_of(item))
    if results is not None and marker is not None:
        if report.failed:
            text = call.excinfo.exconly() if call.excinfo is not None else str(report.longrepr)
            results.add(marker.args[0], item.name, f"fails: {reason(text)}")
        elif report.skipped and isinstance(report.longrepr, tuple):
            results.add(marker.args[0], item.name, reason(report.longrepr[2]))
        elif report.when == "call" and report.passed:
            results.add(marker.args[0], item.name, "pass")
    return report


def pytest_sessionfinish() -> None:
    """Write the results."""
    target = os.environ.get("GKT_ENGINE_RESULTS")
    if target and _recorded:
        Path(target).write_text(json.dumps({name: asdict(found) for name, found in _recorded.items()}))
