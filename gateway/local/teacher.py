"""The embedded teacher: the protocol of text-generation-inference (TGI) over llama.cpp.

    python -m gateway.local.teacher --model smollm2-135m-instruct --port 8080

The server implements TGI's routes, limits, errors, headers and events, including its defects. Differences from TGI:

- regular expressions that `tgi_regex.py` does not convert are rejected;
- `watermark` and `adapter_id` are ignored;
- log-probabilities of the prompt are null;
- a stream has no keep-alive comments;
- batching and speed are llama.cpp's.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from aiohttp import web

from gateway.errors import StartupError
from gateway.local import child, teacher_chat, tgi_errors, tgi_request, weights
from gateway.local.llama_client import LlamaClient
from gateway.local.tgi_request import TgiGenerateBody, TgiLimits
from gateway.local.tgi_wire import STATE, TeacherState, headers, read, render_errors, reply, send_event, stream_headers
from gateway.runtime import llama_cpp as llama
from gateway.version import __version__

if TYPE_CHECKING:
    from argparse import Namespace

    from gateway.local.generation import GeneratedToken, LocalGeneration

MAX_BODY_BYTES = 2_000_000
SHUTDOWN_LIMIT_S = 0.2


async def info(request: web.Request) -> web.Response:
    """GET /info"""
    state = request.app[STATE]
    return reply(
        {
            "model_id": state.model,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": state.limits.max_concurrent_requests,
            "max_best_of": tgi_request.MAX_BEST_OF,
            "max_stop_sequences": tgi_request.MAX_STOP_SEQUENCES,
            "max_input_tokens": state.limits.max_input_tokens,
            "max_total_tokens": state.limits.max_total_tokens,
            "validation_workers": 1,
            "max_client_batch_size": tgi_request.MAX_CLIENT_BATCH_SIZE,
            "router": "gkt-gateway-embedded-teacher",
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


async def health(request: web.Request) -> web.Response:
    """GET /health, /ping and /"""
    if await request.app[STATE].llama.is_healthy():
        return web.Response()
    return reply({"error": "unhealthy", "error_type": "healthcheck"}, status=503)


async def models(request: web.Request) -> web.Response:
    """GET /v1/models"""
    name = request.app[STATE].model
    model = {"id": name, "object": "model", "created": 0, "owned_by": name}
    return reply({"object": "list", "data": [model]})


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: those of TGI's metrics that apply here."""
    state = request.app[STATE]
    busy = await state.llama.busy_slots()
    failures = {name: n for name, n in state.counts.items() if name not in {"requests", "success"}}
    lines = [
        f"tgi_batch_current_size {busy}",
        f"tgi_queue_size {max(0, state.in_flight - busy)}",
        f"tgi_request_count {state.counts['requests']}",
        f"tgi_request_success {state.counts['success']}",
        *(f'tgi_request_failure{{err="{name}"}} {n}' for name, n in sorted(failures.items())),
    ]
    return web.Response(text="\n".join(lines) + "\n")


async def generate(request: web.Request) -> web.Response:
    """POST /generate"""
    started = time.monotonic()
    return await _generate(request, await read(request, TgiGenerateBody), started)


async def generate_compat(request: web.Request) -> web.StreamResponse:
    """POST / : a stream if the body requests it, else the reply of /generate in a list."""
    started = time.monotonic()
    body = await read(request, TgiGenerateBody)
    if body.stream:
        return await _generate_stream(request, body)
    answer = await _generate(request, body, started)
    answer.body = b"[" + (answer.body if isinstance(answer.body, bytes) else b"") + b"]"
    return answer


async def generate_stream(request: web.Request) -> web.StreamResponse:
    """POST /generate_stream: each failure after the body was read is an event under status 200."""
    return await _generate_stream(request, await read(request, TgiGenerateBody))


async def _generate(request: web.Request, body: TgiGenerateBody, started: float) -> web.Response:
    state = request.app[STATE]
    parameters = body.parameters
    details = parameters.details or parameters.decoder_input_details
    count = tgi_request.best_of(parameters)
    calls = (state.run(body.inputs, parameters, logprobs=details or count > 1) for _ in range(count))
    (run, tokens), *others = sorted(await asyncio.gather(*calls), key=lambda one: _mean_logprob(one[1]), reverse=True)
    answer: dict[str, Any] = {"generated_text": _full_text(body, run)}
    if details:
        answer["details"] = await _details(state, body, run, tokens)
    if details and others:
        answer["details"]["best_of_sequences"] = [
            {"generated_text": _full_text(body, one), **await _details(state, body, one, its_tokens)}
            for one, its_tokens in others
        ]
    return reply(answer, headers=headers(body.inputs, [run], time.monotonic() - started))


async def _generate_stream(request: web.Request, body: TgiGenerateBody) -> web.StreamResponse:
    state = request.app[STATE]
    response = web.StreamResponse(headers=stream_headers(body.inputs))
    await response.prepare(request)
    try:
        tgi_request.check_stream(body.parameters)
        async with state.start(body.inputs, body.parameters, logprobs=True) as (run, tokens):
            index = 0
            async for token in tokens:
                index += 1
                await send_event(response, _stream_event(index, token, body, run))
    except tgi_errors.TgiError as failure:
        error = tgi_errors.in_stream(failure)
        state.counts[error.error_type] += 1
        await send_event(response, error.body)
    return response


def _mean_logprob(tokens: list[GeneratedToken]) -> float:
    return statistics.fmean([token.logprob for token in tokens if token.logprob is not None] or [0.0])


async def _details(
    state: TeacherState, body: TgiGenerateBody, run: LocalGeneration, tokens: list[GeneratedToken]
) -> dict[str, Any]:
    prefill = []
    if body.parameters.decoder_input_details:
        pieces = await state.llama.tokenize(body.inputs, special=True)
        kept = pieces[-run.input_tokens :]
        prefill = [{"id": piece.id, "text": piece.text, "logprob": None} for piece in kept]
    details = {
        "finish_reason": run.finish_reason,
        "generated_tokens": run.generated_tokens,
        "seed": run.job.seed,
        "prefill": prefill,
        "tokens": [_token(token) for token in tokens],
    }
    if run.job.top_n_tokens:
        details["top_tokens"] = [[_token(other) for other in token.top] for token in tokens]
    return details


def _stream_event(index: int, token: GeneratedToken, body: TgiGenerateBody, run: LocalGeneration) -> dict[str, Any]:
    last = token.finish_reason is not None
    event: dict[str, Any] = {"index": index, "token": _token(token)}
    if run.job.top_n_tokens:
        event["top_tokens"] = [_token(other) for other in token.top]
    event["generated_text"] = _full_text(body, run) if last else None
    event["details"] = None
    if last and body.parameters.details:
        event["details"] = {
            "finish_reason": run.finish_reason,
            "generated_tokens": run.generated_tokens,
            "seed": run.job.seed,
            "input_length": run.input_tokens,
        }
    return event


def _full_text(body: TgiGenerateBody, run: LocalGeneration) -> str:
    return body.inputs + run.text if body.parameters.return_full_text else run.text


def _token(token: GeneratedToken) -> dict[str, Any]:
    return {"id": token.id, "text": token.text, "logprob": token.logprob, "special": token.special}


async def tokenize(request: web.Request) -> web.Response:
    """POST /tokenize: the tokens of a /generate body's prompt, with their positions."""
    body = await read(request, TgiGenerateBody)
    if not body.inputs:
        raise tgi_errors.invalid("`inputs` cannot be empty")
    return reply(await teacher_chat.simple_tokens(request.app[STATE], body.inputs, special=True))


def build_app(state: TeacherState) -> web.Application:
    """Return the aiohttp application. The runner needs `handler_cancellation=True`, so that a disconnect cancels."""
    app = web.Application(middlewares=[render_errors], client_max_size=MAX_BODY_BYTES)
    app[STATE] = state
    app.add_routes(
        [
            *(web.get(path, health) for path in ("/", "/health", "/ping")),
            web.get("/info", info),
            web.get("/metrics", metrics),
            web.get("/v1/models", models),
            web.post("/", generate_compat),
            web.post("/generate", generate),
            web.post("/generate_stream", generate_stream),
            web.post("/tokenize", tokenize),
            web.post("/chat_tokenize", teacher_chat.chat_tokenize),
            web.post("/v1/chat/completions", teacher_chat.chat),
            web.post("/v1/completions", teacher_chat.completions),
        ]
    )
    return app


async def serve(args: Namespace, socket: Path, name: str) -> None:
    """Serve until SIGTERM, SIGINT or, with `--parent-watch`, the end of stdin. llama.cpp listens on `socket`."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    child.on_stop(lambda: loop.call_soon_threadsafe(stopped.set), parent_watch=args.parent_watch)
    limits = TgiLimits(args.slot_tokens, args.max_concurrent_requests)
    async with LlamaClient(socket) as client:
        app = build_app(TeacherState(client, limits, name))
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_LIMIT_S)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, args.host, args.port).start()
            except OSError as error:
                address = f"{args.host}:{args.port}"
                raise StartupError(f"the teacher cannot listen on {address}: {error.strerror}") from error
            host, port = runner.addresses[0][:2]
            sys.stdout.write(child.ready_line("teacher", f"http://{host}:{port}"))
            sys.stdout.flush()
            await stopped.wait()
        finally:
            await runner.cleanup()


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command. Raises StartupError without weights, or if llama.cpp did not start or the port is in use."""
    flags = child.parser("teacher", "TGI's protocol over llama.cpp with a small model")
    flags.add_argument("--max-concurrent-requests", type=int, default=128, help="above this number the answer is 429")
    args = flags.parse_args(argv)
    name = args.name or weights.model_name(args.model)
    # teacher_chat cuts the prompt for continuation as TGI does, so llama.cpp must not.
    options = llama.LlamaOptions(args.threads, args.parallel, args.slot_tokens, args.poll_percent, False)
    model = weights.fetch(args.model)
    with tempfile.TemporaryDirectory(prefix="gkt-teacher-") as folder:
        socket = Path(folder) / "llama.sock"
        server = llama.serve(model, name, options, host=str(socket))
        asyncio.run(serve(args, socket, name))
    child.exit_now(server)


if __name__ == "__main__":
    sys.exit(child.run(main))
