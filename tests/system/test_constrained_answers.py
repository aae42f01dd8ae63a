"""Guided or not, an answer satisfies its request's constraint: through a gateway, on both routes, as JSON and as a
stream.

The student writes `<<...>>` from its first token on, whatever it has to continue, as engines with a constraint do. So
an answer is complete only if the student wrote all of it.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
from aiohttp import web
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gateway.policy.caller_fields import SERVER_FIELDS
from gateway.policy.constraints import CONSTRAINTS, FIELD_NOT_KNOWN
from tests.fakes import FakeEngine, begin_events, chunk, event, reply, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator

OPENING = " Paris is the capital of Fran"
OBEYED = "<<yes or no>>"
PLACEMENTS = ("prefix", "context", "input")
VALUES: dict[str, Any] = {
    "prompt": ["one", "two"],
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "functions": [{"name": "f"}],
    "response_format": {"type": "json_object"},
    "logit_bias": {"5": -100},
    "modalities": ["text", "audio"],
    "suffix": "end",
    "add_generation_prompt": False,
    "skip_special_tokens": False,
    "continue_final_message": True,
    "echo": True,
    "use_beam_search": True,
    "n": 2,
    "best_of": 2,
}
CASES = [
    (api, rule.reason, rule.placement, field)
    for rule in CONSTRAINTS
    for api in rule.apis
    for field in rule.fields
    if (field, rule.reason) != ("prompt", "token_ids")
] + [(api, FIELD_NOT_KNOWN, "none", "zebra") for api in ("chat", "completions")]
NEUTRAL = {"temperature": 0.5, "top_k": 3, "seed": 4, "user": "me", "presence_penalty": 0.5, "max_tokens": 40}
_numbers = itertools.count()


async def obeys(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Write as many answers as requested, each constrained from its first token on."""
    if request.path != "/v1/chat/completions":
        return await says(OBEYED)(request, body)
    answers = range(body.get("n") or 1)
    whole = reply(OBEYED)
    if not body.get("stream"):
        return web.json_response({**whole, "choices": [{**whole["choices"][0], "index": index} for index in answers]})
    response = await begin_events(request)
    for index in answers:
        for part in (chunk({"content": OBEYED[:4]}), chunk({"content": OBEYED[4:]}, "stop")):
            part["choices"][0]["index"] = index
            await response.write(event(part))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


@dataclass
class World:
    teacher: FakeEngine
    student: FakeEngine
    gateway: GatewayProcess
    http: httpx.Client

    def ask(self, api: str, placement: str, *, stream: bool, **more: Any) -> tuple[httpx.Headers, list[str]]:
        """Return the headers and the text of each answer. The question is new, so no cached guidance exists for it."""
        number = next(_numbers)
        prompt_fields: dict[str, Any] = {"messages": [{"role": "user", "content": f"Where is {number}?"}]}
        if api == "completions":
            prompt_fields = {"prompt": f"Q: Where is {number}?\nA:"}
        path = "/v1/chat/completions" if api == "chat" else "/v1/completions"
        answer = self.http.post(path, json={"model": placement, **prompt_fields, "stream": stream, **more})
        assert answer.status_code == 200, answer.text
        events = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
        parts = [orjson.loads(event) for event in events] if stream else [answer.json()]
        texts: dict[int, str] = {}
        for choice in (choice for part in parts for choice in part["choices"]):
            generated = (
                choice.get("text") if api == "completions" else choice["delta" if stream else "message"]["content"]
            )
            texts[choice["index"]] = texts.get(choice["index"], "") + (generated or "")
        return answer.headers, [text for _, text in sorted(texts.items())]


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("constraints")
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says(OPENING, "length")).running())
        student = stack.enter_context(FakeEngine(obeys).running())
        gateway = stack.enter_context(
            running_gateway(
                folder,
                redis_url=redis_url,
                redis={"prefix": folder.name},
                models=[
                    model("big", "tgi", teacher.url),
                    model("small", "openai", f"{student.url}/v1", model="x", continuation="trailing", echo=False),
                ],
                tenants={"acme": {"caller_fields": {"allow": sorted(itertools.chain(*SERVER_FIELDS.values()))}}},
                routes=[guided(placement, tokens=6, placement=placement) for placement in PLACEMENTS],
            )
        )
        wait_until_looked_at(gateway.admin_url)
        http = httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=20)
        yield World(teacher, student, gateway, stack.enter_context(http))


@pytest.mark.long
@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_guided_answer_without_a_constraint_is_not_the_students_alone(
    world: World, api: str, *, stream: bool
) -> None:
    """Without this the property below would prove nothing."""
    headers, texts = world.ask(api, "prefix", stream=stream, **NEUTRAL)
    assert (headers["x-gkt-mode"], [text.strip() for text in texts]) == ("guided", ["Paris is the capital of" + OBEYED])
    headers, texts = world.ask(api, "context", stream=stream, **NEUTRAL)
    assert (headers["x-gkt-placement"], texts) == ("context", [OBEYED])


@given(
    case=st.sampled_from(CASES),
    placement=st.sampled_from(PLACEMENTS),
    stream=st.booleans(),
    held=st.sampled_from([None, "nvext", "extra_body"]),
    neutral=st.sets(st.sampled_from(sorted(NEUTRAL))),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_guided_and_unguided_answers_satisfy_the_constraint(
    world: World, case: tuple[str, str, str, str], placement: str, *, stream: bool, held: str | None, neutral: set[str]
) -> None:
    """Each field of the table, with every placement, top-level and nested. No teacher is called in vain."""
    api, reason, remaining, field = case
    assume(not (field == "best_of" and stream and api == "completions"))  # a 400: the best is known at the end
    # What the gateway or the engine reads at the top alone means nothing in a holder.
    held = None if field in {"prompt", "n", "best_of", "echo", "suffix", "logprobs"} else held
    value = 1 if (api, field) == ("completions", "logprobs") else VALUES.get(field, True)
    fields = {field: value} if held is None else {held: {field: value}}
    world.teacher.requests.clear()
    world.student.requests.clear()
    headers, texts = world.ask(api, placement, stream=stream, **{name: NEUTRAL[name] for name in neutral}, **fields)
    obeyed = world.student.requests[-1]["prompt"] + OBEYED if field == "echo" and api == "completions" else OBEYED
    assert texts == [obeyed] * (2 if field in {"n", "prompt"} else 1)
    assert world.student.requests[-1].items() >= fields.items()
    guided_here = placement != "prefix" and remaining != "none"
    if reason == FIELD_NOT_KNOWN:
        reason = f"{reason}: {field if held is None else f'{held}.{field}'}"
    assert headers.get("x-gkt-unguided") == (None if guided_here else reason)
    assert len(world.teacher.requests) == guided_here


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_no_teacher_is_called_for_one_token(world: World, api: str, placement: str, *, stream: bool) -> None:
    """The gateway cuts this student's text at the limit."""
    world.teacher.requests.clear()
    headers, (text,) = world.ask(api, placement, stream=stream, max_tokens=1)
    assert (headers["x-gkt-unguided"], world.teacher.requests) == ("token_limit", [])
    assert text
    assert OBEYED.startswith(text)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("max_tokenss", "max_tokenss"),
        ("x-evil: 1\r\nset-cookie: é" + "y" * 100, "x-evil??1??set-cookie???" + "y" * 40),
    ],
)
def test_an_unknown_field_is_named_in_the_header_and_the_receipt(
    world: World, field: str, named: str, *, stream: bool
) -> None:
    """The name is the caller's text: it is bounded, and only safe characters are kept."""
    headers, _ = world.ask("chat", "prefix", stream=stream, **{field: 5})
    assert headers["x-gkt-unguided"] == f"{FIELD_NOT_KNOWN}: {named}"
    receipt = world.gateway.wait_for_log("request", id=headers["x-request-id"])
    assert (receipt["unguided"], receipt["unguided_field"]) == (FIELD_NOT_KNOWN, named)
