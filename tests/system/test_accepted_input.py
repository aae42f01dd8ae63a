"""The gateway accepts every request of the real OpenAI SDK that OpenAI accepts; replies have all of OpenAI's fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from openai import OpenAI

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

EMPTY: list[Any] = [
    {"role": "system", "content": ""},
    {"role": "user", "content": " \n"},
    {"role": "assistant", "content": None},
    {"role": "user", "content": [{"type": "text", "text": ""}]},
]


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(says("Hi there")).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def gate(redis_url: str, engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    models = [
        model("big", "tgi", engine.url),
        model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
    ]
    folder = tmp_path_factory.mktemp("accepted")
    with running_gateway(folder, redis_url=redis_url, models=models, routes=[guided(), STUDENT_ONLY]) as process:
        yield process


@pytest.fixture
def client(gate: GatewayProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gate.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_empty_messages_and_the_limit_reach_the_student(client: OpenAI, engine: FakeEngine) -> None:
    """The student gets "" for null, and 5 for 5.0."""
    reply = client.chat.completions.create(
        model="chat-student", messages=EMPTY, max_completion_tokens=4, extra_body={"seed": 5.0}
    )
    sent = engine.requests[-1]
    assert [message["content"] for message in sent["messages"]] == ["", " \n", "", EMPTY[3]["content"]]
    assert (sent["max_completion_tokens"], sent.get("max_tokens"), repr(sent["seed"])) == (4, None, "5")
    message = reply.choices[0].message
    assert {"content", "refusal"} <= message.model_fields_set
    assert (message.content, message.refusal) == ("Hi there", None)
    assert "logprobs" in reply.choices[0].model_fields_set


def test_empty_messages_can_be_guided(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="chat", messages=EMPTY, max_tokens=40)
    assert raw.headers["x-gkt-mode"] in {"guided", "teacher_complete"}


def test_deltas_have_the_fields_of_openais(client: OpenAI) -> None:
    """The first delta has the role, and every choice has logprobs."""
    with client.chat.completions.create(model="chat-student", messages=EMPTY, stream=True) as stream:
        choices = [chunk.choices[0] for chunk in stream if chunk.choices]
    assert {"role", "content", "refusal"} <= choices[0].delta.model_fields_set
    assert all("logprobs" in choice.model_fields_set for choice in choices)


def test_half_a_character_and_a_byte_order_mark_are_no_errors(gate: GatewayProcess, engine: FakeEngine) -> None:
    """The engine gets valid UTF-8."""
    raw = b'\xef\xbb\xbf{"model":"chat-student","messages":[{"role":"user","content":"\\ud83d?"}]}'
    answer = httpx.post(
        f"{gate.url}/v1/chat/completions", content=raw, headers={"Authorization": f"Bearer {KEY}"}, timeout=30
    )
    assert answer.status_code == 200
    assert engine.requests[-1]["messages"][0]["content"] == "\ufffd?"
