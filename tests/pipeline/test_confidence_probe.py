"""The gateway's path with `tokens: auto`: who is asked for what, what the receipt tells of it, and that it sums up."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web
from msgspec import structs

from gateway.engines.openai import OpenAIEngine
from gateway.pipeline.confidence_probe import MAX_REFUSALS, PROBE_EVERY, ConfidenceProbe
from gateway.policy.length import choose_length
from gateway.policy.length_rules import AutoRule, ProbeRule
from gateway.telemetry.metrics import Metrics
from tests.accounting.drafts import chat, draft, plan
from tests.engines.fake_server import engine_http
from tests.fakes import FakeEngine, says, says_with_odds
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.fakes import Handler

OPENING = "First we look at it from all sides. Then we think of more, and then we write it down"
ENGINE = {"breaker": {"failures": 1000}}
_numbers = itertools.count()
PROBED = {"probe": {"confident": 0.9, "deadline": "2s"}}


def fails_first(how: str) -> Any:
    """A student that answers, and fails when it is asked for its first token alone."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("logprobs"):
            return await says(" and so on.")(request, body)
        if how == "slow":
            await asyncio.sleep(30)
        return web.json_response({"error": {"message": "no"}}, status=500)

    return behave


@dataclass
class World:
    """A gateway between a teacher and a student that do as they are told."""

    teacher: FakeEngine
    student: FakeEngine
    gateway: GatewayProcess

    def ask(self, route: str, *, text: str | None = None, **more: Any) -> tuple[httpx.Response, dict[str, Any]]:
        """The reply, and its receipt."""
        self.teacher.asked.clear()
        self.student.asked.clear()
        question = text or f"What do people do on day {next(_numbers)}?"
        body = {"model": route, "messages": [{"role": "user", "content": question}]} | more
        headers = {"Authorization": f"Bearer {KEY}"} | more.pop("headers", {})
        body.pop("headers", None)
        answer = httpx.post(f"{self.gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=20)
        request_id = answer.headers["x-request-id"]
        line = self.gateway.wait_for_log("request", id=request_id)
        assert Counter(seen.get("id") for seen in self.gateway.log if seen["event"] == "request")[request_id] == 1
        summed(line)
        return answer, line


def summed(receipt: dict[str, Any]) -> None:
    """Its shares are its cost."""
    shares = [receipt[name] for name in ("teacher", "student", "probe")]
    shares += [attempt.get("share") for attempt in receipt["attempts"]]
    assert sum(Decimal(one["cost_usd"]) for one in shares if one) == Decimal(receipt["cost_usd"])


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says(OPENING, "length")).running())
        student = stack.enter_context(FakeEngine(says(" and so on.")).running())
        probed = guided("chat-probed", tokens="auto") | {"students": ["small"]}
        probed["guidance"]["auto"] = PROBED
        stopped = guided("chat-stopped", tokens="auto", auto={"min": 4, "stop_at": "sentence"})
        hurried = guided("chat-hurried", tokens="auto", auto={"probe": {"deadline": "100ms"}})
        del probed["student"]
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("sounding"),
                redis_url=redis_url,
                redis={"prefix": "sounding"},
                models=[
                    model("big", "openai", f"{teacher.url}/v1", price={"input_per_1m": 1.0, "output_per_1m": 1.0}),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False, **ENGINE),
                ],
                routes=[
                    guided("chat-auto", tokens="auto") | {"overrides": {"guidance_tokens": 200}},
                    probed,
                    stopped,
                    hurried,
                ],
            )
        )
        wait_until_probed(gateway.admin_url, "small")
        yield World(teacher, student, gateway)


@pytest.fixture
def world(running: World) -> Iterator[World]:
    yield running
    running.student.behave = says(" and so on.")


def test_the_receipt_says_why_the_opening_is_so_long(world: World) -> None:
    answer, receipt = world.ask("chat-auto", text="Ann has 3 apples and buys 4. How many in total?")
    assert world.teacher.asked[0]["max_tokens"] == receipt["guidance"]["tokens"] == 60
    assert receipt["length"] == {"by": "rule", "prompt": "maths", "rule": "maths"}
    assert int(answer.headers["x-gkt-guidance-tokens"]) == receipt["guidance"]["kept_tokens"]
    _, receipt = world.ask("chat-auto")
    assert world.teacher.asked[0]["max_tokens"] == 40
    assert receipt["length"] == {"by": "default", "prompt": "other"}


@pytest.mark.parametrize(
    ("more", "unguided"), [({"text": "Thanks a lot"}, "auto_rule"), ({"max_tokens": 20}, "auto_short")]
)
def test_where_the_length_comes_to_none_the_teacher_is_not_asked(
    world: World, more: dict[str, Any], unguided: str
) -> None:
    answer, receipt = world.ask("chat-auto", **more)
    assert answer.status_code == 200
    assert (receipt["unguided"], receipt["mode"], receipt["guidance"]) == (unguided, "student", None)
    assert receipt["length"]["by"] in {"rule", "default"}
    assert world.teacher.asked == []


def test_a_callers_own_number_goes_before_auto(world: World) -> None:
    _, receipt = world.ask("chat-auto", headers={"x-gkt-guidance-tokens": "150"})
    assert world.teacher.asked[0]["max_tokens"] == receipt["guidance"]["tokens"] == 150
    assert receipt["length"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_sure_student_answers_alone_and_its_first_token_is_paid_for(world: World, *, stream: bool) -> None:
    world.student.behave = says_with_odds("Yes, indeed.", 0.97)
    answer, receipt = world.ask("chat-probed", stream=stream)
    assert answer.status_code == 200
    assert "indeed" in answer.text
    assert world.teacher.asked == []
    assert (receipt["unguided"], receipt["mode"], receipt["teacher"]) == ("student_confident", "student", None)
    found = receipt["length"]["probe"]
    assert (found["outcome"], found["p1"]) == ("confident", 0.97)
    assert 0 < found["entropy"] < 0.5
    assert (receipt["probe"]["input_tokens"], receipt["probe"]["output_tokens"]) == (10, 1)
    assert Decimal(receipt["probe"]["cost_usd"]) > 0
    first, second = world.student.asked
    assert (first["max_tokens"], first["top_logprobs"], first.get("stream")) == (1, 5, None)
    assert "logprobs" not in second


@pytest.mark.parametrize("stream", [False, True])
def test_an_unsure_student_is_helped(world: World, *, stream: bool) -> None:
    world.student.behave = says_with_odds(" and so on.", 0.4)
    answer, receipt = world.ask("chat-probed", stream=stream)
    assert "First" in answer.text
    assert (receipt["mode"], receipt["unguided"]) == ("guided", None)
    assert receipt["length"]["probe"]["outcome"] == "unsure"
    assert receipt["probe"]["output_tokens"] == 1


@pytest.mark.parametrize(
    ("how", "route", "outcome"), [("broken", "chat-probed", "failed"), ("slow", "chat-hurried", "late")]
)
def test_a_student_that_fails_to_tell_costs_nobody_the_answer(world: World, how: str, route: str, outcome: str) -> None:
    """It may have written its token all the same, and is charged for it."""
    world.student.behave = fails_first(how)
    answer, receipt = world.ask(route)
    assert answer.status_code == 200
    assert (receipt["status"], receipt["mode"]) == ("ok", "guided")
    assert receipt["length"]["probe"]["outcome"] == outcome
    assert receipt["probe"]["estimated"]
    assert receipt["probe"]["output_tokens"] == 1
    assert receipt["attempts"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_the_opening_ends_with_its_sentence_and_the_teacher_is_hung_up_on(world: World, *, stream: bool) -> None:
    """Kept is the sentence alone. Paid for is what the teacher may have written until it stopped, up to its limit."""
    answer, receipt = world.ask("chat-stopped", stream=stream)
    assert receipt["length"]["ended"] == "sentence"
    if stream:
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        text = "".join(choice["delta"].get("content") or "" for one in events for choice in one["choices"])
    else:
        text = answer.json()["choices"][0]["message"]["content"]
    assert text == "First we look at it from all sides. and so on." or text.startswith(
        "First we look at it from all sides."
    )
    assert "Then" not in text
    assert world.teacher.asked[0]["stream"] is True
    assert receipt["teacher"]["estimated"]
    assert receipt["teacher"]["output_tokens"] == receipt["guidance"]["tokens"]
    assert receipt["guidance"]["kept_tokens"] < receipt["guidance"]["tokens"]


def test_who_asks_the_same_again_gets_the_same_opening_for_nothing(world: World) -> None:
    """The cache keeps where it ends."""
    first, paid = world.ask("chat-stopped", text="Why is it so on Sundays?")
    again, kept = world.ask("chat-stopped", text="Why is it so on Sundays?")
    assert first.json()["choices"] == again.json()["choices"]
    assert (paid["teacher"].get("shared"), kept["teacher"]["shared"]) == (None, "cache")
    assert kept["length"]["ended"] == "sentence"
    assert Decimal(kept["teacher"]["cost_usd"]) == 0
    assert kept["guidance"]["kept_tokens"] == paid["guidance"]["kept_tokens"]


def test_an_engine_that_tells_no_probabilities_is_not_asked_twice(world: World) -> None:
    """Last here: this process knows it from now on."""
    world.student.behave = says_with_odds(" and so on.", None)
    _, receipt = world.ask("chat-probed")
    assert receipt["length"]["probe"]["outcome"] == "no_logprobs"
    assert receipt["probe"]["output_tokens"] == 1
    _, receipt = world.ask("chat-probed")
    assert receipt["length"]["probe"] == {"outcome": "no_logprobs"}
    assert receipt["probe"] is None
    assert len(world.student.asked) == 1


def refuses(status: int) -> Handler:
    """A student that does so when it is asked for its first token alone."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("logprobs"):
            return await says(" and so on.")(request, body)
        return web.json_response({"error": {"message": "logprobs: not supported"}}, status=status)

    return behave


class Asked:
    """A sounding before one student."""

    def __init__(self, student: FakeEngine, engine: OpenAIEngine) -> None:
        self.student, self.engine = student, engine
        self._probe = ConfidenceProbe({"small": engine}, Metrics())

    async def outcomes(self, behave: Handler, times: int, top: int = 5, tenant: str = "acme") -> list[str]:
        """Of so many requests of the tenant, for as many of the likeliest tokens."""
        self.student.behave = behave
        length = choose_length(
            AutoRule(probe=ProbeRule.model_validate({"top_logprobs": top, "deadline": "10s"})), chat(), None, {}
        )
        probed = structs.replace(plan(), length=length)
        found = []
        for _ in range(times):
            one = structs.replace(draft(probed), tenant=tenant)
            await self._probe.is_confident(probed, chat(), one, asyncio.get_running_loop().time() + 10)
            assert one.probed is not None
            found.append(one.probed.outcome)
        return found


@pytest.fixture
async def alone() -> AsyncIterator[Asked]:
    with FakeEngine(says("")).running() as student:
        async with engine_http(f"{student.url}/v1") as http:
            engine = OpenAIEngine("small", "org/model", http)
            engine.state.revision = "first"
            yield Asked(student, engine)


@pytest.mark.parametrize("status", [400, 422])
async def test_an_engine_that_refused_often_enough_is_asked_once_in_many_requests(alone: Asked, status: int) -> None:
    found = await alone.outcomes(refuses(status), MAX_REFUSALS + 2 * PROBE_EVERY)
    passed_by = ["no_logprobs"] * (PROBE_EVERY - 1)
    assert found == ["failed"] * MAX_REFUSALS + [*passed_by, "failed"] * 2
    assert len(alone.student.asked) == MAX_REFUSALS + 2


async def test_an_answer_ends_that(alone: Asked) -> None:
    """It was the callers' fault: the engine is asked of each request again, and may refuse as often as before."""
    await alone.outcomes(refuses(400), MAX_REFUSALS + PROBE_EVERY - 1)
    assert await alone.outcomes(says_with_odds("Yes", 0.4), 3) == ["unsure"] * 3
    assert await alone.outcomes(refuses(400), MAX_REFUSALS) == ["failed"] * MAX_REFUSALS
    assert await alone.outcomes(refuses(400), 1) == ["no_logprobs"]


async def test_refusals_with_an_answer_between_silence_nobody(alone: Asked) -> None:
    for _ in range(3):
        assert set(await alone.outcomes(refuses(400), MAX_REFUSALS - 1)) == {"failed"}
        assert await alone.outcomes(says_with_odds("Yes", 0.4), 1) == ["unsure"]


async def test_other_failures_are_neither_refusals_nor_answers(alone: Asked) -> None:
    for status in (401, 404, 413, 429, 500):
        assert await alone.outcomes(refuses(status), MAX_REFUSALS + 1) == ["failed"] * (MAX_REFUSALS + 1)
    await alone.outcomes(refuses(400), MAX_REFUSALS - 1)
    await alone.outcomes(refuses(500), 1)
    assert await alone.outcomes(refuses(400), 2) == ["failed", "no_logprobs"]


async def test_other_weights_and_another_number_of_tokens_are_asked_anew(alone: Asked) -> None:
    """A server that gives 5 tokens at most refuses 20, of whatever request."""
    await alone.outcomes(refuses(400), MAX_REFUSALS, top=20)
    assert await alone.outcomes(says_with_odds("Yes", 0.4), 2, top=5) == ["unsure"] * 2
    assert await alone.outcomes(says_with_odds("Yes", 0.4), 1, top=20) == ["no_logprobs"]
    for behave in (refuses(400), says_with_odds("Yes", None)):
        await alone.outcomes(behave, MAX_REFUSALS, top=20)
        assert await alone.outcomes(says_with_odds("Yes", 0.4), 1, top=20) == ["no_logprobs"]
        alone.engine.state.revision += " anew"  # type: ignore[operator]
        assert await alone.outcomes(says_with_odds("Yes", 0.4), 1, top=20) == ["unsure"]


@pytest.mark.parametrize("behave", [refuses(400), says_with_odds("Yes", None)])
async def test_one_tenant_does_not_end_the_probes_of_another(alone: Asked, behave: Handler) -> None:
    await alone.outcomes(behave, MAX_REFUSALS, tenant="globex")
    assert await alone.outcomes(says_with_odds("Yes", 0.4), 2) == ["unsure"] * 2
    assert await alone.outcomes(says_with_odds("Yes", 0.4), 1, tenant="globex") == ["no_logprobs"]
    await alone.outcomes(behave, MAX_REFUSALS, tenant="initech")
    assert await alone.outcomes(says_with_odds("Yes", 0.4), 2) == ["unsure"] * 2, "it got probabilities before"


@pytest.mark.parametrize("behave", [refuses(400), says_with_odds("Yes", None)])
async def test_two_tenants_without_probabilities_end_the_probes_of_all(alone: Asked, behave: Handler) -> None:
    for tenant in ("globex", "initech"):
        await alone.outcomes(behave, MAX_REFUSALS, tenant=tenant)
    assert await alone.outcomes(says_with_odds("Yes", 0.4), 1) == ["no_logprobs"]
