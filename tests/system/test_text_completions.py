"""/v1/completions: raw prompts, guided as in the paper, and all other fields of text completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web

from tests.fake_texts import text_choice, text_chunk
from tests.fakes import says
from tests.text_world import HEADERS, KEPT, KEPT_TOKENS, REST, TEACHERS, World, few_shot, running_world

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER = KEPT + REST
TEXT_ROUTE = "/v1/completions"


@pytest.fixture(scope="module")
def running(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("texts"), redis_url) as world:
        yield world


@pytest.fixture
def world(running: World) -> World:
    running.reset()
    return running


def test_the_student_continues_exactly_after_the_guidance(world: World) -> None:
    """Paper, section 2: the student completes prompt and guidance. The teacher's leading blank is kept."""
    prompt = few_shot()
    reply = world.ask(prompt=prompt, max_tokens=20, temperature=0.3, top_k=7)
    answer = reply.json()
    assert answer["choices"] == [{"index": 0, "text": ANSWER, "logprobs": None, "finish_reason": "stop"}]
    assert world.teacher.paths == ["/generate"]
    assert world.teacher.requests[0]["inputs"] == prompt
    assert world.student.paths == [TEXT_ROUTE]
    sent = {"prompt": prompt + KEPT, "max_tokens": 20 - KEPT_TOKENS, "temperature": 0.3, "top_k": 7}
    assert world.student.requests == [{"model": "x", **sent}]
    assert reply.headers["x-gkt-mode"] == "guided"
    assert "x-gkt-unguided" not in reply.headers


def test_a_reply_is_a_text_completion(world: World) -> None:
    """The reply has the id prefix and object of a text completion, and no field of a chat."""
    reply = world.ask()
    answer = reply.json()
    assert answer["id"] == f"cmpl-{reply.headers['x-request-id']}"
    assert (answer["object"], answer["model"]) == ("text_completion", "few")
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}


def test_usage_and_receipt_agree(world: World) -> None:
    """The usage and the receipt count the caller's prompt and the whole answer."""
    reply = world.ask()
    receipt = world.receipt(reply)
    assert (receipt["mode"], receipt["status"], receipt["finish_reason"]) == ("guided", "ok", "stop")
    assert receipt["teacher"]["output_tokens"] == 6
    facts = receipt["guidance"]
    assert (facts["projection"], facts["placement"], facts["kept_tokens"]) == ("cutoff", "prefix", KEPT_TOKENS)
    written = KEPT_TOKENS + receipt["student"]["output_tokens"]
    read = receipt["student"]["input_tokens"] - KEPT_TOKENS
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    assert reply.json()["usage"] == usage


@pytest.mark.parametrize("route", ["few", "whole", "openai"])
def test_every_event_is_a_text_completion_of_one_answer(world: World, route: str) -> None:
    """The stream has one id, no role, one finish_reason, and the requested usage at its end."""
    whole = world.answer(route)
    streamed = world.stream(route, stream_options={"include_usage": True})
    assert streamed.done
    assert streamed.text() == ANSWER
    assert streamed.pieces[0].startswith(" Paris")
    assert streamed.finishes == ["stop"]
    assert {part["object"] for part in streamed.parts} == {"text_completion"}
    assert {part["id"] for part in streamed.parts} == {f"cmpl-{streamed.headers['x-request-id']}"}
    assert len({(part["created"], part["model"]) for part in streamed.parts}) == 1
    assert {frozenset(one) for one in streamed.choices} == {frozenset({"index", "text", "logprobs", "finish_reason"})}
    assert all(part["usage"] is None for part in streamed.parts[:-1])
    last = streamed.parts[-1]
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert last["gkt"]["mode"] == streamed.headers["x-gkt-mode"] == "guided"


def test_usage_is_not_sent_without_a_request(world: World) -> None:
    """No event lacks choices or has `usage`; the gateway requests usage from the engine in any case."""
    streamed = world.stream()
    assert all(part["choices"] and "usage" not in part for part in streamed.parts)
    assert world.student.requests[0]["stream_options"] == {"include_usage": True}
    assert "estimated" not in world.receipt(streamed)["student"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_short_limit_is_the_teachers_alone(world: World, *, stream: bool) -> None:
    """The teacher never exceeds the caller's limit. No student is called if the teacher uses up the limit."""
    world.teacher.behave = says(" Paris is the", "length")
    world.teacher.requests.clear()
    ask = {"max_tokens": 2}
    text = world.stream(**ask).text() if stream else world.answer(**ask)["choices"][0]["text"]
    assert text.startswith(" Paris is")
    assert world.teacher.requests[0]["parameters"]["max_new_tokens"] == 2
    assert world.student.requests == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_across_the_seam_ends_the_answer(world: World, *, stream: bool) -> None:
    """The stop text begins in the teacher's words and ends in the student's; neither part is sent."""
    ask = {"stop": ["of France", "\nQ:"]}
    if stream:
        streamed = world.stream(**ask)
        assert (streamed.text(), streamed.finishes) == (" Paris is the capital ", ["stop"])
    else:
        choice = world.answer(**ask)["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (" Paris is the capital ", "stop")
    assert world.student.requests[0]["stop"] == ["of France", "\nQ:"]
    assert world.teacher.requests[0]["parameters"]["stop"] == ["of France", "\nQ:"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("written", "stop", "text"),
    [
        (" Paris.", None, " Paris."),
        ("\nParis.\n\n", None, "\nParis.\n\n"),
        (" Paris.\n\nQ: What", ["\n\nQ:"], " Paris."),  # TGI keeps the stop text at the end
    ],
)
@pytest.mark.parametrize("route", ["few", "openai"])
def test_a_teacher_that_ends_by_itself_has_answered(
    world: World, route: str, written: str, stop: Any, text: str, *, stream: bool
) -> None:
    """The teacher's text is sent unchanged, with its blanks; no student is called."""
    world.teacher.behave = says(written, "stop")
    ask = {} if stop is None else {"stop": stop}
    if stream:
        streamed = world.stream(route, **ask)
        assert (streamed.text(), streamed.finishes, streamed.done) == (text, ["stop"], True)
        receipt = world.receipt(streamed)
    else:
        reply = world.ask(route, **ask)
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
        assert reply.json()["choices"] == [choice]
        receipt = world.receipt(reply)
    assert receipt["mode"] == "teacher_complete"
    assert world.student.requests == []


UNGUIDABLE = [
    ("prompts", {"prompt": ["one", "two"]}),
    ("prompts", {"prompt": ["one", "two"], "n": 2}),
    ("prompts", {"prompt": [[1, 2], [3]]}),
    ("token_ids", {"prompt": [1, 2, 3]}),
    ("token_ids", {"prompt": [[1, 2, 3]]}),
    ("echo", {"echo": True}),
    ("echo", {"echo": True, "max_tokens": 0, "logprobs": 0}),
    ("suffix", {"suffix": "the end"}),
    ("n", {"n": 3}),
    ("best_of", {"best_of": 2}),
    ("logprobs", {"logprobs": 2}),
    ("logprobs", {"logprobs": 0}),
]


@pytest.mark.parametrize(("reason", "more"), UNGUIDABLE)
def test_requests_without_possible_guidance_pass_through_to_the_student(
    world: World, reason: str, more: dict[str, Any]
) -> None:
    """The request reaches the student, and the student's choices and log-probabilities reach the caller."""
    fields = {"prompt": few_shot(), **more}
    reply = world.ask(**fields)
    assert (reply.headers["x-gkt-unguided"], reply.headers["x-gkt-mode"]) == (reason, "student")
    assert world.teacher.requests == []
    assert world.student.requests == [{"model": "x", **fields}]
    generated = httpx.post(f"{world.student.url}{TEXT_ROUTE}", json=fields).json()
    assert reply.json()["choices"] == generated["choices"]
    assert reply.json()["usage"] == {**generated["usage"], "total_tokens": sum(generated["usage"].values())}
    assert world.receipt(reply)["guidance"] is None


@pytest.mark.parametrize(("reason", "more"), [case for case in UNGUIDABLE if case[0] != "best_of"])
def test_the_same_holds_for_streams(world: World, reason: str, more: dict[str, Any]) -> None:
    """Event by event, each choice keeps its index and none is lost."""
    fields = {"prompt": few_shot(), **more}
    streamed = world.stream(**fields)
    assert streamed.headers["x-gkt-unguided"] == reason
    generated = httpx.post(f"{world.student.url}{TEXT_ROUTE}", json=fields).json()["choices"]
    assert [streamed.text(choice["index"]) for choice in generated] == [choice["text"] for choice in generated]
    assert streamed.finishes == [choice["finish_reason"] for choice in generated]
    scored = [one["logprobs"]["tokens"] for one in streamed.choices if one["logprobs"]]
    assert [token for tokens in scored for token in tokens] == [
        token for choice in generated if choice["logprobs"] for token in choice["logprobs"]["tokens"]
    ]
    assert streamed.done


def test_one_prompt_in_a_list_is_one_prompt(world: World) -> None:
    """The request is guided like one with a plain prompt."""
    prompt = few_shot()
    assert world.answer(prompt=[prompt])["choices"][0]["text"] == ANSWER
    assert world.student.requests[0]["prompt"] == prompt + KEPT


@pytest.mark.parametrize(
    ("route", "instruction", "introduced"),
    [
        (
            "context",
            "",
            f"An expert's answer begins like this:\n{KEPT.lstrip()}\n\nGive the whole answer, from its beginning.\n\n",
        ),
        ("hint", "Provide a brief hint for the question: ", f"Hint: {KEPT.lstrip()}\n\n"),
    ],
)
def test_guidance_as_context_precedes_the_prompt(world: World, route: str, instruction: str, introduced: str) -> None:
    """The answer begins after the prompt. The caller receives only the student's words, also with several answers."""
    prompt = few_shot()
    reply = world.ask(route, prompt=prompt, n=2)
    assert world.teacher.requests[0]["inputs"] == instruction + prompt
    assert world.student.requests[0]["prompt"] == introduced + prompt
    assert [choice["text"] for choice in reply.json()["choices"]] == [REST, REST]
    assert (reply.headers["x-gkt-mode"], reply.headers["x-gkt-placement"]) == ("guided", "context")
    assert reply.json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(("reason", "more"), [UNGUIDABLE[0], UNGUIDABLE[3], UNGUIDABLE[5], UNGUIDABLE[7]])
def test_echoed_prompts_and_token_ids_take_no_context(world: World, reason: str, more: dict[str, Any]) -> None:
    """An echoed prompt would contain the guidance."""
    assert world.ask("context", **more).headers["x-gkt-unguided"] == reason
    assert world.teacher.requests == []


def test_the_concise_instruction_precedes_the_prompt(world: World) -> None:
    """Paper, section 4.2; the student's prompt has no instruction."""
    prompt = few_shot()
    assert world.answer("concise", prompt=prompt)["choices"][0]["text"] == ANSWER
    assert world.teacher.requests[0]["inputs"] == f"Provide the answer in a brief manner: {prompt}"
    assert world.student.requests[0]["prompt"] == prompt + KEPT


@pytest.mark.parametrize("stream", [False, True])
def test_one_engine_alone_continues_a_prompt(world: World, *, stream: bool) -> None:
    """Modes student and teacher: TGI at its own route for text."""
    for route, engine, path, text in (
        ("chat-student", world.student, TEXT_ROUTE, REST),
        ("chat-teacher", world.teacher, "/generate_stream" if stream else "/generate", TEACHERS),
    ):
        generated = world.stream(route).text() if stream else world.answer(route)["choices"][0]["text"]
        assert (generated, engine.paths) == (text, [path])


@pytest.mark.parametrize("stream", [False, True])
def test_a_tgi_student_continues_on_generate(world: World, *, stream: bool) -> None:
    """TGI gets prompt and opening unchanged."""
    prompt = few_shot()
    generated = (
        world.stream("tgi", prompt=prompt).text()
        if stream
        else world.answer("tgi", prompt=prompt)["choices"][0]["text"]
    )
    assert generated == ANSWER
    assert world.spare.paths == ["/generate_stream" if stream else "/generate"]
    assert world.spare.requests[0]["inputs"] == prompt + KEPT


def test_fields_unsupported_by_tgi_are_a_400_with_the_field(world: World) -> None:
    """The request costs nothing, because the student never received the call."""
    reply = world.ask("tgi", logprobs=1, max_tokens=50)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "logprobs")
    assert world.spare.requests == []
    assert float(world.receipt(reply)["cost_usd"]) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_only_student_is_a_400_without_cost(world: World, *, stream: bool) -> None:
    """LiteLLM's models have no route for prompts. The gateway skips them if there are other students."""
    reply = world.ask("lite", stream=stream)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "prompt")
    assert "'prompt' cannot be answered by 'lite'" in error["message"]
    assert world.teacher.requests == world.spare.requests == []
    assert world.answer("mixed")["choices"][0]["text"] == ANSWER
    assert world.spare.requests == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None, "messages": [{"role": "user", "content": "Why?"}]}, "prompt"),
        ({"model": "vectors"}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_a_body_that_is_no_text_completion_is_a_400(world: World, body: dict[str, Any], param: str) -> None:
    """No engine is called."""
    reply = httpx.post(
        f"{world.gateway.url}{TEXT_ROUTE}", headers=HEADERS, json={"model": "few", "prompt": few_shot()} | body
    )
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert world.teacher.requests == world.student.requests == []


@pytest.mark.parametrize("prompt", ["", [""], None])
def test_an_empty_prompt_is_the_students(world: World, prompt: Any) -> None:
    assert world.answer("chat-student", prompt=prompt)["choices"][0]["text"] == REST
    assert world.student.requests[0]["prompt"] == (prompt or "")


@pytest.mark.parametrize(("route", "stream"), [("chat-student", False), ("chat-student", True), ("tgi", False)])
def test_a_rejected_empty_prompt_is_a_400_with_the_field(world: World, route: str, *, stream: bool) -> None:
    """The error names `prompt`. Engines name no field, or one of their own."""

    async def refuse(_: web.Request, __: dict[str, Any]) -> web.Response:
        generated = "Input validation error: `inputs` cannot be empty"
        return web.json_response({"error": generated, "error_type": "validation"}, status=422)

    world.student.behave = world.spare.behave = refuse
    for prompt in ("", None, ["", "a"][: 1 if route == "tgi" else 2]):
        reply = world.ask(route, prompt=prompt, stream=stream)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt"), reply.text
        assert "cannot be empty" in reply.json()["error"]["message"]
    assert world.ask(route, prompt="a").json()["error"]["param"] is None


async def _out_of_order(_: web.Request, __: dict[str, Any]) -> web.Response:
    return web.json_response({"error": {"message": "out of order"}}, status=500)


@pytest.mark.parametrize("stream", [False, True])
def test_another_student_continues_the_same_guidance(world: World, *, stream: bool) -> None:
    """The gateway retries the first student, then calls the next. The teacher is called once."""
    world.student.behave = _out_of_order
    prompt = few_shot()
    reply: Any = world.stream("two", prompt=prompt) if stream else world.ask("two", prompt=prompt)
    assert (reply.text() if stream else reply.json()["choices"][0]["text"]) == ANSWER
    assert len(world.teacher.requests) == 1
    assert len(world.student.requests) > 1, "asked again"
    assert {fields["prompt"] for fields in world.student.requests + world.spare.requests} == {prompt + KEPT}
    receipt = world.receipt(reply)
    assert receipt["student"]["model"] == "spare"
    assert len(receipt["attempts"]) == len(world.student.requests)


def test_a_student_that_rejects_the_guidance_gets_the_prompt_alone(world: World) -> None:
    """The prompt may be too long with the teacher's words in it."""
    prompt = few_shot()

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["prompt"] != prompt:
            return web.json_response({"error": {"message": "too long"}}, status=400)
        return await says(" Lima.")(request, body)

    world.student.behave = behave
    reply = world.ask(prompt=prompt, max_tokens=9)
    assert reply.json()["choices"][0]["text"] == " Lima."
    assert reply.headers["x-gkt-unguided"] == "student_refused_prefix"
    assert world.student.requests[-1]["max_tokens"] == 9


def test_without_usage_all_choices_are_estimated(world: World) -> None:
    """Without the other answers the receipt would be too low."""

    async def behave(_: web.Request, __: dict[str, Any]) -> web.Response:
        return web.json_response(text_chunk(*(text_choice(" one two three four", "stop", index) for index in range(3))))

    world.student.behave = behave
    receipt = world.receipt(world.ask(n=3))
    assert receipt["student"]["estimated"] is True
    assert 12 <= receipt["student"]["output_tokens"] <= 24


@pytest.mark.parametrize("stream", [False, True])
def test_a_guided_raw_prompt_without_a_limit_has_openais_default(world: World, *, stream: bool) -> None:
    """Guidance and student share the 16 tokens. An engine's own default would start again after the guidance."""
    world.stream() if stream else world.answer()
    assert world.student.requests[0]["max_tokens"] == 16 - KEPT_TOKENS
