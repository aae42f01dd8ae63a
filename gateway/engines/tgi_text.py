"""The client of TGI's /generate route, with replies and chunks in the shape of chat completions.

TGI's /v1/completions is not used: it streams special tokens as text, and disables the prefix cache for JSON replies
(TGI 3.3.7, router/src/server.rs).
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from huggingface_hub import TextGenerationInput, TextGenerationInputGenerateParameters

from gateway.engines.tgi_stream import token_events, token_text
from gateway.errors import EngineProtocolError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from gateway.engines.http import EngineHttp
    from gateway.protocol.body import Json


class TextRoute:
    """The routes /generate and /generate_stream of one TGI server. All methods raise EngineErrors."""

    def __init__(self, http: EngineHttp) -> None:
        self._http = http
        self._name = http.name

    async def complete(self, body: Json) -> Json:
        """Return the text after the prompt as a chat completion."""
        reply = await self._http.post("/generate", body)
        text = reply.body.get("generated_text") if isinstance(reply.body, dict) else None
        if not isinstance(text, str):
            raise self._protocol_error("a reply without generated_text")
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(reply.body) or "length"}
        usage = header_counts(reply.headers)
        return {"choices": [choice]} | ({} if usage is None else {"usage": usage})

    async def stream(self, body: Json) -> AsyncGenerator[list[Json], None]:
        """Yield the text after the prompt as chat completion chunks, grouped as they arrived."""
        async with aclosing(token_events(self._http, body)) as groups:
            async for events in groups:
                yield [chunk for event in events for chunk in _chunks(event)]

    def _protocol_error(self, what: str) -> EngineProtocolError:
        return EngineProtocolError(f"Engine '{self._name}' sent {what}.", engine=self._name)


def generate_body(chat: Json, prompt: str) -> Json:
    """Return the /generate body for a prompt and the parameters of a chat body."""
    temperature = chat.get("temperature")
    body = TextGenerationInput(
        inputs=prompt,
        parameters=TextGenerationInputGenerateParameters(
            adapter_id=None if chat.get("model") == "tgi" else chat.get("model"),
            details=True,
            do_sample=temperature != 0,  # as on the chat route: sampling is the default
            frequency_penalty=chat.get("frequency_penalty"),
            max_new_tokens=chat.get("max_tokens"),
            seed=chat.get("seed"),
            stop=chat.get("stop"),
            temperature=temperature or None,  # /generate rejects 0
            top_p=chat.get("top_p"),
        ),
    )
    return without_none(body)  # type: ignore[no-any-return]


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
    delta = {"content": token_text(event)}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": _finish(event)}
    chunks: list[Json] = [{"choices": [choice]}]
    details = event.get("details")
    if isinstance(details, dict):
        counts = {"prompt_tokens": details.get("input_length"), "completion_tokens": details.get("generated_tokens")}
        chunks.append({"choices": [], "usage": counts})
    return chunks


def _finish(generated: Json) -> str | None:
    """Return TGI's finish reason; None if the text has not ended or TGI reports no reason."""
    details = generated.get("details")
    finish = details.get("finish_reason") if isinstance(details, dict) else None
    if isinstance(finish, str):
        return finish
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


def without_none(value: Any) -> Any:
    """Return a dataclass of huggingface_hub as JSON, without its unset fields."""
    if isinstance(value, dict):
        return {key: without_none(entry) for key, entry in value.items() if entry is not None}
    return value
