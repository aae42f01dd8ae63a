"""The fault_gateway for client tests: a gateway whose routes each have one behavior or fault."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx
import orjson
from aiohttp import web

from tests.clients.tap import Call, Tap
from tests.clients.task_engine import objection_to, text_of
from tests.fakes import FakeEngine, begin_events, chunk, event, reply, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPENING = "The answer to your question begins"
REST = " here and ends there."
WHOLE = "The answer to your question here and ends there."
PERSON = {"name": "Ada", "born": 1815}
CALLED = {"name": "weather", "arguments": '{"city": "Oslo"}'}
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
ANSWERED = (CHAT, "/v1/completions", "/v1/embeddings", RESPONSES, MESSAGES)
MAX_BODY = 100_000
# Each client is to meet the failure itself, however many came before it.
NEVER_RESTS = {"failures": 1000}

_numbers = itertools.count()


def a_question(of: str = "something") -> str:
    """Return a new question, for which no cached guidance exists."""
    return f"What is {of} number {next(_numbers)}?"


async def _tools(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Call a tool; reply with the tool's result once it is there."""
    objection = objection_to(body)
    if objection is not None:
        return web.json_response({"error": {"message": objection}}, status=400)
    last = body["messages"][-1]
    if last["role"] == "tool":
        return await says(f"It is {text_of(last)}.")(request, body)
    call = {"id": "call_1", "type": "function", "function": CALLED}
    if not body.get("stream"):
        whole = reply("", "tool_calls")
        whole["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
        return web.json_response(whole)
    response = await begin_events(request)
    named = {**call, "function": {"name": CALLED["name"], "arguments": ""}}
    await response.write(event(chunk({"role": "assistant", "tool_calls": [{"index": 0, **named}]})))
    for piece in ('{"ci', 'ty": ', '"Oslo"}'):
        await response.write(event(chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})))
    await response.write(event(chunk({}, "tool_calls")))
    await response.write(event({**chunk({}), "choices": [], "usage": reply("a b c")["usage"]}))
    await response.write(b"data: [DONE]\n\n")
    return response


def _status(code: int, **headers: str) -> Any:
    async def behave(_: web.Request, __: dict[str, Any]) -> web.Response:
        body = orjson.dumps({"error": {"message": "top_k must not be 7"}})
        return web.Response(status=code, body=body, content_type="application/json", headers=headers)

    return behave


async def _slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(20)
    return await says(REST)(request, body)


async def _dribbles(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = await begin_events(request)
    text = "word " * 100 if body["model"] == "gradual" else REST
    for word in text.split():
        await response.write(event(chunk({"content": " " + word})))
        await asyncio.sleep(0.1)
    await response.write(event(chunk({}, "stop")) + b"data: [DONE]\n\n")
    return response


async def _reports_an_error(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if not body.get("stream"):
        return await _status(500)(request, body)
    response = await begin_events(request)
    await response.write(event(chunk({"content": " two"})) + event(chunk({"content": " words"})))
    await response.write(event({"error": {"message": "CUDA out of memory"}}))
    return response


async def _ends_early(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    response = await begin_events(request)
    await response.write(event(chunk({"content": " two"})) + event(chunk({"content": " words"})))
    return response


def _reached_a_route(call: Call) -> bool:
    """Return whether a call reached a route: the gateway did not refuse it by a header, or by 408."""
    if call.status == HTTPStatus.REQUEST_TIMEOUT:
        return False
    return call.reply_headers.get("x-should-retry") != "false" or call.json.get("model") == "refuses"


class FaultGateway:
    """A gateway between clients, which connect through `tap`, and one engine per route.

    chat            guided, well
    tools           a student that calls the tool `weather`
    person          a student that writes JSON
    refuses         the student blames the request: 400
    crowded         within `crowd()`: 429
    broken          the student answers 500: 502
    gone            nobody listens: 502
    busy            the student answers 429 and asks for a second: 503
    busy-twice      the same, to the first two calls with a question
    silent          the student says nothing for longer than it may: 504
    slow            the student takes 20 s
    gradual         the student writes ten words per second, for ten seconds
    breaks          a stream that ends in an error event
    ends-early      a stream that ends without a finish_reason
    wire-cut        a stream whose connection to the client is closed in the middle
    vectors         makes embeddings
    trickle         the last byte of the request does not arrive: 408 after 30 s
    """

    ROUTES = ("tools", "person", "refuses", "broken", "gone", "busy", "busy-twice", "silent", "slow",
              "gradual", "breaks", "ends-early", "wire-cut")  # fmt: skip
    NAMES = ("chat", "crowded", "chat-student", *ROUTES, "vectors")

    def __init__(self, gateway: GatewayProcess, tap: Tap, crowded: FakeEngine) -> None:
        self.gateway = gateway
        self.tap = tap
        self.url = f"{tap.url}/v1"
        self._crowded = crowded

    def calls(self, name: str | None = None, question: str | None = None) -> list[Call]:
        """Return the calls of clients in order: all, those of one route, or those with one question."""
        found = [call for call in list(self.tap.calls) if call.path in ANSWERED]
        if name is not None:
            found = [call for call in found if call.json.get("model") == name]
        if question is not None:
            found = [call for call in found if call.asks(question)]
        return found

    def receipt(self, call: Call) -> dict[str, Any]:
        """Return the receipt of an answered call."""
        return self.gateway.wait_for_log("request", id=call.reply_headers["x-request-id"])

    @contextmanager
    def audited(self) -> Iterator[None]:
        """Check that each call inside the block settles exactly one receipt if it reached a route."""
        calls_before, receipts_before = len(self.calls()), len(self._receipts())
        yield
        calls = [call for call in self.calls()[calls_before:] if _reached_a_route(call)]
        give_up = time.monotonic() + 5
        while len(self._receipts()) - receipts_before < len(calls) and time.monotonic() < give_up:
            time.sleep(0.02)
        time.sleep(0.05)  # for one too many
        receipts = {line["id"]: line for line in self._receipts()[receipts_before:]}
        assert len(receipts) == len(self._receipts()) - receipts_before == len(calls)
        for call in calls:
            if call.status is not None:
                receipts.pop(call.reply_headers["x-request-id"])
        assert {line["status"] for line in receipts.values()} <= {"client_gone"}, "the others hung up"

    def _receipts(self) -> list[dict[str, Any]]:
        return [line for line in list(self.gateway.log) if line["event"] == "request"]

    @contextmanager
    def crowd(self) -> Iterator[None]:
        """Fill the teacher of `crowded` and its queue inside the block. The teacher was fast before."""
        headers = {"Authorization": f"Bearer {KEY}"}

        def ask() -> None:
            body = {"model": "crowded", "messages": [{"role": "user", "content": a_question()}]}
            answer = httpx.post(f"{self.gateway.url}{CHAT}", headers=headers, json=body, timeout=120).raise_for_status()
            # Otherwise it would be among the receipts of the next audit.
            self.gateway.wait_for_log("request", id=answer.headers["x-request-id"])

        for _ in range(6):
            ask()
        held, let_go = threading.Event(), threading.Event()

        async def hold(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            held.set()
            await asyncio.to_thread(let_go.wait, 120)
            return await says(OPENING, "length")(request, body)

        quick, self._crowded.behave = self._crowded.behave, hold
        with ThreadPoolExecutor() as pool:
            try:
                askers = [pool.submit(ask)]
                assert held.wait(10)
                askers.append(pool.submit(ask))
                give_up = time.monotonic() + 10
                while 'gkt_queue_depth{teacher="full"} 1' not in httpx.get(f"{self.gateway.admin_url}/metrics").text:
                    assert time.monotonic() < give_up
                    time.sleep(0.02)
                yield
            finally:
                self._crowded.behave = quick
                let_go.set()
            for asker in askers:
                asker.result()


@contextmanager
def set_up(folder: Path, redis_url: str) -> Iterator[FaultGateway]:
    """Start everything, yield the fault_gateway, and stop everything."""
    stages: list[FaultGateway] = []

    async def busy_twice(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        attempts = len(stages[0].calls("busy-twice", text_of(body["messages"][-1])))
        return await (_status(429, **{"Retry-After": "1"}) if attempts <= 2 else says(REST))(request, body)

    plays = {
        "small": says(REST),
        "tools": _tools,
        "person": says(orjson.dumps(PERSON).decode()),
        "refuses": _status(400),
        "broken": _status(500),
        "busy": _status(429, **{"Retry-After": "1"}),
        "busy-twice": busy_twice,
        "silent": _slow,
        "slow": _slow,
        "breaks": _reports_an_error,
        "ends-early": _ends_early,
        "gradual": _dribbles,
        "wire-cut": _dribbles,
    }

    async def play(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await plays[body["model"]](request, body)

    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says(OPENING, "length")).running())
        crowded = stack.enter_context(FakeEngine(says(OPENING, "length")).running())
        student = stack.enter_context(FakeEngine(play).running())

        def played(name: str, **more: Any) -> dict[str, Any]:
            """Run one engine per route, so that no route affects another's breaker."""
            url = "http://127.0.0.1:9" if name == "gone" else student.url  # nothing listens on port 9
            return model(name, "openai", f"{url}/v1", model=name, continuation="none", breaker=NEVER_RESTS) | more

        impatient = {"connect": "500ms", "first_token": "400ms", "idle": "400ms", "total": "500ms"}
        gateway = stack.enter_context(
            running_gateway(
                folder,
                redis_url=redis_url,
                redis={"prefix": "clients"},
                server={"max_body": f"{MAX_BODY // 1000}kB"},
                models=[
                    model("big", "tgi", teacher.url),
                    model("full", "tgi", crowded.url, max_concurrency=1, batch={"max_size": 1, "max_queue": 1}),
                    model("small", "openai", f"{student.url}/v1", model="small", continuation="trailing", echo=False),
                    *(played(name) for name in FaultGateway.ROUTES if name != "silent"),
                    played("silent", timeouts=impatient),
                ],
                routes=[
                    guided(tokens=6),
                    guided("crowded", tokens=6, teacher="full", on_queue_full="reject"),
                    STUDENT_ONLY,
                    *(
                        {"model": name, "mode": "student", "student": name, "baseline": "big"}
                        # A retry of the gateway would wait for a second, too.
                        | ({"retries": {"num_retries": 0}} if name.startswith("busy") else {})
                        for name in FaultGateway.ROUTES
                    ),
                    {"model": "vectors", "mode": "embeddings", "student": "small"},
                ],
            )
        )
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        tap = Tap((host, int(port)), cuts=frozenset({"wire-cut"}), withholds=frozenset({"trickle"}))
        stack.enter_context(tap.running())
        stages.append(FaultGateway(gateway, tap, crowded))
        give_up = time.monotonic() + 30
        while not all(
            engine["up"] for name, engine in httpx.get(f"{gateway.admin_url}/readyz").json()["engines"].items()
            if name != "gone"
        ):  # fmt: skip
            assert time.monotonic() < give_up
            time.sleep(0.05)
        yield stages[0]
