"""Edits of config.yaml while requests run: engines that are added, changed and removed, and other settings."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.api import keys
from gateway.redis.keys import RedisKeys
from tests.gateway_process import guided, redis_prefix
from tests.live.world import ADMIN_KEY, LIMIT_S, Engine, World, following, route, student

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    Begin = Callable[..., Any]

DOWN = "http://127.0.0.1:9/v1"


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


def engine_tasks(name: str) -> list[str]:
    """Return the names of the tasks that belong to an engine."""
    names = (task.get_name() for task in asyncio.all_tasks())
    return sorted(one for one in names if one in {f"engine:{name}", f"batches:{name}"})


async def test_cached_guidance_of_another_address_is_not_used(begin: Begin, engines: list[Engine]) -> None:
    """Both servers report the same model."""
    first, second = engines
    world = await begin([student("big", first), student("small", first)], guided("chat"))

    async def sources() -> list[str]:
        return [(await world.receipt((await world.ask())[1]))["teacher"].get("shared", "") for _ in range(2)]

    assert await sources() == ["", "cache"]
    world.write_config([student("big", second), student("small", first)])
    await world.applied()
    assert await sources() == ["", "cache"]


async def test_an_added_engine_is_probed_before_its_first_request_while_streams_run(
    begin: Begin, engines: list[Engine]
) -> None:
    """The policy that names the engine is written before config.yaml, and applies with it."""
    first, second = engines
    world = await begin([student("small", first)], route("chat", "small"))
    unchanged = world.engine("small")
    async with world.streaming() as answer:
        world.write_policy(route("chat", "small"), route("chat-other", "other"))
        await world.until(lambda: world.lines_of("policies_refused"))
        assert await world.models() == ["chat"]
        world.write_config([student("small", first), student("other", second, continuation="auto")])
        await world.applied()
        assert world.engine("other").state.up
        assert (second.probes > 0, second.calls) == (True, 0)
        assert await world.models() == ["chat", "chat-other"]
        assert (await world.ask("chat-other"))[0] == 200
        first.resume.set()
        assert (await answer.text()).endswith("data: [DONE]\n\n")
    assert (first.calls, second.calls) == (1, 1)
    assert world.engine("small") is unchanged
    [line] = world.lines_of("config_loaded")
    assert (line["models_added"], line["models_changed"], line["models_removed"]) == (["other"], [], [])
    assert engine_tasks("other") == ["batches:other", "engine:other"]
    assert set((await world.get("/readyz", admin=True))["engines"]) == {"small", "other"}
    assert world.metric("gkt_engine_up", engine="other") == 1


async def test_a_request_keeps_the_engine_and_the_price_of_its_start(begin: Begin, engines: list[Engine]) -> None:
    """The next request has the new ones. The old engine is closed after its last request."""
    first, second = engines
    world = await begin([student("small", first, price=1.0)], route("chat", "small"))
    before = world.engine("small")
    async with world.streaming() as answer:
        world.write_config([student("small", second, price=10.0)])
        await world.applied()
        status, after_id = await world.ask()
        assert status == 200
        assert (first.calls, second.calls) == (1, 1)
        await world.until(lambda: world.metric("gkt_engine_in_flight", engine="small") == 1)
        assert not world.lines_of("engine_closed")
        first.resume.set()
        assert (await answer.text()).endswith("data: [DONE]\n\n")
        before_id = answer.headers["x-request-id"]
    shares = [(await world.receipt(one))["student"] for one in (before_id, after_id)]
    assert [share["input_tokens"] for share in shares] == [10, 10]
    costs = [Decimal(share["cost_usd"]) for share in shares]
    assert costs[1] == 10 * costs[0] > 0
    await world.until(lambda: world.lines_of("engine_closed"))
    await world.until(lambda: first.connections == 0)
    assert world.engine("small") is not before
    assert engine_tasks("small") == ["batches:small", "engine:small"]
    assert (await world.ask())[0] == 200


async def test_a_price_changes_without_a_new_engine(begin: Begin, engines: list[Engine]) -> None:
    """The engine keeps its connections and its circuit breaker."""
    world = await begin([student("small", engines[0], price=1.0)], route("chat", "small"))
    before = world.engine("small")
    first_id = (await world.ask())[1]
    world.write_config([student("small", engines[0], price=3.0)])
    await world.applied()
    second_id = (await world.ask())[1]
    costs = [Decimal((await world.receipt(one))["cost_usd"]) for one in (first_id, second_id)]
    assert costs[1] == 3 * costs[0]
    assert world.engine("small") is before
    assert not world.lines_of("engine_closed")
    assert world.lines_of("config_loaded")[0]["models_changed"] == ["small"]


async def test_a_removed_engine_finishes_its_requests(
    begin: Begin, engines: list[Engine], redis_url: str, tmp_path: Path
) -> None:
    """Then the process leaves the fleet of the removed teacher."""
    first, second = engines
    world = await begin(
        [student("small", first), student("other", second)], route("chat", "small"), route("chat-other", "other")
    )
    fleet = RedisKeys(redis_prefix(tmp_path)).teacher("other").owners

    async def has_joined() -> bool:
        async with Redis.from_url(redis_url) as redis:
            return bool(await redis.exists(fleet))

    async with asyncio.timeout(LIMIT_S):
        while not await has_joined():
            await asyncio.sleep(0.01)
    async with world.streaming("chat-other") as answer:
        world.write_config([student("small", first)])
        world.write_policy(route("chat", "small"))
        await world.applied()
        assert await world.models() == ["chat"]
        assert (await world.ask("chat-other"))[0] == 404
        assert set(world.engine_set.by_name) == {"small"}
        second.resume.set()
        assert (await answer.text()).endswith("data: [DONE]\n\n")
        request_id = answer.headers["x-request-id"]
    assert (await world.receipt(request_id))["status"] == "ok"
    await world.until(lambda: not engine_tasks("other") and second.connections == 0)
    assert not await has_joined()
    up = world.metric("gkt_engine_up", engine="other")
    assert up is not None
    assert math.isnan(up)
    world.write_config([student("small", first), student("other", second)])  # and back
    world.write_policy(route("chat", "small"), route("chat-other", "other"))
    await world.applied()
    assert (await world.ask("chat-other"))[0] == 200
    assert engine_tasks("other") == ["batches:other", "engine:other"]


async def test_the_calls_of_a_removed_engine_are_published_until_they_end(begin: Begin, engines: list[Engine]) -> None:
    first, second = engines
    models = [student("small", first), student("other", second)]
    world = await begin(models, route("chat", "small"), route("chat-other", "other"))

    def published() -> float | None:
        return world.metric("gkt_engine_in_flight", engine="other")

    async with world.streaming("chat-other") as answer:
        async with world.streaming("chat-other"):
            await world.until(lambda: published() == 2)
            world.write_config(models[:1])
            world.write_policy(route("chat", "small"))
            await world.applied()
        await world.until(lambda: published() == 1)  # the caller disconnected
        second.resume.set()
        assert (await answer.text()).endswith("data: [DONE]\n\n")
    await world.until(lambda: published() == 0)


async def test_an_engine_is_closed_although_another_cannot_leave_its_fleet(
    begin: Begin, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [student(name, engines[0]) for name in ("small", "one", "two")]
    world = await begin(models, route("chat", "small"))
    monkeypatch.setattr(world.parts.batcher.queue("one"), "leave_fleet", lambda: 1 / 0)
    world.write_config(models[:1])
    await world.applied()
    await world.until(lambda: not engine_tasks("one") and not engine_tasks("two"))
    assert [line["engine"] for line in world.lines_of("engine_closed")] == ["one", "two"]
    assert [line["engine"] for line in world.lines_of("teacher_not_removed")] == ["one"]


async def test_a_model_that_a_policy_names_is_not_removed(begin: Begin, engines: list[Engine]) -> None:
    """config.yaml is written before the policy. The issue has the line of the policy."""
    first, second = engines
    models = [student("small", first), student("other", second)]
    world = await begin(models, route("chat", "small"), route("chat-other", "other"))
    world.write_config(models[:1])
    await world.until(lambda: world.config["error"])
    [issue] = world.config["error"]
    assert issue.startswith("policies/acme.yaml:")
    assert "no model in config.yaml is called 'other'" in issue
    assert (await world.ask("chat-other"))[0] == 200
    assert world.metric("gkt_config_stale") == 1
    assert world.metric("gkt_config_reloads_total", result="refused") == 1
    assert (await world.get("/config", admin=True))["error"] == [issue]
    world.write_policy(route("chat", "small"))
    await world.applied()
    assert set(world.engine_set.by_name) == {"small"}
    assert world.metric("gkt_config_stale") == 0


async def test_an_invalid_config_yaml_keeps_the_engines_and_policies_follow_their_edits(
    begin: Begin, engines: list[Engine]
) -> None:
    world = await begin([student("small", engines[0])], route("chat", "small"))
    before = world.engine_set
    (world.folder / "config.yaml").write_text("models:\n  - name: small\n    protocoll: openai\n")
    await world.until(lambda: world.config["error"])
    assert world.config["error"][0].startswith("config.yaml:")
    assert world.lines_of("config_refused")[0]["issues"] == tuple(world.config["error"])
    world.write_policy(route("chat", "small"), route("more", "small"))
    await world.until(lambda: world.lines_of("policies_loaded"))
    assert await world.models() == ["chat", "more"]
    assert world.engine_set is before
    assert (await world.ask("more"))[0] == 200
    world.write_config([student("small", engines[1])])
    await world.applied()
    assert (await world.ask())[0] == 200
    assert engines[1].calls == 1


async def test_an_engine_that_is_down_is_used_like_at_the_start(begin: Begin, engines: list[Engine]) -> None:
    """Requests of its routes fail until it is up; the gateway is degraded."""
    world = await begin([student("small", engines[0])], route("chat", "small"))
    gone = student("other", engines[1]) | {"api_base": DOWN}
    world.write_config([student("small", engines[0]), gone])
    world.write_policy(route("chat", "small"), route("chat-other", "other"))
    await world.applied()
    assert world.engine("other").state.up is False
    assert (await world.get("/readyz", admin=True))["status"] == "degraded"
    assert (await world.ask("chat-other"))[0] in {502, 503}
    assert (await world.ask())[0] == 200


async def test_settings_that_need_a_restart_are_named_and_the_rest_applies(begin: Begin, engines: list[Engine]) -> None:
    world = await begin([student("small", engines[0], price=1.0)], route("chat", "small"))
    server = {"host": "127.0.0.1", "port": 0, "max_in_flight": 7}
    world.write_config([student("small", engines[1], price=1.0)], server=server, receipts={"ttl": "2d"})
    state = await world.applied()
    fields = [line.split(": ", 1)[1] for line in state["restart"]]
    assert fields == [
        "server.max_in_flight: restart the gateway to apply it", "receipts.ttl: restart the gateway to apply it",
    ]  # fmt: skip
    lines = (world.folder / "config.yaml").read_text().splitlines()
    numbers = [int(line.split(":")[1]) for line in state["restart"]]
    assert ["max_in_flight" in lines[numbers[0] - 1], "ttl" in lines[numbers[1] - 1]] == [True, True]
    assert (state["changed"], state["needs"], state["error"]) == (True, "a restart", [])
    assert world.lines_of("config_needs_restart")[0]["settings"] == tuple(state["restart"])
    assert world.metric("gkt_config_stale") == 1
    assert (await world.get("/config", admin=True))["restart"] == state["restart"]
    assert (await world.ask())[0] == 200
    assert engines[1].calls == 1
    world.write_config([student("small", engines[1], price=1.0)])
    state = await world.applied()
    assert (state["changed"], state["restart"]) == (False, [])
    assert world.metric("gkt_config_stale") == 0


async def test_default_limits_apply_to_the_next_request(begin: Begin, engines: list[Engine]) -> None:
    world = await begin([student("small", engines[0])], route("chat", "small"))
    assert [(await world.ask())[0] for _ in range(2)] == [200, 200]
    world.write_config([student("small", engines[0])], defaults={"limits": {"rpm_limit": 1}})
    await world.applied()
    assert world.lines_of("config_loaded")[0]["settings"] == ["defaults.limits.rpm_limit"]
    assert (await world.get("/v1/limits"))["tenant"]["requests_per_minute"]["limit"] == 1
    assert 429 in [(await world.ask())[0] for _ in range(2)]


async def test_the_limits_of_a_teacher_and_of_its_calls_follow_an_edit(begin: Begin, engines: list[Engine]) -> None:
    """Calls that began before the edit count for the same server."""
    world = await begin([student("small", engines[0], max_concurrency=5)], route("chat", "small"))
    queue = world.parts.batcher.queue("small")
    assert queue._limits().max_in_flight == 5
    async with world.streaming() as answer:
        edited = {"max_concurrency": 3, "batch": {"max_size": 2}, "timeouts": {"idle": "20s"}}
        world.write_config([student("small", engines[0], **edited)])
        await world.applied()
        assert world.parts.batcher.queue("small") is queue
        assert (queue._limits().max_in_flight, queue._limits().max_size) == (3, 2)
        assert world.engine("small")._slots.limit == 2
        engines[0].resume.set()
        await answer.text()
    await world.until(lambda: world.engine("small")._slots.limit == 3)


async def test_a_lease_follows_the_deadline_of_an_added_teacher(begin: Begin, engines: list[Engine]) -> None:
    world = await begin([student("small", engines[0])], route("chat", "small"))
    world.write_config([student("small", engines[0]), student("big", engines[1])])
    world.write_policy(route("chat", "small"), guided("guided", teacher="big", deadline="120s"))
    await world.applied()
    assert world.parts.batcher.queue("big")._limits().lease_s == 120.0


async def test_an_engine_is_probed_again_when_an_edit_changes_its_purpose(begin: Begin, engines: list[Engine]) -> None:
    """Other edits of policies have no effect."""
    world = await begin([student("small", engines[0]), student("big", engines[1])], route("chat", "small"))
    live = world.live_engines
    events = {name: asyncio.Event() for name in world.engine_set.by_name}
    for engine, probing in live._probing.items():
        probing.now = events[engine.name]  # which no task awaits and clears

    async def probed_after(*routes: dict[str, Any]) -> list[str]:
        version = world.parts.admin[keys.POLICIES].edition.version
        world.write_policy(*routes)
        await world.until(lambda: world.parts.admin[keys.POLICIES].edition.version != version)
        names = [name for name, event in events.items() if event.is_set()]
        for event in events.values():
            event.clear()
        return names

    embeds = {"model": "vectors", "mode": "embeddings", "student": "small"}
    assert await probed_after(route("chat", "big"), route("more", "small")) == []
    assert await probed_after(route("chat", "big"), embeds) == ["small"]
    assert await probed_after(embeds, route("chat", "big")) == []
    assert await probed_after(route("chat", "big")) == ["small"]


async def test_a_request_whose_body_arrives_during_an_edit_keeps_its_policy_and_engine(
    begin: Begin, engines: list[Engine]
) -> None:
    """The policy and the engines that it names are from the same moment."""
    first, second = engines
    world = await begin(
        [student("small", first), student("other", second)], route("chat", "small"), route("chat-other", "other")
    )
    rest = asyncio.Event()
    raw = world.body("chat-other")

    async def parts() -> AsyncIterator[bytes]:
        yield raw[:20]
        await rest.wait()
        yield raw[20:]

    asking = asyncio.ensure_future(world.send(parts()))  # noqa: TID251  awaited below
    before = world.engine_set
    await world.until(lambda: before.is_used)
    world.write_config([student("small", first)])
    world.write_policy(route("chat", "small"))
    await world.applied()
    rest.set()
    assert await asking == 200
    assert second.calls == 1
    await world.until(lambda: world.lines_of("engine_closed"))


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
        assert (limit["value"], limit["from"], limit["restart"]) == (600, "file", False)
        assert "rpm_limit" in lines[limit["line"] - 1]
        assert (settings["tracing.service"]["value"], settings["usage.days"]["value"]) == ("gkt-${THE_PREFIX}", "400d")
        assert settings["models[0].api_base"]["value"] == engines[0].url
        assert (settings["models[0].api_key"]["secret"], settings["models[0].api_key"]["value"]) == (True, None)
        drain = settings["server.drain_timeout"]
        assert (drain["value"], drain["from"], drain["line"], drain["restart"]) == ("30s", "default", None, True)
        assert (found["file"], found["last_reload"], found["policies"]["last_reload"]) == ("config.yaml", None, None)
        await _follows_edits(world, models)


async def _follows_edits(world: World, models: list[dict[str, Any]]) -> None:
    """Check the result of an edit that is applied in part, of one that is refused, and of one of the policies."""
    server = {"host": "127.0.0.1", "port": 0, "max_in_flight": 7}
    world.write_config(models, defaults={"limits": {"rpm_limit": 700}}, server=server)
    await world.applied()
    found = await world.get("/config", admin=True)
    settings = {one["name"]: one for one in found["settings"]}
    assert settings["defaults.limits.rpm_limit"]["value"] == 700
    held = settings["server.max_in_flight"]
    assert (held["value"], held["from"], held["line"]) == (1024, None, None), "it waits for a restart"
    service = settings["tracing.service"]
    assert (service["value"], service["from"]) == ("gkt-${THE_PREFIX}", None), "variables keep their names"
    assert (found["last_reload"]["result"], found["last_reload"]["settings"]) == (
        "applied",
        ["defaults.limits.rpm_limit"],
    )
    (world.folder / "config.yaml").write_text("models: []\n")
    await world.until(lambda: world.config["error"])
    found = await world.get("/config", admin=True)
    assert (found["last_reload"]["result"], found["last_reload"]["issues"]) == ("refused", found["error"])
    limit = next(one for one in found["settings"] if one["name"] == "defaults.limits.rpm_limit")
    assert (limit["value"], limit["from"], limit["line"]) == (700, None, None), "the file has changed since"
    world.write_policy(route("chat", "small"), route("more", "small"))
    await world.until(lambda: world.lines_of("policies_loaded"))
    found = await world.get("/config", admin=True)
    assert found["policies"]["last_reload"]["result"] == "applied"
