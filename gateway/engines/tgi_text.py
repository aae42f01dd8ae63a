"""TGI's own route for text, /generate, with replies and chunks in the shape of chats.

Not its /v1/completions: that streams special tokens as text, and turns the prefix cache off for whole replies (TGI
3.3.7, router/src/server.rs).
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson
from huggingface_hub import TextGenerationInput, TextGenerationInputGenerateParameters

from gateway.engines.refusal import refusal
from gateway.errors import EngineError, EngineFailed, EngineGarbled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from gateway.engines.http import EngineHttp
    from gateway.protocol import Json

# Its status for each kind of error, which an event under 200 does not have.
_STATUS = {"validation": 422, "template_error": 422, "overloaded": 429, "generation": 424}


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
        """The same in chunks, as many at a time as came together. It has no [DONE]: the last token has details."""
        async with aclosing(self._http.events("/generate_stream", asked)) as groups:
            async for events in groups:
                chunks: list[Json] = []
                for data in events:
                    try:
                        event = self._event(data)
                    except EngineError:
                        if chunks:
                            yield chunks
                        raise
                    chunks += _chunks(event)
                    if _finish(event) is not None:
                        yield chunks
                        return
                yield chunks
        raise EngineFailed(f"Engine '{self._name}' broke off in the middle of its answer.", engine=self._name)

    def _event(self, data: bytes) -> Json:
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise self._garbled("an event that is not JSON") from None
        if isinstance(event, dict) and event.get("error"):
            raise self._failed(event)
        token = event.get("token") if isinstance(event, dict) else None
        if not (isinstance(token, dict) and isinstance(token.get("text"), str)):
            raise self._garbled("an event without a token")
        return event  # type: ignore[no-any-return]

    def _failed(self, event: Json) -> EngineError:
        return refusal(self._name, _STATUS.get(str(event.get("error_type")), 500), self._http.said(event), None)

    def _garbled(self, what: str) -> EngineGarbled:
        return EngineGarbled(f"Engine '{self._name}' sent {what}.", engine=self._name)


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


def _chunks(event: Json) -> list[Json]:
    token, finish = event["token"], _finish(event)
    text = "" if token.get("special") else token["text"]
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
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
