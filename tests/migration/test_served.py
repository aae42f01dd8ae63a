"""A converted configuration serves requests as the LiteLLM proxy does: by model_name and alias, with fallbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web
from ruamel.yaml import YAML

from gateway.migration.litellm import CONFIG_FILE, POLICY_FILE, convert_litellm
from gateway.migration.litellm_routes import RequestedGuidance
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, GatewayProcess, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator


async def broken(_: web.Request, _body: dict[str, Any]) -> web.Response:
    return web.json_response({"error": {"message": "broken"}}, status=500)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("litellm")
    with (
        FakeEngine(says("The sky is", "length")).running() as big,
        FakeEngine(says(" blue.")).running() as small,
        FakeEngine(broken).running() as down,
    ):
        file = folder / "litellm.yaml"
        free = {"input_cost_per_token": 0, "output_cost_per_token": 0}
        entries = {"big": big, "small": small, "down": down}
        YAML().dump(
            {
                "model_list": [
                    {
                        "model_name": name,
                        "litellm_params": {"model": "openai/x", "api_base": f"{engine.url}/v1", **free},
                    }
                    for name, engine in entries.items()
                ],
                "router_settings": {"model_group_alias": {"alias": "down"}},
                "litellm_settings": {"fallbacks": [{"down": ["small"]}]},
            },
            file,
        )
        texts = convert_litellm(file, RequestedGuidance("big", "small")).files
        config, policy = (YAML(typ="safe").load(texts[name]) for name in (CONFIG_FILE, POLICY_FILE))
        routes = policy["routes"]
        with running_gateway(folder, redis_url=redis_url, models=config["models"], routes=routes) as process:
            wait_until_looked_at(process.admin_url)
            yield process


@pytest.mark.parametrize(
    ("name", "answer", "student"),
    [("small", " blue.", "small"), ("down", " blue.", "small"), ("alias", " blue.", "small")],
)
def test_a_model_name_is_answered_by_its_deployment_or_its_fallback(
    gateway: GatewayProcess, name: str, answer: str, student: str
) -> None:
    reply = ask(gateway, name)
    assert (reply.json()["model"], reply.json()["choices"][0]["message"]["content"]) == (name, answer)
    assert reply.headers["x-gkt-student"] == student


def test_with_a_teacher_and_a_student_the_teachers_name_is_guided(gateway: GatewayProcess) -> None:
    reply = ask(gateway, "big")
    assert (reply.headers["x-gkt-teacher"], reply.headers["x-gkt-student"]) == ("big", "small")
    assert reply.headers["x-gkt-mode"] == "guided"
    assert "x-gkt-unguided" not in reply.headers


def ask(gateway: GatewayProcess, name: str) -> httpx.Response:
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    reply = httpx.post(
        f"{gateway.url}/v1/chat/completions",
        json={"model": name, "messages": messages, "max_tokens": 50},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
    )
    assert reply.status_code == 200, reply.text
    return reply
