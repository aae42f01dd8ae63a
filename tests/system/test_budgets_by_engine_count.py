"""Budgets of a real gateway process, by the engine's own count: callers that disconnect, false usage."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import product
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.counting_engine import Books, CountingEngine, choices_of
from tests.fakes import FakeEngine
from tests.gateway_process import GatewayProcess, model, running_gateway, sha256
from tests.leaving import leave
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    Json = dict[str, Any]

pytestmark = pytest.mark.timeout(300)

TEXT = "Birds, bees and some other things. " * 6
INPUT_USD, OUTPUT_USD = Decimal("0.000001"), {"cheap": Decimal("0.000001"), "dear": Decimal("0.001")}
CALLERS = 6
RESERVATIONS = 6
"""So many requests fit into a budget at a time."""

SHAPES: dict[str, tuple[str, Json]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}], "n": 3}),
    "text": ("/v1/completions", {"prompt": [TEXT, "Why?"], "n": 2}),
    "embeddings": ("/v1/embeddings", {"input": [TEXT, TEXT, TEXT]}),
}
# An engine of a kind that stops; one that does not; one that does not, and is slower than the gateway reads on.
ENGINES: dict[str, Callable[[], CountingEngine]] = {
    "stops": lambda: CountingEngine(stops=True, first_s=0.05, token_s=0.02, usage_s=0.05),
    "runs-on": lambda: CountingEngine(stops=False, first_s=0.05, token_s=0.005, usage_s=0.05),
    "slow": lambda: CountingEngine(stops=False, first_s=2.5, token_s=0.005, usage_s=0.05),
}
FALSE_USAGE: dict[str, Callable[[Json], Json | None]] = {
    "huge": lambda usage: dict.fromkeys(usage, 2_000_000_000),
    "beyond integers": lambda usage: dict.fromkeys(usage, 10**30),
    "zero": lambda usage: dict.fromkeys(usage, 0),
    "negative": lambda usage: {name: -tokens for name, tokens in usage.items()},
    "no output": lambda usage: usage | {"completion_tokens": 0},
    "missing": lambda _: None,
}


@dataclass(frozen=True)
class Case:
    """Callers of one tenant with the same behavior."""

    shape: str
    engine: str = "runs-on"
    price: str = "cheap"
    stream: bool = False
    at: str = ""
    usage: str = ""

    def __str__(self) -> str:
        stream = "stream" if self.stream else "json"
        return "-".join(part for part in (self.shape, stream, self.price, self.engine, self.at, self.usage) if part)

    @property
    def tenant(self) -> str:
        return str(self).replace(" ", "_")

    @property
    def path(self) -> str:
        return SHAPES[self.shape][0]

    def body(self, name: str) -> Json:
        kind = "vectors" if self.shape == "embeddings" else self.price
        body = {"model": f"{kind}-{self.engine}", "user": name, **SHAPES[self.shape][1]}
        if self.shape == "embeddings":
            return body
        # An engine that stops is let go long before this limit.
        long = (self.engine, self.price) == ("stops", "dear")
        return body | {"max_tokens": 2000 if long else 15, "stream": self.stream}

    @property
    def budget_usd(self) -> Decimal:
        body = self.body("")
        written = body.get("max_tokens", 0) * choices_of(body)
        read = len(json.dumps(body)) + 600
        return RESERVATIONS * (read * INPUT_USD + written * OUTPUT_USD[self.price])


# Read to its end; cancelled; cancelled and stopped; not read to its end in time.
CALLS = (("runs-on", "cheap"), ("runs-on", "dear"), ("stops", "dear"), ("slow", "cheap"))
POINTS = ("before the first token", "in the middle", "at finish_reason", "at the last finish_reason")
AT_ANY_TIME = [
    Case(shape, *call, stream=stream, at="anywhere")
    for shape, call, stream in product(("chat", "text"), CALLS, (False, True))
] + [Case("embeddings", engine, at="anywhere") for engine in ("runs-on", "slow")]
AT_A_POINT = [
    Case(shape, *call, stream=True, at=at)
    for shape, call, at in product(("chat", "text"), CALLS[:3], POINTS)
    if call[0] != "stops" or "finish" not in at  # its answers are long
]
UNDER_FALSE_USAGE = [
    Case(shape, stream=stream, usage=usage)
    for shape, stream, usage in product(SHAPES, (False, True), FALSE_USAGE)
    if shape != "embeddings" or not (stream or usage == "no output")
]
# One for each rule that bounds a call. The others are `long`.
SHORT = {
    "chat-stream-dear-runs-on-in the middle",
    "text-stream-cheap-runs-on-at the last finish_reason",
    "embeddings-json-cheap-runs-on-anywhere",
    "chat-stream-cheap-runs-on-huge",
    "text-json-cheap-runs-on-missing",
}
CASES = AT_ANY_TIME + AT_A_POINT + UNDER_FALSE_USAGE


@dataclass
class World:
    """A gateway before engines that keep their own count, with a tenant for each case."""

    gateway: GatewayProcess
    engines: dict[str, CountingEngine]

    @asynccontextmanager
    async def callers(self, case: Case) -> AsyncIterator[Callers]:
        headers = {"Authorization": f"Bearer gk-{case.tenant}"}
        async with aiohttp.ClientSession(self.gateway.url, headers=headers) as session:
            yield Callers(session, case, self.engines[case.engine])


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    engines = {name: make() for name, make in ENGINES.items()}
    models, routes = [], []
    with ExitStack() as stack:
        for name, engine in engines.items():
            fake = FakeEngine(engine, engine.embed, owned_by="vllm" if engine.stops else None)
            url = stack.enter_context(fake.running()).url
            for price, usd in OUTPUT_USD.items():
                prices = {"input_per_1m": 1, "output_per_1m": float(usd * 1_000_000)}
                one = f"{price}-{name}"
                models.append(model(one, "openai", f"{url}/v1", price=prices, continuation="none"))
                routes.append({"model": one, "mode": "student", "student": one, "baseline": one})
            routes.append({"model": f"vectors-{name}", "mode": "embeddings", "student": f"cheap-{name}"})
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("engine-count"),
                redis_url=redis_url,
                redis={"prefix": "engine-count"},
                models=models,
                routes=[route | {"retries": {"num_retries": 0}} for route in routes],
                tenants={
                    case.tenant: {
                        "keys": [{"id": "only", "sha256": sha256(f"gk-{case.tenant}")}],
                        "budget": {"max_budget": float(case.budget_usd), "budget_duration": "1d"},
                    }
                    for case in CASES
                },
            )
        )
        wait_until_looked_at(gateway.admin_url)
        yield World(gateway, engines)


@dataclass
class Callers:
    """The callers of one case, and the engine's account of their requests."""

    session: aiohttp.ClientSession
    case: Case
    engine: CountingEngine
    sent: int = 0

    async def spend_all(self) -> None:
        """Call until one more request does not fit. Check the accounts after each call."""
        give_up = time.monotonic() + 200
        last = replace(self.case, at=self.case.at and "json")
        status: int | None = None
        while status != 429:
            assert time.monotonic() < give_up, "the callers were admitted again and again"
            await asyncio.gather(*(self._call(self.case) for _ in range(CALLERS)))
            await self._check_books()
            status = await self._call(last)
        await self._check_books()
        assert len(self._own()) >= 3, "calls were made"

    async def _call(self, case: Case) -> int | None:
        self.sent += 1
        name = f"{case.tenant}/{self.sent}"
        if case.at:
            after_s = self.sent * 7 % 40 * 0.01
            return await leave(
                self.session, case.path, case.body(name), case.at, self.engine.books[name], after_s=after_s
            )
        async with self.session.post(case.path, json=case.body(name)) as answer:
            await answer.read()
            return answer.status

    async def _settled(self) -> Json:
        """Return the budget when nothing of it is reserved."""
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            async with self.session.get("/v1/limits") as answer:
                if answer.status == 200:  # a busy machine may miss Redis' reply
                    budget: Json = (await answer.json())["tenant"]["budget"]
                    if not Decimal(budget["reserved_usd"]):
                        return budget
            await asyncio.sleep(0.02)
        raise AssertionError("something stays reserved")

    async def _check_books(self) -> None:
        """Check that the accounts contain the engine's count and stay within the budget."""
        spent = Decimal((await self._settled())["spent_usd"])
        for one in self._own():
            assert await asyncio.to_thread(one.ended.wait, 60)
        counted = sum(
            (one.read * INPUT_USD + one.generated * OUTPUT_USD[self.case.price] for one in self._own()), Decimal(0)
        )
        assert counted <= spent <= self.case.budget_usd

    def _own(self) -> list[Books]:
        prefix = f"{self.case.tenant}/"
        return [one for name, one in self.engine.books.copy().items() if name.startswith(prefix) and one.read]


def _params(cases: list[Case]) -> list[Any]:
    return [pytest.param(case, id=str(case), marks=() if str(case) in SHORT else pytest.mark.long) for case in cases]


@pytest.mark.parametrize("case", _params(AT_ANY_TIME + AT_A_POINT))
async def test_a_budget_holds_whenever_callers_disconnect(world: World, case: Case) -> None:
    async with world.callers(case) as callers:
        await callers.spend_all()


@pytest.mark.parametrize("case", _params(UNDER_FALSE_USAGE))
async def test_a_budget_holds_for_any_usage_that_an_engine_reports(
    world: World, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sent and received text bounds the reported tokens."""
    async with world.callers(case) as callers:
        monkeypatch.setattr(callers.engine, "reported", FALSE_USAGE[case.usage])
        await callers.spend_all()
