"""A run through a gateway that runs elsewhere: its routes are the settings.

The client reads streamed answers and their receipts. They cannot be computed again from texts, so each example is
written to disk at once.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import msgspec
import orjson

from gateway.accounting.receipt import Receipt
from gateway.engines.refusal import read_error
from gateway.engines.sse import SseDecoder
from gateway.errors import (
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineUnreachable,
    StartupError,
)
from gateway.evaluation.pair import PAUSES_S, StageRetries
from gateway.evaluation.run import failed_example, scored_example
from gateway.evaluation.staged import QuestionAnswer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gateway.evaluation.folder import RunFolder
    from gateway.evaluation.record import Manifest, Question
    from gateway.evaluation.run import EvalWork, RunProgress
    from gateway.evaluation.setting import Setting
    from gateway.protocol.body import Json

GATEWAY = "gateway"
"""Engine name in errors."""
_RECEIPT_TIMEOUT_S = 20.0
_RECEIPT_INTERVAL_S = 0.05
_BUSY = frozenset({429, 503})
_ANSWER_LIMIT_S = 1800.0
"""Time limit of one request, in seconds. An engine on a CPU is slow."""


class GatewayClient(NamedTuple):
    """Client of one gateway, by its public listener. The headers of `session` have the API key."""

    session: aiohttp.ClientSession
    url: str

    async def complete(self, body: Json) -> tuple[QuestionAnswer, float]:
        """Send a request and return the streamed answer with its receipt, and its seconds.

        Raises EngineError with the gateway's error code as `reason`, and StartupError if the receipts cannot be used.
        """
        route = "completions" if "prompt" in body else "chat/completions"
        started = time.perf_counter()
        pieces: list[str] = []
        try:
            async with self.session.post(
                f"{self.url}/v1/{route}", json=body | {"stream": True}, allow_redirects=False
            ) as reply:
                if reply.status != 200:
                    raise _error(reply.status, await reply.read())
                await _read_stream(reply, pieces)
                request_id = reply.headers.get("x-request-id", "")
            total_s = round(time.perf_counter() - started, 3)
            receipt = await self._receipt(request_id)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineUnreachable(f"The {GATEWAY} does not respond.", engine=GATEWAY) from error
        if receipt.status != "ok":
            failure = EngineFailed(f"The {GATEWAY} answered with {receipt.status}.", engine=GATEWAY)
            failure.reason = receipt.status
            raise failure
        teacher_ms = receipt.timings.teacher_ms
        teacher_s = None if teacher_ms is None else round(teacher_ms / 1000, 3)
        return QuestionAnswer("".join(pieces), _guidance(receipt, pieces), receipt, teacher_s, None), total_s

    async def _receipt(self, request_id: str) -> Receipt:
        """Poll for the receipt, which is written shortly after the last byte of the stream."""
        deadline = time.perf_counter() + _RECEIPT_TIMEOUT_S
        while True:
            async with self.session.get(f"{self.url}/v1/receipts/{request_id}", allow_redirects=False) as reply:
                raw = await reply.read()
            if reply.status == 200:
                try:
                    return msgspec.convert(orjson.loads(raw), Receipt)
                except (msgspec.ValidationError, orjson.JSONDecodeError) as error:
                    raise StartupError(
                        "The gateway's receipts have no costs: set show_cost: true on its routes."
                    ) from error
            if time.perf_counter() > deadline:
                raise EngineProtocolError(f"The {GATEWAY} has no receipt for {request_id}.", engine=GATEWAY)
            await asyncio.sleep(_RECEIPT_INTERVAL_S)


async def _read_stream(reply: aiohttp.ClientResponse, pieces: list[str]) -> None:
    """Append the text of the stream to `pieces` as it arrives. Raises EngineFailed if the stream ends with an error."""
    decoder = SseDecoder()
    async for received in reply.content.iter_any():
        for event in decoder.feed(received):
            if event == b"[DONE]":
                return
            chunk = orjson.loads(event)
            if "error" in chunk:
                raise _error(reply.status, event)
            for choice in chunk.get("choices", ()):
                text = choice["text"] if "text" in choice else (choice.get("delta") or {}).get("content")
                if text:
                    pieces.append(text)
    raise EngineProtocolError(f"The {GATEWAY} ended a stream without [DONE].", engine=GATEWAY)


def _guidance(receipt: Receipt, pieces: list[str]) -> str:
    """Return the guidance if the client received it: with `stream: false` a route sends it as one piece."""
    guidance = receipt.guidance
    if guidance is None or guidance.placement != "prefix" or not pieces:
        return ""
    return "".join(pieces) if receipt.mode == "teacher_complete" else pieces[0]


def _error(status: int, body: bytes) -> EngineError:
    code = read_error(body).reason
    message = f"The {GATEWAY} answered with status {status}" + (f" ({code})." if code else ".")
    error: EngineError
    if 400 <= status < 500 and status not in _BUSY:
        error = EngineRejected(message, engine=GATEWAY, status_sent=status)
    else:
        error = (EngineOverloaded if status in _BUSY else EngineFailed)(message, engine=GATEWAY)
    error.reason = code
    return error


class LiveRoute(NamedTuple):
    """A route of a gateway: the `model` value of requests, the name of its setting in the run, and the setting."""

    model: str
    name: str
    setting: Setting


async def run_live(
    routes: Sequence[LiveRoute],
    folder: RunFolder,
    work: EvalWork,
    client: GatewayClient,
    progress: RunProgress,
    *,
    concurrency: int,
    pauses_s: Sequence[float] = PAUSES_S,
) -> None:
    """Send every question to every route without its answer. Raises StartupError if the gateway is gone."""
    retries = StageRetries(pauses_s)
    # Preferences compare the other answers with the teacher's.
    routes = sorted(routes, key=lambda route: not folder.is_teacher(route.name))
    answered = {key for key, example in folder.examples.items() if example.error is None}
    remaining = [(route, question) for route in routes for question in work.questions]
    remaining = [(route, question) for route, question in remaining if (route.name, question.id) not in answered]
    done = 0

    async def run_one(item: tuple[LiveRoute, Question]) -> None:
        nonlocal done
        route, question = item
        body = request_body(route, question, work)
        try:
            answered, total_s = await retries.call(lambda: client.complete(body))
        except EngineError as error:
            example = failed_example(route.name, question, error.reason or error.label, route.setting.mode, folder)
        else:
            reference = folder.reference(route.name, question.id, answered.text)
            example = await scored_example(route.name, question, answered, work.score, total_s, reference=reference)
        folder.add(example)
        done += 1
        progress.step(example.teacher_output_tokens + example.student_output_tokens)

    progress.begin("live", len(remaining))
    try:
        for route in routes:
            started, done = time.perf_counter(), 0
            try:
                group = [item for item in remaining if item[0] is route]
                await retries.run_concurrently(group, run_one, concurrency)
            finally:
                seconds = round(time.perf_counter() - started, 3)
                folder.add_stage("live", route.name, done, seconds, concurrency)
    finally:
        folder.write_examples(work.questions)
    progress.end()


def request_body(route: LiveRoute, question: Question, work: EvalWork) -> Json:
    return {**route.setting.request(question, work.exemplars).body, "model": route.model}


@asynccontextmanager
async def connect_gateway(url: str, key: str) -> AsyncIterator[GatewayClient]:
    """Yield a client of the gateway at this URL, with this API key."""
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"},
        timeout=aiohttp.ClientTimeout(total=_ANSWER_LIMIT_S),
        connector=aiohttp.TCPConnector(limit=0),
    ) as session:
        yield GatewayClient(session, url.rstrip("/"))


def remote_routes(names: Sequence[str], work: EvalWork) -> list[LiveRoute]:
    """Return each route with each request form. The settings of `work` give the forms, and all have mode student."""
    return [
        LiveRoute(name, f"route {name}, {setting.name.removeprefix('student, ')}", setting)
        for name in names
        for setting in work.settings
    ]


async def describe_routes(
    routes: Sequence[LiveRoute], client: GatewayClient, work: EvalWork, manifest: Manifest | None
) -> list[dict[str, Any]]:
    """Return the routes in the format of a manifest's settings. Raises StartupError if a route does not respond.

    A route that the manifest lacks gets the first question.
    """
    known = {} if manifest is None else {setting["name"]: setting for setting in manifest.settings}
    return [known.get(route.name) or await _describe(route, client, work) for route in routes]


async def _describe(route: LiveRoute, client: GatewayClient, work: EvalWork) -> dict[str, Any]:
    try:
        answered, _ = await client.complete(request_body(route, work.questions[0], work))
    except EngineError as error:
        raise StartupError(f"--route {route.model}: {error.message}") from error
    receipt = answered.receipt
    plain = route.setting.as_dict() | {"name": route.name, "route": route.model}
    if receipt.guidance is None:
        return plain | {"mode": receipt.mode}
    plain |= {"mode": "guided", "tokens": receipt.guidance.tokens, "projection": receipt.guidance.projection}
    return plain | {"placement": receipt.guidance.placement, "boundary": "word"}
