"""The outcomes that a guarded engine reports to its breaker, and its log."""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from gateway.engines import guard
from gateway.engines.base import EngineState, set_origin
from gateway.engines.breaker import Breaker, BreakerRule
from gateway.engines.guard import GuardedEngine
from gateway.errors import (
    CircuitOpen,
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    EngineUnsupported,
)
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

RULE = BreakerRule(failures=2, cooldown_s=1.0)
WORD = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
_ids = itertools.count()
Play = list[dict[str, Any] | EngineError]


class Scripted:
    """An engine with a script of its calls: chunks to yield and errors to raise."""

    name = "small"
    state = EngineState()

    def __init__(self, plays: Sequence[Play]) -> None:
        self.plays = list(plays)

    async def stream(self, body: Any, prefill: Any = None) -> AsyncGenerator[list[Any], None]:
        for step in self.plays.pop(0):
            if isinstance(step, EngineError):
                raise step
            yield [step]

    async def probe(self) -> None:
        pass


class World:
    def __init__(self, *plays: Play) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        breaker = Breaker(RULE, draw=lambda: 0.5)
        self.scripted: Any = Scripted(plays)
        self.engine = GuardedEngine(self.scripted, breaker, self.metrics, clock=lambda: self.now)

    async def call(self, tenant: str = "acme", *, most: int = 99) -> EngineError | None:
        """Read a stream to its end, or close it after some chunks. Each belongs to another request."""
        set_origin(tenant, f"request-{next(_ids)}")
        try:
            async with aclosing(self.engine.stream({})) as groups:
                async for _ in groups:
                    most -= 1
                    if not most:
                        break
        except EngineError as error:
            return error
        return None


class Notes:
    """A value that records the thread in which it is encoded."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __str__(self) -> str:
        self.threads.append(threading.get_ident())
        return ""


async def test_a_failed_request_is_hashed_in_a_thread() -> None:
    """A body of megabytes must not block the event loop."""
    error, notes = EngineFailed("It cannot read the image.", engine="small", status_sent=500), Notes()
    error.engine_text = "no such image"
    world = World([error])
    set_origin("acme", "request")
    with pytest.raises(EngineFailed):
        await anext(world.engine.stream({"image": notes}))
    assert notes.threads
    assert threading.get_ident() not in notes.threads


def failed() -> EngineFailed:
    return EngineFailed("It broke off.", engine="small")


async def test_a_trial_whose_answer_is_empty_closes_the_circuit() -> None:
    """A stream may succeed without a chunk. Without an outcome the circuit would stay open."""
    world = World([failed()], [failed()], [], [WORD])
    await world.call()
    await world.call()
    world.now = 1.0
    assert await world.call() is None
    assert world.engine.is_closed_for("acme")
    assert await world.call() is None


async def test_an_engine_that_always_breaks_off_midway_opens_the_circuit() -> None:
    """First chunks are no success. Otherwise callers would get incomplete answers instead of another student."""
    world = World([WORD, failed()], [WORD, failed()], [WORD])
    await world.call()
    await world.call()
    assert isinstance(await world.call(), CircuitOpen)


async def test_the_first_text_of_a_trial_closes_the_circuit() -> None:
    """Other calls do not wait for the end of a long answer."""
    world = World([failed()], [failed()], [WORD, WORD])
    await world.call()
    await world.call()
    world.now = 1.0
    async with aclosing(world.engine.stream({})) as groups:
        await anext(groups)
        assert world.engine.is_closed_for("acme")


async def test_a_stream_that_its_reader_has_enough_of_is_a_success() -> None:
    """The caller's stop string was found."""
    world = World([failed()], [WORD, WORD], [failed()], [WORD])
    await world.call()
    await world.call(most=1)
    await world.call()
    assert await world.call() is None


async def test_unsupported_requests_have_no_effect_on_the_breaker() -> None:
    """The engine got no call, so the trial and the count of failures do not change."""
    cannot = EngineUnsupported("It takes no raw prompts.", engine="small", status_sent=422)
    world = World([failed()], [cannot], [failed()], [cannot], [WORD])
    await world.call()
    await world.call()
    await world.call()
    assert isinstance(await world.call(), CircuitOpen)
    world.now, world.scripted.plays = 1.0, [[cannot], [WORD]]
    assert await world.call() is cannot
    assert not world.engine.is_closed_for("acme")
    assert await world.call() is None


async def test_a_call_that_failed_for_many_is_one_failure() -> None:
    """A list of guidance requests of one batch is such a call."""
    error = failed()
    world = World([error], *[[error.copy()] for _ in range(7)], [WORD])
    for _ in range(8):
        await world.call()
    assert await world.call() is None


def unreachable() -> EngineUnreachable:
    error = EngineUnreachable("It is not there.", engine="small")
    error.may_have_run = error.connected = False
    return error


def closed_before_the_model() -> EngineUnreachable:
    """Return the error of a connection that ended while the engine rendered the prompt."""
    error = EngineUnreachable("gone", engine="small")
    error.may_have_run = False
    return error


@pytest.mark.parametrize(
    ("kind", "line"), [(failed, {"event": "tenant_paused", "tenant": "acme"}), (unreachable, {"event": "breaker"})]
)
async def test_an_open_circuit_is_logged_once(kind: Callable[[], EngineError], line: dict[str, str]) -> None:
    """Calls in flight at that time log no further line."""
    world = World(*[[WORD, kind()] for _ in range(4)])
    groups = [world.engine.stream({}) for _ in range(4)]
    for one in groups:
        set_origin("acme", "request")
        await anext(one)
    with capture_logs() as logs:
        for one in groups:
            with pytest.raises(EngineError):
                await anext(one)
    assert [entry for entry in logs if entry["log_level"] == "warning"] == [
        {"engine": "small", "log_level": "warning"} | line | ({"state": "open"} if line["event"] == "breaker" else {})
    ]


async def test_calls_in_flight_are_counted_however_they_end() -> None:
    """Answered, failed, canceled by the reader, or refused."""
    world = World([WORD, WORD], [WORD, WORD], [failed()], [failed()], [WORD])
    async with aclosing(world.engine.stream({})) as one, aclosing(world.engine.stream({})) as other:
        await anext(one)
        assert world.engine.calls == 1
        await anext(other)
        assert world.engine.calls == 2
    assert world.engine.calls == 0
    for _ in range(2):
        assert isinstance(await world.call(), EngineFailed)
    assert isinstance(await world.call(), CircuitOpen)
    assert world.engine.calls == 0


# Calls that wait for a trial.


class HalfOpen(World):
    """A world whose circuit for tenant acme is half open. The trial ends with `outcome` when `release` is set."""

    def __init__(self, outcome: EngineError | None) -> None:
        super().__init__()
        self.outcome, self.release, self.sent = outcome, asyncio.Event(), 0
        self.scripted.complete = self._complete

    async def _complete(self, _: Any, __: Any = None) -> dict[str, Any]:
        self.sent += 1
        if self.now == 0.0:
            raise failed()
        await self.release.wait()
        if self.outcome is not None:
            raise self.outcome
        return {}

    async def ask(self, tenant: str = "acme") -> EngineError | None:
        """Make a call as a student's caller does."""
        set_origin(tenant, f"request-{next(_ids)}")
        try:
            if self.engine.must_wait(tenant):
                await self.engine.wait_for_slot()
            await self.engine.complete({})
        except EngineError as error:
            return error
        return None

    async def parallel(self, calls: int) -> list[asyncio.Task[EngineError | None]]:
        """Open the circuit, and start calls when the trial is due. Return them when one is in flight."""
        for _ in range(2):
            await self.ask()
        self.now = 1.0
        loop = asyncio.get_running_loop()
        asked = [loop.create_task(self.ask()) for _ in range(calls)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert self.sent == 3, "one call is the trial"
        return asked


async def test_calls_wait_for_the_outcome_of_a_trial_that_succeeds() -> None:
    world = HalfOpen(None)
    asked = await world.parallel(6)
    assert not any(one.done() for one in asked)
    assert world.engine.refusal("acme") is None
    world.release.set()
    assert await asyncio.gather(*asked) == [None] * 6
    assert world.sent == 8


async def test_calls_that_wait_for_a_trial_are_refused_if_it_fails() -> None:
    world = HalfOpen(failed())
    asked = await world.parallel(6)
    world.release.set()
    outcomes = [type(one) for one in await asyncio.gather(*asked)]
    assert sorted(outcomes, key=str) == [CircuitOpen] * 5 + [EngineFailed]
    assert world.sent == 3


async def test_a_call_that_waits_takes_the_place_of_a_canceled_trial() -> None:
    world = HalfOpen(None)
    trial, other = await world.parallel(2)
    trial.cancel()
    world.release.set()
    assert await other is None


async def test_calls_do_not_wait_for_a_trial_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_TRIAL_WAIT_S", 0.0)
    world = HalfOpen(None)
    trial, other = await world.parallel(2)
    assert isinstance(await other, CircuitOpen)
    world.release.set()
    assert await trial is None


# Failures that the request causes.


class Picky:
    """An engine that answers 500 to some requests, like llama.cpp, or to all of them."""

    name = "small"
    state = EngineState()

    def __init__(self) -> None:
        self.broken = False

    async def complete(self, body: Any, prefill: Any = None) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self.broken or "bad" in body:
            error = EngineFailed("Engine 'small' answered 500: no such image", engine="small", status_sent=500)
            error.engine_text = "no such image"
            error.engine_code, error.engine_param = "invalid_image", "messages[0].content"
            raise error
        return {"choices": []}


class PickyWorld:
    """A clock that advances by a tenth of a second at each reading."""

    def __init__(self) -> None:
        self.fake = Picky()
        ticks = itertools.count()
        self.engine = GuardedEngine(
            self.fake,  # type: ignore[arg-type]
            Breaker(BreakerRule(failures=4), draw=lambda: 0.5),
            Metrics(),
            clock=lambda: next(ticks) / 10,
        )

    async def call(self, body: dict[str, Any], tenant: str = "acme", request: str | None = None) -> EngineError | None:
        set_origin(tenant, request or f"request-{next(_ids)}")
        try:
            await self.engine.complete(body)
        except EngineError as error:
            return error
        return None


async def test_a_caller_that_leaves_while_its_request_is_hashed_ends_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    world, hashing = PickyWorld(), asyncio.Event()
    world.fake.broken = True
    for number in range(4):
        await world.call({"plain": number})
    assert isinstance(await world.call({}), CircuitOpen)

    async def hash_forever(*_: object) -> bytes:
        hashing.set()
        return await asyncio.get_running_loop().create_future()

    await asyncio.sleep(0)
    while world.engine.in_cooldown_for("acme"):
        pass  # the clock advances at each reading
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "to_thread", hash_forever)
        trial = asyncio.get_running_loop().create_task(world.call({}))
        await hashing.wait()
        trial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trial
    world.fake.broken = False
    while isinstance(refused := await world.call({}), CircuitOpen):
        assert not world.engine.must_wait("acme"), "the trial has ended"
    assert refused is None


async def test_a_request_that_fails_while_others_succeed_is_refused() -> None:
    """With the engine's text, and without a retry."""
    world = PickyWorld()
    assert isinstance(await world.call({"bad": 1}), EngineFailed)
    assert await world.call({"plain": 1}, "globex") is None
    refused = await world.call({"bad": 1})
    assert isinstance(refused, EngineRejected)
    assert refused.blames_request
    assert (refused.retry, refused.retryable) == (False, False)
    assert (refused.engine_code, refused.engine_param) == ("invalid_image", "messages[0].content")
    blame = "Engine 'small' fails for this request and answers others. Correct the request"
    assert (refused.message, refused.redacted_message) == (f"{blame}: no such image", f"{blame}.")


@pytest.mark.parametrize(("seconds", "again"), [(19.0, True), (21.0, False)])
async def test_a_call_that_fails_after_a_long_silence_is_not_repeated_at_the_engine(
    seconds: float, again: bool
) -> None:
    world = World()

    async def complete(_: Any, __: Any = None) -> Any:
        world.now += seconds
        raise EngineUnreachable("The connection was closed.", engine="small")

    world.scripted.complete = complete
    set_origin("acme", "slow")
    with pytest.raises(EngineUnreachable) as failure:
        await world.engine.complete({})
    assert failure.value.retryable is again


async def test_a_stream_that_breaks_late_may_be_continued_by_the_engine() -> None:
    world = World([WORD, EngineUnreachable("The connection was closed.", engine="small")])
    async with aclosing(world.engine.stream({})) as groups:
        await anext(groups)
        world.now = 60.0
        with pytest.raises(EngineUnreachable) as failure:
            await anext(groups)
    assert failure.value.retryable


# Overload without a pause.


def busy() -> EngineOverloaded:
    return EngineOverloaded("429", engine="small")


async def test_repeated_overload_without_a_success_opens_the_circuit() -> None:
    """15 requests during an outage make two calls and one trial."""
    world = World(*[[busy()] for _ in range(15)])
    outcomes = [await world.call() for _ in range(15)]
    assert [type(one) for one in outcomes] == [EngineOverloaded] * 2 + [CircuitOpen] * 13
    assert not world.engine.in_cooldown_for("globex")
    world.now = 1.0
    assert isinstance(await world.call(), EngineOverloaded)
    world.now = 2.9
    assert isinstance(await world.call(), CircuitOpen), "a failed trial doubles the cooldown"


async def test_a_success_between_overloads_resets_the_count() -> None:
    world = World(*[[busy()], [WORD]] * 5)
    for _ in range(10):
        assert not isinstance(await world.call(), CircuitOpen)


async def test_a_pause_of_no_time_is_none() -> None:
    """An engine with `Retry-After: 0` is like one without the header."""
    world = World(*[[EngineOverloaded("503", engine="small", retry_after_s=0.0)] for _ in range(3)])
    assert [type(await world.call()) for _ in range(3)] == [EngineOverloaded, EngineOverloaded, CircuitOpen]


async def test_a_pause_that_a_call_for_several_met_holds_one_tenant() -> None:
    """A large prompt of one of them may be the cause."""
    busy = EngineOverloaded("429", engine="small", retry_after_s=60.0)
    world = World([busy], [busy.copy()])
    await world.call()
    await world.call("globex")
    assert world.engine.in_cooldown_for("acme")
    assert not world.engine.in_cooldown_for("globex")


async def test_a_paused_tenant_is_served_again_when_the_engine_answers_its_trial() -> None:
    world = World([EngineOverloaded("429", engine="small", retry_after_s=20.0)], [WORD, WORD], [WORD])
    await world.call()
    world.now = 0.9
    assert isinstance(await world.call(), CircuitOpen)
    world.now = 1.0
    assert await world.call() is None
    assert world.engine.is_closed_for("acme")
    assert await world.call() is None


ATTACKS: dict[str, Play] = {
    "500": [failed()],
    "401": [EngineRejected("401", engine="small", status_sent=401)],
    "400": [EngineRejected("400", engine="small", status_sent=400)],
    "429": [busy()],
    "429 with Retry-After": [EngineOverloaded("429", engine="small", retry_after_s=20.0)],
    "no answer in time": [EngineTimeout("504", engine="small")],
    "a closed connection": [EngineUnreachable("gone", engine="small")],
    "a closed connection before the model was called": [closed_before_the_model()],
    "garbage": [EngineProtocolError("It is no JSON.", engine="small")],
    "a broken stream": [WORD, failed()],
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_calls_of_two_tenants_that_fail_shut_out_no_other(attack: str) -> None:
    """Again and again, in any number between two calls of the other tenant."""
    world = World()
    for tenth in range(200):
        world.now = tenth / 10
        for tenant in ("acme", "globex"):
            world.scripted.plays = [ATTACKS[attack]]
            await world.call(tenant)
        if tenth % 20 == 19:
            assert world.engine.is_closed_for("initech")
            world.scripted.plays = [[WORD]]
            assert await world.call("initech") is None
    assert world.engine.breaker == "closed"


async def test_the_retry_after_that_a_tenant_got_holds_it_while_others_succeed() -> None:
    world = World([EngineOverloaded("429", engine="small", retry_after_s=20.0)], [WORD])
    await world.call("acme")
    assert await world.call("globex") is None
    assert isinstance(await world.call("acme"), CircuitOpen)
    assert world.engine.paused_tenants == 1


async def test_an_engine_that_always_fails_opens_the_circuit_of_a_single_tenant() -> None:
    world = PickyWorld()
    world.fake.broken = True
    met = [await world.call({"plain": number}) for number in range(6)]
    assert isinstance(met[-1], CircuitOpen)


async def test_a_proxys_failure_is_never_the_requests() -> None:
    """502 and 504 mean that the proxy did not reach the engine, and an error page has no text of the engine."""
    world = World(*[[failed()], [WORD]] * 4)
    for _ in range(4):
        assert isinstance(await world.call(), EngineFailed)
        assert await world.call() is None


async def test_connection_failures_refuse_all_tenants() -> None:
    world = World([unreachable()], [unreachable()], [WORD])
    await world.call()
    await world.call()
    assert world.engine.in_cooldown_for("globex")
    assert world.engine.breaker == "open"


# Probes.


async def test_calls_are_refused_while_the_engine_sleeps() -> None:
    """It would queue them until it is woken."""
    world = World([WORD])
    world.engine.state = EngineState(asleep=True)

    async def probe() -> None:
        if world.engine.state.asleep:
            raise EngineOverloaded("asleep", engine="small")

    world.scripted.probe = probe
    with pytest.raises(EngineOverloaded):
        await world.engine.probe()
    assert isinstance(await world.call(), CircuitOpen)
    world.engine.state.asleep = False
    await world.engine.probe()
    assert await world.call() is None


@pytest.mark.parametrize("own", [True, False])
async def test_failed_probes_refuse_all_unless_they_repeat_the_error_of_a_call(*, own: bool) -> None:
    """LiteLLM's probe raises the error of the last call, which a caller may have caused."""
    world = World()
    error = EngineRejected("401", engine="small", status_sent=401)

    async def probe() -> None:
        raise error if own else error.copy()

    world.scripted.probe = probe
    for _ in range(5):
        with pytest.raises(EngineRejected):
            await world.engine.probe()
    assert world.engine.in_cooldown_for("globex") is own


@pytest.mark.parametrize(("up", "reported"), [(True, 1), (False, 0), (None, 0)])
async def test_a_lost_connection_is_reported_while_the_engine_is_up(*, up: bool | None, reported: int) -> None:
    """The engine may have restarted with another model, before the next probe is due."""
    world = World([EngineUnreachable("gone", engine="small")], [EngineFailed("broken", engine="small")])
    world.engine.state = EngineState(up=up)
    reports: list[None] = []
    world.engine.on_lost(lambda: reports.append(None))
    await world.call()
    await world.call()
    assert len(reports) == reported


async def test_lost_connections_are_reported_every_ten_seconds_at_most() -> None:
    """Each report leads to a probe, which ends the cooldowns of all tenants."""
    world = World(*([EngineUnreachable("gone", engine="small")] for _ in range(4)))
    world.engine.state = EngineState(up=True)
    reports: list[float] = []
    world.engine.on_lost(lambda: reports.append(world.now))
    for _ in range(4):
        await world.call()
        world.now += 5.0
    assert reports == [0.0, 10.0]
