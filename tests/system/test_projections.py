"""Custom projections through a whole gateway: prompts of both engines, replies and costs."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web
from openai import OpenAI
from redis import Redis

from tests.canaries.engine import PLAYS
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, GatewayProcess, guided, local_models, model, running_gateway
from tests.readiness import wait_until_looked_at, wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.local.stack import LocalStack

CANARY = "canary-exemplar-5f2e"
EXEMPLARS = f"- {{question: One?, answer: '1. {CANARY}'}}\n- {{question: Two?, answer: '2.'}}\n"
BOILERPLATE = "Certainly! To find the total, we need to follow these steps:\n\n"
SUBSTANCE = "Half of the rolls is twelve rolls and both are many more"
REST = " than that."
ASKED = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How many?"}]
PLAN = """\
instruction: "Plan:"
system: You plan.
teacher_may_finish: false
placement: context
introduction: "A plan: {guidance}"
"""


def write(folder: Path, name: str, text: str) -> None:
    file = folder / "policies" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@dataclass
class World:
    folder: Path
    gateway: GatewayProcess
    teacher: FakeEngine
    student: FakeEngine

    def post(self, route: str, path: str = "chat/completions", **body: Any) -> httpx.Response:
        prompt_fields = {"messages": ASKED} if path == "chat/completions" else {}
        return httpx.post(
            f"{self.gateway.url}/v1/{path}",
            json={"model": route, **prompt_fields, **body},
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=60,
        )

    def ask(self, route: str, says_: str, finish: str = "length", **body: Any) -> tuple[str, dict[str, Any]]:
        """Return the reply and the receipt of a request to which the teacher replies with this text."""
        self.teacher.behave = says(says_, finish)
        reply = self.post(route, **body)
        assert reply.status_code == 200, reply.text
        receipt = self.gateway.wait_for_log("request", id=reply.headers["x-request-id"])
        if not body.get("stream"):
            choice = reply.json()["choices"][0]
            return choice["message"]["content"] if "message" in choice else choice["text"], receipt
        events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
        return "".join(c["delta"].get("content") or "" for one in events for c in one["choices"]), receipt


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("projections")
    write(folder, "exemplars/it.yaml", EXEMPLARS)
    write(folder, "projections/plan.yaml", PLAN)
    write(folder, "projections/direct.yaml", "keep: {skip: english, skip_tokens: 20}\n")
    fresh = {"cache_ttl": "0s"}
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says(SUBSTANCE, "length")).running())
        student = stack.enter_context(FakeEngine(says(REST)).running())
        gateway = stack.enter_context(
            running_gateway(
                folder,
                redis_url=redis_url,
                redis={"prefix": f"p{os.urandom(4).hex()}"},
                models=[
                    model("big", "tgi", teacher.url, breaker={"failures": 1000}),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
                ],
                routes=[
                    guided("primed", projection="primed", exemplars="exemplars/it.yaml", **fresh),
                    guided("primer", projection="primed", **fresh),
                    guided("plan", projection="plan", **fresh),
                    guided("direct", projection="direct", tokens=8, **fresh),
                    guided("wanted", projection="primed", exemplars="exemplars/it.yaml", on_failure="reject", **fresh),
                ],
            )
        )
        wait_until_looked_at(gateway.admin_url)
        yield World(folder, gateway, teacher, student)


def test_the_teacher_alone_reads_the_exemplars(world: World) -> None:
    text, receipt = world.ask("primed", SUBSTANCE)
    assert text == SUBSTANCE.rsplit(" ", 1)[0] + REST
    shown = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": f"1. {CANARY}"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "2."},
    ]
    assert world.teacher.requests[-1]["messages"] == [ASKED[0], *shown, ASKED[1]]
    assert world.student.requests[-1]["messages"][:2] == ASKED
    assert CANARY not in str(world.student.requests[-1])
    assert receipt["guidance"]["projection"] == "primed"


def test_primed_needs_no_file(world: World) -> None:
    world.ask("primer", SUBSTANCE)
    assert len(world.teacher.requests[-1]["messages"]) == 2 + 10


def test_a_raw_prompt_gets_no_exemplars(world: World) -> None:
    text, receipt = world.ask("primed", " " + SUBSTANCE, path="completions", prompt="Q: How many? A:")
    assert text.startswith(" Half of the rolls")
    assert CANARY not in str(world.teacher.requests[-1])
    assert receipt["guidance"]["projection"] == "primed"


def test_a_plan_is_in_the_students_prompt(world: World) -> None:
    text, receipt = world.ask("plan", "Halve, then add.", "stop")
    assert text == REST
    assert world.teacher.requests[-1]["messages"] == [
        {"role": "system", "content": "You plan.\n\nBe kind."},
        {"role": "user", "content": "Plan: How many?"},
    ]
    assert world.student.requests[-1]["messages"] == [
        ASKED[0],
        {"role": "user", "content": "How many?\n\nA plan: Halve, then add."},
    ]
    assert (receipt["guidance"]["placement"], receipt["mode"]) == ("context", "guided")


@pytest.mark.parametrize("stream", [False, True])
def test_boilerplate_is_paid_for_and_not_shown(world: World, *, stream: bool) -> None:
    """The teacher may generate more, and at most m tokens after the boilerplate are kept."""
    text, receipt = world.ask("direct", BOILERPLATE + SUBSTANCE, stream=stream)
    assert text == "Half of the rolls is twelve rolls" + REST
    assert world.teacher.requests[-1]["max_tokens"] == 8 + 20
    written = len((BOILERPLATE + SUBSTANCE).split())
    assert receipt["teacher"]["output_tokens"] == written
    assert receipt["guidance"]["tokens"] == 8
    assert 5 <= receipt["guidance"]["kept_tokens"] <= 8


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_boilerplate_is_kept_to_its_length_too(world: World, *, stream: bool) -> None:
    text, receipt = world.ask("direct", SUBSTANCE, stream=stream)
    assert text == "Half of the rolls is twelve rolls" + REST
    assert receipt["mode"] == "guided"


@pytest.mark.parametrize("stream", [False, True])
def test_a_complete_answer_after_boilerplate_needs_no_student(world: World, *, stream: bool) -> None:
    text, receipt = world.ask("direct", "Sure! Thirty-six rolls.", "stop", stream=stream)
    assert text == "Thirty-six rolls."
    assert receipt["mode"] == "teacher_complete"


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_that_is_all_boilerplate_leaves_the_answer_to_the_student(world: World, *, stream: bool) -> None:
    text, receipt = world.ask("direct", "Certainly! Let's break this down:", stream=stream)
    assert text == REST
    assert (receipt["mode"], receipt["unguided"]) == ("student", "guidance_boilerplate")
    assert receipt["teacher"]["output_tokens"] > 0


def test_exemplars_are_followed_while_the_gateway_runs(world: World) -> None:
    write(world.folder, "exemplars/it.yaml", EXEMPLARS.replace("Two?", "Three?"))
    world.gateway.wait_for_log("policies_loaded", changed=["acme", "globex"])
    world.ask("primed", SUBSTANCE)
    assert "Three?" in str(world.teacher.requests[-1])
    write(world.folder, "exemplars/it.yaml", "- {question: One?}\n")
    refused = world.gateway.wait_for_log("policies_refused")
    assert refused["issues"][0].endswith("exemplars/it.yaml:1: [0].answer: missing: add it")
    world.ask("primed", SUBSTANCE)
    assert "Three?" in str(world.teacher.requests[-1])


@pytest.mark.parametrize(("code", "shown"), [("context_length_exceeded", "context_length_exceeded"), ("rolls", None)])
def test_only_a_known_code_of_a_teacher_with_exemplars_is_shown(world: World, code: str, shown: str | None) -> None:
    """Any other code might be a word of the exemplars. The fields that the teacher gets are not the caller's."""

    async def rejects(_: Any, __: Any) -> Any:
        error = {"message": f"bad prompt: {CANARY}", "code": code, "param": "messages"}
        return web.json_response({"error": error}, status=400)

    world.teacher.behave = rejects
    reply = world.post("wanted", stream=False)
    error = {"message": "This route's teacher rejected the request.", "type": "invalid_request_error", "param": None}
    assert (reply.status_code, reply.json()) == (400, {"error": error | {"code": shown}})


@pytest.mark.long
@pytest.mark.parametrize("play", ["failed", "blames-400", "error-event", "not-json"])
def test_no_exemplar_leaks_from_a_teacher_that_quotes_its_prompt(world: World, play: str, redis_url: str) -> None:
    """Exemplars appear in no reply, log, metric or receipt, and not in Redis."""

    async def quotes(request: Any, body: Any) -> Any:
        return await PLAYS[play](request, f"bad prompt: {body}")

    world.teacher.behave = quotes
    for route in ("primed", "wanted"):
        for stream in (False, True):
            reply = world.post(route, stream=stream)
            assert CANARY not in reply.text + str(reply.headers)
    time.sleep(0.2)  # the last line of the log
    metrics = httpx.get(f"{world.gateway.admin_url}/metrics").text
    assert CANARY not in metrics + world.gateway.raw_log
    with Redis.from_url(redis_url) as redis:
        for key in redis.scan_iter("p*"):
            assert CANARY.encode() not in (redis.dump(key) or b"")


# real models and the SDK


@pytest.fixture(scope="module")
def small(engines: LocalStack, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("primed")
    write(folder, "exemplars/it.yaml", "- {question: 'What is 2 + 3?', answer: '5.'}\n")
    write(folder, "projections/direct.yaml", "keep: {skip: english}\nexemplars: exemplars/it.yaml\n")
    with running_gateway(
        folder,
        redis_url=redis_url,
        redis={"prefix": f"q{os.urandom(4).hex()}"},
        models=local_models(engines),
        routes=[
            guided("cutoff"),
            guided("primed", projection="primed", exemplars="exemplars/it.yaml"),
            guided("primer", projection="primed"),
            guided("direct", projection="direct"),
        ],
    ) as process:
        wait_until_probed(process.admin_url)
        yield process


@pytest.mark.long
@pytest.mark.models
@pytest.mark.parametrize("route", ["primed", "primer", "direct"])
def test_a_real_teacher_reads_the_exemplars_and_its_receipt_counts_them(small: GatewayProcess, route: str) -> None:
    """The baseline does not count them: the teacher alone would not read them."""
    prompt_fields: list[Any] = [{"role": "user", "content": "What is 4 + 5?"}]
    with OpenAI(base_url=f"{small.url}/v1", api_key=KEY, max_retries=0) as client:
        texts, receipts = {}, {}
        for name in ("cutoff", route):
            raw = client.chat.completions.with_raw_response.create(
                model=name, messages=prompt_fields, max_tokens=30, temperature=0
            )
            texts[name] = raw.parse().choices[0].message.content
            receipts[name] = small.wait_for_log("request", id=raw.headers["x-request-id"])
        stream = client.chat.completions.create(
            model=route, messages=prompt_fields, max_tokens=30, temperature=0, stream=True
        )
        streamed = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    assert texts[route]
    assert streamed == texts[route]
    primed, plain = receipts[route], receipts["cutoff"]
    assert primed["guidance"]["projection"] == route.replace("primer", "primed")
    more = primed["teacher"]["input_tokens"] - plain["teacher"]["input_tokens"]
    assert more > 10
    if primed["student"] is not None and plain["student"] is not None:
        assert abs(primed["student"]["input_tokens"] - plain["student"]["input_tokens"]) <= 40, "guidance alone differs"
    error = float(primed["baseline_error_usd"]) + float(plain["baseline_error_usd"])
    written = 30e-6  # the two answers may differ in length
    assert abs(float(primed["baseline_usd"]) - float(plain["baseline_usd"])) <= error + written
