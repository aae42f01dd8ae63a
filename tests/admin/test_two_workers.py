"""The dashboard of a gateway with two workers: its figures do not depend on the worker that answers."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import orjson
import pytest

from gateway.admin.routes import OPEN_ROUTES, ROUTES
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT_S = 60.0
ADMIN_KEY = "an-admin-key-for-tests"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
REQUESTS = 12
"""Requests to each worker."""
OWN_ENGINE_STATE = ("up", "since", "detail", "breaker", "warnings")
"""State of an engine that each worker has its own of. The reply names the worker."""


@dataclass
class World:
    """A gateway of two workers, with a client for each: a connection stays with its worker."""

    gateway: GatewayProcess
    fake: FakeEngine
    serving: ExitStack  # of the fake engine
    admin: dict[int, httpx.Client] = field(default_factory=dict)
    callers: dict[int, httpx.Client] = field(default_factory=dict)

    def both(self, path: str, **query: str) -> list[Any]:
        """Return the replies of both workers."""
        replies = [self.admin[worker].get(path, params=query) for worker in (1, 2)]
        assert [one.status_code for one in replies] == [200, 200], [one.text for one in replies]
        return [one.json() for one in replies]

    def ask(self, worker: int) -> httpx.Response:
        body = {"model": "chat-student", "messages": [{"role": "user", "content": "Write."}]}
        return self.callers[worker].post("/v1/chat/completions", json=body)

    @contextmanager
    def without_engine(self) -> Iterator[None]:
        """Refuse connections to both engines."""
        self.serving.close()
        try:
            yield
        finally:
            self.serving.enter_context(self.fake.running(urlsplit(self.fake.url).port or 0))

    def engine(self, worker: int, name: str) -> dict[str, Any]:
        """Return the state of an engine as a worker sees it."""
        found: dict[str, Any] = self.admin[worker].get("/readyz").json()["engines"][name]
        return found


def until(true: Callable[[], object], what: object) -> None:
    give_up = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


def connected(stack: ExitStack, url: str, worker_of: Callable[[httpx.Client], int], **headers: str) -> dict[int, Any]:
    """Return a client for each worker."""
    found: dict[int, httpx.Client] = {}

    def has_both() -> bool:
        # The clients use no TLS: loading certificates would take time.
        limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
        client = httpx.Client(base_url=url, headers=headers, limits=limits, timeout=LIMIT_S, verify=False)
        stack.callback(client.close)
        found.setdefault(worker_of(client), client)
        return len(found) == 2

    until(has_both, "one worker gets no connection")
    return found


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        serving = stack.enter_context(ExitStack())
        engine = serving.enter_context(FakeEngine(says("A ship sails.")).running())
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("workers") / "gateway",
                models=[
                    model("big", "tgi", engine.url),
                    model("small", "openai", f"{engine.url}/v1", continuation="trailing"),
                ],
                routes=[guided(), STUDENT_ONLY],
                redis_url=redis_url,
                server={"workers": 2},
                usage={"run": "host"},
                admin={"key": "env:THE_ADMIN_KEY"},
                environ={"THE_ADMIN_KEY": ADMIN_KEY},
                tenants={"acme": {"budget": {"max_budget": 5}}},
            )
        )
        world = World(gateway, engine, serving)
        world.admin = connected(stack, gateway.admin_url, lambda one: one.get("/queue").json()["worker"], **ADMIN)

        def worker_of(client: httpx.Client) -> int:
            reply = client.get("/v1/models")
            assert reply.status_code == 200
            body = {"model": "chat-student", "messages": [{"role": "user", "content": "Write."}]}
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            worker: int = gateway.wait_for_log("request", id=answer.headers["x-request-id"])["worker"]
            return worker

        world.callers = connected(stack, gateway.url, worker_of, Authorization=f"Bearer {KEY}")
        yield world
        for worker, client in world.admin.items():
            assert client.get("/queue").json()["worker"] == worker, "a connection was lost: both may be of one worker"


def without(reply: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in reply.items() if name not in names}


def test_both_workers_show_the_same_figures(world: World) -> None:
    for worker in (1, 2):
        for _ in range(REQUESTS):
            assert world.ask(worker).status_code == 200
    since = datetime.fromtimestamp(time.time() - 1800, UTC).isoformat(timespec="seconds")

    def logged() -> int:
        return sum(line["event"] == "request" for line in world.gateway.log)

    # The line of a request may follow its reply. The period must end after the last one.
    until(lambda: logged() >= 2 * REQUESTS, "a request is not logged")
    until(lambda: datetime.now(UTC).second != 59, "the minute does not end")
    period = {"since": since, "until": datetime.now(UTC).isoformat(timespec="seconds")}

    def all_are_counted() -> bool:
        return [one["requests"]["total"] for one in world.both("/summary", **period)] == [logged()] * 2

    until(all_are_counted, "a request is missing in the sums")
    for path, query in (
        ("/summary", period),
        ("/usage", period | {"granularity": "minute"}),
        ("/usage", period | {"by": "route,student"}),
        ("/receipts", period),
        ("/quality", {}),
        ("/budgets", {}),
        ("/keys", {}),
        ("/audit", {}),
        ("/guidance", {}),
        ("/playground/options", {}),
    ):
        one, other = world.both(path, **query)
        for reply in (one, other):
            reply.get("period", {}).pop("seconds", None)  # up to now
        assert one == other, path
    one, other = world.both("/policies")
    assert without(one, "loaded_at") == without(other, "loaded_at")
    receipt = world.both("/receipts", limit="1")[0]["data"][0]["id"]
    one, other = world.both(f"/receipts/{receipt}")
    assert one == other


def test_both_workers_show_the_same_reliability_and_name_the_worker_of_their_own_states(world: World) -> None:
    for worker in (1, 2):
        until(lambda worker=worker: world.engine(worker, "small")["up"], "the engine is not probed")
    assert world.ask(1).status_code == 200
    seen: list[Any] = []

    def same() -> bool:
        seen[:] = replies = world.both("/reliability", since="1h")
        assert [one.pop("worker") for one in replies] == [1, 2]
        for one in replies:
            del one["period"]
            one["engines"] = [without(engine, *OWN_ENGINE_STATE) for engine in one["engines"]]
        return replies[0] == replies[1] and replies[0]["requests"] > 0

    until(same, seen)  # a request is counted within seconds


def test_both_workers_have_the_same_configuration_and_apply_edits_of_policies(world: World) -> None:
    file = world.gateway.config.parent / "policies" / "acme.yaml"
    file.write_text(file.read_text("utf-8") + "\n# edited\n", "utf-8")
    versions: list[Any] = []

    def applied() -> bool:
        policies = [one["policies"] for one in world.both("/config")]
        versions[:] = [(one["version"], one["last_reload"]) for one in policies]
        return all(last is not None and last["result"] == "applied" for _, last in versions)

    until(applied, versions)
    replies = world.both("/config")
    assert [one["worker"] for one in replies] == [1, 2]
    for one in replies:
        del one["policies"]["last_reload"]["at"]
        del one["policies"]["loaded_at"]
    assert without(replies[0], "worker", "loaded_at") == without(replies[1], "worker", "loaded_at")


@pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 1)])
def test_a_change_through_one_worker_is_shown_by_the_other_at_once(world: World, one: int, other: int) -> None:
    first, second = world.admin[one], world.admin[other]
    created = first.post("/keys", json={"tenant": "acme", "id": f"of-{one}"})
    assert created.status_code == 201, created.text
    assert f"of-{one}" in [key["id"] for key in second.get("/keys").json()["keys"]]
    assert second.get("/audit?limit=1").json()["entries"][0]["subject"] == f"of-{one}"
    assert first.post("/budgets/acme/raise", json={"usd": one, "for": "1h"}).status_code == 200
    (budget,) = [budget for budget in second.get("/budgets?tenant=acme").json()["budgets"] if budget["key"] is None]
    assert budget["raise"]["usd"] == one
    assert second.get("/summary?tenant=acme").json()["spent"]["budget"]["limit_usd"] == str(5 + one)
    scope = {"tenant": "acme", "route": "chat"}
    for path, expected in (("/guidance/off", ["chat"]), ("/guidance/on", [])):
        assert first.post(path, json=scope).status_code == 200
        assert [off["route"] for off in second.get("/guidance").json()["off"]] == expected
        assert [off["route"] for off in second.get("/quality").json()["guidance_off"]] == expected
    assert first.delete(f"/keys/acme/of-{one}").status_code == 200
    (key,) = [key for key in second.get("/keys").json()["keys"] if key["id"] == f"of-{one}"]
    assert key["status"] == "revoked"


def test_a_session_of_one_worker_is_valid_at_the_other_until_its_logout(world: World) -> None:
    here = {"Sec-Fetch-Site": "same-origin"}
    with ExitStack() as stack:
        browsers = connected(stack, world.gateway.admin_url, lambda one: one.get("/queue").json()["worker"])
        assert browsers[1].post("/session", json={"key": ADMIN_KEY}, headers=here).status_code == 200
        (cookie,) = [f"{one.name}={one.value}" for one in browsers[1].cookies.jar]
        for client in browsers.values():
            client.cookies.clear()
            assert client.get("/summary", headers={"Cookie": cookie}).status_code == 200
            assert client.get("/dashboard", headers={"Cookie": cookie}).status_code == 200
        assert browsers[2].delete("/session", headers=here | {"Cookie": cookie}).status_code == 204
        for client in browsers.values():
            assert client.get("/summary", headers={"Cookie": cookie}).status_code == 401
            assert client.get("/dashboard", headers={"Cookie": cookie}).status_code == 302


@pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 1)])
@pytest.mark.long
def test_the_receipt_of_a_playground_run_is_shown_by_the_other_worker(world: World, one: int, other: int) -> None:
    body = {"tenant": "acme", "model": "chat", "mode": "student", "prompt": "Why?"}
    answer = world.admin[one].post("/playground/run", json=body)
    receipt = orjson.loads(answer.text.partition("event: receipt\ndata: ")[2].partition("\n")[0])
    assert receipt["status"] == "ok"
    shown = world.admin[other].get(f"/playground/receipts/acme/{receipt['id']}")
    assert (shown.status_code, shown.json()) == (200, receipt)


@pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 1)])
@pytest.mark.long
def test_a_circuit_that_one_worker_opened_is_shown_by_both(world: World, one: int, other: int) -> None:
    """The other worker sent no request."""
    seen: list[Any] = []

    def banner_of(worker: int) -> list[Any]:
        banners: list[Any] = world.admin[worker].get("/summary").json()["banners"]
        return [(banner["engine"], banner["breaker"]) for banner in banners if banner["kind"] == "engine"]

    def shown_by_both() -> bool:
        world.ask(one)
        seen[:] = [banner_of(one), banner_of(other)]
        (small,) = [e for e in world.admin[other].get("/playground/options").json()["engines"] if e["name"] == "small"]
        seen[2:] = [world.engine(other, "small")["breaker"], small]
        return all(("small", "open") in banners for banners in seen[:2]) and small["rests"] and seen[2] != "open"

    with world.without_engine():
        until(shown_by_both, seen)
    until(lambda: not banner_of(one) and not banner_of(other), "the circuit does not close")


def test_no_route_of_the_admin_api_was_left_out(world: World) -> None:
    """A new GET route needs a test here, or a reason: the others have state of one process, or read Redis directly."""
    compared = {
        "/keys",
        "/budgets",
        "/guidance",
        "/audit",
        "/policies",
        "/quality",
        "/summary",
        "/reliability",
        "/config",
    }
    compared |= {"/usage", "/receipts", "/receipts/{id}", "/playground/options", "/playground/receipts/{tenant}/{id}"}
    from_shared_stores = {"/budgets/{tenant}", "/budgets/{tenant}/keys/{id}", "/budgets/{tenant}/labels"}
    from_shared_stores |= {"/usage/split", "/reconciliation"}
    from_shared_stores |= {"/collected/{tenant}", "/collected/{tenant}/requests"}
    open_to_all = {route.path for route in OPEN_ROUTES}
    routes = {route.path for route in ROUTES if route.method == "GET"} - open_to_all
    assert routes == compared | from_shared_stores
