"""Shared by the teacher's routes: their state, and how they read bodies and write replies, events and errors."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import orjson
from aiohttp import web

from gateway.local import tgi_errors, tgi_request
from gateway.local.generation import LocalGeneration

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from gateway.local.generation import GeneratedToken
    from gateway.local.llama_client import LlamaClient
    from gateway.local.tgi_request import TgiLimits, TgiParameters

Body = TypeVar("Body", bound=msgspec.Struct)
COMPUTE_TYPE = "cpu"


@dataclass(slots=True)
class TeacherState:
    """The state of one server. `counts` has `requests`, `success`, and one entry for each error type."""

    llama: LlamaClient
    limits: TgiLimits
    model: str
    counts: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0  # requests that hold a permit

    @asynccontextmanager
    async def start(
        self, inputs: str, parameters: TgiParameters, *, logprobs: bool, special: bool = True
    ) -> AsyncIterator[tuple[LocalGeneration, AsyncGenerator[GeneratedToken, None]]]:
        """Acquire a permit, validate the request, and yield the generation and its tokens.

        Like TGI, acquire the permit before the validation. Leaving the context cancels the generation and releases the
        permit. Raises TgiError 429 without a free permit, and 422 for an invalid request.
        """
        self.counts["requests"] += 1
        if self.in_flight >= self.limits.max_concurrent_requests:
            raise tgi_errors.failure("overloaded")
        self.in_flight += 1
        try:
            job = await tgi_request.accept(inputs, parameters, self.limits, self.llama, special=special)
            run = LocalGeneration(self.llama, job, logprobs=logprobs)
            async with aclosing(run.tokens()) as tokens:
                yield run, tokens
            self.counts["success"] += 1
        finally:
            self.in_flight -= 1

    async def run(
        self, inputs: str, parameters: TgiParameters, *, logprobs: bool, special: bool = True
    ) -> tuple[LocalGeneration, list[GeneratedToken]]:
        """Run a generation to its end. Raises the errors of `start`, and TgiError 424 or 500."""
        async with self.start(inputs, parameters, logprobs=logprobs, special=special) as (generation, tokens):
            return generation, [token async for token in tokens]


STATE = web.AppKey("state", TeacherState)


async def read(request: web.Request, kind: type[Body]) -> Body:
    """Return the JSON body of a request as `kind`. Like TGI, ignore unknown fields.

    Raises UnreadableBody: 415 for another content type, 400 for broken JSON, 422 for a value of the wrong type.
    """
    data = await request.read()
    if request.content_type != "application/json":
        raise tgi_errors.UnreadableBody(415, "Expected request with `Content-Type: application/json`")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        text = f"Failed to deserialize the JSON body into the target type: {error}"
        raise tgi_errors.UnreadableBody(422, text) from error
    except msgspec.DecodeError as error:
        raise tgi_errors.UnreadableBody(400, f"Failed to parse the request body as JSON: {error}") from error


def reply(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a JSON reply."""
    return web.Response(body=orjson.dumps(value), status=status, headers=headers, content_type="application/json")


async def send_event(response: web.StreamResponse, value: Any) -> None:
    """Send a server-sent event. A str is sent unchanged, another value as JSON."""
    data = value.encode() if isinstance(value, str) else orjson.dumps(value)
    await response.write(b"data: " + data + b"\n\n")


def headers(inputs: str, runs: Sequence[LocalGeneration], total_s: float) -> dict[str, str]:
    """Return TGI's headers of a JSON reply. Times are in milliseconds, but `x-compute-time` is in seconds.

    Queue and inference time are llama.cpp's. The rest of `total_s` counts as validation.
    """
    inference_s = max(run.inference_s for run in runs)
    queue_s = max(run.queue_s for run in runs)
    generated = sum(run.generated_tokens for run in runs)
    return {
        "x-compute-type": COMPUTE_TYPE,
        "x-compute-time": f"{total_s:.6f}",
        "x-compute-characters": str(len(inputs)),
        "x-total-time": _ms(total_s),
        "x-validation-time": _ms(max(0.0, total_s - queue_s - inference_s)),
        "x-queue-time": _ms(queue_s),
        "x-inference-time": _ms(inference_s),
        "x-time-per-token": _ms(inference_s / max(1, generated)),
        "x-prompt-tokens": str(sum(run.input_tokens for run in runs)),
        "x-generated-tokens": str(generated),
    }


def stream_headers(inputs: str) -> dict[str, str]:
    """Return TGI's headers of a stream."""
    return {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
        "x-compute-type": COMPUTE_TYPE,
        "x-compute-characters": str(len(inputs)),
    }


@web.middleware
async def render_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Render errors of TGI as JSON, and errors of its web framework as plain text or, for 404 and 405, empty."""
    try:
        return await handler(request)
    except tgi_errors.TgiError as error:
        request.app[STATE].counts[error.error_type] += 1
        return reply(error.body, status=error.status)
    except tgi_errors.UnreadableBody as error:
        return web.Response(text=error.text, status=error.status)
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
        return web.Response(status=error.status)


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))
