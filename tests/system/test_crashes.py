"""Gateway processes and their Redis are killed, paused and removed under load; the others continue.

Every test counts the callers' outcomes, the teacher's calls and their concurrency, and the keys in Redis. Each test
prints the counts in one line (`pytest -rP`, or `-s`).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.accounting.recent_settlements import REMEMBERED_S
from gateway.local.redis import EmbeddedRedis
from gateway.redis.keys import RedisKeys
from tests.fakes import FakeEngine, begin_events, chunk, event, says
from tests.gateway_process import KEY, UNREACHED, GatewayProcess, guided, model
from tests.readiness import wait_until_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from aiohttp import web

# Whole processes die under load here, each test for seconds: test_crash.py has the same for one process at a time.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.long]

CAP = 3
LEASE_S = 3.0
DEADLINE_S = 3.0
KEYS = RedisKeys("crashes")
OPENING, REST = "The answer to your question begins", " here and ends there."


class Teacher:
    """Answer after a pause; count all calls, the current calls, and their maximum concurrency."""

    def __init__(self) -> None:
        self.reset()
        self.now = 0
        self.engine = FakeEngine(self._behave)

    def reset(self) -> None:
        self.takes_s = 0.3
        self.calls = self.most = self.finished = 0

    async def _behave(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.now -= 1
        self.finished += 1
        return await says(OPENING, "length")(request, body)


async def dribbles(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Stream a word every tenth of a second for a while; answer JSON at once."""
    if not body.get("stream"):
        return await says(REST)(request, body)
    response = await begin_events(request)
    for _ in range(30):
        await response.write(event(chunk({"content": " word"})))
        await asyncio.sleep(0.1)
    await response.write(event(chunk({}, "stop")) + b"data: [DONE]\n\n")
    await response.write_eof()
    return response


@dataclass
class Fleet:
    """Gateways on one Redis between one teacher and one student; `got` counts the callers' outcomes by gateway."""

    server: EmbeddedRedis
    redis: Redis
    teacher: Teacher
    gateways: list[GatewayProcess] = field(default_factory=list)
    clients: list[httpx.AsyncClient] = field(default_factory=list)
    got: list[Counter[str]] = field(default_factory=list)

    async def begin(self) -> None:
        """Start the stopped gateways, wait until each knows all others, and reset the counts."""
        await asyncio.gather(*(asyncio.to_thread(self._start, process) for process in self.gateways))
        for client in self.clients:
            await client.aclose()
        self.clients = [
            httpx.AsyncClient(base_url=process.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=20)
            for process in self.gateways
        ]
        await until(lambda: self.redis.zcard(KEYS.teacher("big").owners), len(self.gateways), LEASE_S + 6)
        await asyncio.sleep(LEASE_S / 4)  # a heartbeat of each process
        await asyncio.sleep(REMEMBERED_S + 1)  # only this test resends data to an empty Redis
        for process in self.gateways:
            process.log.clear()
        await until(lambda: self.redis.keys("*crashes:tenant:*:intents:*"), [], LEASE_S + 6)
        for name in await self.redis.keys("*crashes:tenant:*:receipt:*"):
            await self.redis.delete(name)
        self.got = [Counter() for _ in self.gateways]
        self.teacher.reset()

    @property
    def all(self) -> range:
        return range(len(self.gateways))

    @property
    def others(self) -> range:
        """All gateways except the one that fails."""
        return range(1, len(self.gateways))

    @staticmethod
    def _start(process: GatewayProcess) -> None:
        if process.url and process.process.poll() is None:
            return
        if process.url:
            process.close()
        process.log.clear()
        process.start()
        wait_until_up(process.admin_url)  # until it knows the teacher's weights it shares no call

    async def ask(self, at: int, text: str, **more: Any) -> str:
        """Return the outcome of one request at one gateway: guided, unguided and why, an error code, or lost."""
        body = {"model": "chat", "messages": [{"role": "user", "content": text}]} | more
        try:
            answer = await self.clients[at].post("/v1/chat/completions", json=body)
        except httpx.TransportError:
            end = "lost"
        else:
            if answer.status_code == 200:
                end = answer.headers.get("x-gkt-unguided", "guided")
                if "data:" not in answer.text:
                    generated = answer.json()["choices"][0]["message"]["content"]
                    assert generated == ("The answer to your question" + REST if end == "guided" else REST)
            else:
                end = answer.json()["error"]["code"]
        self.got[at][end] += 1
        return end

    def asks(self, at: int, many: int, about: str = "", **more: Any) -> asyncio.Task[list[str]]:
        """Send several requests at once, with different prompts unless `about` is set."""
        pending = [
            self.ask(at, about or f"Question {number} at {at}, {os.urandom(4).hex()}", **more) for number in range(many)
        ]
        return asyncio.ensure_future(asyncio.gather(*pending))  # noqa: TID251

    async def steadily(self, seconds: float, every_s: float = 0.1) -> None:
        """Send requests to one gateway after the other for this time, and wait for every answer."""
        loop, pending = asyncio.get_running_loop(), []
        begun = loop.time()
        while loop.time() < begun + seconds:
            pending.append(self.asks(len(pending) % len(self.gateways), 1))
            await asyncio.sleep(every_s)
        await asyncio.gather(*pending)

    def kill(self, at: int) -> None:
        self.gateways[at].process.kill()

    async def kept(self) -> dict[str, int]:
        """Return the nonzero counts of request state in Redis."""
        names = KEYS.teacher("big")
        counts = {
            "tickets": await self.redis.hlen(names.tickets),
            "permits": await self.redis.scard(names.permits),
            "queue": await self.redis.zcard(names.queue),
            "flights": await self.redis.hlen(names.flights),
            "followers": await self.redis.zcard(names.followers),
        }
        return {kind: many for kind, many in counts.items() if many}

    async def settled(self, *alive: int) -> None:
        """Check that Redis holds no state of ended requests and that every live gateway guides the next request."""
        await until(lambda: self.kept(), {}, LEASE_S + 6)
        for at in alive:
            assert await self.ask(at, f"And now, at {at}?") == "guided"
        await until(lambda: self.kept(), {}, 2)

    async def receipts(self, at: int) -> list[dict[str, Any]]:
        """Wait for and return one receipt for each request that this gateway answered."""
        answered = self.got[at].total() - self.got[at]["lost"]
        await until(lambda: len(self._receipts(at)), answered, 5)
        ids = [line["id"] for line in self._receipts(at)]
        assert len(set(ids)) == len(ids)
        return self._receipts(at)

    def _receipts(self, at: int) -> list[dict[str, Any]]:
        """Return a gateway's receipts of its own requests, without those that it settled for a dead process."""
        lines = [line for line in self.gateways[at].log if line["event"] == "request"]
        return [line for line in lines if line["status"] != "abandoned"]

    async def accounted(self) -> int:
        """Check that Redis has one receipt for each request, those of dead processes included, and no intent.

        Returns the number of requests settled for dead processes. It may include requests that were answered just
        before, whose receipt was still in memory.
        """
        await until(self._receipts_kept, sum(counts.total() for counts in self.got), 2 * LEASE_S + 5)
        assert await self.redis.keys("*crashes:tenant:*:intents:*") == []
        lost = sum(counts["lost"] for counts in self.got)
        await until(lambda: len(self._abandoned()) >= lost, True, 5)  # the log has them a moment after Redis
        abandoned = self._abandoned()
        assert len(set(abandoned)) == len(abandoned)
        return len(abandoned)

    def _abandoned(self) -> list[str]:
        lines = [line for process in self.gateways for line in process.log if line["event"] == "request"]
        return [line["id"] for line in lines if line["status"] == "abandoned"]

    async def _receipts_kept(self) -> int:
        return len(await self.redis.keys("*crashes:tenant:*:receipt:*"))

    async def accounts_for_every_call(self) -> None:
        """Check the teacher's calls against the receipts.

        A receipt may hold a call that was canceled before it arrived.
        """
        calls, late = await self.calls_on_receipts(*self.all), sum(self.got, Counter[str]())["teacher_late"]
        assert calls - late <= self.teacher.calls <= calls

    async def calls_on_receipts(self, *alive: int) -> int:
        """Return the number of teacher calls on the receipts of these gateways."""
        found = [receipt for at in alive for receipt in await self.receipts(at)]
        return sum(receipt["teacher"] is not None and "shared" not in receipt["teacher"] for receipt in found)

    async def report(self, **more: Any) -> None:
        """Print the counts in one line."""
        teacher = self.teacher
        got = "; ".join(f"gateway {at}: {dict(counts)}" for at, counts in enumerate(self.got))
        extra = "".join(f", {name} {value}" for name, value in more.items())
        kept = {"permits": 0, "tickets": 0} | await self.kept()
        print(
            f"{got}; teacher: {teacher.calls} calls, {teacher.finished} finished, at most {teacher.most} of {CAP} "
            f"at once; Redis: {kept}, {await self._receipts_kept()} receipts, {len(self._abandoned())} of them "
            f"abandoned{extra}"
        )
        assert teacher.most <= CAP


async def until(probe: Callable[[], Any], expected: Any, limit_s: float) -> None:
    give_up = asyncio.get_running_loop().time() + limit_s
    while True:
        seen = probe()
        if asyncio.iscoroutine(seen):
            seen = await seen
        if seen == expected:
            return
        assert asyncio.get_running_loop().time() < give_up, f"{seen}, not {expected}, after {limit_s:g} s"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def fleet(folder: Path, gateways: int) -> AsyncIterator[Fleet]:
    """Create this number of gateways without starting them."""
    teacher = Teacher()
    async with AsyncExitStack() as stack:
        stack.enter_context(teacher.engine.running())
        student = stack.enter_context(FakeEngine(dribbles).running())
        server = await stack.enter_async_context(EmbeddedRedis())
        redis = await stack.enter_async_context(Redis.from_url(server.url))
        here = Fleet(server, redis, teacher)
        for number in range(gateways):
            process = GatewayProcess(
                folder / str(number),
                redis_url=server.url,
                redis={"prefix": KEYS.prefix, "lease": f"{LEASE_S:g}s"},
                models=[
                    model("big", "tgi", teacher.engine.url, max_concurrency=CAP, batch={"max_size": CAP}),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
                ],
                routes=[guided(deadline=f"{DEADLINE_S:g}s", cache_ttl="0s")],
                tenants=UNREACHED,
            )
            here.gateways.append(process)
        try:
            yield here
        finally:
            for client in here.clients:
                await client.aclose()
            for process in here.gateways:
                if process.url:
                    await asyncio.to_thread(process.close)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[2, 4], ids=["two", "four"])
async def machines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path_factory.mktemp("crashes"), request.param) as here:
        yield here


@pytest_asyncio.fixture(loop_scope="module")
async def here(machines: Fleet) -> Fleet:
    """Start gateways and wait until each knows the others; all counts are 0."""
    await machines.begin()
    return machines


async def test_sigterm_under_load_answers_all_accepted_requests(here: Fleet) -> None:
    """SIGTERM: every accepted request is answered, and the process leaves the fleet."""
    pending = [here.asks(at, 8) for at in here.all]
    await until(lambda: here.teacher.calls >= CAP and here.teacher.now > 0, True, 5)
    code = await asyncio.to_thread(here.gateways[0].terminate)
    for answers in pending:
        assert set(await answers) <= {"guided", "teacher_late"}
    assert code == 0
    assert here.gateways[0].wait_for_log("stopped")["receipts_kept"] is True
    assert await here.redis.zcard(KEYS.teacher("big").owners) == len(here.others)
    await here.settled(*here.others)
    await here.accounts_for_every_call()
    assert [counts.total() for counts in here.got] == [8] + [9] * len(here.others)
    await here.accounted()
    await here.report(exit_code=code)


async def test_killed_while_its_requests_wait(here: Fleet) -> None:
    """The tickets of the killed process expire with its lease. Until then they may get permits that nobody uses."""
    here.teacher.takes_s = 1.0
    first = here.asks(1, CAP)
    await until(lambda: here.teacher.now, CAP, 5)
    lost = here.asks(0, 4)
    await until(lambda: here.redis.zcard(KEYS.teacher("big").queue), 4, 5)
    here.kill(0)
    second = [here.asks(at, 4) for at in here.others]
    assert await first == ["guided"] * CAP
    assert await lost == ["lost"] * 4
    ends: Counter[str] = Counter()
    for answers in second:
        ends.update(await answers)
    assert set(ends) <= {"guided", "teacher_late"}
    await here.settled(*here.others)
    calls = await here.calls_on_receipts(*here.others)
    assert here.teacher.calls <= calls, "nobody called the teacher for the dead"
    # A call that its deadline cancels before the teacher has read it is on a receipt all the same.
    assert calls <= here.teacher.calls + ends["teacher_late"]
    await here.accounted()
    await here.report()


async def test_a_process_killed_during_a_teacher_call_returns_its_permits(here: Fleet) -> None:
    """The permits of the killed process return with its lease; all other requests are answered."""
    lost = here.asks(0, 6)
    await until(lambda: here.teacher.now, CAP, 5)
    rest = [here.asks(at, 6) for at in here.others]
    await until(lambda: here.teacher.calls >= CAP + 2 and here.teacher.now > 0, True, 5)
    here.kill(0)
    ends = Counter(await lost)
    assert set(ends) <= {"lost", "guided"}
    for answers in rest:
        assert set(await answers) <= {"guided", "teacher_late"}
    await here.settled(*here.others)
    of_the_dead = here.teacher.calls - await here.calls_on_receipts(*here.others)
    assert max(CAP, ends["guided"]) <= of_the_dead <= 6
    assert [here.got[at].total() for at in here.others] == [7] * len(here.others)
    await here.accounted()
    await here.report(of_the_dead=of_the_dead)


async def test_followers_of_a_killed_process_are_answered(here: Fleet) -> None:
    """The followers of the killed process are answered. After its lease one of them calls the teacher once more."""
    here.teacher.takes_s = 0.7
    followers = len(here.others)
    lost = here.asks(0, 1, about="The same")
    await until(lambda: here.teacher.now, 1, 5)
    early = [here.asks(at, 2, about="The same") for at in here.others]
    await until(lambda: here.redis.zcard(KEYS.teacher("big").followers), followers, 5)
    here.kill(0)
    await asyncio.sleep(LEASE_S / 2)
    late = [here.asks(at, 2, about="The same") for at in here.others]
    assert await lost == ["lost"]
    for answers in early:
        assert set(await answers) <= {"guided", "teacher_late"}
    for answers in late:
        assert await answers == ["guided"] * 2
    await here.settled(*here.others)
    assert here.teacher.calls == 2 + followers, "the dead one's, its followers', and the last requests'"
    assert await here.calls_on_receipts(*here.others) == 1 + followers
    await here.accounted()
    await here.report()


async def test_killed_while_the_student_streams(here: Fleet) -> None:
    """The caller's stream breaks; its permit was returned long before."""
    lost = here.asks(0, 2, stream=True)
    rest = [here.asks(at, 2, stream=True) for at in here.others]
    await until(lambda: here.teacher.finished, 2 * len(here.gateways), 5)
    await until(here.kept, {}, 5)
    here.kill(0)
    assert await lost == ["lost"] * 2
    for answers in rest:
        assert await answers == ["guided"] * 2
    await here.settled(*here.others)
    assert here.teacher.calls == 2 + 3 * len(here.others)
    assert await here.calls_on_receipts(*here.others) == 3 * len(here.others)
    await here.accounted()
    await here.report()


async def _restarts(here: Fleet) -> None:
    await here.server.stop()
    await here.server.start()


async def _is_away(here: Fleet) -> None:
    await here.server.stop()
    await asyncio.sleep(LEASE_S + 1.0)
    await here.server.start()


async def _stands_still(here: Fleet) -> None:
    pid = (await here.redis.info("server"))["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(5.0)
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("trouble", "load_s"), [(_restarts, 4.0), (_stands_still, 6.5), (_is_away, 6.5)], ids=["restarts", "stops", "away"]
)
async def test_redis_fails_under_load(here: Fleet, trouble: Callable[[Fleet], Any], load_s: float) -> None:
    """Every caller is answered, guided or with a reason, and the teacher never exceeds its concurrency.

    Redis restarts empty, is paused for five seconds, or is away for longer than a lease.
    """
    load = asyncio.ensure_future(here.steadily(load_s))  # noqa: TID251
    await asyncio.sleep(1.0)
    await trouble(here)
    await load
    got = sum(here.got, Counter[str]())
    # Without Redis, a request waits for `guidance.max_wait` and one `redis.timeout`, then continues without guidance.
    assert set(got) <= {"guided", "teacher_late", "teacher_no_permit"}, got
    # While Redis stands still for most of the load, a process has its own share of the permits only.
    assert got["guided"] > got.total() / (2 * len(here.all) if trouble is _stands_still else 4), got
    await here.settled(*here.all)
    for at in here.all:
        assert await here.asks(at, 1) == ["guided"], "each process has rejoined"
    await here.settled(*here.all)
    await here.accounts_for_every_call()
    if trouble is _stands_still:  # the others rejoin an empty Redis without cached guidance
        assert await here.accounted() == 0
    await here.report(trouble=trouble.__name__.strip("_"))
