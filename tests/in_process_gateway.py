"""A gateway in this process that follows edits of its policies, and engines in the same event loop."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
from aiohttp import web
from ruamel.yaml import YAML
from structlog.testing import capture_logs

from gateway.api import keys
from gateway.api.loop_scheduler import LoopScheduler
from gateway.api.runner import Runner
from gateway.app import WatchedFiles, gateway
from gateway.config.settings import OVERRIDES
from gateway.policy.config_files import ConfigFiles
from tests.fakes import begin_events, chunk, event, reply
from tests.gateway_process import KEY, model, redis_prefix, sha256

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import pytest

    from gateway.accounting.engine_set import EngineSet
    from gateway.app import Gateway
    from gateway.engines.guard import GuardedEngine

LIMIT_S = 60.0
HEADERS = {"Authorization": f"Bearer {KEY}"}
CHAT = "/v1/chat/completions"
ADMIN_KEY = "a-key-for-the-admin"
ADMIN_HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}


class Engine:
    """An engine whose streams send one word, and the rest when `resume` is set."""

    def __init__(self) -> None:
        self.calls = self.probes = 0  # of callers, and of the gateway itself
        self.resume = asyncio.Event()
        self.url = ""
        self._runner: web.AppRunner

    @property
    def connections(self) -> int:
        """The open connections."""
        assert self._runner.server is not None
        return len(self._runner.server.connections)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body.get("user") != "test":
            self.probes += 1
            return web.json_response(reply("Yes."))
        self.calls += 1
        if not body.get("stream"):
            return web.json_response(reply("A ship sails."))
        response = await begin_events(request)
        await response.write(event(chunk({"content": "A ship"})))
        await self.resume.wait()
        await response.write(event(chunk({"content": " sails."}, "stop")))
        await response.write(event({**chunk({}), "choices": [], "usage": reply("A ship sails.")["usage"]}))
        await response.write(b"data: [DONE]\n\n")
        return response

    @staticmethod
    async def _models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
            yield self
        finally:
            self.resume.set()
            await self._runner.cleanup()


class World:
    """A gateway, its files, its engines and its log."""

    def __init__(self, folder: Path, redis_url: str, session: aiohttp.ClientSession, log: list[Any]) -> None:
        self.folder, self.log = folder, log
        self.parts: Gateway
        self.url = self.admin_url = ""
        self._redis_url, self._session = redis_url, session

    def write_config(self, models: list[dict[str, Any]], **sections: Any) -> None:
        config = {
            "server": {"host": "127.0.0.1", "port": 0},
            "admin": {"port": 0, "key": f"file:{self.folder / 'admin.key'}"},
            "redis": {"url": self._redis_url, "prefix": redis_prefix(self.folder), "timeout": "5s", "lease": "60s"},
            "usage": {"run": "command"},
            "models": models,
        }
        self._write("config.yaml", config | sections)

    def write_policy(self, *routes: dict[str, Any]) -> None:
        key = {"id": "only", "sha256": sha256(KEY)}
        self._write("policies/acme.yaml", {"tenant": "acme", "keys": [key], "routes": list(routes)})

    def _write(self, name: str, content: dict[str, Any]) -> None:
        file = self.folder / name
        fresh = file.with_name(f".{file.name}.new")
        YAML().dump(content, fresh)
        fresh.rename(file)

    @property
    def engine_set(self) -> EngineSet:
        return self.parts.public[keys.ENGINES]

    def engine(self, name: str) -> GuardedEngine:
        return self.engine_set.by_name[name]

    def lines_of(self, event: str) -> list[Any]:
        return [line for line in self.log if line["event"] == event]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.parts.public[keys.METRICS].registry.get_sample_value(name, labels)

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not true():
                await asyncio.sleep(0.01)

    async def get(self, path: str, *, admin: bool = False) -> Any:
        url, headers = (self.admin_url, ADMIN_HEADERS) if admin else (self.url, HEADERS)
        async with self._session.get(f"{url}{path}", headers=headers) as answer:
            return await answer.json()

    async def models(self) -> list[str]:
        return [one["id"] for one in (await self.get("/v1/models"))["data"]]

    async def ask(self, route: str = "chat") -> tuple[int, str]:
        """Return the status of a request, and its id."""
        async with self.post(route, stream=False) as answer:
            await answer.read()
            return answer.status, answer.headers["x-request-id"]

    @staticmethod
    def body(route: str, *, stream: bool = False) -> bytes:
        messages = [{"role": "user", "content": "Write."}]
        return orjson.dumps({"model": route, "messages": messages, "stream": stream, "user": "test", "max_tokens": 50})

    def post(self, route: str, *, stream: bool) -> Any:
        headers = HEADERS | {"Content-Type": "application/json"}
        return self._session.post(f"{self.url}{CHAT}", data=self.body(route, stream=stream), headers=headers)

    @asynccontextmanager
    async def streaming(self, route: str = "chat") -> AsyncIterator[aiohttp.ClientResponse]:
        """Begin a stream, whose first word has arrived."""
        async with self.post(route, stream=True) as answer:
            assert answer.status == 200
            assert b"A ship" in await answer.content.readuntil(b"\n\n")
            yield answer

    async def receipt(self, request_id: str) -> Any:
        async with asyncio.timeout(LIMIT_S):
            while "error" in (found := await self.get(f"/v1/receipts/{request_id}")):
                await asyncio.sleep(0.02)
        return found


def student(name: str, engine: Engine, price: float = 1.0, **more: Any) -> dict[str, Any]:
    """Return a model that is not probed for its continuation."""
    usd = {"input_per_1m": price, "output_per_1m": price}
    return model(name, "openai", engine.url, **{"price": usd, "continuation": "none"} | more)


def route(name: str, engine: str, **more: Any) -> dict[str, Any]:
    return {"model": name, "mode": "student", "student": engine} | more


@asynccontextmanager
async def following(
    folder: Path,
    redis_url: str,
    patch: pytest.MonkeyPatch,
    models: list[dict[str, Any]],
    *routes: dict[str, Any],
    **sections: Any,
) -> AsyncIterator[World]:
    """Run a gateway with these models and the routes of one tenant."""
    for variable in OVERRIDES:
        patch.delenv(variable, raising=False)
    patch.chdir(folder)
    (folder / "policies").mkdir()
    (folder / "admin.key").write_text(ADMIN_KEY)
    with capture_logs() as log:
        async with AsyncExitStack() as stack:
            world = World(folder, redis_url, await stack.enter_async_context(aiohttp.ClientSession()), log)
            world.write_config(models, **sections)
            world.write_policy(*routes)
            settings, policy_set, files = ConfigFiles.open(folder / "config.yaml")
            watched = WatchedFiles(files, asyncio.Event())
            world.parts = parts = await stack.enter_async_context(
                gateway(settings, policy_set, redis_url, watched=watched)
            )
            metrics, urls = parts.public[keys.METRICS], list[str]()
            for listener, app in (("public", parts.public), ("admin", parts.admin)):
                runner = Runner(
                    app,
                    metrics=metrics,
                    listener=listener,
                    max_connections=100,
                    scheduler=LoopScheduler(metrics),
                    access_log=None,
                    handler_cancellation=True,
                    shutdown_timeout=0.1,
                )
                await runner.setup()
                stack.push_async_callback(runner.cleanup)
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
            world.url, world.admin_url = urls
            await world.until(lambda: all(one.state.up is not None for one in world.engine_set.by_name.values()))
            yield world
