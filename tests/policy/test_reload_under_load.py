"""Edit policies under load: a valid edit applies in both workers within 2 s, and no request fails."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.fakes import FakeEngine, begin_events, chunk, event, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway, sha256
from tests.gateway_process import write_policy as write
from tests.readiness import wait_until_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from aiohttp import web

WORKERS = 2
CALLERS = 8
WITHIN_S = 2.0  # what is promised
NEW_KEY = "gk-test-of-initech"


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(says("A ship sails over the sea.")).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reload")


@pytest.fixture(scope="module")
def gateway(folder: Path, redis_url: str, engine: FakeEngine) -> Iterator[GatewayProcess]:
    with running_gateway(
        folder,
        models=[model("small", "openai", f"{engine.url}/v1")],
        routes=[STUDENT_ONLY | {"baseline": "small"}],
        redis_url=redis_url,
        redis={"prefix": "reload"},
        server={"workers": WORKERS},
    ) as process:
        wait_until_up(process.admin_url)
        yield process


class Callers:
    """Send requests without pauses, as JSON and as streams, each on its own connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answered = 0
        self.failed: list[str] = []

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._call(stop, stream=bool(number % 2)))
            try:
                yield
            finally:
                stop.set()

    async def _call(self, stop: asyncio.Event, *, stream: bool) -> None:
        body = {"model": "chat-student", "stream": stream, "messages": [{"role": "user", "content": "Write."}]}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            while not stop.is_set():
                try:
                    async with session.post(
                        f"{self._url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}
                    ) as reply:
                        text = await reply.text()
                except aiohttp.ClientError as error:
                    self.failed.append(repr(error))
                    continue
                whole = "sea." in text and (not stream or "[DONE]" in text)
                if reply.status == 200 and whole:
                    self.answered += 1
                else:
                    self.failed.append(f"{reply.status} {text}")


def policy(tenant: str, key: str, *models: str) -> dict[str, Any]:
    routes = [{"model": name, "mode": "student", "student": "small"} for name in models]
    return {"tenant": tenant, "keys": [{"id": "only", "sha256": sha256(key)}], "routes": routes}


async def seen_by_all(gateway: GatewayProcess, true: Callable[[dict[str, Any]], bool]) -> tuple[float, str]:
    """Ask for readiness in detail, each time on a new connection, until every worker says so: after how long, and what
    version holds then."""
    began, seen = time.monotonic(), {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        while len(seen) < WORKERS:
            assert time.monotonic() - began < 10 * WITHIN_S, f"only workers {set(seen)} have seen it"
            async with session.get(f"{gateway.admin_url}/readyz") as reply:
                detail = await reply.json()
            if true(detail["policies"]):
                seen[detail["worker"]] = detail["policies"]["version"]
            await asyncio.sleep(0.005)
    (version,) = set(seen.values())
    return time.monotonic() - began, version


async def models(gateway: GatewayProcess, key: str) -> set[tuple[int, str]]:
    """Return the replies to a key's callers on many connections, from any worker."""
    replies = set()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        for _ in range(8):
            async with session.get(f"{gateway.url}/v1/models", headers={"Authorization": f"Bearer {key}"}) as reply:
                body = await reply.json()
                replies.add((reply.status, ",".join(one["id"] for one in body.get("data", ()))))
    return replies


async def metric(gateway: GatewayProcess, sample: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.admin_url}/metrics") as reply:
        text = await reply.text()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(sample))


async def reloads(gateway: GatewayProcess) -> tuple[float, float]:
    """Return the loaded and refused reloads of all workers."""
    name = "gkt_policy_reloads_total"
    return (await metric(gateway, f'{name}{{result="loaded"}}'), await metric(gateway, f'{name}{{result="refused"}}'))


@pytest.mark.long
async def test_a_request_keeps_the_policy_of_its_start(
    gateway: GatewayProcess, engine: FakeEngine, folder: Path
) -> None:
    """A stream of a removed tenant ends normally, with its receipt."""
    resume = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def slow(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        await response.write(event(chunk({"content": "A ship"})))
        loops.append(asyncio.get_running_loop())
        await resume.wait()
        await response.write(event(chunk({"content": " sails."}, "stop")))
        return response

    engine.behave = slow
    body = {"model": "chat-student", "stream": True, "messages": [{"role": "user", "content": "Write."}]}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers) as reply,
    ):
        assert reply.status == 200
        assert b"A ship" in await reply.content.readuntil(b"\n\n")
        acme = folder / "policies" / "acme.yaml"
        acme.rename(folder / "acme.yaml")
        await seen_by_all(gateway, lambda replies: replies["files"] == 1)
        assert await models(gateway, KEY) == {(401, "")}
        loops[0].call_soon_threadsafe(resume.set)
        rest = await reply.text()
    assert " sails." in rest
    assert rest.endswith("data: [DONE]\n\n")
    (folder / "acme.yaml").rename(acme)
    await seen_by_all(gateway, lambda replies: replies["files"] == 2)
    line = gateway.wait_for_log("request", id=reply.headers["x-request-id"])
    assert (line["tenant"], line["status"]) == ("acme", "ok")


@pytest.mark.long
async def test_ten_edits_of_which_two_are_broken_fail_no_request(
    gateway: GatewayProcess, engine: FakeEngine, folder: Path
) -> None:
    engine.behave = says("A ship sails over the sea.")
    shelf, callers = folder / "policies", Callers(gateway.url)
    took_s: list[float] = []
    _, held = await seen_by_all(gateway, lambda replies: not replies["stale"])

    async def holds(*names: str, key: str = NEW_KEY) -> None:
        """The current files are in effect in each worker, and callers see it."""
        nonlocal held
        passed_s, held = await seen_by_all(gateway, lambda replies: not replies["stale"] and replies["version"] != held)
        took_s.append(passed_s)
        assert await models(gateway, key) == {(200, ",".join(names)) if names else (401, "")}

    async def refused(file: str) -> None:
        await seen_by_all(gateway, lambda replies: replies["stale"] and file in "".join(replies["error"]))
        assert await metric(gateway, "gkt_policy_stale") == 1

    loaded, refused_before = await reloads(gateway)
    async with callers.calling():
        write(shelf / "initech.yaml", policy("initech", NEW_KEY, "a"))  # 1: a tenant comes
        await holds("a")
        write(shelf / "initech.yaml", policy("initech", NEW_KEY, "a", "b"))  # 2
        await holds("a", "b")
        (shelf / "initech.yaml").write_text("tenant: initech\nroutes: [\n")  # 3: broken
        await refused("policies/initech.yaml:3")
        assert await models(gateway, NEW_KEY) == {(200, "a,b")}
        write(shelf / "initech.yaml", policy("initech", NEW_KEY, "c"))  # 4: mended
        await holds("c")
        write(shelf / "acme.yaml", policy("acme", KEY, "chat-student", "more"))  # 5: the tenant of the callers
        await holds("chat-student", "more", key=KEY)
        write(shelf / "globex.yaml", policy("globex", NEW_KEY, "x"))  # 6: broken, a key of two tenants
        await refused("policies/initech.yaml:4")
        (shelf / "globex.yaml").unlink()  # 7: mended by removing a tenant
        await holds("c")
        (shelf / "..1").mkdir()
        write(shelf / "..1" / "initech.yaml", policy("initech", NEW_KEY, "d"))
        (shelf / ".link").symlink_to("..1/initech.yaml")
        (shelf / ".link").rename(shelf / "initech.yaml")  # 8: through a link
        await holds("d")
        write(shelf / "initech.yaml", policy("initech", NEW_KEY, "e"))  # 9: in the place of the link
        await holds("e")
        (shelf / "initech.yaml").unlink()  # 10: a tenant goes
        await holds()
    print(
        f"10 edits, 2 of them broken: {callers.answered} answers, {len(callers.failed)} failures; "
        f"seen by both workers after {', '.join(f'{one:.2f}' for one in took_s)} s"
    )
    assert callers.failed == []
    assert callers.answered > 100
    assert len(took_s) == 8
    assert max(took_s) < WITHIN_S
    # Once by each worker.
    assert await reloads(gateway) == (loaded + 8 * WORKERS, refused_before + 2 * WORKERS)
    assert await metric(gateway, "gkt_policy_stale") == 0
    gateway.process.send_signal(signal.SIGHUP)
    for worker in range(1, WORKERS + 1):
        gateway.wait_for_log("policies_unchanged", worker=worker, version=held)
    assert gateway.terminate() == 0
