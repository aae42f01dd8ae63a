"""Check the event grammar of /v1/messages: order, indexes, and that events add up to a message.

The rules follow Anthropic's description of its streaming events; the code under test is not used.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conformance.sse import Event

# Deltas: the type of their block, and the field that they extend.
_DELTAS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("thinking", "signature"),
    "input_json_delta": ("tool_use", "partial_json"),
}


class MessagesGrammar:
    """Reads the events of one stream in order. `message` is the message that they add up to."""

    def __init__(self) -> None:
        self.message: dict[str, Any] = {}
        self.error: dict[str, Any] | None = None
        self._open: dict[str, Any] | None = None
        self._partial: list[str] = []
        self._stopped = self._has_reason = False

    def read(self, events: Sequence[Event]) -> dict[str, Any]:
        """Check a whole stream; return its message. `error` is the error of a stream that failed."""
        assert events[0].name == "message_start"
        for name, data in events:
            assert not self._stopped, f"{name} after message_stop"
            assert self.error is None, f"{name} after an error"
            if name != "ping":
                getattr(self, f"_{name}", self._unknown)(data)
        assert self._stopped or self.error is not None, f"the stream ends with {events[-1].name}"
        return self.message

    def _unknown(self, data: dict[str, Any]) -> None:
        raise AssertionError(f"no such event in this grammar: {data['type']}")

    def _message_start(self, data: dict[str, Any]) -> None:
        assert not self.message, "the message starts twice"
        self.message = copy.deepcopy(data["message"])
        assert self.message["content"] == []
        assert self.message["stop_reason"] is None
        assert self.message["stop_sequence"] is None

    def _content_block_start(self, data: dict[str, Any]) -> None:
        assert self._open is None, "a block starts before the end of the one before"
        assert not self._has_reason, "a block starts after message_delta"
        assert data["index"] == len(self.message["content"]), "indexes count blocks in order"
        self._open, self._partial = copy.deepcopy(data["content_block"]), []
        empty = {"text": "", "thinking": "", "signature": "", "input": {}}
        for field, value in empty.items():
            assert self._open.get(field, value) == value, f"a block starts with {field}: deltas follow for it"
        self.message["content"].append(self._open)

    def _content_block_delta(self, data: dict[str, Any]) -> None:
        assert self._open is not None, "a delta outside a block"
        assert data["index"] == len(self.message["content"]) - 1
        delta = data["delta"]
        kind, field = _DELTAS[delta["type"]]
        assert self._open["type"] == kind, f"{delta['type']} in a block of the type {self._open['type']}"
        if field == "partial_json":
            self._partial.append(delta[field])
        else:
            self._open[field] = self._open.get(field, "") + delta[field]

    def _content_block_stop(self, data: dict[str, Any]) -> None:
        assert self._open is not None, "a block stops that did not start"
        assert data["index"] == len(self.message["content"]) - 1
        if self._open["type"] == "tool_use" and (partial := "".join(self._partial)):
            self._open["input"] = orjson.loads(partial)
        self._open = None

    def _message_delta(self, data: dict[str, Any]) -> None:
        assert self._open is None, "message_delta within a block"
        assert not self._has_reason, "message_delta twice"
        self._has_reason = True
        assert data["delta"]["stop_reason"] is not None
        self.message |= data["delta"]
        self.message["usage"] |= {name: value for name, value in data["usage"].items() if value is not None}

    def _message_stop(self, _: dict[str, Any]) -> None:
        assert self._has_reason, "message_stop before message_delta"
        self._stopped = True

    def _error(self, data: dict[str, Any]) -> None:
        self.error = data["error"]
        assert self.error["type"]
        assert self.error["message"]
