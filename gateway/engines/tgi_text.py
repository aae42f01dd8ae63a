"""TGI's own route for text, /generate, with replies and chunks in the shape of chats.

Not its /v1/completions: that streams special tokens as text, and turns the prefix cache off for whole replies (TGI
3.3.7, router/src/server.rs).
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
    """/generate and /generate_stream of one TGI. All methods raise EngineErrors."""

    def __init__(self, http: EngineHttp) -> None:
        self._http = http
        self._name = http.name

    async def complete(self, asked: Json) -> Json:
        """The text after the prompt, as a chat completion."""
        reply = await self._http.post("/generate", asked)
        text = reply.body.get("generated_text") if isinstance(reply.body, dict) else None
        if not isinstance(text, str):
            raise self._garbled("a reply that is not text generation")
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(reply.body) or "length"}
        usage = header_counts(reply.headers)
        return {"choices": [choice]} | ({} if usage is None else {"usage": usage})

    async def stream(self, asked: Json) -> AsyncGenerator[list[Json], None]:
        """The same in chunks, as many at a time as came together."""
        async with aclosing(token_events(self._http, asked)) as groups:
            async for events in groups:
                yield [chunk for event in events for chunk in _chunks(event)]

    def _garbled(self, what: str) -> EngineProtocolError:
        return EngineProtocolError(f"Engine '{self._name}' sent {what}.", engine=self._name)


def generate_body(chat: Json, prompt: str) -> Json:
    """What /generate is asked, from a chat body as TGI's chat route would read it."""
    temperature = chat.get("temperature")
    asked = TextGenerationInput(
        inputs=prompt,
        parameters=TextGenerationInputGenerateParameters(
            adapter_id=None if chat.get("model") == "tgi" else chat.get("model"),
            details=True,
            do_sample=temperature != 0,  # as in its chat route: without a temperature it samples
            frequency_penalty=chat.get("frequency_penalty"),
            max_new_tokens=chat.get("max_tokens"),
            seed=chat.get("seed"),
            stop=chat.get("stop"),
            temperature=temperature or None,  # 0 is refused here
            top_p=chat.get("top_p"),
        ),
    )
    return without_none(asked)  # type: ignore[no-any-return]


def lost_by_generate(body: Json) -> str | None:
    """What a text completion asks for, and /generate has not, or has otherwise; None: nothing."""
    prompt = body["prompt"]
    asked = {
        "prompt": not isinstance(prompt, str) and not (len(prompt) == 1 and isinstance(prompt[0], str)),
        "best_of": (body.get("best_of") or 1) > 1,
        "echo": bool(body.get("echo")),
        "suffix": bool(body.get("suffix")),
        "logprobs": body.get("logprobs") is not None,
        "logit_bias": bool(body.get("logit_bias")),
    }
    return next((name for name, holds in asked.items() if holds), None)


def _chunks(event: Json) -> list[Json]:
    said = {"content": token_text(event)}
    choice = {"index": 0, "delta": said, "logprobs": None, "finish_reason": _finish(event)}
    chunks: list[Json] = [{"choices": [choice]}]
    details = event.get("details")
    if isinstance(details, dict):
        counts = {"prompt_tokens": details.get("input_length"), "completion_tokens": details.get("generated_tokens")}
        chunks.append({"choices": [], "usage": counts})
    return chunks


def _finish(said: Json) -> str | None:
    """Why it ended, in TGI's words; None when it has not, or does not say."""
    details = said.get("details")
    finish = details.get("finish_reason") if isinstance(details, dict) else None
    if isinstance(finish, str):
        return finish
    return "length" if isinstance(said.get("generated_text"), str) else None


def header_counts(headers: Mapping[str, str]) -> Json | None:
    """The token counts that TGI tells in a reply's headers, in OpenAI's names; None where it tells none."""
    try:
        return {
            "prompt_tokens": int(headers["x-prompt-tokens"]),
            "completion_tokens": int(headers["x-generated-tokens"]),
        }
    except (KeyError, ValueError):
        return None


def without_none(value: Any) -> Any:
    """A hub dataclass as the JSON it stands for, without the fields nobody set."""
    if isinstance(value, dict):
        return {key: without_none(entry) for key, entry in value.items() if entry is not None}
    return value
