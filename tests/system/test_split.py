"""A split route through two gateways with one Redis: each conversation keeps its variant, and receipts name it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, OTHER_KEY, GatewayProcess, guided, model, running_gateway
from tests.quality_world import goes_on
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator

CHATS = "/v1/chat/completions"
QUESTIONS = [f"Question {number}?" for number in range(24)]
LIMIT_S = 60.0
SPLIT = guided("chat") | {
    "split": {
        "variants": {
            "control": {"share": "40%"},
            "long": {"share": "30%", "guidance": {"tokens": 30}},
            "alone": {"share": "30%", "mode": "student"},
        }
    }
}
RATED = {"model": "rated", "mode": "student", "student": "small"} | {
    "split": {"variants": {"control": {"share": 0.5}, "other": {"share": 0.5}}}
}
COMPARED = guided("compared") | {
    "quality": {"sample": 1, "max_budget": 5, "max_in_flight": 8, "compare": "exact"},
    "split": {"variants": {"control": {"share": 0.5}, "other": {"share": 0.5, "guidance": {"tokens": 11}}}},
}
ADMIN_KEY = "admin-key-of-the-split"
SAME_GUIDANCE = guided("same") | {
    "split": {"variants": {"one": {"share": 0.5}, "other": {"share": 0.5, "guidance": {"deadline": "50s"}}}}
}


@dataclass
class World:
    gateways: list[GatewayProcess]
    teacher: FakeEngine
    student: FakeEngine

    def ask(self, question: str, gateway: int = 0, *, key: str = KEY, path: str = CHATS, **more: Any) -> httpx.Response:
        body = {"model": "chat", "messages": [{"role": "user", "content": question}], "max_tokens": 50} | more
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(self.gateways[gateway].url + path, headers=headers, json=body, timeout=LIMIT_S)
        assert answer.status_code == 200, answer.text
        return answer

    def rate(self, receipt_id: str, body: object, gateway: int = 0, key: str = KEY) -> httpx.Response:
        url = f"{self.gateways[gateway].url}/v1/receipts/{receipt_id}/feedback"
        return httpx.post(url, headers={"Authorization": f"Bearer {key}"}, json=body, timeout=LIMIT_S)

    def report(self, route: str, **query: object) -> dict[str, Any]:
        headers, params = {"Authorization": f"Bearer {ADMIN_KEY}"}, {"tenant": "acme", "route": route, **query}
        answer = httpx.get(f"{self.gateways[0].admin_url}/usage/split", headers=headers, params=params)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wait_for_report(self, route: str, outcomes: int) -> dict[str, dict[str, Any]]:
        """Return the variants of a report, by name, when it has this number of outcomes or more."""
        give_up = time.monotonic() + LIMIT_S
        while True:
            variants = self.report(route)["variants"]
            written = sum(row["outcomes"] for one in variants for row in one["outcomes"])
            # Receipts and outcomes have outboxes of their own.
            if written >= outcomes and sum(one["requests"] for one in variants) >= outcomes:
                return {one["name"]: one for one in variants}
            assert time.monotonic() < give_up, variants
            time.sleep(0.1)

    def receipt(self, answer: httpx.Response, gateway: int = 0) -> dict[str, Any]:
        self.gateways[gateway].wait_for_log("request", id=answer.headers["x-request-id"])
        return self.receipt_by_id(answer.headers["x-request-id"], gateway)

    def receipt_by_id(self, receipt_id: str, gateway: int = 0) -> dict[str, Any]:
        url = f"{self.gateways[gateway].url}/v1/receipts/{receipt_id}"
        found: dict[str, Any] = httpx.get(url, headers={"Authorization": f"Bearer {KEY}"}).json()
        return found


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says("One two three four", "length")).running())
        student = stack.enter_context(FakeEngine(goes_on(" four five", "One six")).running())
        gateways = [
            stack.enter_context(
                running_gateway(
                    tmp_path_factory.mktemp(name),
                    redis_url=redis_url,
                    redis={"prefix": "split", "timeout": "5s"},
                    usage={"run": "host" if name == "first" else "command"},
                    admin={"key": "env:SPLIT_ADMIN_KEY"},
                    environ={"SPLIT_ADMIN_KEY": ADMIN_KEY},
                    models=[
                        model("big", "tgi", teacher.url),
                        model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
                    ],
                    routes=[SPLIT, SAME_GUIDANCE, RATED, COMPARED],
                )
            )
            for name in ("first", "second")
        ]
        for gateway in gateways:
            wait_until_looked_at(gateway.admin_url)
        yield World(gateways, teacher, student)


def test_a_conversation_keeps_its_variant_in_every_process(world: World) -> None:
    first = [world.ask(question) for question in QUESTIONS]
    second = [world.ask(question, 1) for question in QUESTIONS]
    variants = [answer.headers["x-gkt-variant"] for answer in first]
    assert set(variants) == {"control", "long", "alone"}
    assert variants == [answer.headers["x-gkt-variant"] for answer in second]
    for answer, variant in zip(first, variants, strict=True):
        receipt = world.receipt(answer)
        assert receipt["split"]["variant"] == variant
        assert receipt["mode"] == ("student" if variant == "alone" else "guided")
        assert receipt["unguided"] is None
        if variant != "alone":
            assert receipt["guidance"]["tokens"] == (30 if variant == "long" else 12)
    units = [world.receipt(answer)["split"]["unit"] for answer in first]
    assert len(set(units)) == len(QUESTIONS)
    assert units == [world.receipt(answer, 1)["split"]["unit"] for answer in second]


def test_a_stream_names_its_variant_in_the_head_and_in_the_last_chunk(world: World) -> None:
    for question in QUESTIONS[:4]:
        variant = world.ask(question).headers["x-gkt-variant"]
        streamed = world.ask(question, stream=True, stream_options={"include_usage": True})
        assert streamed.headers["x-gkt-variant"] == variant
        last = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: {")][-1]
        assert json.loads(last)["gkt"]["variant"] == variant


def test_variants_share_guidance_only_for_the_same_teacher_request(world: World) -> None:
    """The variants of route `chat` have other lengths. Those of route `same` send the same to the teacher."""

    def ask_in_sessions(route: str) -> dict[str, list[str | None]]:
        """Ask the same in several conversations. Return how each variant's guidance was shared."""
        shared: dict[str, list[str | None]] = {}
        for number in range(16):
            headers = {"Authorization": f"Bearer {KEY}", "x-session-id": f"s{number}"}
            body = {"model": route, "messages": [{"role": "user", "content": "Shared?"}], "max_tokens": 50}
            answer = httpx.post(world.gateways[0].url + CHATS, headers=headers, json=body, timeout=LIMIT_S)
            shared.setdefault(answer.headers["x-gkt-variant"], []).append(answer.headers.get("x-gkt-shared"))
        return shared

    of_chat = ask_in_sessions("chat")
    assert of_chat.keys() == {"control", "long", "alone"}
    for variant in ("control", "long"):
        assert of_chat[variant] == [None, *["cache"] * (len(of_chat[variant]) - 1)]
    of_same = ask_in_sessions("same")
    assert of_same.keys() == {"one", "other"}
    assert {how for hows in of_same.values() for how in hows} == {"cache"}  # from `control`: the same request


def test_the_list_of_models_shows_one_model(world: World) -> None:
    found = httpx.get(f"{world.gateways[0].url}/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert [one["id"] for one in found["data"]] == ["chat", "same", "rated", "compared"]


def test_feedback_is_stored_once_and_by_the_tenant_of_the_receipt(world: World) -> None:
    receipt_id = world.ask("Rate me", model="rated").headers["x-request-id"]
    world.gateways[0].wait_for_log("request", id=receipt_id)
    unknown = world.rate(f"req_{'0' * 24}", {"score": 1})
    others = world.rate(receipt_id, {"score": 0}, key=OTHER_KEY)
    assert (unknown.status_code, unknown.json()) == (404, others.json())
    assert unknown.json()["error"]["param"] == "id"
    for key, status in (("gk-wrong", 401),):
        assert world.rate(receipt_id, {"score": 1}, key=key).status_code == status
    assert "feedback" not in world.receipt_by_id(receipt_id)
    stored = {"object": "feedback", "receipt": receipt_id, "score": 0.75}
    for gateway in (0, 1, 0):  # repeatable, through every process
        answer = world.rate(receipt_id, {"score": 0.75}, gateway)
        assert (answer.status_code, answer.json()) == (200, stored)
    changed = world.rate(receipt_id, {"score": 0.5}, 1)
    assert (changed.status_code, changed.json()["error"]["code"]) == (409, "feedback_given")
    assert world.receipt_by_id(receipt_id)["feedback"] == 0.75


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "score"), ({"score": 1.01}, "score"), ({"score": -0.1}, "score"), ({"score": "1"}, "score"),
     ({"score": True}, "score"), ({"score": None}, "score"), ({"score": 1, "label": "good"}, "label"), ([1], None)],
)  # fmt: skip
def test_invalid_feedback_names_the_field(world: World, body: object, param: str | None) -> None:
    answer = world.rate(f"req_{'0' * 24}", body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_the_report_compares_the_variants_by_feedback(world: World) -> None:
    rated: dict[str, int] = {"control": 0, "other": 0}
    for number in range(60):
        answer = world.ask(f"Rated {number}", number % 2, model="rated")
        variant, receipt_id = answer.headers["x-gkt-variant"], answer.headers["x-request-id"]
        world.gateways[number % 2].wait_for_log("request", id=receipt_id)
        score = 1.0 if variant == "other" else (number % 3) / 10
        assert world.rate(receipt_id, {"score": score}, number % 2).status_code == 200
        assert world.rate(receipt_id, {"score": score}).status_code == 200  # counts once
        rated[variant] += 1
    variants = world.wait_for_report("rated", 60)
    assert [one["share"] for one in variants.values()] == [0.5, 0.5]
    for one in variants.values():
        (feedback,) = one["outcomes"]
        assert feedback["source"] == "feedback"
        assert feedback["outcomes"] == feedback["units"]
        assert feedback["mean"]["low"] <= feedback["mean"]["value"] <= feedback["mean"]["high"]
    assert variants["control"]["outcomes"][0].get("verdict") is None
    assert variants["other"]["outcomes"][0]["verdict"] == "higher"
    assert variants["other"]["outcomes"][0]["difference"]["low"] > 0.5


def test_comparisons_of_quality_samples_count_by_variant(world: World) -> None:
    asked = [world.ask(f"Compared {number}", model="compared").headers["x-gkt-variant"] for number in range(6)]
    variants = world.wait_for_report("compared", 6)
    for name, one in variants.items():
        assert sum(row["outcomes"] for row in one["outcomes"]) == asked.count(name)
        assert {row["source"] for row in one["outcomes"] if row["outcomes"]} <= {"exact"}
        assert one["requests"] == one["guided"] == asked.count(name)
    # A comparison's calls have receipts of their own, which belong to no variant.
    ids = [line for line in world.gateways[0].log if line["event"] == "request" and line.get("shadow_of")]
    assert ids
    assert all("split" not in line for line in ids)


def test_the_command_prints_the_report(world: World) -> None:
    world.wait_for_report("rated", 1)
    arguments = ["usage", "split", "--tenant", "acme", "--route", "rated", "--url", world.gateways[0].admin_url]
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        env={**os.environ, "GKT_ADMIN_KEY": ADMIN_KEY}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines if line[:1] in (["control"], ["other"])] == ["control", "other"] * 2
    refused = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments[:-3], "nothing", *arguments[-2:]],
        env={**os.environ, "GKT_ADMIN_KEY": ADMIN_KEY}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "has no route 'nothing' with a split" in refused.stderr


def test_usage_rows_name_the_variants(world: World) -> None:
    world.wait_for_report("rated", 1)
    headers = {"Authorization": f"Bearer {KEY}"}
    usage = httpx.get(f"{world.gateways[0].url}/v1/usage", params={"by": "route"}, headers=headers).json()
    (row,) = [row for row in usage["rows"] if row["route"] == "rated"]
    assert row["variants"].keys() == {"control", "other"}
    total = httpx.get(f"{world.gateways[0].url}/v1/usage", params={"by": "mode"}, headers=headers).json()
    assert not any("variants" in one for one in (*total["rows"], total["total"])), "routes have equal names of variants"
    assert sum(one["requests"] for one in row["variants"].values()) == row["requests"]
    assert sum(Decimal(one["cost_usd"]) for one in row["variants"].values()) == Decimal(row["cost_usd"])
