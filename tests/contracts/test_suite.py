"""The contract suite itself: it finds faults, and does not attribute its own limits to an engine."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from load_tests.fake.engine import FakeEngine
from load_tests.fake.profile import Profile
from tests.contracts.catalog import CATALOG, STAND_IN
from tests.contracts.running import RunningEngine
from tests.contracts.stop_strings import PLACES, stop_strings
from tests.contracts.test_engines import generates_after_disconnect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """A stand-in that finishes JSON calls whose client left."""
    command = [sys.executable, "-m", "tests.contracts.stand_in", "--finish-abandoned", "--port"]
    entry = replace(CATALOG[STAND_IN], command=lambda port: [*command, str(port)])
    running = RunningEngine(entry, tmp_path_factory.mktemp("stand-in") / "engine.log")
    try:
        running.start()
        yield running
    finally:
        running.stop()


def elsewhere(name: str, url: str, folder: Path) -> RunningEngine:
    running = RunningEngine(CATALOG[name], folder / "engine.log", url=url)
    running.start()
    return running


def test_an_engine_that_finishes_abandoned_calls_is_found(stand_in: RunningEngine) -> None:
    assert generates_after_disconnect(stand_in, stand_in.url, stand_in.model, stream=False)


@pytest.mark.parametrize("name", ["llama.cpp", "ollama", "sglang"])
def test_a_server_elsewhere_does_not_get_the_version_of_this_machine(
    stand_in: RunningEngine, name: str, tmp_path: Path
) -> None:
    running = elsewhere(name, stand_in.url, tmp_path)
    assert (running.version(), running.model_id, running.settings()) == ("unknown", STAND_IN, "unknown")


def test_a_server_elsewhere_gets_the_settings_of_the_caller(
    stand_in: RunningEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GKT_ENGINE_SETTINGS", "H100, bfloat16")
    running = elsewhere("vllm", stand_in.url, tmp_path)
    assert (running.version(), running.settings()) == ("0.32.0", "H100, bfloat16")


async def test_the_model_of_tgi_is_that_of_its_info(tmp_path: Path) -> None:
    async with FakeEngine(Profile(model="org/model", dialect="tgi")).serving() as url:
        running = await asyncio.to_thread(elsewhere, "tgi", url, tmp_path)
        assert (running.model, running.model_id) == ("tgi", "org/model")
        assert await asyncio.to_thread(running.version) == "3.3.7"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vllm", None),
        ("sglang", "SGLang has no metric sglang:num_running_reqs"),
        ("llama.cpp", "does not report its running requests"),
        ("ollama", "cannot observe a server that runs elsewhere"),
    ],
)
def test_the_suite_knows_what_it_cannot_observe(
    stand_in: RunningEngine, name: str, reason: str | None, tmp_path: Path
) -> None:
    found = elsewhere(name, stand_in.url, tmp_path).unobservable()
    assert found is None if reason is None else reason in str(found)


ANSWER = "The sky is blue, since the air scatters blue light.\nThe sea is blue, since it mirrors the sky above it."


def test_each_place_has_a_stop_string_that_occurs_there_first() -> None:
    seam = ANSWER.index(" scatters")
    found = stop_strings(ANSWER, seam)
    assert found.keys() == PLACES.keys()
    for place, stop in found.items():
        start = ANSWER.find(stop)
        assert PLACES[place](start, start + len(stop), seam), (place, stop)
        assert "\n" not in stop


def test_text_that_occurs_earlier_is_no_stop_string() -> None:
    assert stop_strings("la " * 40, 30) == {}
    assert "behind the seam" not in stop_strings(f"{ANSWER}\n{ANSWER}", len(ANSWER))
