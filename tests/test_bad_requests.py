"""A request that an engine cannot take is its caller's error: nobody repeats it, and nobody else notices it.

The clients are the unmodified OpenAI SDK; the engines are real models behind llama.cpp and behind the stand-in for TGI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.gateway_process import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gateway_process import GatewayProcess

pytestmark = pytest.mark.models

PLAIN: list[Any] = [{"role": "user", "content": "List the planets."}]


class CountingClient:
    """The SDK with its own retries, and the status of each reply that it got."""

    def __init__(self, url: str, key: str) -> None:
        self.statuses: list[int] = []
        http = httpx.Client(event_hooks={"response": [lambda reply: self.statuses.append(reply.status_code)]})
        self.sdk = OpenAI(base_url=f"{url}/v1", api_key=key, http_client=http)


@pytest.fixture
def caller(gateway: GatewayProcess) -> Iterator[CountingClient]:
    client = CountingClient(gateway.url, KEY)
    with client.sdk:
        yield client


def breaker_of(gateway: GatewayProcess, engine: str) -> str:
    breaker: str = httpx.get(f"{gateway.admin_url}/readyz").json()["engines"][engine]["breaker"]
    return breaker


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_for_tgi_is_refused_once_and_shuts_nobody_out(
    caller: CountingClient, gateway: GatewayProcess, stream: bool
) -> None:
    """TGI reports it under HTTP 200 in a stream, and with a status otherwise."""
    too_long: list[Any] = [{"role": "user", "content": "word " * 5000}]
    for _ in range(6):
        with pytest.raises(openai.BadRequestError) as refused:
            caller.sdk.chat.completions.create(model="chat-teacher", messages=too_long, max_tokens=8, stream=stream)
        assert "Input validation error: `inputs`" in refused.value.message
        assert refused.value.response.headers["x-should-retry"] == "false"
    assert caller.statuses == [400] * 6
    assert breaker_of(gateway, "big") == "closed"
    assert caller.sdk.chat.completions.create(model="chat-teacher", messages=PLAIN, max_tokens=4).choices
