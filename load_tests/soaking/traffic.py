"""Callers that send requests to both gateways in turn, pause, and record the results."""

from __future__ import annotations

import asyncio
import itertools
import time
from random import Random
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from load_tests.soaking.tally import Kind, RequestResult, Tally
from load_tests.soaking.world import ODD, key

if TYPE_CHECKING:
    from collections.abc import Callable

    from load_tests.soaking.world import World

_PATIENCE_S = 30.0
_ARRIVES_WITHIN_S = 10.0
_HASTE_S = 0.03  # maximum wait of a hasty caller
_SHARED_BY = 4  # consecutive requests with the same question
_TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
_COMPLETIONS, _EMBEDDINGS, _GUIDANCE = "/v1/completions", "/v1/embeddings", "/v1/guidance"
_REPORTS = 15  # attempts, one per second: longer than an outage of Redis

KINDS = (
    Kind("guided", 16, "chat"),
    Kind("guided, streamed", 16, "chat", stream=True),
    Kind("guided, raw prompt", 6, "chat", _COMPLETIONS),
    Kind("guided, raw prompt, streamed", 4, "chat", _COMPLETIONS, stream=True),
    Kind("guidance for a device", 8, "chat", _GUIDANCE, reports=True),
    Kind("guidance for a device, streamed", 3, "chat", _GUIDANCE, stream=True),
    Kind("tools", 4, "chat", tools=True),
    Kind("student", 10, "chat-student", ordinary=True),
    Kind("student, streamed", 8, "chat-student", stream=True, ordinary=True),
    Kind("teacher", 6, "chat-teacher"),
    Kind("teacher, streamed", 4, "chat-teacher", stream=True),
    Kind("shadow", 6, "shadowed"),
    Kind("embeddings", 8, "vectors", _EMBEDDINGS, ordinary=True),
    Kind("the next student", 4, "spared"),
    *(Kind(fault, 1, fault) for fault in ODD),
    *(Kind(f"{fault}, streamed", 1, fault, stream=True) for fault in ODD),
    Kind("limited", 6, "chat-student", who=("globex", "main")),
    Kind("small budget", 6, "chat", who=("initech", "main")),
    Kind("comes and goes", 3, "chat-student", who=("visitor", "main"), stream=True),
    Kind("left midway", 4, "slow", who=("acme", "leaver"), stream=True, leaves="midway"),
    Kind("left during the engine call", 3, "slow", who=("acme", "leaver"), leaves="received"),
    Kind("left early", 3, "chat-student", who=("acme", "hasty"), stream=True, leaves="hasty"),
    Kind("unknown key", 1, "chat", who=("nobody", "main"), needless=True),
    Kind("unknown route", 1, "nowhere", needless=True),
    Kind("bad body", 1, "", needless=True),
)


class Traffic:
    """Args:
    callers: maximum concurrent requests.
    per_s: requests per second of all callers, if answers are fast enough.
    seed: determines the order of each caller's requests.
    took: called with the seconds of each ordinary answer.
    """

    def __init__(self, world: World, callers: int, per_s: float, seed: int, took: Callable[[float], None]) -> None:
        self.tally = Tally()
        self._world = world
        self._callers = callers
        self._pause_s = callers / per_s
        self._seed = seed
        self._took = took
        self._numbers = itertools.count()

    async def run(self, stop: asyncio.Event) -> None:
        """Send requests until `stop` is set. Each caller finishes its current request."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=10)
        timeout = aiohttp.ClientTimeout(_PATIENCE_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as group:
            for number in range(self._callers):
                group.create_task(self._call(session, Random(self._seed * 1000 + number), stop))

    async def _call(self, session: aiohttp.ClientSession, random: Random, stop: asyncio.Event) -> None:
        weights = [kind.weight for kind in KINDS]
        while not await stopped(stop, random.expovariate(1 / self._pause_s)):
            (kind,) = random.choices(KINDS, weights)
            await self._send_one(session, kind, random)

    async def _send_one(self, session: aiohttp.ClientSession, kind: Kind, random: Random) -> None:
        number = next(self._numbers)
        result, question = RequestResult(kind), f"Write a story about {number // _SHARED_BY} ships."
        self.tally.sent += 1
        url = self._world.gateways[number % len(self._world.gateways)].url
        try:
            if kind.leaves == "received":
                question = f"Write {number}."
                ask = lambda: self._ask(session, url, result, question)  # noqa: E731
                result.received = await self._world.slow.cancel_on_arrival(question, ask, _ARRIVES_WITHIN_S)
            elif kind.leaves == "hasty":
                await self._in_haste(session, url, result, question, random.random() * _HASTE_S)
            else:
                await self._ask(session, url, result, question)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            result.broken = f"{error!r} after status {result.status}"
        except (ValueError, KeyError, TypeError) as error:
            result.broken = f"status {result.status}, without an error in the format of OpenAI: {error!r}"
        self.tally.note(result)

    async def _in_haste(
        self, session: aiohttp.ClientSession, url: str, result: RequestResult, question: str, patience_s: float
    ) -> None:
        limit = asyncio.timeout(patience_s)
        try:
            async with limit:
                await self._ask(session, url, result, question)
        except TimeoutError:
            if not limit.expired():
                raise

    async def _ask(self, session: aiohttp.ClientSession, url: str, result: RequestResult, question: str) -> None:
        kind, loop = result.kind, asyncio.get_running_loop()
        headers = {"Authorization": f"Bearer {key(*kind.who)}"}
        began = loop.time()
        async with session.post(url + kind.path, data=_body(kind, question), headers=headers) as reply:
            result.request_id, result.status = reply.headers.get("x-request-id"), reply.status
            if result.request_id is None:
                result.broken = f"a reply without an id, status {reply.status}"
            if kind.leaves == "midway" and reply.status == 200:
                await reply.content.readany()
                reply.close()
                return
            raw = await reply.read()
            result.ended = True
            if reply.status != 200:
                result.code = orjson.loads(raw)["error"]["code"]
            elif kind.stream and b"[DONE]" not in raw and b'"error"' not in raw:
                result.broken = "a stream without an end"
            if reply.status == 500:
                result.broken = "an internal error of the gateway"
            if kind.ordinary and reply.status == 200:
                self._took(loop.time() - began)
        if kind.reports and result.status == 200:
            await self._report(session, url, result, orjson.loads(raw))

    async def _report(
        self, session: aiohttp.ClientSession, url: str, result: RequestResult, given: dict[str, Any]
    ) -> None:
        """Report like a device: to the other gateway, until a report is accepted, and once more as a duplicate."""
        if given["close"] is None:
            return
        other = next(gateway.url for gateway in self._world.gateways if gateway.url != url)
        usage = {"input_tokens": 20, "output_tokens": 5, "student": "soaked", "finish_reason": "stop"}
        usage["at"] = int(time.time())
        headers = {"Authorization": f"Bearer {key(*result.kind.who)}"}
        statuses: list[int] = []
        while len(statuses) < _REPORTS and 409 not in statuses:
            async with session.post(
                f"{other}/v1/guidance/{given['receipt']}/usage", json=usage, headers=headers
            ) as reply:
                await reply.read()
            statuses.append(reply.status)
            if reply.status == 503:
                if 200 in statuses:
                    break
                await asyncio.sleep(1)
            elif reply.status not in {200, 409}:
                break
        taken = statuses.count(200) == 1 or (statuses[-1] == 409 and 503 in statuses)
        result.reported = "taken" if taken else "unsure"
        result.not_taken = len(statuses) - statuses.count(200)
        if statuses.count(200) > 1 or {*statuses} - {200, 409, 503} or statuses[0] == 409:
            result.broken = f"a report with the statuses {statuses}"


def _body(kind: Kind, question: str) -> bytes:
    if not kind.route:
        return b'{"model": '
    body: dict[str, Any] = {"model": kind.route, "max_tokens": 30}
    if kind.path == _COMPLETIONS:
        body["prompt"] = question
    elif kind.path == _EMBEDDINGS:
        body = {"model": kind.route, "input": [question, "Two."]}
    else:
        body["messages"] = [{"role": "user", "content": question}]
    if kind.stream:
        body["stream"] = True
    if kind.tools:
        body["tools"] = _TOOLS
    return orjson.dumps(body)


async def stopped(stop: asyncio.Event, seconds: float) -> bool:
    """Wait for `seconds` or `stop`. Return whether to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return stop.is_set()
    return True
