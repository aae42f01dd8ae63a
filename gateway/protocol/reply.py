"""Fields that replies and chunks of one answer share, and OpenAI's usage object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from gateway.runtime.record import Record

if TYPE_CHECKING:
    from gateway.errors import GatewayError
    from gateway.protocol.body import Json
    from gateway.protocol.content_run import ChunkGroup


class ReplyWriter(Protocol):
    """Writes one reply in the format of an API.

    The pipeline's replies and chunks have the format of chat completions. A writer belongs to one request and may keep
    state.
    """

    def reply(self, completion: Json) -> Json:
        """Convert a complete reply."""

    def events(self, group: ChunkGroup) -> bytes:
        """Convert chunks to server-sent events. The result is empty if there is nothing to send yet."""

    def end(self) -> bytes:
        """Return the last events of a complete stream."""

    def failed(self, error: GatewayError) -> bytes:
        """Return the last events of a stream that an error ended."""


def usage_body(
    input_tokens: int, output_tokens: int, cached_input_tokens: int = 0, cache_write_input_tokens: int = 0
) -> Json:
    """Return OpenAI's `usage` object."""
    body: Json = {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }
    if cached_input_tokens or cache_write_input_tokens:
        body["prompt_tokens_details"] = {"cached_tokens": cached_input_tokens}
    if cache_write_input_tokens:
        body["prompt_tokens_details"]["cache_write_tokens"] = cache_write_input_tokens
    return body


# Fields of an engine's reply that callers get besides choices and usage. Others may contain its host names.
_ENGINE_FIELDS = ("system_fingerprint", "service_tier")


def engine_fields(reply: Json) -> Json:
    """Return the top-level fields of an engine's reply that a caller gets."""
    return {name: reply[name] for name in _ENGINE_FIELDS if reply.get(name) is not None}


class ReplyHead(Record, frozen=True):
    """The fields that replies and chunks of one chat share.

    Within the gateway, every answer has a chat's choices, each with a `message` or a `delta`.
    """

    id: str
    created: int
    model: str

    def completion(self, choices: list[Json], usage: Json) -> Json:
        """Return a complete reply."""
        return self._reply("chat.completion", [_complete(choice) for choice in choices]) | {"usage": usage}

    def chunk(self, choices: list[Json], *, with_usage: bool = False, usage: Json | None = None) -> Json:
        """Return a chunk of a stream."""
        for choice in choices:
            if choice.get("logprobs"):
                choice["logprobs"] = _chat_logprobs(choice["logprobs"])
        chunk = self._reply("chat.completion.chunk", choices)
        if with_usage:
            chunk["usage"] = usage
        return chunk

    def _reply(self, kind: str, choices: list[Json]) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


class TextReplyHead(ReplyHead, frozen=True):
    """The fields that replies and chunks of one text completion share. Its choices have a `text`."""

    def completion(self, choices: list[Json], usage: Json) -> Json:
        """Return a complete reply with text choices."""
        texts = [_as_text(choice, choice["message"]) for choice in choices]
        return self._reply("text_completion", texts) | {"usage": usage}

    def chunk(self, choices: list[Json], *, with_usage: bool = False, usage: Json | None = None) -> Json:
        """Return a chunk of a stream with text choices."""
        chunk = self._reply("text_completion", [_as_text(choice, choice.get("delta") or {}) for choice in choices])
        if with_usage:
            chunk["usage"] = usage
        return chunk


def _complete(choice: Json) -> Json:
    """Return a choice with the fields that OpenAI always sends, because clients with strict types require them."""
    message = {"content": None, "refusal": None, **choice["message"]}
    return {**choice, "logprobs": _chat_logprobs(choice.get("logprobs")), "message": message}


def _chat_logprobs(logprobs: Any) -> Any:
    """Return log-probabilities of a chat with both of OpenAI's fields. Undecoded ones already have them."""
    return {"content": None, "refusal": None, **logprobs} if isinstance(logprobs, dict) else logprobs


def _as_text(choice: Json, message: Json) -> Json:
    rest = {name: value for name, value in choice.items() if name not in ("message", "delta")}
    return {**rest, "text": message.get("content") or "", "logprobs": choice.get("logprobs")}
