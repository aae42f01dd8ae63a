"""`tokens: auto` with real models and the unmodified OpenAI SDK."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from openai import OpenAI

from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_probed
from tests.system.test_openai_sdk import receipt_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.local.stack import LocalStack

pytestmark = pytest.mark.models

ASKED: list[Any] = [{"role": "user", "content": "Why is the sky blue? Explain it in a few sentences."}]
EVEN_UNSURE = {"confident": 0.0001, "deadline": "10s"}
NEVER_SURE = {"confident": 1.0, "deadline": "10s"}


@pytest.fixture(scope="module")
def client(engines: LocalStack, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    process: GatewayProcess
    with running_gateway(
        tmp_path_factory.mktemp("auto"),
        redis_url=redis_url,
        redis={"prefix": "auto"},
        models=[model("big", "tgi", engines.teacher.url), model("small", "openai", engines.student.url + "/v1")],
        routes=[
            guided("chat-auto", tokens="auto", auto={"max": 40, "min": 8, "default": 16}),
            guided("chat-sentence", tokens="auto", auto={"max": 80, "min": 4, "default": 80, "stop_at": "sentence"}),
            guided("chat-sure", tokens="auto", auto={"probe": EVEN_UNSURE}),
            guided("chat-unsure", tokens="auto", auto={"probe": NEVER_SURE}),
            guided("chat-big-unsure", student="big", tokens="auto", auto={"probe": NEVER_SURE}),
        ],
    ) as process:
        wait_until_probed(process.admin_url)
        with OpenAI(base_url=f"{process.url}/v1", api_key=KEY, max_retries=0) as sdk:
            yield sdk


def ask(client: OpenAI, route: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """Return the answer and its receipt; check that the receipt's shares add up to its cost."""
    raw = client.chat.completions.with_raw_response.create(
        model=route, messages=ASKED, **({"max_tokens": 60, "temperature": 0} | more)
    )
    receipt = receipt_of(client, raw.headers["x-request-id"])
    shares = [receipt[name] for name in ("teacher", "student", "probe") if receipt[name] is not None]
    assert sum(Decimal(one["cost_usd"]) for one in shares) == Decimal(receipt["cost_usd"])
    text = raw.parse().choices[0].message.content
    assert text
    return text, receipt


@pytest.mark.long
def test_the_length_is_chosen_and_short_answers_get_no_guidance(client: OpenAI) -> None:
    _, receipt = ask(client, "chat-auto")
    assert receipt["guidance"]["tokens"] == receipt["teacher"]["output_tokens"] == 16
    assert receipt["length"]["by"] == "default"
    _, receipt = ask(client, "chat-auto", max_tokens=12)
    assert (receipt["unguided"], receipt["teacher"]) == ("auto_short", None)


@pytest.mark.long
def test_guidance_ends_with_a_sentence_in_json_and_streams(client: OpenAI) -> None:
    """A JSON reply and a stream end the opening at the same place."""
    whole, receipt = ask(client, "chat-sentence", max_tokens=200)
    assert receipt["length"]["ended"] == "sentence"
    assert receipt["guidance"]["kept_tokens"] < receipt["guidance"]["tokens"] == 80
    pieces = client.chat.completions.create(
        model="chat-sentence", messages=ASKED, max_tokens=200, temperature=0, stream=True
    )
    assert "".join(one.choices[0].delta.content or "" for one in pieces if one.choices) == whole


@pytest.mark.long
def test_the_confidence_probe_is_on_the_receipt(client: OpenAI) -> None:
    _, receipt = ask(client, "chat-sure")
    assert (receipt["unguided"], receipt["mode"], receipt["teacher"]) == ("student_confident", "student", None)
    assert receipt["probe"]["output_tokens"] == 1
    probe = receipt["length"]["probe"]
    assert probe["outcome"] == "confident"
    assert 0 < probe["p1"] <= 1
    _, receipt = ask(client, "chat-unsure")
    assert (receipt["unguided"], receipt["length"]["probe"]["outcome"]) == (None, "unsure")
    assert receipt["length"]["probe"]["p1"] == pytest.approx(probe["p1"], abs=0.02)


def test_tgi_returns_logprobs_of_the_first_token_in_chats(client: OpenAI) -> None:
    _, receipt = ask(client, "chat-big-unsure")
    assert receipt["length"]["probe"]["outcome"] == "unsure"
    assert receipt["probe"]["model"] == "big"
