"""An operator or the quality of answers switches guidance off and on, over two gateways that share a Redis."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
from aiohttp import web
from redis import Redis

from gateway.local.redis import EmbeddedRedis
from gateway.quality.switches import MIN_SAMPLES
from tests.fakes import FakeEngine, says, served
from tests.gateway_process import KEY, OTHER_KEY, GatewayProcess, model, sha256
from tests.quality_world import ADMIN_KEY, ALL, GUIDED, goes_on, opens
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BOUND = ALL | {"min_agreement": 0.8}
HALVES = {"by": "caller", "variants": {"alone": {"share": "50%"}, "guided": {"share": "50%", "mode": "guided"}}}
STRICT = GUIDED["guidance"] | {"on_failure": "reject"}
BUDGETS = {
    "spent": {"max_budget": 0.0003, "on_hard": "student_only"},
    "soft": {"max_budget": 1, "soft_budget": 0.000001, "on_soft": "shorten"},
}
"""By tenant, which is also its key: one request by the teacher exceeds the first; the second has its soft limit."""
GOOD, BAD = goes_on(" four five", "One six"), goes_on(" nothing at all of that", "One six")


class Fleet:
    """Two gateways with the same policies on one Redis, and their engines."""

    def __init__(
        self, folder: Path, redis_url: str, teacher: FakeEngine, student: FakeEngine, webhook: str | None = None
    ) -> None:
        self.folder, self.redis_url, self.teacher, self.student = folder, redis_url, teacher, student
        self.webhook, self.posted = webhook, list[dict[str, Any]]()
        self.prefix = f"switch{os.urandom(4).hex()}"
        self.gateways = [self.gateway(name) for name in ("one", "other")]

    def gateway(self, name: str) -> GatewayProcess:
        return GatewayProcess(
            self.folder / name,
            redis_url=self.redis_url,
            redis={"prefix": self.prefix, "timeout": "1s"},
            admin={"key": "env:GUARD_ADMIN_KEY"},
            alerts={"webhook": self.webhook} if self.webhook else {},
            environ={"GUARD_ADMIN_KEY": ADMIN_KEY},
            models=[
                model("big", "tgi", self.teacher.url, breaker={"failures": 1000}),
                model("small", "openai", f"{self.student.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[
                GUIDED | {"model": "chat"},
                GUIDED | {"model": "chat-strict", "guidance": STRICT},
                GUIDED | {"model": "chat-bound", "quality": BOUND},
                GUIDED | {"model": "chat-cheap", "quality": BOUND | {"fallback": "student"}},
                {"model": "chat-student", "mode": "student", "student": "small"},
                {"model": "chat-split", "mode": "student", "teacher": "big", "student": "small", "split": HALVES},
            ],
            tenants={
                tenant: {"budget": budget, "keys": [{"id": "only", "sha256": sha256(tenant)}]}
                for tenant, budget in BUDGETS.items()
            },
        )

    def start(self) -> None:
        for gateway in self.gateways:
            gateway.start()
            wait_until_looked_at(gateway.admin_url)

    def ask(self, route: str = "chat", *, at: int = 0, key: str = KEY, **more: Any) -> httpx.Response:
        body = {"model": route, "max_tokens": 50, "messages": [{"role": "user", "content": "Count."}]} | more
        url = f"{self.gateways[at].url}/v1/chat/completions"
        answer = httpx.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer

    def how(self, route: str = "chat", **more: Any) -> tuple[str, str | None]:
        """Return the mode of an answer, and the reason if it was unguided."""
        headers = self.ask(route, **more).headers
        return headers["x-gkt-mode"], headers.get("x-gkt-unguided")

    def admin(self, method: str, path: str, body: Any = None, *, at: int = 0) -> httpx.Response:
        return httpx.request(
            method,
            self.gateways[at].admin_url + path,
            content=None if body is None else json.dumps(body),
            headers={"Authorization": f"Bearer {ADMIN_KEY}", "x-gkt-actor": "ann"},
            timeout=20,
        )

    def switch(self, state: str, *, at: int = 0, **body: Any) -> dict[str, Any]:
        reply = self.admin("POST", f"/guidance/{state}", body, at=at)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def off(self, at: int = 0) -> list[tuple[str | None, str | None, str]]:
        """Return what is off: tenant, route and by whom."""
        found = self.admin("GET", "/guidance", at=at).json()["off"]
        return [(one["tenant"], one["route"], one["by"]) for one in found]

    def falls(self, route: str) -> list[dict[str, Any]]:
        lines = [line for one in self.gateways for line in one.log if line["event"] == "guidance_fell_back"]
        return [line for line in lines if line["route"] == route]


def until(holds: Callable[[], Any], what: Any = "", limit_s: float = 10.0) -> None:
    give_up = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    posted: list[dict[str, Any]] = []

    async def hook(request: web.Request) -> web.Response:
        posted.append(orjson.loads(await request.read()))
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/hook", hook)
    with (
        FakeEngine(says("")).running() as teacher,
        FakeEngine(says("")).running() as student,
        served(app) as url,
    ):
        fleet = Fleet(tmp_path_factory.mktemp("switch"), redis_url, teacher, student, f"{url}/hook")
        fleet.posted = posted
        try:
            teacher.behave, student.behave = opens("One two three four five"), GOOD
            fleet.start()
            yield fleet
        finally:
            for gateway in fleet.gateways:
                gateway.close()


@pytest.fixture
def fleet(running: Fleet) -> Fleet:
    running.teacher.behave, running.student.behave = opens("One two three four five"), GOOD
    for found in running.admin("GET", "/guidance").json()["off"]:
        scope = {name: found[name] for name in ("tenant", "route") if found[name] is not None}
        running.switch("on", **(scope or {"all": True}))
    until(lambda: not running.off(1))
    return running


def test_an_operator_switches_a_route_off_and_on_in_all_gateways(fleet: Fleet) -> None:
    assert fleet.how(at=0) == fleet.how(at=1) == ("guided", None)
    reply = fleet.switch("off", tenant="acme", route="chat", reason="a new teacher")
    assert (reply["guidance"], reply["before"]) == ("off", "on")
    assert fleet.how(at=0) == ("student", "switched_off"), "at once in the process that replied"
    started = time.monotonic()
    until(lambda: fleet.how(at=1) == ("student", "switched_off"))
    assert time.monotonic() - started < 4, "within two seconds, on a machine that is not busy"
    fleet.teacher.requests.clear()
    answer = fleet.ask()
    assert answer.json()["choices"][0]["message"]["content"] == "One six"
    assert fleet.teacher.requests == []
    line = fleet.gateways[0].wait_for_log("request", id=answer.headers["x-request-id"])
    assert (line["unguided"], line["savings_class"]) == ("switched_off", "student_by_policy")
    # Other routes and tenants are guided.
    assert fleet.how("chat-cheap") == fleet.how(key=OTHER_KEY) == ("guided", None)
    (shown,) = fleet.admin("GET", "/guidance", at=1).json()["off"]
    since = shown.pop("since")
    assert shown == {"tenant": "acme", "route": "chat", "by": "operator", "actor": "ann", "answer_by": "student",
                     "reason": "a new teacher"}  # fmt: skip
    assert since.endswith("Z")
    assert fleet.switch("on", at=1, tenant="acme", route="chat")["before"] == "off"
    until(lambda: fleet.how(at=0) == fleet.how(at=1) == ("guided", None))
    entries = fleet.admin("GET", "/audit?limit=2").json()["entries"]
    assert [(one["actor"], one["action"], one["tenant"], one["subject"]) for one in entries] == [
        ("ann", "guidance.on", "acme", "chat"),
        ("ann", "guidance.off", "acme", "chat"),
    ]
    assert entries[1]["after"]["reason"] == entries[0]["before"]["reason"] == "a new teacher"


@pytest.mark.parametrize("stream", [False, True])
def test_everything_and_a_tenant_are_switched_off_independently(fleet: Fleet, *, stream: bool) -> None:
    fleet.switch("off", tenant="acme", answer_by="teacher")
    assert fleet.how(stream=stream) == ("teacher", "switched_off")
    assert fleet.how(key=OTHER_KEY, stream=stream) == ("guided", None)
    fleet.switch("off", all=True)
    assert fleet.how(key=OTHER_KEY, stream=stream) == ("student", "switched_off")
    assert fleet.how(stream=stream) == ("teacher", "switched_off"), "the switch of the tenant says more"
    reply = fleet.switch("on", all=True)
    assert [one["tenant"] for one in reply["off"]] == ["acme"], "the tenant's own switch is off"
    assert fleet.how(key=OTHER_KEY, stream=stream) == ("guided", None)
    assert fleet.how(stream=stream) == ("teacher", "switched_off")


def test_a_route_that_forbids_unguided_answers_is_answered_by_the_teacher(fleet: Fleet) -> None:
    fleet.switch("off", all=True)
    answer = fleet.ask("chat-strict")
    assert answer.headers["x-gkt-mode"] == "teacher"
    assert answer.json()["choices"][0]["message"]["content"] == "One two three four five"
    line = fleet.gateways[0].wait_for_log("request", id=answer.headers["x-request-id"])
    assert (line["mode"], line["unguided"], line["savings_class"]) == ("teacher", "switched_off", "teacher")
    assert (line["teacher"]["model"], line["student"]) == ("big", None)


def test_a_route_that_guides_in_a_variant_only_is_switched_off(fleet: Fleet) -> None:
    fleet.switch("off", tenant="acme", route="chat-split", answer_by="teacher")
    found = {fleet.how("chat-split", user=f"caller-{number}") for number in range(20)}
    assert found == {("student", None), ("teacher", "switched_off")}


def test_budgets_apply_to_the_teacher_that_answers_instead(fleet: Fleet) -> None:
    """A budget without room for the teacher selects the student, as it does for guidance."""
    fleet.switch("off", all=True, answer_by="teacher")
    assert fleet.how(key="spent") == ("student", "budget")
    answers = [fleet.ask(key="soft") for _ in range(2)]
    assert [one.headers["x-gkt-mode"] for one in answers] == ["teacher", "teacher"]
    assert [one.headers.get("x-gkt-budget") for one in answers] == [None, "soft"]


def test_a_device_is_told_that_guidance_is_off(fleet: Fleet) -> None:
    fleet.switch("off", tenant="acme", route="chat", answer_by="teacher")
    body = {"model": "chat", "messages": [{"role": "user", "content": "Count."}]}
    url = f"{fleet.gateways[0].url}/v1/guidance"
    reply = httpx.post(url, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=30).json()
    assert (reply["unguided"], reply["guidance"]["text"]) == ("switched_off", "")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "tenant"),
        ({"route": "chat"}, 400, "tenant"),
        ({"all": True, "tenant": "acme"}, 400, "tenant"),
        ({"tenant": "acme", "route": "chat", "answer_by": "nobody"}, 400, "answer_by"),
        ({"tenant": "acme", "reason": "two\nlines"}, 400, "reason"),
        ({"tenant": "acme", "until": "later"}, 400, "until"),
        ({"tenant": "acmee"}, 404, "tenant"),
        ({"tenant": "acme", "route": "chatt"}, 404, "route"),
        ({"tenant": "acme", "route": "chat-student"}, 400, "route"),
    ],
)
def test_an_invalid_switch_is_rejected_with_its_field(
    fleet: Fleet, body: dict[str, Any], status: int, param: str
) -> None:
    reply = fleet.admin("POST", "/guidance/off", body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), reply.text
    assert fleet.off() == []
    assert httpx.post(f"{fleet.gateways[0].admin_url}/guidance/off", json={"all": True}).status_code == 401


def _fall(fleet: Fleet, route: str) -> None:
    """Send requests to both gateways until guidance of the route is off in both."""
    give_up = time.monotonic() + 60
    number = 0
    while not fleet.falls(route):
        assert time.monotonic() < give_up
        fleet.ask(route, at=number % 2)
        number += 1
    for at in (0, 1):
        until(lambda at=at: ("acme", route, "quality") in fleet.off(at))


@pytest.mark.parametrize(("route", "mode"), [("chat-bound", "teacher"), ("chat-cheap", "student")])
def test_a_route_with_bad_answers_falls_back_once_until_an_operator_restores_it(
    fleet: Fleet, route: str, mode: str
) -> None:
    fleet.student.behave = BAD
    _fall(fleet, route)
    (fall,) = fleet.falls(route)
    assert (fall["tenant"], fall["route"], fall["answer_by"], fall["min_agreement"]) == ("acme", route, mode, 0.8)
    assert fall["samples"] >= MIN_SAMPLES
    assert fall["agreement"] < 0.8
    until(lambda: any(one.get("route") == route for one in fleet.posted), "the webhook receives the fallback")
    (posted,) = (one for one in fleet.posted if one.get("route") == route)
    assert abs(posted.pop("at") - time.time()) < 60
    facts = ("event", "tenant", "route", "agreement", "min_agreement", "samples", "answer_by")
    assert posted == {name: fall[name] for name in facts}
    for at in (0, 1):
        assert fleet.how(route, at=at) == (mode, "quality_fallback")
        metrics = httpx.get(f"{fleet.gateways[at].admin_url}/metrics").text
        assert f'gkt_guidance_off{{by="quality",route="{route}",tenant="acme"}} 1.0' in metrics
    assert fleet.how(key=OTHER_KEY, route=route) == ("guided", None), "another tenant is guided"
    (shown,) = fleet.admin("GET", "/quality").json()["guidance_off"]
    assert (shown["route"], shown["by"], shown["answer_by"]) == (route, "quality", mode)
    (entry,) = fleet.admin("GET", "/audit?limit=1").json()["entries"]
    assert (entry["actor"], entry["action"], entry["subject"]) == ("quality", "guidance.off", route)
    # It stays off: answers without guidance are not compared, and good ones would not switch it on.
    fleet.student.behave = GOOD
    for at in (0, 1):
        assert fleet.how(route, at=at) == (mode, "quality_fallback")
    fleet.switch("on", tenant="acme", route=route)
    until(lambda: fleet.how(route, at=1) == ("guided", None))
    time.sleep(1)  # samples of requests from before this second do not count
    for number in range(8):
        assert fleet.how(route, at=number % 2) == ("guided", None)
    assert len(fleet.falls(route)) == 1
    metrics = httpx.get(f"{fleet.gateways[0].admin_url}/metrics").text
    assert f'gkt_guidance_off{{by="quality",route="{route}"' not in metrics


async def test_a_switch_survives_the_loss_of_redis_and_a_restart(tmp_path: Path) -> None:
    async with EmbeddedRedis() as server:
        with FakeEngine(says("")).running() as teacher, FakeEngine(says("")).running() as student:
            teacher.behave, student.behave = opens("One two three four five"), GOOD
            fleet = Fleet(tmp_path, server.url, teacher, student)
            try:
                fleet.start()
                fleet.switch("off", tenant="acme", route="chat")
                until(lambda: fleet.how(at=1) == ("student", "switched_off"))
                fleet.gateways[1].close()
                fleet.gateways[1].start()
                wait_until_looked_at(fleet.gateways[1].admin_url)
                assert fleet.how(at=1) == ("student", "switched_off"), "its first request after the restart"
                with Redis.from_url(server.url) as client:
                    pid = client.info("server")["process_id"]
                os.kill(pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(1.5)
                    for at in (0, 1):
                        assert fleet.how(at=at) == ("student", "switched_off")
                    assert fleet.admin("POST", "/guidance/on", {"all": True}).status_code == 503
                finally:
                    os.kill(pid, signal.SIGCONT)
                until(lambda: fleet.admin("GET", "/guidance").status_code == 200)
                assert fleet.off() == [("acme", "chat", "operator")]
            finally:
                for gateway in fleet.gateways:
                    gateway.close()
