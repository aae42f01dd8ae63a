"""The engines of a running gateway: their probes, their published calls, and the settings that `/config` shows."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from gateway.api import keys
from tests.gateway_process import guided
from tests.in_process_gateway import ADMIN_KEY, LIMIT_S, Engine, World, following, route, student

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    Begin = Callable[..., Any]


@pytest_asyncio.fixture
async def engines() -> AsyncIterator[list[Engine]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Engine().running()) for _ in range(2)]


@pytest_asyncio.fixture
async def begin(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Begin]:
    """A function that starts a gateway with models and routes."""
    async with AsyncExitStack() as stack:

        async def start(models: list[dict[str, Any]], *routes: dict[str, Any], **sections: Any) -> World:
            world = following(tmp_path, redis_url, monkeypatch, models, *routes, **sections)
            return await stack.enter_async_context(world)

        yield start


async def edited(world: World, *routes: dict[str, Any]) -> None:
    """Replace the policy, and wait until it is in use."""
    version = world.parts.admin[keys.POLICIES].edition.version
    world.write_policy(*routes)
    await world.until(lambda: world.parts.admin[keys.POLICIES].edition.version != version)


async def test_an_engine_is_probed_again_when_an_edit_changes_its_purpose(begin: Begin, engines: list[Engine]) -> None:
    """Other edits of policies have no effect."""
    small, big = engines
    models = [student("small", small, continuation="auto"), student("big", big, continuation="auto")]
    world = await begin(models, route("chat", "big"), route("more", "small"))

    async def seen_after(*routes: dict[str, Any]) -> None:
        await edited(world, *routes)
        await world.until(lambda: world.lines_of("policies_loaded"))

    embeds = {"model": "vectors", "mode": "embeddings", "student": "small"}
    await world.until(lambda: small.probes and big.probes)
    before = small.probes, big.probes
    await seen_after(route("chat", "big"), route("other", "small"))
    await seen_after(route("chat", "big"), embeds)
    await seen_after(route("chat", "big"), route("more", "small"))
    await world.until(lambda: small.probes > before[0])
    assert big.probes == before[1]


async def test_the_calls_of_an_engine_are_published(begin: Begin, engines: list[Engine]) -> None:
    world = await begin([student("small", engines[0])], route("chat", "small"))

    def published() -> float | None:
        return world.metric("gkt_engine_in_flight", engine="small")

    async with world.streaming() as answer:
        await world.until(lambda: published() == 1)
        engines[0].resume.set()
        assert (await answer.text()).endswith("data: [DONE]\n\n")
    await world.until(lambda: published() == 0)


async def test_a_lease_follows_the_deadline_of_a_teacher(begin: Begin, engines: list[Engine]) -> None:
    models = [student("small", engines[0]), student("big", engines[1])]
    world = await begin(models, route("chat", "small"))
    queue = world.parts.batcher.queue("big")
    assert queue._limits().lease_s == 60.0
    await edited(world, route("chat", "small"), guided("guided", teacher="big", deadline="120s"))
    async with asyncio.timeout(LIMIT_S):
        while queue._limits().lease_s != 120.0:
            await asyncio.sleep(0.01)


async def test_the_settings_in_effect_are_shown_with_their_lines_and_without_secrets(
    begin: Begin, engines: list[Engine]
) -> None:
    models = [student("small", engines[0], api_key="env:THE_ENGINE_KEY")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THE_ENGINE_KEY", "an-engine-key-for-tests")
        patch.setenv("THE_PREFIX", "hidden")
        sections = {"defaults": {"limits": {"rpm_limit": 600}}, "tracing": {"service": "gkt-${THE_PREFIX}"}}
        world = await begin(models, route("chat", "small"), **sections)
        found = await world.get("/config", admin=True)
        assert "an-engine-key" not in str(found)
        assert ADMIN_KEY not in str(found)
        settings = {one["name"]: one for one in found["settings"]}
        lines = (world.folder / "config.yaml").read_text().splitlines()
        limit = settings["defaults.limits.rpm_limit"]
        assert (limit["value"], limit["from"]) == (600, "file")
        assert "rpm_limit" in lines[limit["line"] - 1]
        assert (settings["tracing.service"]["value"], settings["usage.days"]["value"]) == ("gkt-${THE_PREFIX}", "400d")
        assert settings["models[0].api_base"]["value"] == engines[0].url
        assert (settings["models[0].api_key"]["secret"], settings["models[0].api_key"]["value"]) == (True, None)
        drain = settings["server.drain_timeout"]
        assert (drain["value"], drain["from"], drain["line"]) == ("30s", "default", None)
        assert (found["file"], found["last_reload"], found["policies"]["last_reload"]) == ("config.yaml", None, None)
        world.write_config(models, defaults={"limits": {"rpm_limit": 700}})
        found = await world.get("/config", admin=True)
        limit = next(one for one in found["settings"] if one["name"] == "defaults.limits.rpm_limit")
        assert (limit["value"], limit["from"], limit["line"]) == (600, None, None), "the file has changed since"
        await edited(world, route("chat", "small"), route("more", "small"))
        found = await world.get("/config", admin=True)
        assert found["policies"]["last_reload"]["result"] == "applied"
