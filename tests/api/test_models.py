"""GET /v1/models in the shapes of OpenAI, Anthropic and Codex, from a running gateway."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from openai import NotFoundError, OpenAI

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = [f"claude-{number}" for number in range(25)]
ANTHROPIC = {"anthropic-version": "2023-06-01"}


@pytest.fixture(scope="module")
def gate(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with (
        FakeEngine(says("Hi there")).running() as engine,
        running_gateway(
            tmp_path_factory.mktemp("models"),
            redis_url=redis_url,
            models=[model("big", "tgi", engine.url), model("small", "openai", f"{engine.url}/v1", continuation="none")],
            routes=[{**STUDENT_ONLY, "model": name} for name in NAMES],
        ) as process,
    ):
        yield process


@pytest.fixture
def caller(gate: GatewayProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gate.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def listed(caller: httpx.Client, **params: str) -> dict[str, Any]:
    answer = caller.get("/v1/models", params=params, headers=ANTHROPIC)
    assert answer.status_code == 200
    body: dict[str, Any] = answer.json()
    assert set(body) == {"data", "has_more", "first_id", "last_id"}
    return body


def ids(body: dict[str, Any]) -> list[str]:
    return [entry["id"] for entry in body["data"]]


def test_the_default_is_openais_list(caller: httpx.Client) -> None:
    raw = caller.get("/v1/models").text
    created = re.findall(r'"created":(\d+)', raw)
    assert len(set(created)) == 1
    one = '{"id":"%s","object":"model","created":%s,"owned_by":"gkt-gateway"}'
    data = ",".join(one % (name, created[0]) for name in NAMES)
    assert raw == '{"object":"list","data":[' + data + "]}"
    assert caller.get("/v1/models?limit=2&after_id=claude-3").text == raw
    assert caller.get("/v1/models/claude-7").text == one % ("claude-7", created[0])


def test_codex_gets_the_array_that_it_decodes(caller: httpx.Client) -> None:
    """An entry would replace the prompt and the tools that Codex knows itself, so there is none."""
    body = caller.get("/v1/models?client_version=0.171.0").json()
    assert body.pop("models") == []
    assert body == caller.get("/v1/models").json()


def test_a_page_has_the_shape_of_anthropics_api(caller: httpx.Client) -> None:
    body = listed(caller, limit="1000")
    assert ids(body) == NAMES
    assert (body["has_more"], body["first_id"], body["last_id"]) == (False, NAMES[0], NAMES[-1])
    entry = body["data"][0]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry.pop("created_at"))
    unknown = dict.fromkeys(("max_input_tokens", "max_tokens", "capabilities"))
    assert entry == {"type": "model", "id": "claude-0", "display_name": "claude-0", **unknown}


def test_pages_follow_each_other_in_both_directions(caller: httpx.Client) -> None:
    first = listed(caller)
    assert (ids(first), first["has_more"]) == (NAMES[:20], True)
    rest = listed(caller, after_id=first["last_id"])
    assert (ids(rest), rest["has_more"], rest["first_id"], rest["last_id"]) == (NAMES[20:], False, *NAMES[20::4])
    before = listed(caller, before_id=rest["first_id"], limit="15")
    assert (ids(before), before["has_more"]) == (NAMES[5:20], True)
    earliest = listed(caller, before_id=before["first_id"], limit="5")
    assert (ids(earliest), earliest["has_more"]) == (NAMES[:5], False)
    between = listed(caller, after_id=NAMES[2], before_id=NAMES[9], limit="4")
    assert (ids(between), between["has_more"]) == (NAMES[3:7], True)
    empty = {"data": [], "has_more": False, "first_id": None, "last_id": None}
    assert listed(caller, after_id=NAMES[-1]) == empty
    assert listed(caller, before_id=NAMES[0]) == empty
    assert listed(caller, after_id=NAMES[9], before_id=NAMES[2]) == empty


@pytest.mark.parametrize(
    ("params", "param"),
    [
        *(({"limit": value}, "limit") for value in ("0", "1001", "-1", "", "x", "1.0", "²", "9" * 5_000)),
    ],
)
def test_an_invalid_page_is_400(caller: httpx.Client, params: dict[str, str], param: str) -> None:
    answer = caller.get("/v1/models", params=params, headers=ANTHROPIC)
    assert answer.status_code == 400
    assert f"'{param}'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("params", [{"after_id": "gpt"}, {"before_id": ""}])
def test_a_page_beside_an_unknown_model_is_404(caller: httpx.Client, params: dict[str, str]) -> None:
    answer = caller.get("/v1/models", params=params, headers=ANTHROPIC)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", next(iter(params)))


def test_one_model_has_the_shape_of_its_request(caller: httpx.Client) -> None:
    shown = caller.get("/v1/models/claude-7", headers=ANTHROPIC)
    assert shown.json() == listed(caller, limit="1000")["data"][7]
    assert caller.get("/v1/models/gpt", headers=ANTHROPIC).status_code == 404


@pytest.mark.parametrize("headers", [{}, ANTHROPIC])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models?client_version=1", "/v1/models/claude-7"])
def test_every_shape_needs_the_key(gate: GatewayProcess, path: str, headers: dict[str, str]) -> None:
    assert httpx.get(gate.url + path, headers=headers).status_code == 401


def test_openais_sdk_reads_the_list_and_one_model(gate: GatewayProcess) -> None:
    with OpenAI(base_url=f"{gate.url}/v1", api_key=KEY, max_retries=0) as client:
        assert [entry.id for entry in client.models.list()] == NAMES
        shown = client.models.retrieve("claude-3")
        assert (shown.id, shown.object, shown.owned_by) == ("claude-3", "model", "gkt-gateway")
        with pytest.raises(NotFoundError, match="There is no model 'gpt' for this key"):
            client.models.retrieve("gpt")
