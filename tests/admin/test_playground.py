"""The playground over HTTP: a gateway process, a real Redis, and fake engines."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from pydantic import ValidationError

from gateway.admin.playground import _base_url
from gateway.api import keys
from gateway.policy.schema import KeyEntry
from tests.fakes import FakeEngine, begin_events, chunk, event, says
from tests.gateway_process import KEY, STUDENT_ONLY, TEACHER_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN_KEY = "an-admin-key-for-tests"
OPENING = "The answer to your question is this"
KEPT = "The answer to your question is"  # a word at the length limit may be incomplete
REST = " surely as follows."
MATHS = "A shop has 48 eggs and sells 18. How many are left in total?"


@dataclass
class PlaygroundAnswer:
    """The events of one run: its chunks, its errors, and the receipt at its end."""

    chunks: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    receipt: dict[str, Any] | None = None
    guidance: str | None = None  # of a placement that is in no chunk
    done: bool = False
    id: str = ""

    @property
    def text(self) -> str:
        return "".join(c["delta"].get("content") or "" for one in self.chunks for c in one["choices"])

    @property
    def marked_text(self) -> str:
        return "".join(one["x_gkt"]["opening"] for one in self.chunks if "x_gkt" in one)


@dataclass
class World:
    gateway: GatewayProcess
    teacher: FakeEngine
    student: FakeEngine

    def admin(self, method: str, path: str, body: Any = None, key: str = ADMIN_KEY) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.request(method, self.gateway.admin_url + path, json=body, headers=headers, timeout=20)

    def run(self, mode: str = "guided", **more: Any) -> PlaygroundAnswer:
        body = {"tenant": "acme", "model": "chat", "mode": mode, "prompt": "Why?"} | more
        result, name = PlaygroundAnswer(), ""
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        with httpx.stream(
            "POST", f"{self.gateway.admin_url}/playground/run", json=body, headers=headers, timeout=20
        ) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            result.id = answer.headers["x-request-id"]
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line == "data: [DONE]":
                    result.done = True
                elif line.startswith("data: "):
                    part = orjson.loads(line[6:])
                    if name == "receipt":
                        assert result.receipt is None
                        result.receipt = part
                    elif name == "guidance":
                        assert not result.chunks, "the guidance precedes the answer"
                        result.guidance = part["text"]
                    elif "error" in part:
                        result.errors.append(part["error"])
                    else:
                        result.chunks.append(part)
                    name = ""
        return result


async def cut_off(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Send one word and fail."""
    response = await begin_events(request)
    await response.write(event(chunk({"content": "Well"})))
    await response.write(event({"error": {"message": "out of memory", "code": 500}}))
    return response


async def silent(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Accept the call and send nothing."""
    response = await begin_events(request)
    await asyncio.sleep(30)
    return response


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("playground")
    (folder / "admin.key").write_text(ADMIN_KEY)
    (folder / "policies" / "projections").mkdir(parents=True)
    (folder / "policies" / "projections" / "plan.yaml").write_text("instruction: 'Plan:'\nplacement: context\n")
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says(OPENING, "length")).running())
        student = stack.enter_context(FakeEngine(says(REST)).running())
        broken = stack.enter_context(FakeEngine(cut_off).running())
        mute = stack.enter_context(FakeEngine(silent).running())
        calm = {"breaker": {"failures": 1000}}
        students = {"small": student, "broken": broken, "mute": mute}
        routes = [
            guided(tokens=7, cache_ttl="0s"),
            guided("chat-broken", student="broken", tokens=7),
            guided("chat-mute", student="mute", tokens=7),
            STUDENT_ONLY,
            TEACHER_ONLY,
            {"model": "vectors", "mode": "embeddings", "student": "small"},
        ]
        tenants = {
            "limited": {"keys": [], "routes": routes[:1], "limits": {"rpm_limit": 1}},
            "spent": {"keys": [], "routes": routes[:1], "budget": {"max_budget": 0.0000001}},
        }
        gateway = stack.enter_context(
            running_gateway(
                folder,
                redis_url=redis_url,
                redis={"prefix": "playground", "timeout": "2s"},
                admin={"key": "file:admin.key"},
                models=[
                    model("big", "tgi", teacher.url, **calm),
                    *(
                        model(name, "openai", f"{one.url}/v1", continuation="trailing", echo=False, **calm)
                        for name, one in students.items()
                    ),
                ],
                routes=routes,
                tenants=tenants,
            )
        )
        wait_until_looked_at(gateway.admin_url)
        yield World(gateway, teacher, student)


@pytest.mark.long
def test_a_guided_answer_streams_with_the_teachers_words_marked_and_ends_with_its_receipt(world: World) -> None:
    result = world.run()
    assert result.text == KEPT + REST
    assert result.marked_text == KEPT
    assert result.done
    receipt = result.receipt
    assert receipt is not None
    assert (receipt["id"], receipt["tenant"], receipt["key"], receipt["route"]) == (
        result.id, "acme", "playground", "chat"
    )  # fmt: skip
    assert (receipt["mode"], receipt["status"], receipt["unguided"]) == ("guided", "ok", None)
    assert receipt["guidance"]["kept_tokens"] > 0
    assert Decimal(receipt["cost_usd"]) > 0
    assert Decimal(receipt["savings_usd"]) == Decimal(receipt["baseline_usd"]) - Decimal(receipt["cost_usd"])
    assert 0 < receipt["timings"]["first_token_ms"] <= receipt["timings"]["total_ms"]


def test_the_receipt_shown_is_the_receipt_settled(world: World) -> None:
    result = world.run()
    assert result.receipt is not None
    settled = world.gateway.wait_for_log("request", id=result.id)
    shown = {name: value for name, value in settled.items() if name in result.receipt}
    assert shown == result.receipt
    kept = world.admin("GET", f"/playground/receipts/acme/{result.id}")
    assert kept.json() == result.receipt


def test_a_selected_engine_answers_alone_in_every_mode(world: World) -> None:
    for mode, text in (("teacher", OPENING), ("student", REST)):
        result = world.run(mode)
        assert (result.text, result.marked_text) == (text, "")
        assert result.receipt is not None
        assert result.receipt["mode"] == mode
        assert result.receipt[{"teacher": "student", "student": "teacher"}[mode]] is None
    assert world.run(model="chat-student", mode="student").text == REST


def test_length_projection_and_placement_are_the_operators_to_choose(world: World) -> None:
    """Omitted fields keep the route's values."""
    result = world.run(guidance={"tokens": 3, "projection": "concise"})
    assert result.receipt is not None
    facts = result.receipt["guidance"]
    assert (facts["tokens"], facts["projection"], facts["placement"]) == (3, "concise", "prefix")
    assert result.guidance is None, "the chunks have it"
    result = world.run(guidance={"projection": "hint", "placement": "context"}, max_tokens=50)
    assert (result.text, result.marked_text) == (REST, ""), "the student alone sees a hint"
    assert result.guidance is not None, "the operator sees it, too"
    assert KEPT in result.guidance
    assert result.receipt is not None
    facts = result.receipt["guidance"]
    assert (facts["tokens"], facts["projection"], facts["placement"]) == (7, "hint", "context")
    assert KEPT in orjson.dumps(world.student.requests[-1]["messages"]).decode()


def test_the_engine_gets_the_same_request_as_from_a_caller(world: World) -> None:
    world.run("student", system="Be brief.", temperature=0.5, top_p=0.9, seed=7, max_tokens=11)
    sent = world.student.requests[-1]
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert [sent[name] for name in ("temperature", "top_p", "seed", "max_tokens")] == [0.5, 0.9, 7, 11]
    messages = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    world.run("student", messages=messages, prompt=None)
    assert world.student.requests[-1]["messages"] == messages


def test_an_error_during_the_stream_precedes_the_receipt_without_done(world: World) -> None:
    """The engine breaks off again when it is called to continue its text."""
    result = world.run("student", model="chat-broken")
    assert result.text == "WellWell"
    assert [error["code"] for error in result.errors] == ["engine_failed"]
    assert not result.done
    assert result.receipt is not None
    assert result.receipt["status"] == "engine_failed"
    assert world.gateway.wait_for_log("request", id=result.id)["cost_usd"] == result.receipt["cost_usd"]


def test_a_stop_cancels_the_engine_call_and_is_on_the_receipt(world: World) -> None:
    """The gateway detects the disconnect also before the first word, when it has nothing to write."""
    body = {"tenant": "acme", "model": "chat-mute", "mode": "student", "prompt": "Why?"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{world.gateway.admin_url}/playground/run",
            json=body,
            headers={"Authorization": f"Bearer {ADMIN_KEY}"},
            timeout=httpx.Timeout(10, read=0.5),
        )
    receipt = world.gateway.wait_for_log("request", route="chat-mute")
    assert (receipt["status"], receipt["key"]) == ("client_gone", "playground")
    shown = world.admin("GET", f"/playground/receipts/acme/{receipt['id']}").json()
    assert shown["status"] == "client_gone"


def test_a_projection_of_ones_own_can_be_tried(world: World) -> None:
    """The projection works with and without a route that names it."""
    result = world.run(guidance={"projection": "plan", "placement": "context"}, max_tokens=50)
    assert result.receipt is not None
    assert result.receipt["guidance"]["projection"] == "plan"
    assert "Plan: Why?" in str(world.teacher.requests[-1])


def test_limits_and_budgets_of_the_tenant_hold(world: World) -> None:
    body = {"tenant": "limited", "model": "chat", "mode": "student", "prompt": "Why?"}
    statuses = [world.admin("POST", "/playground/run", body).status_code for _ in range(2)]
    assert statuses == [200, 429]
    refused = world.admin("POST", "/playground/run", body | {"tenant": "spent"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")


def test_the_form_gets_its_choices(world: World) -> None:
    shown = world.admin("GET", "/playground/options").json()
    assert shown["base_url"] == f"{world.gateway.url}/v1"
    assert shown["modes"] == ["guided", "student", "teacher"]
    assert {one["name"]: one["placement"] for one in shown["projections"]} == {
        "cutoff": "prefix", "concise": "prefix", "hint": "context", "primed": "prefix", "plan": "context"
    }  # fmt: skip
    assert shown["placements"] == ["prefix", "context", "input"]
    engines = {one["name"]: one for one in shown["engines"]}
    assert list(engines) == ["big", "small", "broken", "mute"]
    assert engines["small"] == {"name": "small", "up": True, "rests": False, "continues": True}
    assert [one["tenant"] for one in shown["tenants"]] == ["acme", "globex", "limited", "spent"]
    routes = {one["model"]: one for one in shown["tenants"][0]["routes"]}
    assert "vectors" not in routes, "embeddings are no answer"
    assert routes["chat"] == {
        "model": "chat", "mode": "guided", "modes": ["guided", "student", "teacher"], "conditional": False,
        "teacher": "big", "students": ["small"], "weights": [None], "baseline": "big",
        "default_max_tokens": None,
        "guidance": {"tokens": 7, "projection": "cutoff", "placement": "prefix"},
        "callers_may": {"modes": [], "guidance_tokens": None},
    }  # fmt: skip
    assert routes["chat-student"]["modes"] == ["student"]
    assert routes["chat-teacher"]["modes"] == ["teacher"]


@pytest.mark.parametrize(
    ("listens", "seen_from", "expected"),
    [
        ("127.0.0.1", "gateway.example:8081", "http://127.0.0.1:9000/v1"),
        ("0.0.0.0", "gateway.example:8081", "http://gateway.example:9000/v1"),
        ("::", "[2001:db8::1]:8081", "http://[2001:db8::1]:9000/v1"),
        ("::1", "localhost:8081", "http://[::1]:9000/v1"),
    ],
)
def test_examples_show_the_address_of_the_public_listener(listens: str, seen_from: str, expected: str) -> None:
    """With a listener on all addresses, the page shows the address that the operator used."""
    app = web.Application()
    app[keys.CALLERS_LISTENER] = keys.CallersListener(listens, 9000)
    request = make_mocked_request("GET", "/playground/options", {"Host": seen_from}, app=app)
    assert _base_url(request) == expected


@pytest.mark.parametrize(
    ("change", "status", "param", "words"),
    [
        ({"tenant": None}, 400, "tenant", "empty: write a value"),
        ({"tenant": 5}, 400, "tenant", "must be text"),
        ({"tenant": "acmee"}, 404, "tenant", "There is no tenant 'acmee'. Did you mean 'acme'?"),
        ({"model": "chta"}, 404, "model", "no route 'chta'. Did you mean 'chat'?"),
        ({"model": "vectors"}, 400, "model", "makes embeddings"),
        ({"model": "chat-student"}, 400, "mode", "its route names no teacher"),
        ({"model": "chat-teacher"}, 400, "mode", "its route names no student"),
        ({"mode": "shadow"}, 400, "mode", "must be"),
        ({"mode": "both"}, 400, "mode", "must be"),
        ({"prompt": "  "}, 400, "prompt", "must not be empty"),
        ({"prompt": None}, 400, "prompt", "send prompt or messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, 400, "prompt", "send one of the two"),
        ({"prompt": None, "messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0].role", "no such role"),
        ({"prompt": None, "messages": []}, 400, "messages", "at least 1"),
        ({"prompt": None, "system": "s", "messages": [{"role": "user", "content": "x"}]}, 400, "prompt", "requires a"),
        ({"guidance": {"tokens": 0}}, 400, "guidance.tokens", "must be at least 1"),
        ({"guidance": {"tokens": 4097}}, 400, "guidance.tokens", "must be at most 4096"),
        ({"guidance": {"tokens": "automatic"}}, 400, "guidance.tokens", "must be a whole number"),
        ({"guidance": {"tokens": "7"}}, 400, "guidance.tokens", "must be a whole number, without quotes"),
        ({"guidance": {"tokens": "auto"}}, 400, "guidance.tokens", "must be a whole number"),
        ({"guidance": {"token": 5}}, 400, "guidance.token", "Did you mean 'tokens'?"),
        ({"guidance": {"projection": "cut"}}, 400, "guidance.projection", "There is no projection 'cut'."),
        ({"guidance": {"projection": "primd"}}, 400, "guidance.projection", "Did you mean 'primed'?"),
        ({"guidance": {"projection": "a b"}}, 400, "guidance.projection", "must be 1 to 64 letters"),
        ({"guidance": {"placement": "end"}}, 400, "guidance.placement", "must be"),
        ({"temperature": 3}, 400, "temperature", "at most 2"),
        ({"temperature": "hot"}, 400, "temperature", "must be a number"),
        ({"max_tokens": 0}, 400, "max_tokens", "must be at least 1"),
        ({"seed": 1.5}, 400, "seed", "whole number"),
        ({"colour": "red"}, 400, "colour", "unknown key"),
    ],
)  # fmt: skip
def test_an_invalid_field_is_rejected_with_its_name(
    world: World, change: dict[str, Any], status: int, param: str, words: str
) -> None:
    body = {"tenant": "acme", "model": "chat", "mode": "guided", "prompt": "Why?"} | change
    answer = world.admin("POST", "/playground/run", body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert words in error["message"]


def test_the_playground_requires_the_admin_key(world: World) -> None:
    body = {"tenant": "acme", "model": "chat", "mode": "guided", "prompt": "Why?"}
    before = len(world.student.requests)
    for method, path in (
        ("POST", "/playground/run"),
        ("GET", "/playground/options"),
        ("GET", "/playground/receipts/acme/req_000000000000000000000000"),
    ):
        assert world.admin(method, path, body if method == "POST" else None, key=KEY).status_code == 401
    assert len(world.student.requests) == before


@pytest.mark.long
def test_receipts_of_callers_are_not_the_playgrounds_to_show(world: World) -> None:
    answer = httpx.post(
        f"{world.gateway.url}/v1/chat/completions",
        json={"model": "chat-student", "messages": [{"role": "user", "content": "Why?"}]},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=20,
    )
    world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
    refused = world.admin("GET", f"/playground/receipts/acme/{answer.headers['x-request-id']}")
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "id")
    mine = world.run("student").id
    assert world.admin("GET", f"/playground/receipts/globex/{mine}").status_code == 404


def test_no_key_is_called_as_the_playground_is(world: World) -> None:
    """A key of this name would share its receipts, limits and budget with the playground."""
    refused = world.admin("POST", "/keys", {"tenant": "acme", "id": "playground"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "id")
    assert "choose another" in refused.json()["error"]["message"]
    with pytest.raises(ValidationError, match="choose another"):
        KeyEntry(id="playground", sha256="0" * 64)


def test_callers_streams_are_not_marked(world: World) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Why?"}], "stream": True}
    answer = httpx.post(
        f"{world.gateway.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=20
    )
    assert "chat.completion.chunk" in answer.text
    assert "x_gkt" not in answer.text
