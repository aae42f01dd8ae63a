"""A gateway whose engine gives scripted answers, for both APIs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.conformance.scripted_engine import Script, ScriptedEngine
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, guided, model, running_gateway
from tests.readiness import wait_until_up

if TYPE_CHECKING:
    from collections.abc import Iterator

OPENING = "The answer to your question begins"
SHOWN = OPENING.rsplit(" ", 1)[0]
"""The guidance without its last word, which may be incomplete."""
STORES = {"Authorization": f"Bearer {OTHER_KEY}"}
"""The key of a tenant whose responses are stored."""
ROUTES = ("chat-student", "chat")


class ScriptedGateway:
    """A gateway with a route to the scripted engine, and a route on which a teacher begins its answers."""

    def __init__(self, client: httpx.Client, engine: ScriptedEngine) -> None:
        self._client = client
        self._engine = engine
        self.url = str(client.base_url).rstrip("/")

    @contextmanager
    def calling_offered_tools(self) -> Iterator[None]:
        """Answer other clients inside the block: with a call of the first offered tool, else with text."""
        self._engine.calls_tools = True
        try:
            yield
        finally:
            self._engine.calls_tools = False

    def post(
        self, path: str, body: dict[str, Any], script: Script, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Send a request whose answer follows the script. Fields of the body that are None stay in it."""
        self._engine.script = script
        return self._client.post(path, json=body, headers=headers)

    def get(self, path: str, headers: dict[str, str]) -> httpx.Response:
        return self._client.get(path, headers=headers)

    @property
    def engine_bodies(self) -> list[dict[str, Any]]:
        """Bodies of the calls to the scripted engine so far."""
        return self._engine.requests


@pytest.fixture(scope="session")
def scripted(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedGateway]:
    engine = ScriptedEngine()
    with (
        FakeEngine(says(OPENING, "length")).running() as teacher,
        engine.running(),
        running_gateway(
            tmp_path_factory.mktemp("conformance"),
            redis_url=redis_url,
            redis={"prefix": "conformance"},
            models=[
                model("big", "tgi", teacher.url),
                # Each case is to meet its failure itself, however many came before it.
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False,
                      breaker={"failures": 1000}),
            ],
            routes=[guided(tokens=6), STUDENT_ONLY],
            tenants={"globex": {"stored_responses": {}}},
        ) as gateway,
        httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client,
    ):  # fmt: skip
        wait_until_up(gateway.admin_url)
        yield ScriptedGateway(client, engine)


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
