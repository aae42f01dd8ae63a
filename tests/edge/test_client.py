"""Answers on a device, with each kind of student server and each failure of the gateway."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.edge import Edge, EdgeClient, GatewayRefused, UrlStudent, VersionRefused, link
from gateway.errors import EngineFailed, EngineUnreachable
from tests.edge.devices import ASKED, NOBODY, client, device, facts, text, toy
from tests.edge.fake_gateway import KEY, FakeGateway
from tests.engines.toy_servers import ANSWER, OPENING, QUESTION, LlamaCpp, Ollama, SGLang, ToyServer, Vllm, answered
from tests.fakes import served

if TYPE_CHECKING:
    from pathlib import Path

RECEIPT = "req_000000000000000000000001"
GOES_ON = [
    LlamaCpp(),
    LlamaCpp(echoes=True),
    Vllm(),
    SGLang(),
    Ollama(),
    # As a raw prompt that its own template renders, and by being told to write it again.
    LlamaCpp(prefills=False),
    Vllm(trims=True),
    SGLang(flagged=False),
    Ollama(leaves_open=False),
]


async def answer(gateway: str, student: Any, queue: Path, **more: Any) -> list[dict[str, Any]]:
    """Return all chunks of one answer; its usage report is sent by then, if possible."""
    async with client(gateway, student, queue) as edge, aclosing(edge.stream({**ASKED, **more})) as chunks:
        return [chunk async for chunk in chunks]


@pytest.mark.parametrize("server", GOES_ON, ids=repr)
async def test_the_student_continues_guidance_in_every_mode(server: ToyServer, tmp_path: Path) -> None:
    gateway = FakeGateway()
    with gateway.running() as url, toy(server) as student:
        chunks = await answer(url, student, tmp_path)
    assert text(chunks) == ANSWER
    assert facts(chunks) == {"mode": "guided", "guidance_tokens": 5, "placement": "prefix", "receipt": RECEIPT}
    assert gateway.reports[RECEIPT]["guided"] is True


async def test_a_student_without_continuation_gets_the_guidance_in_its_prompt(tmp_path: Path) -> None:
    gateway = FakeGateway(pieces=("The sky",))
    with gateway.running() as url, toy(Ollama(leaves_open=False, obeys=False)) as student:
        chunks = await answer(url, student, tmp_path, stream_options={"include_usage": True})
    (request,) = student.answers
    assert f"begins like this:\n{OPENING}\n" in request["messages"][-1]["content"]
    assert text(chunks, "teacher") == ""
    assert facts(chunks)["placement"] == "context"
    wrote = len(text(chunks).split())
    assert (chunks[-1]["usage"]["completion_tokens"], gateway.reports[RECEIPT]["output_tokens"]) == (wrote, wrote)
    assert gateway.reports[RECEIPT]["guided"] is True


async def test_streamed_guidance_is_shown_at_once_and_marked(tmp_path: Path) -> None:
    gateway = FakeGateway(pieces=("The sky", " is blue"))
    with gateway.running() as url, toy(LlamaCpp()) as student:
        async with client(url, student, tmp_path) as edge:
            await edge.student.detect_continuation()
            chunks = [chunk async for chunk in edge.stream(ASKED)]
    deltas = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    assert deltas[:3] == ["The sky", " is blue", " because"]
    assert text(chunks, "teacher") == OPENING
    assert text(chunks, "teacher") + text(chunks, "student") == ANSWER
    assert gateway.guidance_requests[0]["stream"] is True


async def test_a_student_is_probed_once(tmp_path: Path) -> None:
    with FakeGateway().running() as url, toy(Vllm()) as student:
        async with client(url, student, tmp_path) as edge:
            for _ in range(2):
                assert text([chunk async for chunk in edge.stream(ASKED)]) == ANSWER
    probes = [body for path, body in student.bodies if path == "/v1/chat/completions" and not body.get("stream")]
    assert len(probes) == 1
    assert [path for path, _ in student.bodies].count("/v1/models") == 1


async def test_sampling_is_the_students_and_does_not_leave_the_device(tmp_path: Path) -> None:
    gateway = FakeGateway()
    sampling = {"temperature": 0.7, "top_p": 0.9, "seed": 7, "top_k": 20, "user": "me"}
    with gateway.running() as url, toy(LlamaCpp()) as student:
        await answer(url, student, tmp_path, max_tokens=12, stop=["END"], **sampling)
    assert gateway.guidance_requests == [{**ASKED, "max_tokens": 12, "stop": ["END"], "stream": True}]
    assert gateway.headers[0]["X-GKT-Edge"] == "1"
    (request,) = student.answers
    assert {name: request[name] for name in sampling} == sampling
    assert (request["max_tokens"], request["stop"]) == (7, ["END"])
    assert request["model"] == "org/model"


async def test_the_answer_has_openais_shapes(tmp_path: Path) -> None:
    with FakeGateway().running() as url, toy(LlamaCpp()) as student:
        async with client(url, student, tmp_path) as edge:
            request = {**ASKED, "max_tokens": 12, "stream_options": {"include_usage": True}}
            chunks = [ChatCompletionChunk.model_validate(chunk) async for chunk in edge.stream(request)]
            reply = ChatCompletion.model_validate(await edge.complete({**ASKED, "max_tokens": 12}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.model for chunk in chunks} == {"chat"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 12, 16)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == " ".join(ANSWER.split()[:12])
    assert reply.choices[0].message.content == text
    assert reply.usage == usage
    assert reply.gkt["receipt"].startswith("req_")  # type: ignore[attr-defined]


async def test_a_stop_text_counts_across_the_seam(tmp_path: Path) -> None:
    gateway = FakeGateway()
    with gateway.running() as url, toy(LlamaCpp()) as student:
        chunks = await answer(url, student, tmp_path, stop=["because small"])
    assert text(chunks) == "The sky is blue "
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert gateway.reports[RECEIPT]["finish_reason"] == "stop"


async def test_guidance_that_is_the_whole_answer_needs_no_student(tmp_path: Path) -> None:
    gateway = FakeGateway(text="Blue light scatters more.", finish_reason="stop")
    with gateway.running() as url, toy(LlamaCpp()) as student:
        chunks = await answer(url, student, tmp_path)
    assert text(chunks) == "Blue light scatters more."
    assert facts(chunks)["mode"] == "teacher_complete"
    assert student.answers == []
    assert gateway.closings == {}, "the device has nothing to report"


async def test_complete_guidance_is_the_answer_with_placement_context_too(tmp_path: Path) -> None:
    gateway = FakeGateway(text="Blue light scatters more.", placement="context", finish_reason="stop")
    with gateway.running() as url, toy(LlamaCpp()) as student:
        async with client(url, student, tmp_path) as edge:
            reply = await edge.complete(ASKED)
            assert await edge.waiting() == 0
    assert reply["choices"][0]["message"]["content"] == "Blue light scatters more."
    assert reply["gkt"]["mode"] == "teacher_complete"
    assert reply["usage"]["completion_tokens"] == 5
    assert student.answers == []


async def test_in_context_the_student_is_given_the_gateways_messages_and_answers_whole(tmp_path: Path) -> None:
    given = [{"role": "user", "content": f"{QUESTION}"}, {"role": "system", "content": "Hint: scattering."}]
    gateway = FakeGateway(placement="context", messages=given)
    with gateway.running() as url, toy(LlamaCpp()) as student:
        chunks = await answer(url, student, tmp_path, max_tokens=50)
    assert student.answers[0]["messages"] == given
    assert student.answers[0]["max_tokens"] == 50
    assert text(chunks, "teacher") == ""
    assert facts(chunks)["placement"] == "context"


async def test_an_answer_that_does_not_start_with_the_guidance_is_reported(tmp_path: Path) -> None:
    """The student regenerated the guidance in the probe, and does not in the answer."""
    server = Ollama(leaves_open=False)
    gateway = FakeGateway()
    with gateway.running() as url, toy(server) as student:
        async with client(url, student, tmp_path) as edge:
            await edge.student.detect_continuation()
            server.obeys = False
            server.write = lambda *_: ("Blue, is it?", "stop")  # type: ignore[method-assign]
            chunks = [chunk async for chunk in edge.stream(ASKED)]
    assert text(chunks) == "Blue, is it?"
    assert facts(chunks)["unguided"] == "student_started_anew"
    assert gateway.reports[RECEIPT]["guided"] is False
    assert gateway.reports[RECEIPT]["output_tokens"] == 3, "it wrote nothing again"


async def test_repeated_guidance_is_not_counted_for_the_device(tmp_path: Path) -> None:
    gateway = FakeGateway()
    with gateway.running() as url, toy(Ollama(leaves_open=False)) as student:
        chunks = await answer(url, student, tmp_path, max_tokens=12)
    assert text(chunks) == " ".join(ANSWER.split()[:12])
    assert gateway.reports[RECEIPT]["output_tokens"] == 7


async def test_the_gateways_reason_for_no_guidance_is_passed_on(tmp_path: Path) -> None:
    gateway = FakeGateway(unguided="teacher_late")
    with gateway.running() as url, toy(LlamaCpp()) as student:
        chunks = await answer(url, student, tmp_path)
    assert text(chunks) == ANSWER
    assert facts(chunks) == {"mode": "student", "unguided": "teacher_late", "receipt": RECEIPT}
    assert chunks[0]["gkt"] == {"by": "student", "unguided": "teacher_late"}
    assert gateway.reports[RECEIPT]["guided"] is False


@pytest.mark.parametrize(
    ("gateway", "why"),
    [
        (FakeGateway(fails=(503, "overloaded", "Too much in flight.")), "gateway_busy"),
        (FakeGateway(fails=(429, "insufficient_quota", "The budget is spent.")), "gateway_busy"),
        (FakeGateway(fails=(500, "internal", "A mistake.")), "gateway_failed"),
        (FakeGateway(breaks_off=True), "gateway_broke_off"),
        (FakeGateway(hangs_up=True), "gateway_broke_off"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
async def test_without_guidance_the_student_answers_alone_with_the_reason(
    gateway: FakeGateway, why: str, tmp_path: Path
) -> None:
    with gateway.running() as url, toy(LlamaCpp()) as student:
        async with client(url, student, tmp_path) as edge:
            chunks = [chunk async for chunk in edge.stream(ASKED)]
            assert await edge.waiting() == 1
            assert (await edge.sync()).sent == 1
    assert text(chunks) == ANSWER
    assert facts(chunks)["unguided"] == why
    assert facts(chunks)["said"]
    assert chunks[0]["gkt"]["unguided"] == why
    (report,) = gateway.reports.values()
    assert (report["guided"], report["model"]) == (False, "chat")


async def test_a_login_page_is_no_gateway(tmp_path: Path) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>Welcome to the hotel</html>", content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", page)
    with served(app) as url, toy(LlamaCpp()) as student:
        chunks = await answer(url, student, tmp_path)
    assert facts(chunks)["unguided"] == "gateway_garbled"
    assert text(chunks) == ANSWER


async def test_a_gateway_that_is_not_there_is_no_hindrance(tmp_path: Path) -> None:
    with toy(LlamaCpp()) as student:
        chunks = await answer(NOBODY, student, tmp_path)
    assert text(chunks) == ANSWER
    assert facts(chunks)["unguided"] == "gateway_unreachable"


async def test_shown_guidance_is_continued_after_the_gateways_stream_breaks(tmp_path: Path) -> None:
    gateway = FakeGateway(pieces=("The", " sky", " is", " blue"), kept_tokens=4, breaks_off=True)
    with gateway.running() as url, toy(LlamaCpp()) as student:
        async with client(url, student, tmp_path) as edge:
            await edge.student.detect_continuation()
            chunks = [chunk async for chunk in edge.stream({**ASKED, "max_tokens": 12})]
            await edge.sync()
    assert text(chunks) == " ".join(ANSWER.split()[:12])
    assert text(chunks, "teacher") == "The sky is blue"
    assert facts(chunks)["guidance_tokens"] == 4, "about one in each piece"
    assert (gateway.reports[RECEIPT]["guided"], gateway.reports[RECEIPT]["output_tokens"]) == (True, 8)


async def test_request_errors_of_the_gateway_reach_the_caller(tmp_path: Path) -> None:
    refusals = FakeGateway(fails=(400, "route_without_guidance", "Route 'chat' has no guidance: set mode: guided."))
    with refusals.running() as url, toy(LlamaCpp()) as student:
        async with client(url, student, tmp_path) as edge:
            with pytest.raises(GatewayRefused, match="has no guidance") as refusal:
                await edge.complete(ASKED)
            assert await edge.waiting() == 0
    assert (refusal.value.status, refusal.value.code) == (400, "route_without_guidance")
    assert student.answers == []


async def test_an_old_client_gets_the_required_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "EDGE_VERSION", 0)
    with FakeGateway().running() as url, toy(LlamaCpp()) as student:
        async with client(url, student, tmp_path) as edge:
            with pytest.raises(VersionRefused, match="speaks version 0 of the edge protocol, and the gateway 1 to 1"):
                await edge.complete(ASKED)


async def test_an_unreachable_student_is_reported_and_the_receipt_closed(tmp_path: Path) -> None:
    gateway = FakeGateway()
    with gateway.running() as url:
        student = UrlStudent(f"{NOBODY}/v1", model="small", continuation="trailing")
        async with EdgeClient(url, key=KEY, student=student, queue=tmp_path) as edge:
            with pytest.raises(EngineUnreachable, match="Student 'small'"):
                await edge.complete(ASKED)
    assert gateway.reports[RECEIPT]["output_tokens"] == 0
    assert gateway.reports[RECEIPT]["finish_reason"] is None


async def test_a_student_that_breaks_off_is_no_end_of_an_answer(tmp_path: Path) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        if not (await request.json()).get("stream"):
            return await server.routes()["/v1/chat/completions"](request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"index": 0, "delta": {"content": " small"}}]}\n\n')
        return response

    server, gateway = LlamaCpp(), FakeGateway()
    routes = {**server.routes(), "/v1/chat/completions": broken}
    with gateway.running() as url, device(routes) as student:
        async with client(url, student, tmp_path) as edge:
            seen = []
            with pytest.raises(EngineFailed, match="broke off"):
                seen += [chunk async for chunk in edge.stream(ASKED)]
    assert gateway.reports[RECEIPT]["output_tokens"] == 1


async def test_an_early_exit_still_sends_a_report(tmp_path: Path) -> None:
    gateway = FakeGateway()
    with gateway.running() as url, toy(LlamaCpp()) as student:
        async with client(url, student, tmp_path) as edge, aclosing(edge.stream(ASKED)) as chunks:
            await anext(chunks)
    assert gateway.reports[RECEIPT]["finish_reason"] is None


@pytest.mark.parametrize("reasoning", ["switchable", "always"])
async def test_a_reasoning_student_has_it_disabled_or_gets_the_guidance_in_its_prompt(
    reasoning: Any, tmp_path: Path
) -> None:
    async def thinking(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        goes_on = body["messages"][-1]["role"] == "assistant"
        if not body.get("stream"):
            return await answered(request, body, " o p q", "stop", kind="chat")
        return await answered(request, body, "<think>hm</think> small." if goes_on else "Small.", "stop", kind="chat")

    routes = {**LlamaCpp().routes(), "/v1/chat/completions": thinking}
    with FakeGateway().running() as url, device(routes) as student:
        small = UrlStudent(f"{student.url}/v1", reasoning=reasoning)
        async with EdgeClient(url, key=KEY, student=small, queue=tmp_path) as edge:
            reply = await edge.complete(ASKED)
    (request,) = student.answers
    if reasoning == "always":
        assert reply["choices"][0]["message"]["content"] == "Small."
        assert request["messages"][-1]["role"] == "user"
    else:
        assert reply["choices"][0]["message"]["content"] == "The sky is blue because small."
        assert request["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}


@pytest.mark.parametrize("address", ["gateway.example.com", "127.0.0.1:8080", "ftp://gateway", "https://", ""])
def test_an_address_that_is_none_is_not_taken_for_a_gateway_that_is_away(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a gateway's URL"):
        EdgeClient(address, key=KEY, student=UrlStudent(NOBODY), queue=tmp_path)


async def test_a_body_that_cannot_be_names_its_field(tmp_path: Path) -> None:
    with toy(LlamaCpp()) as student:
        async with client(NOBODY, student, tmp_path) as edge:
            for body, field in (({"model": "chat"}, "messages"), ({"messages": ASKED["messages"]}, "model")):
                with pytest.raises(ValueError, match=f"'{field}' is required"):
                    await edge.complete(body)
            with pytest.raises(ValueError, match="tools"):
                await edge.complete({**ASKED, "tools": [{"type": "function"}]})


def test_the_synchronous_client_gives_the_same_answer(tmp_path: Path) -> None:
    gateway = FakeGateway()
    with gateway.running() as url, toy(LlamaCpp()) as student:
        small = UrlStudent(f"{student.url}/v1")
        with Edge(f"{url}/v1", key=KEY, student=small, route="chat", queue=str(tmp_path)) as edge:
            chunks = list(edge.stream({"messages": ASKED["messages"]}))
            reply = edge.complete({"messages": ASKED["messages"]})
            for _ in edge.stream({"messages": ASKED["messages"]}):
                break
            assert edge.sync().waiting == 0
    assert text(chunks) == ANSWER
    assert reply["choices"][0]["message"]["content"] == ANSWER
    assert len(gateway.reports) == 3
