"""Routes with one name through a running gateway: conditions, first match, and the caller's options."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator

WHY: list[Any] = [{"role": "user", "content": "Why?"}]
TO_TEACHER = {"model": "chat", "mode": "teacher", "teacher": "big"}
TO_STUDENT = {"model": "chat", "mode": "student", "student": "small"}
FREE = guided("free") | {"overrides": {"modes": ["student", "teacher"], "guidance_tokens": 20}}


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(says("The answer to your question", "length")).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def gate(engine: FakeEngine, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    vectors = {"model": "vectors", "mode": "embeddings", "student": "small"}
    with running_gateway(
        tmp_path_factory.mktemp("routes"),
        redis_url=redis_url,
        redis={"prefix": "routes", "timeout": "5s"},
        models=[
            model("big", "tgi", engine.url),
            model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
        ],
        routes=[
            TO_TEACHER | {"when": {"header": {"x-team": "blue"}}, "show_cost": False},
            TO_STUDENT | {"when": {"contains": "refund"}},
            TO_STUDENT | {"when": {"max_tokens": {"gte": 80}, "stream": True}},
            FREE,
            vectors | {"when": {"header": {"x-team": {"matches": "^(red|blue)$"}}}},
            vectors | {"when": {"prompt_bytes": {"lt": 61}}},
        ],
    ) as process:
        wait_until_looked_at(process.admin_url)
        yield process


@pytest.fixture
def client(gate: GatewayProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gate.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def mode_of(client: OpenAI, name: str = "chat", **more: Any) -> str | None:
    raw = client.chat.completions.with_raw_response.create(model=name, **{"messages": WHY, **more})
    return raw.headers.get("x-gkt-mode")


def test_each_request_uses_the_first_matching_route(client: OpenAI) -> None:
    """The first matching route in the file wins, as JSON and as a stream."""
    assert mode_of(client, extra_headers={"X-Team": "blue"}) == "teacher"
    refund: list[Any] = [{"role": "user", "content": "Where is my Refund?"}]
    assert mode_of(client, messages=refund) == "student"
    assert mode_of(client, messages=refund, extra_headers={"x-team": "blue"}) == "teacher"
    assert mode_of(client, messages=[*WHY, {"role": "user", "content": "x" * 30_000}, *refund]) == "student"
    assert mode_of(client, stream=True, max_tokens=80) == "student"


def test_an_unmatched_request_is_404_with_the_reasons_and_no_receipt(client: OpenAI, gate: GatewayProcess) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "my s3cret"}], max_tokens=80)
    error = caught.value
    assert (error.code, error.param, error.type) == ("model_not_found", "model", "invalid_request_error")
    assert error.message == (
        "Error code: 404 - No route for 'chat' takes this request. routes[0]: header x-team is not sent; routes[1]: "
        "contains: it is not there; routes[2]: it is not streamed."
    )
    assert "s3cret" not in gate.raw_log


def test_embeddings_are_routed_likewise(client: OpenAI) -> None:
    short = client.embeddings.with_raw_response.create(model="vectors", input="a", encoding_format="float")
    assert short.headers["x-gkt-mode"] == "embeddings"
    long = "x" * 100
    with pytest.raises(
        openai.NotFoundError, match=r"routes\[4\]: header x-team is not sent; routes\[5\]: prompt_bytes"
    ):
        client.embeddings.create(model="vectors", input=long)
    assert client.embeddings.create(model="vectors", input=long, extra_headers={"x-team": "red"}).data


def test_a_name_is_listed_once(client: OpenAI) -> None:
    assert [entry.id for entry in client.models.list()] == ["chat", "free", "vectors"]
    assert client.models.retrieve("chat").id == "chat"


def test_a_receipt_shows_costs_only_if_all_routes_of_its_name_do(client: OpenAI) -> None:
    """A receipt does not name its route. One route that hides its costs hides those of all routes with its name."""
    hidden = client.chat.completions.with_raw_response.create(
        model="chat", messages=[{"role": "user", "content": "refund"}]
    )
    shown = client.chat.completions.with_raw_response.create(model="free", messages=WHY)
    for raw, visible in ((hidden, False), (shown, True)):
        assert ("cost_usd" in receipt_of(client, raw.headers["x-request-id"])) == visible
        assert "x-gkt-cost-usd" in raw.headers, "the route itself said so"


def receipt_of(client: OpenAI, request_id: str) -> dict[str, Any]:
    """Return the receipt, which is written just after the answer was sent."""
    for _ in range(250):
        try:
            receipt: Any = client.get(f"/receipts/{request_id}", cast_to=object)
        except openai.NotFoundError:
            time.sleep(0.02)
            continue
        assert isinstance(receipt, dict)
        return receipt
    raise AssertionError(f"no receipt {request_id}")


def test_callers_override_mode_and_length_if_allowed(client: OpenAI, engine: FakeEngine) -> None:
    """The SDK sends custom headers; the teacher's token limit follows, as JSON and as a stream."""
    assert mode_of(client, "free") == "guided"
    assert mode_of(client, "free", extra_headers={"x-gkt-guidance-tokens": "20"}) == "guided"
    token_limits = [
        body["max_tokens"] for body in engine.requests if body.get("model") == "tgi" and "max_tokens" in body
    ]
    assert token_limits[-2:] == [12, 20]
    for mode in ("student", "teacher", "guided"):
        for stream in (False, True):
            assert mode_of(client, "free", stream=stream, extra_headers={"x-gkt-mode": mode}) == mode


@pytest.mark.parametrize(
    ("name", "headers", "expected_message"),
    [
        ("chat", {"x-gkt-mode": "student", "x-team": "blue"}, "'x-gkt-mode' may not be sent with model 'chat'"),
        ("free", {"x-gkt-mode": "s3cret"}, "'x-gkt-mode' must be guided or student or teacher with model 'free'"),
        ("free", {"x-gkt-guidance-tokens": "21"}, "'x-gkt-guidance-tokens' must be a whole number from 1 to 20"),
    ],
)
def test_a_forbidden_override_is_400_with_the_header(
    gate: GatewayProcess, name: str, headers: dict[str, str], expected_message: str
) -> None:
    answer = httpx.post(
        f"{gate.url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {KEY}", **headers},
        json={"model": name, "messages": WHY, "stream": True},
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["param"] in headers) == (400, True)
    assert error["message"].startswith(expected_message)
    assert "s3cret" not in answer.text
