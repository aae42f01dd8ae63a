"""The client of TGI's /generate and /generate_stream routes, for raw prompts.

TGI's /v1/completions is not used: it streams special tokens as text, and disables the prefix cache for JSON replies
(TGI 3.3.7, router/src/server.rs).
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from huggingface_hub import TextGenerationInput, TextGenerationInputGenerateParameters

from gateway.engines.chat import read_usage
from gateway.engines.http import END_TIMEOUT_S
from gateway.engines.replies import bad_reply, closed_early, finish_reason
from gateway.engines.reply_json import decoded_events
from gateway.engines.tgi_chat import tgi_seed
from gateway.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from gateway.engines.base import TokenUsage
    from gateway.engines.http import EngineHttp
    from gateway.protocol.body import Json


async def complete_text(http: EngineHttp, body: Json) -> Json:
    """POST a body and return the text after the prompt as a chat completion. Raises EngineErrors."""
    reply = await http.post("/generate", body)
    text = reply.body.get("generated_text") if isinstance(reply.body, dict) else None
    if not isinstance(text, str):
        raise bad_reply(http.name, "a reply without generated_text")
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(reply.body) or "length"}
    usage = header_counts(reply.headers)
    return {"choices": [choice]} | ({} if usage is None else {"usage": usage})


async def stream_text(http: EngineHttp, body: Json) -> AsyncGenerator[list[Json], None]:
    """POST a body and yield the text after the prompt as chat completion chunks, grouped as they arrived."""
    async with aclosing(token_events(http, body)) as groups:
        async for events in groups:
            yield [chunk for event in events for chunk in _chunks(event)]


async def token_events(http: EngineHttp, payload: Json) -> AsyncGenerator[list[Json], None]:
    """POST a body and yield the token events, grouped as they arrived. Raises EngineErrors.

    Unlike OpenAI's, the stream has one event for each token and no [DONE]. The last event has the whole text and the
    token counts. Each failure after the request was read is an event under status 200.
    """
    started = False
    async with aclosing(http.events("/generate_stream", payload)) as groups:
        async for group in groups:
            events, failed = await decoded_events(group, partial(_read, http))
            last = next((at for at, one in enumerate(events) if isinstance(one.get("generated_text"), str)), None)
            if last is not None:
                yield events[: last + 1]
                # The connection can be reused only after the end of the body was read.
                with suppress(TimeoutError, EngineError):
                    async with asyncio.timeout(END_TIMEOUT_S):
                        async for _ in groups:
                            pass
                return
            if events:
                started = True
                yield events
            if failed is not None:
                failed.may_have_run = failed.may_have_run or started
                raise failed
    raise closed_early(http.name)


def _token_text(event: Json) -> str:
    """Return the text that a token adds; empty for a special token."""
    token = event["token"]
    text = token.get("text")
    return text if isinstance(text, str) and not token.get("special") else ""


async def generate_stream(
    http: EngineHttp, payload: Json, on_text: Callable[[str], None]
) -> tuple[str, str | None, TokenUsage | None, list[str]]:
    """POST a body and call `on_text` with the text of each token.

    Return the whole text, finish reason, usage, and the texts of the tokens.
    """
    last: Json = {}
    tokens: list[str] = []
    async with aclosing(token_events(http, payload)) as groups:
        async for group in groups:
            for event in group:
                tokens.append(text := _token_text(event))
                if text:
                    on_text(text)
            last = group[-1]
    return last["generated_text"], _finish(last), read_usage(_counts(last)), tokens


def _read(http: EngineHttp, data: bytes) -> Json:
    event = http.read_event(data)
    if not isinstance(event, dict) or not isinstance(event.get("token"), dict):
        raise bad_reply(http.name, "an event without a token")
    return event


def generate_body(chat: Json, prompt: str) -> Json:
    """Return the /generate body for a prompt and the parameters of a chat body."""
    temperature, seed = chat.get("temperature"), chat.get("seed")
    body = TextGenerationInput(
        inputs=prompt,
        parameters=TextGenerationInputGenerateParameters(
            adapter_id=None if chat.get("model") == "tgi" else chat.get("model"),
            details=True,
            do_sample=temperature != 0,  # as on the chat route: sampling is the default
            frequency_penalty=chat.get("frequency_penalty"),
            max_new_tokens=chat.get("max_tokens"),  # the default is the server's limit
            seed=None if seed is None else tgi_seed(seed),
            stop=chat.get("stop"),
            temperature=temperature or None,  # /generate rejects 0
            top_p=chat.get("top_p"),
        ),
    )
    return _without_none(body)  # type: ignore[no-any-return]


def lost_by_generate(body: Json) -> str | None:
    """Return the first parameter of a text completion that /generate does not support; None if there is none."""
    prompt = body["prompt"]
    unsupported = {
        "prompt": not isinstance(prompt, str) and not (len(prompt) == 1 and isinstance(prompt[0], str)),
        "best_of": (body.get("best_of") or 1) > 1,
        "echo": bool(body.get("echo")),
        "suffix": bool(body.get("suffix")),
        "logprobs": body.get("logprobs") is not None,
        "logit_bias": bool(body.get("logit_bias")),
    }
    return next((name for name, is_set in unsupported.items() if is_set), None)


def _chunks(event: Json) -> list[Json]:
    delta = {"content": _token_text(event)}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": _finish(event)}
    chunks: list[Json] = [{"choices": [choice]}]
    if isinstance(event.get("details"), dict):
        chunks.append({"choices": [], "usage": _counts(event)})
    return chunks


def _counts(event: Json) -> Json | None:
    details = event.get("details")
    if not isinstance(details, dict):
        return None
    return {"prompt_tokens": details.get("input_length"), "completion_tokens": details.get("generated_tokens")}


def _finish(generated: Json) -> str | None:
    """Return the finish reason in OpenAI's terms; None if the text has not ended."""
    details = generated.get("details")
    finish = details.get("finish_reason") if isinstance(details, dict) else None
    if isinstance(finish, str):
        return finish_reason(finish)
    return "length" if isinstance(generated.get("generated_text"), str) else None


def header_counts(headers: Mapping[str, str]) -> Json | None:
    """Return the token counts in the headers of a reply, in OpenAI's names; None if there are none."""
    try:
        return {
            "prompt_tokens": int(headers["x-prompt-tokens"]),
            "completion_tokens": int(headers["x-generated-tokens"]),
        }
    except (KeyError, ValueError):
        return None


def _without_none(value: Any) -> Any:
    """Return a dataclass of huggingface_hub as JSON, without its unset fields."""
    if isinstance(value, dict):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return value
