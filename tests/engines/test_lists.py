"""The conditions for a shared call of guidance requests, and its effects on each request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from gateway.engines.base import TeacherReply, set_origin
from gateway.errors import EngineError, EngineFailed, EngineOverloaded, EngineProtocolError, EngineRejected
from gateway.runtime.tasks import BackgroundTasks
from tests.engines.list_servers import (
    BATCH,
    CHAT,
    KINDS,
    LIST_PATHS,
    LLAMA,
    RAW,
    TEMPLATE,
    TOKENIZE,
    ListServer,
    chat,
    listing,
    prompt,
)

if TYPE_CHECKING:
    from gateway.engines.base import TeacherRequest
    from gateway.engines.openai import OpenAIEngine

WORDS = ("one", "two", "three", "four", "five")
QUESTIONS = [chat(f"What is {word}") for word in WORDS]


async def ask(engine: OpenAIEngine, requests: list[TeacherRequest], batch: str | None = "b1") -> list[Any]:
    """Return the outcome of each request, errors included."""
    calls = (engine.generate_guidance(request, batch=batch) for request in requests)
    return await asyncio.gather(*calls, return_exceptions=True)


def start_requests(engine: OpenAIEngine, requests: list[TeacherRequest]) -> list[asyncio.Task[TeacherReply]]:
    """Return the guidance requests of one batch as tasks."""
    tasks = BackgroundTasks()
    return [tasks.spawn("opening", engine.generate_guidance(request, batch="b1")) for request in requests]


def texts(outcomes: list[Any]) -> list[str]:
    assert all(isinstance(outcome, TeacherReply) for outcome in outcomes), outcomes
    return [outcome.text for outcome in outcomes]


SAID = [f"{word} says the" for word in WORDS]


# Requests that share a call.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [chat, prompt])
async def test_guidance_of_a_batch_is_one_list_call(kind: str, make: Any) -> None:
    """For chats and for prompts."""
    async with listing(ListServer(kind)) as (engine, fake):
        outcomes = await ask(engine, [make(f"What is {word}") for word in WORDS])
    assert texts(outcomes) == SAID
    rendering = {TEMPLATE, TOKENIZE}
    path = RAW if kind == "vllm" and make is prompt else LIST_PATHS[kind]
    assert [path_ for path_ in fake.paths if path_ not in rendering] == [path]


async def test_a_list_call_has_the_ids_of_the_batch_and_of_one_member() -> None:
    async with listing(ListServer()) as (engine, fake):
        tasks = BackgroundTasks()

        async def of_request(number: int) -> TeacherReply:
            set_origin("acme", f"req_{number}")
            return await engine.generate_guidance(QUESTIONS[number], batch="b7")

        await asyncio.gather(*(tasks.spawn("opening", of_request(number)) for number in range(3)))
        assert [request.headers["X-Request-Id"] for request in fake.requests] == ["b7-req_0-1"]


@pytest.mark.parametrize(
    "other",
    [
        chat("What is two", 4),
        chat("What is two", temperature=0.5),
        chat("What is two", top_p=0.5),
        chat("What is two", seed=1),
        chat("What is two", stop=("x",)),
        prompt("What is two"),
    ],
)
async def test_only_those_that_ask_for_the_same_share_a_call(other: TeacherRequest) -> None:
    """A list has one set of parameters."""
    async with listing(ListServer()) as (engine, fake):
        await ask(engine, [*QUESTIONS[:2], other, other])
    lists = [body.get("messages") or body["prompt"] for body in fake.bodies]
    assert sorted(len(members) for members in lists) == [2, 2]


async def test_constrained_guidance_is_a_single_call() -> None:
    """vLLM's batch route ignores most constraints."""
    constrained = [chat("What is three", constraints={"min_tokens": least}) for least in (2, 3)]
    async with listing(ListServer()) as (engine, fake):
        await ask(engine, [*QUESTIONS[:2], *constrained])
    assert sorted(fake.paths) == sorted([BATCH, CHAT, CHAT])
    assert [body.get("min_tokens") for body in fake.bodies if body["messages"] == constrained[0].messages] == [2, 3]


async def test_batches_do_not_share_a_call() -> None:
    """Batches have separate permits."""
    async with listing(ListServer()) as (engine, fake):
        await asyncio.gather(ask(engine, QUESTIONS[:2], "b1"), ask(engine, QUESTIONS[:3], "b2"))
    assert sorted(len(body["messages"]) for body in fake.bodies) == [2, 3]


async def test_one_alone_and_one_without_a_batch_are_single_calls() -> None:
    async with listing(ListServer()) as (engine, fake):
        await ask(engine, QUESTIONS[:1])
        await ask(engine, QUESTIONS[:2], None)
    assert fake.paths == [CHAT, CHAT, CHAT]


async def test_as_long_as_members_join_in_each_turn_of_the_loop_the_list_stays() -> None:
    """Some members need more steps from their permit to their call."""
    async with listing(ListServer()) as (engine, fake):

        async def a_turn_later() -> TeacherReply:
            await asyncio.sleep(0)
            return await engine.generate_guidance(QUESTIONS[2], batch="b1")

        await asyncio.gather(
            *(engine.generate_guidance(request, batch="b1") for request in QUESTIONS[:2]), a_turn_later()
        )
    assert [len(body["messages"]) for body in fake.bodies] == [3]


async def test_a_late_member_is_sent_alone() -> None:
    server = ListServer()
    async with listing(server) as (engine, fake):
        server.hold.clear()
        listed = asyncio.gather(*(engine.generate_guidance(request, batch="b1") for request in QUESTIONS[:2]))
        await server.held.wait()
        assert (await engine.generate_guidance(QUESTIONS[2], batch="b1")).text == SAID[2]
        server.hold.set()
        await listed
    assert fake.paths == [BATCH, CHAT]


async def test_before_the_first_probe_calls_are_single() -> None:
    """Support for lists is not known yet."""
    async with listing(ListServer(), probed=False) as (engine, fake):
        assert texts(await ask(engine, QUESTIONS)) == SAID
    assert fake.paths == [CHAT] * 5


# Cancellation.


@pytest.mark.parametrize("kind", KINDS)
async def test_a_disconnect_cancels_no_other_member(kind: str) -> None:
    """The disconnected member may be the first or a later one."""
    server = ListServer(kind)
    async with listing(server) as (engine, fake):
        server.hold.clear()
        tasks = start_requests(engine, QUESTIONS)
        await server.held.wait()
        for leaver in (tasks[0], tasks[3]):
            leaver.cancel()
        await asyncio.wait([tasks[0], tasks[3]])
        server.hold.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [True, False, False, True, False]
    assert texts([outcomes[1], outcomes[2], outcomes[4]]) == [SAID[1], SAID[2], SAID[4]]
    assert server.canceled == 0
    assert fake.paths.count(LIST_PATHS[kind]) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_when_all_have_left_the_call_is_given_up(kind: str) -> None:
    server = ListServer(kind)
    async with listing(server) as (engine, _):
        server.hold.clear()
        tasks = start_requests(engine, QUESTIONS)
        await server.held.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        async with asyncio.timeout(10):
            while not server.canceled:
                await asyncio.sleep(0.005)
    assert all(task.cancelled() for task in tasks)


async def test_a_request_canceled_before_the_call_is_not_in_it() -> None:
    """The caller left in the turn of its permit."""
    async with listing(ListServer()) as (engine, fake):
        tasks = start_requests(engine, QUESTIONS[:3])
        # After the first step of the tasks, before the list is sent.
        asyncio.get_running_loop().call_soon(tasks[1].cancel)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert [len(body["messages"]) for body in fake.bodies] == [2]


@pytest.mark.parametrize("stay", [2, 1, 0])
@pytest.mark.parametrize("kind", ["llamacpp", "sglang"])
async def test_a_request_canceled_during_rendering_is_not_in_the_call(kind: str, stay: int) -> None:
    """A single remaining member is sent alone."""
    server = ListServer(kind)
    async with listing(server) as (engine, fake):
        server.render.clear()
        tasks = start_requests(engine, QUESTIONS)
        await server.rendering.wait()
        for task in tasks[stay:]:
            task.cancel()
        await asyncio.wait(tasks[stay:])
        server.render.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await engine.close()
    assert texts(outcomes[:stay]) == SAID[:stay]
    lists = [body for path, body in zip(fake.paths, fake.bodies, strict=True) if path == LIST_PATHS[kind]]
    assert [len(body.get("prompt") or body["input_ids"]) for body in lists] == ([2] if stay == 2 else [])
    assert fake.paths.count(CHAT) == (stay == 1)


async def test_closing_ends_those_that_wait() -> None:
    """A stopping process does not wait for lists."""
    server = ListServer()
    async with listing(server) as (engine, _):
        server.hold.clear()
        tasks = start_requests(engine, QUESTIONS[:2])
        await server.held.wait()
        await engine.close()
        done, _ = await asyncio.wait(tasks, timeout=10)
    assert done == set(tasks)


# Failures.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("status", "error"), [(502, EngineFailed), (429, EngineOverloaded), (403, EngineRejected)])
async def test_one_failure_is_everybodys_as_an_error_of_its_own(kind: str, status: int, error: type) -> None:
    """Attributes such as `recorded` must not be shared."""
    server = ListServer(kind)
    async with listing(server) as (engine, fake):
        server.refuse = lambda _, listed: status if listed else None
        outcomes = await ask(engine, QUESTIONS)
        assert fake.paths.count(CHAT) == 0
    assert {type(outcome) for outcome in outcomes} == {error}
    assert len({id(outcome) for outcome in outcomes}) == len(outcomes)
    first, *others = outcomes
    first.recorded = True
    assert not any(other.recorded for other in others)
    assert {outcome.message for outcome in outcomes} == {first.message}
    assert {outcome.retry_after_s for outcome in outcomes} == ({7.0} if status == 429 else {None})
    assert {outcome.may_have_run for outcome in outcomes} == {status == 502}
    assert [outcome.is_copy for outcome in outcomes].count(False) == 1, "one call, one failure"


async def test_the_engines_text_for_a_list_reaches_no_member() -> None:
    """The engine's text may quote the prompt of another member, perhaps of another tenant."""
    server = ListServer()
    async with listing(server) as (engine, _):
        server.refuse = lambda _, listed: 502 if listed else None
        outcomes = await ask(engine, QUESTIONS)
    assert {(str(outcome), outcome.reason) for outcome in outcomes} == {
        ("Engine 'the-engine' failed a call that several requests share.", None)
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [400, 404, 405, 413, 422])
async def test_a_rejected_list_is_sent_as_single_calls(kind: str, status: int) -> None:
    """One invalid prompt fails alone."""
    server = ListServer(kind)
    async with listing(server) as (engine, fake):
        server.refuse = lambda body, listed: status if listed or "three" in str(body) else None
        outcomes = await ask(engine, QUESTIONS)
    bad = outcomes.pop(2)
    assert isinstance(bad, EngineRejected)
    assert bad.status_sent == status
    assert texts(outcomes) == [text for text in SAID if "three" not in text]
    assert fake.paths.count(LIST_PATHS[kind]) == 1
    assert fake.paths.count(CHAT) == 5


async def test_a_list_at_which_the_engine_fails_is_one_call_and_no_members_failure() -> None:
    """A single prompt of the list may cause the failure. The retry loop retries, counts and charges the call."""
    server = ListServer()
    async with listing(server) as (engine, fake):
        server.refuse = lambda body, _: 500 if "three" in str(body) else None
        outcomes = await ask(engine, QUESTIONS)
        assert (fake.paths.count(LIST_PATHS["vllm"]), fake.paths.count(CHAT)) == (1, 0)
        again = await ask(engine, QUESTIONS, None)
    assert [(type(outcome), outcome.is_copy, outcome.retryable) for outcome in outcomes] == [
        (EngineFailed, True, True)
    ] * 5
    bad = again.pop(2)
    assert (type(bad), bad.is_copy) == (EngineFailed, False)
    assert texts(again) == [text for text in SAID if "three" not in text]


async def test_a_single_call_is_canceled_with_its_caller() -> None:
    server = ListServer()
    async with listing(server) as (engine, _):
        server.refuse = lambda _, listed: 400 if listed else None
        server.hold.clear()
        tasks = start_requests(engine, QUESTIONS[:2])
        await server.held.wait()
        tasks[0].cancel()
        server.hold.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert texts(outcomes[1:]) == [SAID[1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda entries: entries[:-1],
        lambda entries: [*entries, entries[0]],
        lambda entries: [None, *entries[1:]],
        lambda entries: [{**entry, "index": 0} for entry in entries],
        lambda entries: [{**entry, "index": number + 1} for number, entry in enumerate(entries)],
        lambda _: None,
    ],
)
async def test_a_list_reply_without_one_entry_for_each_is_a_protocol_error_for_all(kind: str, spoil: Any) -> None:
    """No member may get the answer of another."""
    server = ListServer(kind)
    async with listing(server) as (engine, _):
        server.spoil = spoil
        outcomes = await ask(engine, QUESTIONS)
    assert {type(outcome) for outcome in outcomes} == {EngineProtocolError}
    assert len({id(outcome) for outcome in outcomes}) == len(outcomes)


@pytest.mark.parametrize("kind", KINDS)
async def test_entries_may_come_in_any_order(kind: str) -> None:
    """Each has the index of its member."""
    server = ListServer(kind)
    async with listing(server) as (engine, _):
        server.spoil = lambda entries: [{**entry, "index": place} for place, entry in enumerate(entries)][::-1]
        assert texts(await ask(engine, QUESTIONS)) == SAID


@pytest.mark.parametrize("kind", KINDS)
async def test_an_entry_without_text_fails_alone(kind: str) -> None:
    server = ListServer(kind)
    async with listing(server) as (engine, _):
        empty = {"message": {"content": None}, "content": None, "text": None}
        server.spoil = lambda entries: [{**entries[0], **empty}, *entries[1:]]
        first, *others = await ask(engine, QUESTIONS)
    assert isinstance(first, EngineProtocolError)
    assert texts(others) == SAID[1:]


async def test_a_fault_of_our_own_reaches_every_member_and_the_log() -> None:
    """No member waits forever after an internal error."""
    async with listing(ListServer()) as (engine, _):
        assert engine._lists is not None

        async def broken(*_: Any) -> Any:
            raise ZeroDivisionError

        engine._lists._wire.send = broken  # type: ignore[union-attr,method-assign]
        with structlog.testing.capture_logs() as logs:
            outcomes = await ask(engine, QUESTIONS)
            await asyncio.sleep(0)
    assert {type(outcome) for outcome in outcomes} == {ZeroDivisionError}
    assert [line["event"] for line in logs] == ["task_failed"]


# Probes.


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_takes_lists_is_found_to(kind: str) -> None:
    """Without a warning, and once while the engine stays up."""
    async with listing(ListServer(kind), probed=False) as (engine, fake):
        await engine.probe()
        engine.state.up = True
        calls = len(fake.paths)
        await engine.probe()
        assert engine.state.facts["lists"] == ["chats", "prompts"]
        assert engine.state.warnings == []
        assert fake.paths[calls:] == ["/v1/models", *(["/version"] if kind == "vllm" else [])]


async def test_a_server_of_unknown_kind_takes_prompts_only() -> None:
    """A list of chats requires a special route, or the template."""
    async with listing(ListServer("somebody")) as (engine, fake):
        assert engine.state.facts["lists"] == ["prompts"]
        assert engine.state.warnings == [
            "batch.calls list: chats are sent separately: no list route is known for this server"
        ]
        assert texts(await ask(engine, QUESTIONS)) == SAID
        assert texts(await ask(engine, [prompt(f"What is {word}") for word in WORDS])) == SAID
    assert fake.paths == [*[CHAT] * 5, RAW]


@pytest.mark.parametrize(("kind", "missing"), [("vllm", BATCH), ("llamacpp", TEMPLATE), ("sglang", TOKENIZE)])
async def test_a_server_without_the_route_gets_single_calls(kind: str, missing: str) -> None:
    """The server is an older version. The warning has the reason."""
    server = ListServer(kind)
    routes = server.routes
    server.routes = lambda: {path: handler for path, handler in routes().items() if path != missing}  # type: ignore[method-assign]
    async with listing(server) as (engine, fake):
        assert engine.state.facts["lists"] == ["prompts"]
        [warning] = engine.state.warnings
        assert warning.startswith("batch.calls list: chats are sent separately: Engine 'the-engine' answered 404")
        assert texts(await ask(engine, QUESTIONS)) == SAID
    assert fake.paths == [CHAT] * 5


async def test_a_server_that_answers_only_the_first_of_a_list_gets_none() -> None:
    """The server reads a list as one prompt."""
    server = ListServer("somebody", spoil=lambda entries: entries[:1])
    async with listing(server) as (engine, _):
        assert engine.state.facts["lists"] == []
        assert len(engine.state.warnings) == 2


async def test_a_list_that_begins_otherwise_than_single_calls_is_not_used() -> None:
    """The list route may return reasoning that the chat route hides, and callers would see it."""
    async with listing(ListServer("llamacpp", thoughts="<think> ")) as (engine, fake):
        assert engine.state.facts["lists"] == ["prompts"]
        assert engine.state.warnings == [
            "batch.calls list: chats are sent separately: the answers of a list differ from those of single calls"
        ]
        assert texts(await ask(engine, QUESTIONS)) == SAID
    assert LLAMA not in fake.paths


@pytest.mark.parametrize("kind", KINDS)
async def test_reasoning_is_disabled_in_lists(kind: str) -> None:
    """As in single calls. Otherwise the list of a model that reasons has no text, and is not used."""
    async with listing(ListServer(kind, thinks=True), reasoning="switchable") as (engine, fake):
        assert (engine.state.facts["lists"], engine.state.warnings) == (["chats", "prompts"], [])
        assert texts(await ask(engine, QUESTIONS)) == SAID
    assert LIST_PATHS[kind] in fake.paths
    assert CHAT not in fake.paths


async def test_a_list_of_a_model_that_reasons_is_not_used() -> None:
    """The warnings name the setting."""
    async with listing(ListServer(thinks=True)) as (engine, _):
        assert engine.state.facts["lists"] == ["prompts"]
        assert "set 'reasoning' to switchable or always" in engine.state.warnings[0]


async def test_capabilities_are_probed_again_after_an_outage() -> None:
    """Another server may have replaced it."""
    server = ListServer("vllm", refuse=lambda _, listed: 400 if listed else None)
    async with listing(server) as (engine, fake):
        assert engine.state.facts["lists"] == []
        server.refuse = lambda _, __: None
        engine.state.up = False
        await engine.probe()
        assert engine.state.facts["lists"] == ["chats", "prompts"]
        assert engine.state.warnings == []
        fake.requests.clear()
        assert texts(await ask(engine, QUESTIONS)) == SAID
    assert fake.paths == [BATCH]


async def test_an_overload_during_the_probe_is_probed_again() -> None:
    """An overload says nothing about lists."""
    server = ListServer("vllm", refuse=lambda _, listed: 429 if listed else None)
    async with listing(server, probed=False) as (engine, _):
        with pytest.raises(EngineError):
            await engine.probe()
        server.refuse = lambda _, __: None
        await engine.probe()
        assert engine.state.facts["lists"] == ["chats", "prompts"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_chat_that_holds_more_than_text_is_not_rendered(kind: str) -> None:
    """An image would be lost. vLLM renders it on its route."""
    server = ListServer(kind, answer=lambda question: "a picture says more")
    async with listing(server) as (engine, fake):
        parts = [{"type": "text", "text": "What is this"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
        seen = chat("x", 3)
        shown = type(seen)(3, messages=[{"role": "user", "content": parts}, {"role": "user", "content": "so"}])
        outcomes = await ask(engine, [seen, shown, seen])
    assert texts(outcomes) == ["a picture says"] * 3
    assert fake.paths.count(CHAT) == (0 if kind == "vllm" else 1)
