"""Streamed raw prompts: callers receive the teacher's words as generated, from TGI's events and OpenAI's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from tests.fake_texts import begin_events, event, text_choice, text_chunk, token_events, words
from tests.text_world import HEADERS, KEPT, REST, TEACHERS, World, few_shot, running_world

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aiohttp import web

    from tests.fakes import Handler

PAUSE_S = 0.15
WORDS = words(TEACHERS)


def writes(
    *,
    text: str = TEACHERS,
    finish: str = "length",
    fails_after: int | None = None,
    shown: Sequence[str] | None = None,
    **error: Any,
) -> Handler:
    """Return a teacher that streams a word at a time, slowly, in the events of the called route.

    Args:
        shown: the words that the caller has received so far. The teacher waits until all words but the last are in it.
        error: the event instead of the word at which the teacher fails; without one the connection ends.
    """

    async def behave(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        if request.path == "/generate_stream":
            events = token_events(words(text), finish)
        else:
            events = [text_chunk(text_choice(word)) for word in words(text)]
            events += [text_chunk(text_choice("", finish)), text_chunk() | {"usage": {"prompt_tokens": 10,
                       "completion_tokens": len(words(text))}}]  # fmt: skip
        for count, one in enumerate(events):
            if count == fails_after:
                if error:
                    await response.write(event(error))
                return response
            while shown is not None and len(shown) < min(count, len(words(text))) - 1:
                await asyncio.sleep(0.005)
            await response.write(event(one))
            await asyncio.sleep(PAUSE_S if shown is None else 0)
        if request.path != "/generate_stream":
            await response.write(b"data: [DONE]\n\n")
        return response

    return behave


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("text-streams"), redis_url) as world:
        yield world


@pytest.fixture
def world(running: World) -> World:
    running.reset()
    running.teacher.behave = writes()
    return running


TEACHERS_ROUTES = pytest.mark.parametrize(
    ("route", "path"), [("few", "/generate_stream"), ("openai", "/v1/completions")]
)
# TGI 3.3.7, router/src/server.rs: under HTTP 200. The other is OpenAI's, as vLLM and llama.cpp send it.
TGIS_ERROR = {"error": "Request failed during generation", "error_type": "generation"}
OPENAIS_ERROR = {"error": {"message": "out of memory", "code": 500}}


@pytest.mark.long
@TEACHERS_ROUTES
def test_guidance_is_streamed_as_it_is_generated(world: World, route: str, path: str) -> None:
    """The gateway holds back one word. The student continues exactly the sent text, with its leading blank."""
    prompt = few_shot()
    body = {"model": route, "prompt": prompt, "stream": True}
    shown: list[str] = []
    world.teacher.behave = writes(shown=shown)
    with httpx.stream("POST", f"{world.gateway.url}/v1/completions", headers=HEADERS, json=body, timeout=20) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                shown += filter(None, [orjson.loads(line[6:])["choices"][0]["text"]])
    assert "".join(shown) == KEPT + REST
    assert shown[:4] == [" Paris", " is", " the", " capital"]
    assert world.teacher.paths == [path]
    assert world.student.requests[0]["prompt"] == prompt + KEPT


@TEACHERS_ROUTES
def test_a_teacher_that_ends_by_itself_has_answered(world: World, route: str, path: str) -> None:
    """The answer holds the teacher's last word and last blank, but no special token."""
    world.teacher.behave = writes(text=" It is Lima.\n", finish="stop")
    streamed = world.stream(route)
    assert (streamed.text(), streamed.finishes) == (" It is Lima.\n", ["stop"])
    assert world.receipt(streamed)["mode"] == "teacher_complete"
    assert world.teacher.paths == [path]
    assert world.student.requests == []


@TEACHERS_ROUTES
@pytest.mark.parametrize("with_error", [True, False])
def test_a_teacher_that_fails_midway_has_short_guidance(
    world: World, route: str, path: str, *, with_error: bool
) -> None:
    """The sent words stay, the student continues them, and the receipt gives the reason for the short opening."""
    error = TGIS_ERROR if route == "few" else OPENAIS_ERROR
    world.teacher.behave = writes(fails_after=3, **(error if with_error else {}))
    prompt = few_shot()
    streamed = world.stream(route, prompt=prompt)
    assert streamed.text() == " Paris is" + REST
    assert world.student.requests[0]["prompt"] == prompt + " Paris is"
    receipt = world.receipt(streamed)
    assert (receipt["mode"], receipt["guidance"]["cut_short"]) == ("guided", "teacher_failed")
    assert world.teacher.paths == [path], "it is not asked again once its words were shown"


@TEACHERS_ROUTES
def test_a_teacher_failure_before_the_first_text_equals_one_without_streaming(
    world: World, route: str, path: str
) -> None:
    """The gateway retries the teacher once; then the student answers alone."""
    world.teacher.behave = writes(fails_after=0, **(TGIS_ERROR if route == "few" else OPENAIS_ERROR))
    prompt = few_shot()
    streamed = world.stream(route, prompt=prompt)
    assert (streamed.text(), streamed.headers["x-gkt-unguided"]) == (REST, "teacher_failed")
    assert world.student.requests[0]["prompt"] == prompt
    assert world.teacher.paths == [path] * 2


@pytest.mark.parametrize(
    ("error_type", "reason", "calls"), [("overloaded", "teacher_overloaded", 1), ("validation", "teacher_rejected", 1)]
)
def test_tgis_errors_under_status_200_have_their_own_kind(
    world: World, error_type: str, reason: str, calls: int
) -> None:
    """An overloaded teacher is not retried at once, unlike one with a server error."""
    world.teacher.behave = writes(fails_after=0, error="no", error_type=error_type)
    streamed = world.stream()
    assert (streamed.text(), streamed.headers["x-gkt-unguided"]) == (REST, reason)
    assert len(world.teacher.requests) == calls


def test_where_the_policy_wants_guidance_a_stream_that_has_none_is_a_503(world: World) -> None:
    """The reply has the status, because nothing was sent yet."""
    world.teacher.behave = writes(fails_after=0, **TGIS_ERROR)
    reply = world.ask("must", stream=True)
    assert reply.status_code == 503
    assert reply.headers["content-type"] == "application/json"


def test_a_stop_text_in_the_teachers_words_ends_the_answer(world: World) -> None:
    """No part of the stop text is sent, also if it arrives in two pieces."""
    streamed = world.stream(stop=["the cap"])
    assert (streamed.text(), streamed.finishes) == (" Paris is ", ["stop"])
    assert world.student.requests == []


@pytest.mark.parametrize("route", ["few", "openai"])
def test_a_leading_empty_line_of_the_teacher_is_kept(world: World, route: str) -> None:
    """A chat template would add the line; in a raw prompt it belongs to the answer."""
    world.teacher.behave = writes(text="\n\n Paris is the")
    prompt = few_shot()
    streamed = world.stream(route, prompt=prompt)
    assert streamed.text() == "\n\n Paris is" + REST
    assert world.student.requests[0]["prompt"] == prompt + "\n\n Paris is"


def test_pieces_and_the_whole_text_that_begin_otherwise_make_one_answer(world: World) -> None:
    """Some tokenizers drop the leading blank of a first token that is decoded alone. The sent text counts."""

    async def behave(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        events = token_events(["Paris", " is", " the", " capital"], "length")
        events[-1]["generated_text"] = " Paris is the capital"
        for one in events:
            await response.write(event(one))
            await asyncio.sleep(PAUSE_S / 3)
        return response

    world.teacher.behave = behave
    prompt = few_shot()
    assert world.stream(prompt=prompt).text() == "Paris is the" + REST
    assert world.student.requests[0]["prompt"] == prompt + "Paris is the"


def test_guidance_that_is_kept_comes_at_once_and_begins_alike(world: World) -> None:
    """Cached guidance serves a stream and a JSON caller."""
    prompt = few_shot()
    assert world.stream(prompt=prompt).text() == KEPT + REST
    again = world.stream(prompt=prompt)
    assert again.text() == world.answer(prompt=prompt)["choices"][0]["text"] == KEPT + REST
    assert world.receipt(again)["teacher"]["shared"] == "cache"
    assert len(world.teacher.requests) == 1


def test_a_teacher_is_read_to_its_end_after_its_caller_disconnected(world: World) -> None:
    """No student is called, and the receipt states that the caller disconnected."""
    before = len(world.student.requests)
    body = {"model": "few", "prompt": few_shot(), "stream": True}
    with httpx.stream("POST", f"{world.gateway.url}/v1/completions", headers=HEADERS, json=body, timeout=20) as answer:
        request_id = answer.headers["x-request-id"]
        next(line for line in answer.iter_lines() if "Paris" in line)
    receipt = world.gateway.wait_for_log("request", id=request_id)
    assert (receipt["status"], receipt["student"]) == ("client_gone", None)
    assert receipt["teacher"]["output_tokens"] >= 6
    assert len(world.student.requests) == before


def test_a_student_that_breaks_off_ends_the_stream_in_an_error(world: World) -> None:
    """The student is called once more to continue its text. The stream has no finish_reason and no [DONE], so half an
    answer never appears complete."""

    async def behave(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        await response.write(event(text_chunk(text_choice(" half"))))
        return response

    world.student.behave = behave
    before = len(world.student.requests)
    streamed = world.stream()
    assert [one["prompt"][-5:] for one in world.student.requests[before:]] == [KEPT[-5:], " half"]
    assert streamed.text() == KEPT + " half half"
    assert (streamed.finishes, streamed.done) == ([], False)
    assert streamed.parts[-1]["error"]["code"] == "engine_failed"


def test_several_prompts_are_streamed_where_the_engine_sends_null_first(world: World) -> None:
    """llama.cpp sends `data: null` before the first chunk of several prompts."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin_events(request)
        await response.write(b"data: null\n\n")
        for index, prompt in enumerate(body["prompt"]):
            await response.write(event(text_chunk(text_choice(f" {prompt}!", index=index))))
            usage = {"prompt_tokens": 1, "completion_tokens": 1}
            await response.write(event(text_chunk(text_choice("", "stop", index=index)) | {"usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        return response

    world.student.behave = behave
    streamed = world.stream(prompt=["one", "two"])
    assert (streamed.text(0), streamed.text(1)) == (" one!", " two!")
    assert (streamed.finishes, streamed.done) == (["stop", "stop"], True)
    assert world.receipt(streamed)["status"] == "ok"
