"""Guidance with `tokens: auto`: the calls, the receipt's description of the length, and the sum of its costs."""

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
from gateway.policy.length import AutoRule, ProbeRule, choose_length
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import builder, chat, plan
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


def fails_probes(failure: str) -> Any:
    """Return a student that answers, and fails at probes."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("logprobs"):
            return await says(" and so on.")(request, body)
        if failure == "slow":
            await asyncio.sleep(30)
        return web.json_response({"error": {"message": "no"}}, status=500)

    return behave


@dataclass
class World:
    """A gateway between a fake teacher and a fake student."""

    teacher: FakeEngine
    student: FakeEngine
    gateway: GatewayProcess

    def ask(self, route: str, *, text: str | None = None, **more: Any) -> tuple[httpx.Response, dict[str, Any]]:
        """Return the reply and its receipt."""
        self.teacher.requests.clear()
        self.student.requests.clear()
        question = text or f"What do people do on day {next(_numbers)}?"
        body = {"model": route, "messages": [{"role": "user", "content": question}]} | more
        headers = {"Authorization": f"Bearer {KEY}"} | more.pop("headers", {})
        body.pop("headers", None)
        answer = httpx.post(f"{self.gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=20)
        request_id = answer.headers["x-request-id"]
        line = self.gateway.wait_for_log("request", id=request_id)
        assert Counter(seen.get("id") for seen in self.gateway.log if seen["event"] == "request")[request_id] == 1
        check_sum(line)
        return answer, line


def check_sum(receipt: dict[str, Any]) -> None:
    """Check that the receipt's shares add up to its cost."""
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


def test_the_receipt_contains_the_rule_that_selected_the_length(world: World) -> None:
    answer, receipt = world.ask("chat-auto", text="Ann has 3 apples and buys 4. How many in total?")
    assert world.teacher.requests[0]["max_tokens"] == receipt["guidance"]["tokens"] == 60
    assert receipt["length"] == {"by": "rule", "prompt": "maths", "rule": "maths"}
    assert int(answer.headers["x-gkt-guidance-tokens"]) == receipt["guidance"]["kept_tokens"]
    _, receipt = world.ask("chat-auto")
    assert world.teacher.requests[0]["max_tokens"] == 40
    assert receipt["length"] == {"by": "default", "prompt": "other"}


@pytest.mark.parametrize(
    ("more", "unguided"), [({"text": "Thanks a lot"}, "auto_rule"), ({"max_tokens": 20}, "auto_short")]
)
def test_a_length_of_zero_skips_the_teacher(world: World, more: dict[str, Any], unguided: str) -> None:
    answer, receipt = world.ask("chat-auto", **more)
    assert answer.status_code == 200
    assert (receipt["unguided"], receipt["mode"], receipt["guidance"]) == (unguided, "student", None)
    assert receipt["length"]["by"] in {"rule", "default"}
    assert world.teacher.requests == []


def test_a_callers_own_length_overrides_auto(world: World) -> None:
    _, receipt = world.ask("chat-auto", headers={"x-gkt-guidance-tokens": "150"})
    assert world.teacher.requests[0]["max_tokens"] == receipt["guidance"]["tokens"] == 150
    assert receipt["length"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_confident_student_answers_alone_and_the_probe_is_charged(world: World, *, stream: bool) -> None:
    world.student.behave = says_with_odds("Yes, indeed.", 0.97)
    answer, receipt = world.ask("chat-probed", stream=stream)
    assert answer.status_code == 200
    assert "indeed" in answer.text
    assert world.teacher.requests == []
    assert (receipt["unguided"], receipt["mode"], receipt["teacher"]) == ("student_confident", "student", None)
    probe = receipt["length"]["probe"]
    assert (probe["outcome"], probe["p1"]) == ("confident", 0.97)
    assert 0 < probe["entropy"] < 0.5
    assert (receipt["probe"]["input_tokens"], receipt["probe"]["output_tokens"]) == (10, 1)
    assert Decimal(receipt["probe"]["cost_usd"]) > 0
    first, second = world.student.requests
    assert (first["max_tokens"], first["top_logprobs"], first.get("stream")) == (1, 5, None)
    assert "logprobs" not in second


@pytest.mark.parametrize("stream", [False, True])
def test_an_unsure_student_gets_guidance(world: World, *, stream: bool) -> None:
    world.student.behave = says_with_odds(" and so on.", 0.4)
    answer, receipt = world.ask("chat-probed", stream=stream)
    assert "First" in answer.text
    assert (receipt["mode"], receipt["unguided"]) == ("guided", None)
    assert receipt["length"]["probe"]["outcome"] == "unsure"
    assert receipt["probe"]["output_tokens"] == 1


@pytest.mark.parametrize(
    ("failure", "route", "outcome"), [("broken", "chat-probed", "failed"), ("slow", "chat-hurried", "late")]
)
def test_a_failed_probe_does_not_fail_the_request(world: World, failure: str, route: str, outcome: str) -> None:
    """The student may have generated its token, which is charged."""
    world.student.behave = fails_probes(failure)
    answer, receipt = world.ask(route)
    assert answer.status_code == 200
    assert (receipt["status"], receipt["mode"]) == ("ok", "guided")
    assert receipt["length"]["probe"]["outcome"] == outcome
    assert receipt["probe"]["estimated"]
    assert receipt["probe"]["output_tokens"] == 1
    assert receipt["attempts"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_guidance_ends_with_its_sentence_and_the_teachers_call_is_canceled(world: World, *, stream: bool) -> None:
    """Only the sentence is kept. The tokens that the teacher may have generated are charged, up to its limit."""
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
    assert world.teacher.requests[0]["stream"] is True
    assert receipt["teacher"]["estimated"]
    assert receipt["teacher"]["output_tokens"] == receipt["guidance"]["tokens"]
    assert receipt["guidance"]["kept_tokens"] < receipt["guidance"]["tokens"]


def test_cached_guidance_keeps_its_end_and_costs_nothing(world: World) -> None:
    """The cache stores where the guidance ends."""
    first, paid = world.ask("chat-stopped", text="Why is it so on Sundays?")
    again, kept = world.ask("chat-stopped", text="Why is it so on Sundays?")
    assert first.json()["choices"] == again.json()["choices"]
    assert (paid["teacher"].get("shared"), kept["teacher"]["shared"]) == (None, "cache")
    assert kept["length"]["ended"] == "sentence"
    assert Decimal(kept["teacher"]["cost_usd"]) == 0
    assert kept["guidance"]["kept_tokens"] == paid["guidance"]["kept_tokens"]


def test_an_engine_without_probabilities_is_probed_once(world: World) -> None:
    """The process remembers the engine, so this test is the last one of its process."""
    world.student.behave = says_with_odds(" and so on.", None)
    _, receipt = world.ask("chat-probed")
    assert receipt["length"]["probe"]["outcome"] == "no_logprobs"
    assert receipt["probe"]["output_tokens"] == 1
    _, receipt = world.ask("chat-probed")
    assert receipt["length"]["probe"] == {"outcome": "no_logprobs"}
    assert receipt["probe"] is None
    assert len(world.student.requests) == 1


def rejects_probes(status: int) -> Handler:
    """Return a student that rejects probes."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("logprobs"):
            return await says(" and so on.")(request, body)
        return web.json_response({"error": {"message": "logprobs: not supported"}}, status=status)

    return behave


class ProbedStudent:
    """A confidence probe and its student."""

    def __init__(self, student: FakeEngine, engine: OpenAIEngine) -> None:
        self.student, self.engine = student, engine
        self._probe = ConfidenceProbe({"small": engine}, Metrics())

    async def outcomes(self, behave: Handler, times: int, top: int = 5, tenant: str = "acme") -> list[str]:
        """Return the outcomes of a tenant's requests.

        Args:
            times: number of requests.
            top: number of alternatives that the probe requests.
        """
        self.student.behave = behave
        length = choose_length(
            AutoRule(probe=ProbeRule.model_validate({"top_logprobs": top, "deadline": "10s"})), chat(), None, {}
        )
        probed = structs.replace(plan(), length=length)
        outcomes = []
        for _ in range(times):
            one = structs.replace(builder(probed), tenant=tenant)
            await self._probe.is_confident(chat(), one, asyncio.get_running_loop().time() + 10)
            assert one.probed is not None
            outcomes.append(one.probed.outcome)
        return outcomes


@pytest.fixture
async def probed_student() -> AsyncIterator[ProbedStudent]:
    with FakeEngine(says("")).running() as student:
        async with engine_http(f"{student.url}/v1") as http:
            engine = OpenAIEngine("small", "org/model", http)
            engine.state.revision = "first"
            yield ProbedStudent(student, engine)


@pytest.mark.parametrize("status", [400, 422])
async def test_an_engine_with_many_refusals_is_probed_rarely(probed_student: ProbedStudent, status: int) -> None:
    outcomes = await probed_student.outcomes(rejects_probes(status), MAX_REFUSALS + 2 * PROBE_EVERY)
    skipped = ["no_logprobs"] * (PROBE_EVERY - 1)
    assert outcomes == ["failed"] * MAX_REFUSALS + [*skipped, "failed"] * 2
    assert len(probed_student.student.requests) == MAX_REFUSALS + 2


async def test_an_answer_resets_the_refusals(probed_student: ProbedStudent) -> None:
    """The requests were to blame: the engine is probed at each request again, and may refuse as often as before."""
    await probed_student.outcomes(rejects_probes(400), MAX_REFUSALS + PROBE_EVERY - 1)
    assert await probed_student.outcomes(says_with_odds("Yes", 0.4), 3) == ["unsure"] * 3
    assert await probed_student.outcomes(rejects_probes(400), MAX_REFUSALS) == ["failed"] * MAX_REFUSALS
    assert await probed_student.outcomes(rejects_probes(400), 1) == ["no_logprobs"]


async def test_refusals_that_are_not_consecutive_do_not_end_the_probes(probed_student: ProbedStudent) -> None:
    for _ in range(3):
        assert set(await probed_student.outcomes(rejects_probes(400), MAX_REFUSALS - 1)) == {"failed"}
        assert await probed_student.outcomes(says_with_odds("Yes", 0.4), 1) == ["unsure"]


async def test_other_failures_are_neither_refusals_nor_answers(probed_student: ProbedStudent) -> None:
    for status in (401, 404, 413, 429, 500):
        assert await probed_student.outcomes(rejects_probes(status), MAX_REFUSALS + 1) == ["failed"] * (
            MAX_REFUSALS + 1
        )
    await probed_student.outcomes(rejects_probes(400), MAX_REFUSALS - 1)
    await probed_student.outcomes(rejects_probes(500), 1)
    assert await probed_student.outcomes(rejects_probes(400), 2) == ["failed", "no_logprobs"]


async def test_new_weights_or_another_number_of_alternatives_are_probed_again(probed_student: ProbedStudent) -> None:
    """A server with at most 5 alternatives rejects every request for 20."""
    await probed_student.outcomes(rejects_probes(400), MAX_REFUSALS, top=20)
    assert await probed_student.outcomes(says_with_odds("Yes", 0.4), 2, top=5) == ["unsure"] * 2
    assert await probed_student.outcomes(says_with_odds("Yes", 0.4), 1, top=20) == ["no_logprobs"]
    for behave in (rejects_probes(400), says_with_odds("Yes", None)):
        await probed_student.outcomes(behave, MAX_REFUSALS, top=20)
        assert await probed_student.outcomes(says_with_odds("Yes", 0.4), 1, top=20) == ["no_logprobs"]
        probed_student.engine.state.revision += " anew"  # type: ignore[operator]
        assert await probed_student.outcomes(says_with_odds("Yes", 0.4), 1, top=20) == ["unsure"]


@pytest.mark.parametrize("behave", [rejects_probes(400), says_with_odds("Yes", None)])
async def test_one_tenant_does_not_end_the_probes_of_another(probed_student: ProbedStudent, behave: Handler) -> None:
    await probed_student.outcomes(behave, MAX_REFUSALS, tenant="globex")
    assert await probed_student.outcomes(says_with_odds("Yes", 0.4), 2) == ["unsure"] * 2
    assert await probed_student.outcomes(says_with_odds("Yes", 0.4), 1, tenant="globex") == ["no_logprobs"]
    await probed_student.outcomes(behave, MAX_REFUSALS, tenant="initech")
    assert await probed_student.outcomes(says_with_odds("Yes", 0.4), 2) == ["unsure"] * 2, "it got probabilities before"


@pytest.mark.parametrize("behave", [rejects_probes(400), says_with_odds("Yes", None)])
async def test_two_tenants_without_probabilities_end_the_probes_of_all(
    probed_student: ProbedStudent, behave: Handler
) -> None:
    for tenant in ("globex", "initech"):
        await probed_student.outcomes(behave, MAX_REFUSALS, tenant=tenant)
    assert await probed_student.outcomes(says_with_odds("Yes", 0.4), 1) == ["no_logprobs"]
