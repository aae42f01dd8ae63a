"""Streamed guidance: the caller receives the teacher's words as the teacher generates them."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
from aiohttp import web

from tests.fakes import FakeEngine, begin_events, chunk, event, reply, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.fakes import Handler

WORDS = ["The", " answer", " to", " your", " question", " begins"]
KEPT = "The answer to your question"
PAUSE_S = 0.15
_numbers = itertools.count()


def teacher(
    *,
    finish: str | None = "length",
    fails_after: int | None = None,
    stalls: bool = False,
    words: Sequence[str] = WORDS,
    pause_s: float = PAUSE_S,
    shown: Sequence[str] | None = None,
) -> Handler:
    """Return a teacher that streams a word at a time, slowly; a JSON reply takes as long.

    Args:
        shown: the words that the caller has received so far. The teacher waits until all words but the last are in it.
    """

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            await asyncio.sleep(PAUSE_S * len(WORDS))
            return web.json_response(reply("".join(WORDS), finish or "length"))
        response = await begin_events(request)
        for count, word in enumerate([*words, ""]):
            if count == fails_after:
                if stalls:
                    await asyncio.sleep(30)
                await response.write(event({"error": {"message": "out of memory", "http_status_code": 424}}))
                return response
            while shown is not None and len(shown) < count - 1:
                await asyncio.sleep(0.005)
            await response.write(event(chunk({"role": "assistant", "content": word})))
            await asyncio.sleep(pause_s if word else 0)
        await response.write(event(chunk({}, finish)))
        usage = {"prompt_tokens": 9, "completion_tokens": len(WORDS)}
        await response.write(event({**chunk({}), "choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        return response

    return behave


@dataclass
class StreamedAnswer:
    """A streamed answer: the arrival time of each piece of text, in seconds since the request, and all parts."""

    at_s: list[float]
    pieces: list[str]
    parts: list[dict[str, Any]]
    headers: httpx.Headers
    done: bool

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass
class World:
    teacher: FakeEngine
    student: FakeEngine
    gateway: GatewayProcess

    def hear(self, route: str = "chat", pieces: list[str] | None = None, **more: Any) -> StreamedAnswer:
        """Read a stream. `pieces` receives the text as it arrives."""
        content = more.pop("question", None) or f"What is {next(_numbers)}?"
        body = {"model": route, "messages": [{"role": "user", "content": content}], "stream": True} | more
        headers = {"Authorization": f"Bearer {KEY}"}
        streamed = StreamedAnswer([], [] if pieces is None else pieces, [], httpx.Headers(), done=False)
        begun = time.monotonic()
        with httpx.stream(
            "POST", f"{self.gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=20
        ) as answer:
            streamed.headers = answer.headers
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    streamed.done = True
                elif line.startswith("data: "):
                    streamed.parts.append(part := orjson.loads(line[6:]))
                    for choice in part.get("choices", ()):
                        if text := choice["delta"].get("content"):
                            streamed.at_s.append(time.monotonic() - begun)
                            streamed.pieces.append(text)
        return streamed

    def receipt(self, streamed: StreamedAnswer) -> dict[str, Any]:
        return self.gateway.wait_for_log("request", id=streamed.headers["x-request-id"])


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        big = stack.enter_context(FakeEngine(teacher()).running())
        small = stack.enter_context(FakeEngine(says(" with this.")).running())
        calm = {"breaker": {"failures": 1000}}
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("first_token"),
                redis_url=redis_url,
                redis={"prefix": "first-token"},
                models=[
                    model("big", "tgi", big.url, **calm),
                    model("big-openai", "openai", f"{big.url}/v1", continuation="none", **calm),
                    model("small", "openai", f"{small.url}/v1", continuation="trailing", echo=False, **calm),
                ],
                routes=[
                    guided(tokens=6, cache_ttl="0s"),
                    guided("whole", tokens=6, stream=False, cache_ttl="0s"),
                    guided("openai", teacher="big-openai", tokens=6, cache_ttl="0s"),
                    guided("hurried", tokens=6, deadline="1500ms", cache_ttl="0s"),
                    guided("must", tokens=6, on_failure="reject", cache_ttl="0s"),
                    guided("hint", tokens=6, projection="hint", cache_ttl="0s"),
                    guided("kept", tokens=6),
                ],
            )
        )
        wait_until_looked_at(gateway.admin_url)
        yield World(big, small, gateway)


@pytest.fixture
def world(running: World) -> World:
    running.teacher.behave, running.student.behave = teacher(), says(" with this.")
    running.teacher.requests.clear()
    running.student.requests.clear()
    return running


def late(text: str, after_s: float) -> Handler:
    """Return a student that is silent at first."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(after_s)
        return await says(text)(request, body)

    return behave


@pytest.mark.parametrize("route", ["chat", "whole", "hint"])
def test_the_pause_before_the_students_first_token_is_measured(world: World, route: str) -> None:
    """It is on the receipt and among its facts, in a stream whose guidance is shown or not."""
    world.student.behave = late(" with this.", 0.3)
    streamed = world.hear(route, stream_options={"include_usage": True})
    receipt = world.receipt(streamed)
    handover_ms = receipt["timings"]["handover_ms"]
    assert 300 <= handover_ms <= receipt["timings"]["total_ms"] - receipt["timings"]["teacher_ms"]
    assert streamed.parts[-1]["gkt"]["handover_ms"] == handover_ms


def test_answers_of_one_engine_have_no_handover(world: World) -> None:
    world.teacher.behave = teacher(finish="stop")
    assert "handover_ms" not in world.receipt(world.hear())["timings"]


@pytest.mark.long
@pytest.mark.parametrize("route", ["chat", "openai"])
def test_guidance_is_streamed_as_it_is_generated(world: World, route: str) -> None:
    """The gateway holds back one word. It sends the last word, which may be half, after the seam is decided."""
    pieces: list[str] = []
    world.teacher.behave = teacher(pause_s=0, shown=pieces)
    streamed = world.hear(route, pieces)
    assert streamed.text == KEPT + " with this."
    assert streamed.pieces[: streamed.pieces.index(" with")] == ["The", " answer", " to", " your", " question"]
    assert streamed.done


def test_the_student_continues_the_shown_text(world: World) -> None:
    """The caller receives one answer: one role, one id, one finish."""
    streamed = world.hear(stream_options={"include_usage": True})
    assert world.student.requests[0]["messages"][-1] == {"role": "assistant", "content": KEPT}
    choices = [choice for part in streamed.parts for choice in part["choices"]]
    assert [choice["delta"]["role"] for choice in choices if "role" in choice["delta"]] == ["assistant"]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert len({(part["id"], part["created"], part["model"]) for part in streamed.parts}) == 1
    usage = streamed.parts[-1]["usage"]
    receipt = world.receipt(streamed)
    assert usage["completion_tokens"] == receipt["guidance"]["kept_tokens"] + receipt["student"]["output_tokens"]
    assert receipt["teacher"]["output_tokens"] == len(WORDS)


@pytest.mark.parametrize("route", ["whole", "hint"])
def test_guidance_that_does_not_stream_comes_at_once_or_not_at_all(world: World, route: str) -> None:
    """`stream: false`, and a hint, which the caller never receives."""
    streamed = world.hear(route)
    assert streamed.at_s[0] > len(WORDS) * PAUSE_S
    assert not world.teacher.requests[0].get("stream")


def test_a_json_request_does_not_stream_the_teacher(world: World) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Why?"}]}
    answer = httpx.post(
        f"{world.gateway.url}/v1/chat/completions", headers={"Authorization": f"Bearer {KEY}"}, json=body, timeout=20
    )
    assert answer.json()["choices"][0]["message"]["content"] == KEPT + " with this."
    assert not world.teacher.requests[0].get("stream")


def test_a_teacher_that_ends_by_itself_has_answered(world: World) -> None:
    """The answer holds the teacher's last word, and no student is called."""
    world.teacher.behave = teacher(finish="stop")
    streamed = world.hear()
    assert streamed.text == "".join(WORDS)
    assert (world.student.requests, world.receipt(streamed)["mode"]) == ([], "teacher_complete")


def test_a_teacher_that_fails_midway_has_short_guidance(world: World) -> None:
    """The sent words stay, the student continues them, and the receipt gives the reason for the short opening."""
    world.teacher.behave = teacher(fails_after=3)
    streamed = world.hear()
    assert streamed.text == "The answer with this."
    assert streamed.done
    receipt = world.receipt(streamed)
    assert (receipt["mode"], receipt["guidance"]["cut_short"]) == ("guided", "teacher_failed")
    assert receipt["guidance"]["kept_tokens"] == 2
    assert len(world.teacher.requests) == 1, "it is not asked again once its words were shown"


def test_a_teacher_that_fails_at_the_callers_limit_leaves_nothing_to_ask_for(world: World) -> None:
    """The teacher's last word is held back; the four before it are the limit. No student is called for 0 tokens."""
    world.teacher.behave = teacher(
        fails_after=5, words=["Photosynthesis", " converts", " sunlight", " into", " a"], pause_s=0
    )
    streamed = world.hear(max_tokens=4)
    assert [body["max_tokens"] for body in world.student.requests] == []
    assert streamed.text == "Photosynthesis converts sunlight into"
    assert streamed.parts[-1]["choices"][0]["finish_reason"] == "length"
    assert world.receipt(streamed)["guidance"]["cut_short"] == "teacher_failed"


def test_a_late_teacher_is_truncated(world: World) -> None:
    """The deadline also ends a teacher whose words were sent already."""
    world.teacher.behave = teacher(fails_after=3, stalls=True, pause_s=0)
    streamed = world.hear("hurried")
    assert streamed.text == "The answer with this."
    assert world.receipt(streamed)["guidance"]["cut_short"] == "teacher_late"


def test_a_teacher_failure_before_the_first_text_equals_one_without_streaming(world: World) -> None:
    """Nothing was sent yet, so the student answers alone, or the reply is a 503."""
    world.teacher.behave = teacher(fails_after=0)
    streamed = world.hear()
    assert streamed.text == " with this."
    assert streamed.headers["x-gkt-unguided"] == "teacher_failed"
    assert len(world.teacher.requests) == 2, "asked once more"
    refused = world.hear("must")
    assert refused.parts == []
    assert refused.headers["content-type"] == "application/json"


def test_a_stop_text_that_the_teacher_writes_ends_the_answer(world: World) -> None:
    """No part of the stop text is sent, also if it arrives in two pieces."""
    world.teacher.behave = teacher(finish="stop")
    streamed = world.hear(stop=["your ques"])
    assert streamed.text == "The answer to "
    assert world.student.requests == []


def test_identical_requests_share_one_stream(world: World) -> None:
    """The first caller receives the words as they arrive, the second all at once.

    Later ones get them from the cache.
    """
    for _ in range(2):
        streamed = world.hear("kept", question="The same?")
        assert streamed.text == KEPT + " with this."
    assert len(world.teacher.requests) == 1
    assert world.receipt(streamed)["teacher"]["shared"] == "cache"


def test_a_teacher_is_read_to_its_usage_after_its_caller_disconnected(world: World) -> None:
    """No student is called, and the receipt states that the caller disconnected."""
    before = len(world.student.requests)
    body = {"model": "chat", "messages": [{"role": "user", "content": "Left?"}], "stream": True}
    with httpx.stream(
        "POST",
        f"{world.gateway.url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {KEY}"},
        json=body,
        timeout=20,
    ) as answer:
        request_id = answer.headers["x-request-id"]
        next(line for line in answer.iter_lines() if "answer" in line)
    receipt = world.gateway.wait_for_log("request", id=request_id)
    assert (receipt["status"], receipt["student"]) == ("client_gone", None)
    assert receipt["teacher"]["output_tokens"] == len(WORDS)
    assert "estimated" not in receipt["teacher"]
    assert len(world.student.requests) == before
