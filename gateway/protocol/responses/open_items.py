"""Output items that a stream is writing, and the events that they cause. Sans-io."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import orjson

from gateway.protocol.responses.custom_input import CustomInput
from gateway.protocol.responses.output import (
    NO_ARGUMENTS,
    call_item,
    message_item,
    reasoning_item,
    refusal_part,
    text_part,
)

if TYPE_CHECKING:
    from gateway.protocol.body import Json
    from gateway.protocol.responses.output import ItemStatus
    from gateway.protocol.responses.tools import CalledTool


class EventLog:
    """The events that are not sent yet, with their numbers."""

    __slots__ = ("_events", "_next")

    def __init__(self) -> None:
        self._events: list[bytes] = []  # whole events, and parts of large ones
        self._next = 0

    def add(self, kind: str, fields: Json) -> None:
        data = orjson.dumps({"type": kind, "sequence_number": self._next, **fields})
        self._events.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))
        self._next += 1

    def add_encoded(self, before: bytes, value: bytes) -> None:
        """Add an event from its JSON before the number, and the JSON of its last field after the field's name."""
        self._events.append(b"%b%d%b}\n\n" % (before, self._next, value))
        self._next += 1

    def add_large(self, before: bytes, *parts: bytes) -> None:
        """Add an event as `add_encoded` does. Its value is copied once: copies of a large request take long."""
        self._events += (b"%b%d" % (before, self._next), *parts, b"}\n\n")
        self._next += 1

    def take(self) -> bytes:
        events = self._events
        taken = events[0] if len(events) == 1 else b"".join(events)
        events.clear()
        return taken


class OpenItem:
    """An item that is not done. `final` is the item after `done`."""

    __slots__ = ("_log", "final", "id", "index")

    def __init__(self, log: EventLog, item_id: str, index: int) -> None:
        self._log, self.id, self.index = log, item_id, index
        self.final: Json | None = None

    def item(self, status: ItemStatus) -> Json:
        """Return the item with everything that was written."""
        raise NotImplementedError

    def done(self, status: ItemStatus) -> None:
        """End the item."""
        if self.final is None:
            self._end_parts()
            self.final = self.item(status)
            self._log.add("response.output_item.done", {"output_index": self.index, "item": self.final})

    def _end_parts(self) -> None:
        """End what the item contains."""

    def _begin(self, item: Json) -> None:
        self._log.add("response.output_item.added", {"output_index": self.index, "item": item})

    def _add(self, kind: str, fields: Json) -> None:
        self._log.add(kind, {"item_id": self.id, "output_index": self.index, **fields})


class OpenMessage(OpenItem):
    """A message. Its parts follow one another: text, and a refusal."""

    __slots__ = ("_before_delta", "_logprobs", "_part", "_parts", "_texts")

    def __init__(self, log: EventLog, item_id: str, index: int) -> None:
        super().__init__(log, item_id, index)
        self._parts: list[Json] = []
        self._texts: list[str] = []
        self._logprobs: list[Json] = []
        self._part: str | None = None  # the open part: text or refusal
        self._before_delta = b""
        self._begin(message_item(item_id, [], "in_progress"))

    def add_text(self, text: str, logprobs: list[Json] | None = None) -> None:
        if self._part != "text":
            self._begin_part("text", text_part("", []))
            name = b'"item_id":"%b","output_index":%d,"content_index":%d' % (
                self.id.encode(),
                self.index,
                len(self._parts),
            )
            self._before_delta = (
                b"event: response.output_text.delta\n"
                b'data: {"type":"response.output_text.delta",%b,"logprobs":[],"sequence_number":' % name
            )
        self._texts.append(text)
        if logprobs:
            self._logprobs += logprobs
            fields = {"content_index": len(self._parts), "delta": text, "logprobs": logprobs}
            self._add("response.output_text.delta", fields)
        else:
            self._log.add_encoded(self._before_delta, b',"delta":' + orjson.dumps(text))

    def add_refusal(self, text: str) -> None:
        if self._part != "refusal":
            self._begin_part("refusal", refusal_part(""))
        self._texts.append(text)
        self._add("response.refusal.delta", {"content_index": len(self._parts), "delta": text})

    def item(self, status: ItemStatus) -> Json:
        parts = self._parts if self._part is None else [*self._parts, self._written()]
        return message_item(self.id, parts, status)

    def _begin_part(self, kind: str, part: Json) -> None:
        self._end_parts()
        self._part = kind
        self._add("response.content_part.added", {"content_index": len(self._parts), "part": part})

    def _end_parts(self) -> None:
        if self._part is None:
            return
        index, part = {"content_index": len(self._parts)}, self._written()
        if self._part == "text":
            fields = {"text": part["text"], "logprobs": self._logprobs}
            self._add("response.output_text.done", {**index, **fields})
        else:
            self._add("response.refusal.done", {**index, "refusal": part["refusal"]})
        self._add("response.content_part.done", {**index, "part": part})
        self._parts.append(part)
        self._part, self._texts, self._logprobs = None, [], []

    def _written(self) -> Json:
        text = "".join(self._texts)
        return text_part(text, self._logprobs) if self._part == "text" else refusal_part(text)


class OpenReasoning(OpenItem):
    """A reasoning item: its text is a summary if the client requested one, else content."""

    __slots__ = ("_as_summary", "_encoded", "_texts")

    def __init__(self, log: EventLog, item_id: str, index: int, *, as_summary: bool, encoded: bool) -> None:
        super().__init__(log, item_id, index)
        self._texts: list[str] = []
        self._as_summary, self._encoded = as_summary, encoded
        self._begin(reasoning_item(item_id, "", "in_progress", as_summary=as_summary, encoded=False))
        self._part_event("added", "")

    def add_text(self, text: str) -> None:
        self._texts.append(text)
        self._text_event("delta", {"delta": text})

    def item(self, status: ItemStatus) -> Json:
        text = "".join(self._texts)
        return reasoning_item(self.id, text, status, as_summary=self._as_summary, encoded=self._encoded)

    def _end_parts(self) -> None:
        text = "".join(self._texts)
        self._text_event("done", {"text": text})
        self._part_event("done", text)

    def _text_event(self, step: str, fields: Json) -> None:
        kind, place = ("reasoning_summary_text", "summary_index") if self._as_summary else _CONTENT
        self._add(f"response.{kind}.{step}", {place: 0, **fields})

    def _part_event(self, step: str, text: str) -> None:
        if self._as_summary:
            part = {"type": "summary_text", "text": text}
            self._add(f"response.reasoning_summary_part.{step}", {"summary_index": 0, "part": part})
        else:
            part = {"type": "reasoning_text", "text": text}
            self._add(f"response.content_part.{step}", {"content_index": 0, "part": part})


_CONTENT = ("reasoning_text", "content_index")


class OpenCall(OpenItem):
    """The call of a tool that the client runs."""

    __slots__ = ("_arguments", "_custom", "_tool", "call_id")

    def __init__(self, log: EventLog, item_id: str, index: int, call_id: str, tool: CalledTool) -> None:
        super().__init__(log, item_id, index)
        self._arguments: list[str] = []
        self._custom = CustomInput() if tool.kind == "custom" else None
        self._tool, self.call_id = tool, call_id
        self._begin(call_item(item_id, call_id, tool, "", "in_progress"))

    @property
    def arguments(self) -> str:
        return "".join(self._arguments)

    def add(self, arguments: str) -> None:
        self._arguments.append(arguments)
        if self._custom is not None:
            self._input_delta(self._custom.feed(arguments))
        elif self._tool.kind == "function":
            self._add("response.function_call_arguments.delta", {"delta": arguments})

    def done(self, status: ItemStatus) -> None:
        if self.final is None and status == "completed" and self._tool.kind == "function" and not self._arguments:
            self.add(NO_ARGUMENTS)
        super().done(status)

    def done_if_complete(self) -> None:
        """End the call if its arguments are complete. Some engines write several calls at the same time."""
        if self.final is None:
            with suppress(orjson.JSONDecodeError):
                orjson.loads(self.arguments)
                self.done("completed")

    def item(self, status: ItemStatus) -> Json:
        value = self.arguments if self._custom is None else self._custom.text
        return call_item(self.id, self.call_id, self._tool, value, status)

    def _end_parts(self) -> None:
        if self._custom is not None:
            self._input_delta(self._custom.finish())
            self._add("response.custom_tool_call_input.done", {"input": self._custom.text})
        elif self._tool.kind == "function":
            fields = {"name": self._tool.name, "arguments": self.arguments}
            self._add("response.function_call_arguments.done", fields)

    def _input_delta(self, text: str) -> None:
        if text:
            self._add("response.custom_tool_call_input.delta", {"delta": text})
