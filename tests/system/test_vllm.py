"""vLLM as teacher and student of a running gateway: prompts that are too long, prefix-cache hits and sleep mode."""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.gateway_process import KEY, STUDENT_ONLY, TEACHER_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import detail, wait_until_looked_at, wait_until_probed
from tests.vllm_engine import TEMPLATE_TOKENS, TOKENS, VllmEngine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_numbers = itertools.count()
PRICE = {"input_per_1m": 10, "cached_input_per_1m": 1, "output_per_1m": 100}


@contextmanager
def gateway(folder: Path, redis_url: str, **engines: VllmEngine) -> Iterator[GatewayProcess]:
    """Run engines and a gateway. `big` is the teacher, and the others are the students, in this order."""
    students = {"students": [name for name in engines if name != "big"]}
    routes = [guided("chat", tokens=8), STUDENT_ONLY]
    answers = [{name: rule for name, rule in route.items() if name != "student"} | students for route in routes]
    with ExitStack() as stack:
        for engine in engines.values():
            stack.enter_context(engine.running())
        models = [
            model(name, "openai", f"{engine.url}/v1", model="fake", continuation="vllm", price=PRICE)
            for name, engine in engines.items()
        ]
        yield stack.enter_context(
            running_gateway(
                folder,
                redis_url=redis_url,
                redis={"prefix": folder.name},
                models=models,
                routes=[*answers, TEACHER_ONLY],
            )
        )


def ask(process: GatewayProcess, route: str, words: int = 5, **body: Any) -> httpx.Response:
    """Ask a new question of so many words."""
    question = f"Question {next(_numbers)} " + "why " * (words - 2)
    sent = {"model": route, "messages": [{"role": "user", "content": question}], **body}
    url = f"{process.url}/v1/chat/completions"
    return httpx.post(url, headers={"Authorization": f"Bearer {KEY}"}, json=sent, timeout=20)


def receipt(process: GatewayProcess, reply: httpx.Response) -> dict[str, Any]:
    return process.wait_for_log("request", id=reply.headers["x-request-id"])


class Contexts:
    def __init__(self, process: GatewayProcess, engines: dict[str, VllmEngine]) -> None:
        self.process = process
        self.engines = engines

    def calls(self, route: str, words: int, **body: Any) -> tuple[httpx.Response, dict[str, int]]:
        """Return the reply to a question of so many words, and the calls that each engine got."""
        before = {name: len(engine.requests) for name, engine in self.engines.items()}
        reply = ask(self.process, route, words, **body)
        return reply, {name: len(engine.requests) - before[name] for name, engine in self.engines.items()}


@pytest.fixture(scope="module")
def contexts(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contexts]:
    folder = tmp_path_factory.mktemp("contexts")
    sizes = {"big": 400, "small": 100, "large": 600}
    engines = {name: VllmEngine(context_tokens=size) for name, size in sizes.items()}
    with gateway(folder, redis_url, **engines) as process:
        wait_until_probed(process.admin_url)
        yield Contexts(process, engines)


WAYS = pytest.mark.parametrize("stream", [False, True])


@WAYS
def test_a_student_whose_context_is_too_small_is_not_called(contexts: Contexts, *, stream: bool) -> None:
    reply, calls = contexts.calls("chat-student", 200, stream=stream)
    assert reply.status_code == 200
    assert calls == {"big": 0, "small": 0, "large": 1}
    facts = receipt(contexts.process, reply)
    assert (facts["student"]["model"], facts["attempts"]) == ("large", [])


@WAYS
def test_guidance_is_completed_by_the_larger_student(contexts: Contexts, *, stream: bool) -> None:
    reply, calls = contexts.calls("chat", 200, stream=stream)
    assert reply.status_code == 200
    assert calls == {"big": 1, "small": 0, "large": 1}
    assert receipt(contexts.process, reply)["mode"] == "guided"


@WAYS
def test_a_teacher_whose_context_is_too_small_is_not_called(contexts: Contexts, *, stream: bool) -> None:
    reply, calls = contexts.calls("chat", 500, stream=stream)
    assert reply.status_code == 200
    assert calls == {"big": 0, "small": 0, "large": 1}
    assert receipt(contexts.process, reply)["unguided"] == "teacher_rejected"


@WAYS
@pytest.mark.parametrize("route", ["chat", "chat-student", "chat-teacher"])
def test_a_prompt_that_no_engine_can_read_is_rejected_without_a_call(
    contexts: Contexts, route: str, *, stream: bool
) -> None:
    reply, calls = contexts.calls(route, 1000, stream=stream)
    assert reply.status_code == 400
    assert calls == {"big": 0, "small": 0, "large": 0}
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert f"maximum context length is {400 if route == 'chat-teacher' else 600} tokens" in error["message"]
    assert receipt(contexts.process, reply)["cost_usd"] == "0"


@WAYS
def test_the_engine_decides_about_a_prompt_that_may_fit(contexts: Contexts, *, stream: bool) -> None:
    """The stand-in counts the tokens of its template, too."""
    reply, calls = contexts.calls("chat-student", 100, stream=stream)
    assert reply.status_code == 200
    assert calls == {"big": 0, "small": 1, "large": 1}


@WAYS
def test_an_engine_that_rejects_a_long_prompt_blames_the_callers_field(contexts: Contexts, *, stream: bool) -> None:
    """VLLM names the field `input_tokens`, which is not the caller's."""
    reply, calls = contexts.calls("chat-student", 597, stream=stream)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert calls == {"big": 0, "small": 0, "large": 1}


@WAYS
@pytest.mark.parametrize("route", ["chat", "chat-student"])
def test_a_limit_above_the_context_goes_to_the_larger_student(contexts: Contexts, route: str, *, stream: bool) -> None:
    reply, calls = contexts.calls(route, 5, stream=stream, max_tokens=300)
    assert reply.status_code == 200
    assert (calls["small"], calls["large"]) == (1, 1)


def test_a_limit_above_every_context_is_reduced(contexts: Contexts) -> None:
    reply, calls = contexts.calls("chat-student", 5, max_tokens=3000)
    assert (reply.status_code, calls["large"]) == (200, 1)
    assert 0 < int(reply.headers["x-gkt-max-tokens"]) < 3000


@WAYS
def test_prefix_cache_hits_are_priced_and_in_the_receipt(redis_url: str, tmp_path: Path, *, stream: bool) -> None:
    """VLLM reports them with `--enable-prompt-tokens-details`."""
    with gateway(tmp_path, redis_url, big=VllmEngine(cached=3), small=VllmEngine(cached=5)) as process:
        wait_until_probed(process.admin_url)
        more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        reply = ask(process, "chat", **more)
        facts = receipt(process, reply)
    prompt, kept = TEMPLATE_TOKENS + 5, facts["guidance"]["kept_tokens"]
    for role, read, cached, written in (
        ("teacher", prompt, 3, 8),
        ("student", prompt + kept, 5, len(TOKENS) + 1 - kept),
    ):
        share = facts[role]
        assert (share["input_tokens"], share["cached_input_tokens"], share["output_tokens"]) == (read, cached, written)
        expected = (read - cached) * PRICE["input_per_1m"] + cached * PRICE["cached_input_per_1m"]
        expected += written * PRICE["output_per_1m"]
        assert Decimal(share["cost_usd"]) == Decimal(expected) / 1_000_000
    assert '"cached_tokens":5' in reply.text.replace(" ", "")


@WAYS
def test_a_sleeping_engine_is_down_until_it_wakes(redis_url: str, tmp_path: Path, *, stream: bool) -> None:
    """It accepts calls and answers none, so the next student is called at once."""
    small, large = VllmEngine(), VllmEngine()
    small.asleep = True
    with gateway(tmp_path, redis_url, big=VllmEngine(), small=small, large=large) as process:
        wait_until_looked_at(process.admin_url)
        shown = detail(process.admin_url)
        assert shown["status"] == "degraded"
        assert shown["engines"]["small"]["detail"] == "Engine 'small' sleeps. Wake it with POST /wake_up."
        probes = len(large.requests)
        started = time.monotonic()
        reply = ask(process, "chat-student", stream=stream)
        assert (reply.status_code, small.requests, len(large.requests)) == (200, [], probes + 1)
        assert time.monotonic() - started < 10
        small.asleep = False
        wait_until_probed(process.admin_url, "small")
        assert ask(process, "chat-student", stream=stream).status_code == 200
        assert len(large.requests) == probes + 1
