"""The replies of providers according to their public API documentation. Each is a short handler."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

if TYPE_CHECKING:
    from tests.engines.fake_server import Handler

STAMP = "2023-08-04T08:52:19.385406455-07:00"


def events(*entries: tuple[str | None, Any]) -> Handler:
    """Return a handler of server-sent events, named or not, with a complete HTTP body."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for name, data in entries:
            head = b"" if name is None else b"event: " + name.encode() + b"\n"
            await response.write(head + b"data: " + (data if isinstance(data, bytes) else orjson.dumps(data)) + b"\n\n")
        await response.write_eof()
        return response

    return handler


def lines(*entries: Any) -> Handler:
    """Return a handler of JSON lines."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for one in entries:
            await response.write(orjson.dumps(one) + b"\n")
        await response.write_eof()
        return response

    return handler


def message(text: str, stop_reason: str = "end_turn") -> dict[str, Any]:
    """Anthropic's Message object (docs.anthropic.com, API reference, Messages)."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [{"type": "text", "text": text}],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 5},
    }


def message_events(
    *texts: str, stop_reason: str | None = "end_turn", failure: Any = None, usage: Any = None
) -> Handler:
    """Anthropic's stream (docs.anthropic.com, Streaming Messages). Without a reason it ends after the texts."""
    start = {**message(""), "content": [], "stop_reason": None}
    if usage is not None:
        start["usage"] = usage
    entries: list[tuple[str | None, Any]] = [
        ("message_start", {"type": "message_start", "message": start}),
        (
            "content_block_start",
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        ),
        ("ping", {"type": "ping"}),
    ]
    for text in texts:
        delta = {"type": "text_delta", "text": text}
        entries.append(("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}))
    if failure is not None:
        entries.append(("error", {"type": "error", "error": failure}))
    if stop_reason is not None:
        end = {"stop_reason": stop_reason, "stop_sequence": None}
        entries += [
            ("content_block_stop", {"type": "content_block_stop", "index": 0}),
            ("message_delta", {"type": "message_delta", "delta": end, "usage": {"output_tokens": 5}}),
            ("message_stop", {"type": "message_stop"}),
        ]
    return events(*entries)


def chat_chunks(*texts: str, finish_reason: str | None = "stop", done: bool = True) -> Handler:
    """OpenAI's stream (platform.openai.com, Chat completion chunk object); Azure's is the same."""
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    entries: list[tuple[str | None, Any]] = [
        (None, {**head, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}) for text in texts
    ]
    if finish_reason is not None:
        entries.append((None, {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]}))
        counted = {"prompt_tokens": 14, "completion_tokens": 5, "total_tokens": 19}
        counted["prompt_tokens_details"] = {"cached_tokens": 4}  # type: ignore[assignment]
        entries.append((None, {**head, "choices": [], "usage": counted}))
    if done:
        entries.append((None, b"[DONE]"))
    return events(*entries)


def generated(*texts: str, finish_reason: str | None = "STOP") -> Handler:
    """Gemini's streamGenerateContent with alt=sse (ai.google.dev, GenerateContentResponse)."""
    counts = {"promptTokenCount": 14, "candidatesTokenCount": 5, "totalTokenCount": 19, "cachedContentTokenCount": 4}
    entries: list[tuple[str | None, Any]] = []
    for text in texts:
        candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
        if finish_reason is not None and text is texts[-1]:
            candidate["finishReason"] = finish_reason
        entries.append((None, {"candidates": [candidate], "usageMetadata": counts}))
    return events(*entries)


def ollama_lines(*texts: str, done: bool = True) -> Handler:
    """Ollama's /api/chat (github.com/ollama/ollama, docs/api.md)."""
    head = {"model": "m", "created_at": STAMP}
    entries: list[Any] = [{**head, "message": {"role": "assistant", "content": text}, "done": False} for text in texts]
    if done:
        last = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
        entries.append({**head, **last, "prompt_eval_count": 14, "eval_count": 5})
    return lines(*entries)


def converse_frames(*texts: str, stop_reason: str | None = "end_turn", stored: int = 0) -> Handler:
    """Bedrock's ConverseStream (docs.aws.amazon.com, API reference) in Amazon's event stream encoding (smithy.io)."""
    entries: list[tuple[str, Any]] = [("messageStart", {"role": "assistant"})]
    entries += [("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}}) for text in texts]
    if stop_reason is not None:
        usage = {"inputTokens": 10, "cacheReadInputTokens": 4, "outputTokens": 5, "totalTokens": 19 + stored}
        if stored:
            usage["cacheWriteInputTokens"] = stored
        entries += [
            ("contentBlockStop", {"contentBlockIndex": 0}),
            ("messageStop", {"stopReason": stop_reason}),
            ("metadata", {"usage": usage, "metrics": {"latencyMs": 1}}),
        ]

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/vnd.amazon.eventstream"})
        await response.prepare(request)
        for kind, data in entries:
            await response.write(_frame(kind, orjson.dumps(data)))
        await response.write_eof()
        return response

    return handler


def _frame(kind: str, payload: bytes) -> bytes:
    headers = b""
    for name, value in ((":event-type", kind), (":content-type", "application/json"), (":message-type", "event")):
        headers += bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return whole + struct.pack(">I", zlib.crc32(whole))
