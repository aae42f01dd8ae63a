"""A request that an engine rejects is the caller's error: the gateway does not retry it, and other tenants are
unaffected.

The clients are the unmodified OpenAI SDK; the engines are real models behind llama.cpp and behind the stand-in for TGI.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.gateway_process import KEY, OTHER_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gateway_process import GatewayProcess

pytestmark = pytest.mark.models

PLAIN: list[Any] = [{"role": "user", "content": "List the planets."}]


class CountingClient:
    """The SDK with its own retries; it records the status of each reply."""

    def __init__(self, url: str, key: str) -> None:
        self.statuses: list[int] = []
        hooks = {"response": [lambda reply: self.statuses.append(reply.status_code)]}
        http = openai.DefaultHttpxClient(event_hooks=hooks)
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
def test_a_prompt_too_long_for_the_teacher_is_rejected_once_and_affects_no_other_caller(
    caller: CountingClient, gateway: GatewayProcess, stream: bool
) -> None:
    too_long: list[Any] = [{"role": "user", "content": "word " * 5000}]
    for _ in range(6):
        with pytest.raises(openai.BadRequestError) as refused:
            caller.sdk.chat.completions.create(model="chat-teacher", messages=too_long, max_tokens=8, stream=stream)
        assert "exceeds the available context size" in refused.value.message
        assert refused.value.response.headers["x-should-retry"] == "false"
    assert caller.statuses == [400] * 6
    assert breaker_of(gateway, "big") == "closed"
    assert caller.sdk.chat.completions.create(model="chat-teacher", messages=PLAIN, max_tokens=4).choices


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
BAD: dict[str, dict[str, Any]] = {
    "tools": {"tools": [{"type": "nonsense"}]},
    "image": {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]}]},
    "audio": {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, AUDIO]}]},
    "reasoning_format": {"extra_body": {"reasoning_format": "nonsense"}},
}


@pytest.mark.parametrize("what", BAD)
def test_a_request_unsupported_by_llama_cpp_is_rejected_once_another_one_succeeded(
    caller: CountingClient, gateway: GatewayProcess, what: str
) -> None:
    """llama.cpp answers 500 to all of these, which the SDK would retry."""
    request: dict[str, Any] = {"model": "chat-student", "messages": PLAIN, "max_tokens": 4} | BAD[what]
    with pytest.raises(openai.InternalServerError) as failed:
        caller.sdk.with_options(max_retries=0).chat.completions.create(**request)
    assert failed.value.status_code == 502
    caller.sdk.chat.completions.create(model="chat-student", messages=PLAIN, max_tokens=4)
    caller.statuses.clear()
    with pytest.raises(openai.BadRequestError) as refused:
        caller.sdk.chat.completions.create(**request)
    assert "fails for this request and answers others. Correct the request: " in refused.value.message
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert caller.statuses == [400]
    assert breaker_of(gateway, "small") == "closed"


def test_one_tenants_bad_requests_cost_no_other_tenant_an_answer(gateway: GatewayProcess) -> None:
    """A tenant sends four invalid requests at a time while the other sends valid ones.

    The SDK retries as the replies indicate.
    """
    noisy, quiet = CountingClient(gateway.url, KEY), CountingClient(gateway.url, OTHER_KEY)
    done = False

    def disturb(number: int) -> None:
        words = {"type": "text", "text": f"What is it? {number}"}
        request: list[Any] = [{"role": "user", "content": [words, IMAGE]}]
        while not done:
            with pytest.raises(openai.APIStatusError):
                noisy.sdk.chat.completions.create(model="chat-student", messages=request, max_tokens=4)

    with noisy.sdk, quiet.sdk, ThreadPoolExecutor(4) as pool:
        disturbing = [pool.submit(disturb, number) for number in range(4)]
        try:
            for _ in range(12):
                quiet.sdk.chat.completions.create(model="chat-student", messages=PLAIN, max_tokens=4)
        finally:
            done = True
        for one in disturbing:
            one.result()
    assert quiet.statuses == [200] * 12
    # 502 until it is known whose fault it is, 503 where it has failed too often by then.
    assert set(noisy.statuses) <= {400, 502, 503}
    assert noisy.statuses[-1] == 400
    assert breaker_of(gateway, "small") == "closed"
