"""Write a reply in Anthropic's format: a message, or the events of its stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import orjson

from gateway.errors import EngineProtocolError
from gateway.protocol.anthropic.errors import anthropic_error
from gateway.protocol.anthropic.output import (
    MessageStop,
    message_head,
    message_of,
    thinking_parts,
    tool_id,
    usage_of,
)
from gateway.protocol.content_run import ContentRun
from gateway.protocol.messages import function_of, reasoning_of, text_of, tool_calls_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.errors import GatewayError
    from gateway.protocol.anthropic.blocks import Json
    from gateway.protocol.content_run import ChunkGroup

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
_DELTA_END = b"}}\n\n"
_NO_USAGE: Json = {"prompt_tokens": 0, "completion_tokens": 0}


class MessagesWriter:
    """Writes one reply. A stream has one block at a time: each begins, grows and ends before the next one.

    Calls that an engine writes at the same time follow each other. `stops` are the caller's stop sequences. Without
    `shows_thinking`, reasoning becomes pings. `input_tokens` is the prompt's count for the first event.
    """

    __slots__ = ("_before", "_call", "_calls", "_facts", "_finish", "_id", "_index", "_is_refused", "_kind",
                 "_model", "_shows_thinking", "_stops", "_usage", "_waiting", "input_tokens")  # fmt: skip

    def __init__(self, request_id: str, stops: Sequence[str], *, shows_thinking: bool) -> None:
        self._id, self._stops, self._shows_thinking = request_id, stops, shows_thinking
        self.input_tokens = 0  # 0: unknown
        self._model: str | None = None  # None: the stream has not begun
        self._index = -1  # of the newest block
        self._kind: Literal["text", "thinking", "tool_use"] | None = None  # of the open block; None: none is open
        self._before = b""  # the open block's delta up to its text
        self._calls: dict[int, _Call] = {}  # by the engine's index
        self._call: _Call | None = None  # of the open block
        self._waiting: list[_Call] = []  # calls that began before the open one was complete
        self._is_refused = False
        self._finish: Json | None = None  # the choice that has a finish_reason
        self._usage = _NO_USAGE
        self._facts: Json | None = None

    def reply(self, completion: Json) -> Json:
        return message_of(completion, self._id, self._stops, shows_thinking=self._shows_thinking)

    def events(self, group: ChunkGroup) -> bytes:
        events: list[bytes] = []
        for part in group:
            if isinstance(part, ContentRun):
                if self._model is None:
                    self._begin(events, part.template.chunk["model"])
                if part.template.index == 0:
                    self._text(events, "".join(part.contents))
            else:
                self._chunk(events, part)
        return b"".join(events)

    def end(self) -> bytes:
        events: list[bytes] = []
        if self._model is None:
            self._begin(events, "")
        for call in self._waiting:
            self._begin_call(events, call)
        self._close(events)
        finish = self._finish or {"finish_reason": "stop"}
        has_calls = any(call.is_open for call in self._calls.values())
        stop = MessageStop.of(finish, self._stops, has_calls=has_calls, is_refused=self._is_refused)
        delta = {"stop_reason": stop.reason, "stop_sequence": stop.sequence}
        last: Json = {"type": "message_delta", "delta": delta, "usage": usage_of(self._usage)}
        if self._facts is not None:
            last["gkt"] = self._facts
        events += (_event(b"message_delta", last), _STOP)
        return b"".join(events)

    def failed(self, error: GatewayError) -> bytes:
        return _event(b"error", anthropic_error(error, self._id))

    def _chunk(self, events: list[bytes], chunk: Json) -> None:
        if self._model is None:
            self._begin(events, chunk["model"])
        if chunk.get("usage"):
            self._usage, self._facts = chunk["usage"], chunk.get("gkt")
        for choice in chunk["choices"]:
            if choice.get("index", 0) != 0:
                continue
            delta = choice.get("delta") or {}
            self._reasoning(events, delta)
            self._text(events, text_of(delta.get("content")))
            if refusal := delta.get("refusal"):
                self._is_refused = True
                self._text(events, refusal)
            for call in tool_calls_of(delta):
                self._tool_call(events, call)
            if choice.get("finish_reason"):
                self._finish = choice

    def _begin(self, events: list[bytes], model: str) -> None:
        self._model = model
        head = message_head(self._id, model, self.input_tokens)
        events += (_event(b"message_start", {"type": "message_start", "message": head}), PING)

    def _open(self, events: list[bytes], kind: Literal["text", "thinking", "tool_use"], block: Json) -> None:
        """End the open block, and begin the next one."""
        self._close(events)
        self._kind, self._index = kind, self._index + 1
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        events.append(_event(b"content_block_start", start))

    def _close(self, events: list[bytes]) -> None:
        if self._kind is not None:
            events.append(_event(b"content_block_stop", {"type": "content_block_stop", "index": self._index}))
            self._kind = self._call = None

    def _delta(self, kind: bytes, field: bytes) -> bytes:
        return _DELTA % (self._index, kind, field)

    def _text(self, events: list[bytes], text: str | None) -> None:
        if not text:
            return
        if self._kind != "text":
            self._open(events, "text", {"type": "text", "text": ""})
            self._before = self._delta(b"text_delta", b"text")
        events.append(self._before + orjson.dumps(text) + _DELTA_END)

    def _reasoning(self, events: list[bytes], delta: Json) -> None:
        blocks, reasoning = thinking_parts(delta), reasoning_of(delta)
        if not blocks and not reasoning:
            return
        if not self._shows_thinking:
            events.append(PING)
            return
        if not blocks:
            self._thinking(events, b"thinking", reasoning)
        for block in blocks:
            if block["type"] == "redacted_thinking":
                self._open(events, "thinking", block)
                self._close(events)
                continue
            self._thinking(events, b"thinking", block["thinking"])
            if block["signature"]:
                self._thinking(events, b"signature", block["signature"])
                self._close(events)

    def _thinking(self, events: list[bytes], field: Literal[b"thinking", b"signature"], text: str | None) -> None:
        if not text:
            return
        if self._kind != "thinking":
            self._open(events, "thinking", {"type": "thinking", "thinking": "", "signature": ""})
        events.append(self._delta(field + b"_delta", field) + orjson.dumps(text) + _DELTA_END)

    def _tool_call(self, events: list[bytes], delta: Json) -> None:
        """Write a part of a call. The first one has its name, and usually its id."""
        name, arguments = function_of(delta)
        number, given_id = delta.get("index"), delta.get("id")
        index = number if isinstance(number, int) else 0  # some engines send none
        call = self._calls.get(index)
        if call is None or (given_id and call.id and given_id != call.id):  # some engines number each call 0
            call = self._calls[index] = _Call()
        call.id = call.id or given_id or ""
        call.name = call.name or name
        call.held += arguments
        if call.is_open:
            self._arguments(events, call)
        elif call.name and call not in self._waiting:
            self._waiting.append(call)
        while self._waiting and (self._call is None or self._call.is_complete()):
            self._begin_call(events, self._waiting.pop(0))

    def _begin_call(self, events: list[bytes], call: _Call) -> None:
        call.is_open = True
        call.id = call.id or tool_id(self._id, self._index + 1)
        self._open(events, "tool_use", {"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        self._call, self._before = call, self._delta(b"input_json_delta", b"partial_json")
        self._arguments(events, call)

    def _arguments(self, events: list[bytes], call: _Call) -> None:
        """Write the arguments that a call holds. Its block must be open."""
        if not call.held:
            return
        if call is not self._call:
            if call.held.isspace():
                return
            raise EngineProtocolError(
                "The engine continued a tool call after another block had begun.", engine=self._model or ""
            )
        events.append(self._before + orjson.dumps(call.held) + _DELTA_END)
        call.written, call.held = call.written + call.held, ""


class _Call:
    """A tool call. `held` are arguments that arrived before the name, or while another call was written."""

    __slots__ = ("held", "id", "is_open", "name", "written")

    def __init__(self) -> None:
        self.id = self.name = self.held = self.written = ""
        self.is_open = False

    def is_complete(self) -> bool:
        """Return whether the written arguments are a JSON object."""
        if not self.written.rstrip().endswith("}"):
            return False
        try:
            orjson.loads(self.written)
        except orjson.JSONDecodeError:
            return False
        return True


def _event(name: bytes, data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, orjson.dumps(data))
