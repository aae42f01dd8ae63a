"""Baselines of a real gateway in replies and on receipts, for a model whose tokenizer is known."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.accounting.estimate import count_messages, count_text
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator

OPENING = "The answer to your question begins"
SHOWN = "The answer to your question"  # the last word may have been cut
REST = " here, goes on for some unremarkable words, and ends."
MESSAGES = [{"role": "user", "content": "How long is a piece of string?"}]
USD = Decimal("0.000001")  # of a token of the teacher's
_SPEC = find_spec("litellm")
assert _SPEC is not None
assert _SPEC.origin is not None
TOKENIZER = Path(_SPEC.origin).parent / "litellm_core_utils" / "tokenizers" / "deepseek_tokenizer.json"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[GatewayProcess]:
    """Run a gateway. `big` has a tokenizer.json beside the configuration; the engines count words."""
    folder = tmp_path_factory.mktemp("baseline")
    (folder / "big.json").symlink_to(TOKENIZER)
    with (
        FakeEngine(says(OPENING, "length")).running() as teacher,
        FakeEngine(says(REST)).running() as student,
        running_gateway(
            folder,
            redis_url=redis_url,
            redis={"prefix": f"e{os.urandom(4).hex()}"},
            models=[
                model("big", "tgi", teacher.url, tokenizer="big.json"),
                model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[
                guided(tokens=6, cache_ttl="0s"),
                guided("chat-secret", tokens=6, cache_ttl="0s") | {"show_cost": False},
                guided("chat-context", tokens=6, cache_ttl="0s", placement="context"),
                STUDENT_ONLY,
                STUDENT_ONLY | {"model": "chat-unknown", "baseline": "small"},
            ],
        ) as process,
    ):
        wait_until_looked_at(process.admin_url)
        yield process


def ask(gateway: GatewayProcess, route: str, **more: Any) -> tuple[httpx.Response, dict[str, Any]]:
    """Return a reply and its settled receipt from the log."""
    reply = httpx.post(
        f"{gateway.url}/v1/chat/completions",
        json={"model": route, "messages": MESSAGES} | more,
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
    )
    assert reply.status_code == 200, reply.text
    return reply, gateway.wait_for_log("request", id=reply.headers["x-request-id"])


@pytest.mark.parametrize(
    ("route", "answer"), [("chat", SHOWN + REST), ("chat-secret", SHOWN + REST), ("chat-context", REST)]
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_is_counted_with_the_baseline_models_tokenizer(
    gateway: GatewayProcess, route: str, answer: str, *, stream: bool
) -> None:
    """The whole answer counts, in any mode, as JSON and as a stream."""
    reply, receipt = ask(gateway, route, stream=stream)
    if not stream:
        assert reply.json()["choices"][0]["message"]["content"].strip() == answer.strip()
    assert (receipt["mode"], receipt["baseline_basis"], receipt["baseline_estimated"]) == ("guided", "tokenizer", False)
    read = receipt["teacher"]["input_tokens"]
    assert Decimal(receipt["baseline_usd"]) == USD * (read + count_text(str(TOKENIZER), answer))
    assert 0 < Decimal(receipt["baseline_error_usd"]) < USD * 5
    assert Decimal(receipt["savings_usd"]) == Decimal(receipt["baseline_usd"]) - Decimal(receipt["cost_usd"])


@pytest.mark.parametrize("stream", [False, True])
def test_the_reply_and_the_receipt_have_the_same_baseline(gateway: GatewayProcess, *, stream: bool) -> None:
    reply, receipt = ask(gateway, "chat", stream=stream, stream_options={"include_usage": True} if stream else None)
    if stream:
        events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: {")]
        reported = json.loads(events[-1])["gkt"]["baseline_usd"]
    else:
        reported = reply.headers["x-gkt-baseline-usd"]
    assert Decimal(reported) == Decimal(receipt["baseline_usd"])
    assert receipt["baseline_basis"] == "tokenizer"


def test_hidden_costs_hide_the_error(gateway: GatewayProcess) -> None:
    reply, _ = ask(gateway, "chat-secret")
    assert not [name for name in reply.headers if name.startswith("x-gkt-") and name.endswith("-usd")]
    receipt = httpx.get(
        f"{gateway.url}/v1/receipts/{reply.headers['x-request-id']}", headers={"Authorization": f"Bearer {KEY}"}
    ).json()
    assert not [name for name in receipt if name.endswith("_usd")]


def test_a_prompt_that_only_the_student_read_is_counted_in_the_baselines_tokenizer(gateway: GatewayProcess) -> None:
    _, receipt = ask(gateway, STUDENT_ONLY["model"])
    counted = count_messages(str(TOKENIZER), MESSAGES) + count_text(str(TOKENIZER), REST)
    assert receipt["baseline_basis"] == "tokenizer"
    assert Decimal(receipt["baseline_usd"]) == USD * counted


def test_a_model_that_counted_for_itself_needs_no_tokenizer(gateway: GatewayProcess) -> None:
    _, receipt = ask(gateway, "chat-unknown")
    assert (receipt["baseline_basis"], Decimal(receipt["baseline_error_usd"])) == ("engine", 0)
    assert receipt["baseline_usd"] == receipt["cost_usd"]
