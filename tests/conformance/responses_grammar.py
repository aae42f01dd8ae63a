"""Check the event grammar of /v1/responses: order, sequence numbers, ids, and that deltas add up to final values.

The rules follow OpenAI's description of its streaming events and what clients rely on; the code under test is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conformance.sse import Event

FINAL = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
}
"""Final events and the status of their response."""

# Part events: the field of the part's index, and the item types that may have such parts.
_PARTS = {
    "response.content_part": ("content_index", {"message", "reasoning"}),
    "response.reasoning_summary_part": ("summary_index", {"reasoning"}),
}
# Texts of parts: the event's stem, the part's type, the field of the part and of the done event, the index field.
_TEXTS = {
    "response.output_text": ("output_text", "text", "content_index"),
    "response.refusal": ("refusal", "refusal", "content_index"),
    "response.reasoning_text": ("reasoning_text", "text", "content_index"),
    "response.reasoning_summary_text": ("summary_text", "text", "summary_index"),
}
# Texts of items: the event's stem, the item's type, the field of the item and of the done event.
_INPUTS = {
    "response.function_call_arguments": ("function_call", "arguments"),
    "response.custom_tool_call_input": ("custom_tool_call", "input"),
}


class _Part:
    """A part of an open item."""

    def __init__(self, part: dict[str, Any]) -> None:
        self.kind: str = part["type"]
        self.deltas: list[str] = []
        self.logprobs: list[Any] = []
        self.text: str | None = None  # of the done event
        self.done: dict[str, Any] | None = None


class _Item:
    """An open item."""

    def __init__(self, item: dict[str, Any]) -> None:
        self.added = item
        self.parts: dict[str, list[_Part]] = {"content_index": [], "summary_index": []}
        self.deltas: list[str] = []
        self.text: str | None = None
        self.done: dict[str, Any] | None = None


class ResponsesGrammar:
    """Reads the events of one stream in order. `final` is the final response afterwards."""

    def __init__(self) -> None:
        self._items: list[_Item] = []
        self._first: dict[str, Any] = {}
        self.final: dict[str, Any] | None = None

    def read(self, events: Sequence[Event]) -> dict[str, Any]:
        """Check a whole stream; return its final response."""
        assert [event.name for event in events[:2]] == ["response.created", "response.in_progress"]
        for number, (name, data) in enumerate(events):
            assert data["sequence_number"] == number, f"{name}: sequence number {data['sequence_number']}, not {number}"
            assert self.final is None, f"{name} after the final event"
            if number < 2:
                self._begin(data["response"])
            elif name in FINAL:
                self._end(name, data["response"])
            else:
                self._step(name, data)
        assert self.final is not None, f"no final event; the last one is {events[-1].name}"
        return self.final

    def _begin(self, response: dict[str, Any]) -> None:
        assert response["status"] == "in_progress"
        assert response["output"] == []
        assert response.get("usage") is None, "usage is known at the end only"
        if self._first:
            assert response == self._first, "response.in_progress differs from response.created"
        self._first = response

    def _step(self, name: str, data: dict[str, Any]) -> None:
        stem, _, verb = name.rpartition(".")
        steps: dict[str, Callable[[str, str, dict[str, Any]], None]] = {"response.output_item": self._item}
        steps |= (
            dict.fromkeys(_PARTS, self._part) | dict.fromkeys(_TEXTS, self._text) | dict.fromkeys(_INPUTS, self._input)
        )
        assert stem in steps, f"no such event in this grammar: {name}"
        steps[stem](stem, verb, data)

    def _open_item(self, name: str, data: dict[str, Any]) -> _Item:
        index = data["output_index"]
        assert 0 <= index < len(self._items), f"{name} for an item that was not added: {index}"
        item = self._items[index]
        assert item.done is None, f"{name} for an item that is done: {index}"
        assert data["item_id"] == item.added["id"], f"{name}: id {data['item_id']}, but {item.added['id']} was added"
        return item

    def _item(self, _: str, verb: str, data: dict[str, Any]) -> None:
        item = data["item"]
        if verb == "added":
            assert data["output_index"] == len(self._items), "output indexes count items in order"
            assert item["id"] not in {one.added["id"] for one in self._items}, "two items have one id"
            assert item.get("status", "in_progress") == "in_progress"
            for field in ("content", "summary"):
                assert not item.get(field), f"an added item with {field}: events follow for it"
            for field in ("arguments", "input"):
                assert not item.get(field), f"an added item with {field}: deltas follow for it"
            self._items.append(_Item(item))
            return
        assert verb == "done"
        opened = self._open_item("response.output_item.done", {**data, "item_id": item["id"]})
        opened.done = item
        assert item.get("status", "completed") in {"completed", "incomplete"}
        same = ("type", "role", "name", "call_id", "namespace", "phase")
        assert [item.get(field) for field in same] == [opened.added.get(field) for field in same]
        for index_field, field in (("content_index", "content"), ("summary_index", "summary")):
            parts = opened.parts[index_field]
            assert all(part.done is not None for part in parts), "the item is done before one of its parts"
            assert [part.done for part in parts] == (item.get(field) or []), f"{field} differs from the parts' events"
        for kind, field in _INPUTS.values():
            if item["type"] == kind:
                assert opened.text is not None, f"an item is done before its {field}"
                assert item[field] == opened.text

    def _part(self, stem: str, verb: str, data: dict[str, Any]) -> None:
        index_field, kinds = _PARTS[stem]
        item = self._open_item(f"{stem}.{verb}", data)
        assert item.added["type"] in kinds
        parts, part, index = item.parts[index_field], data["part"], data[index_field]
        if verb == "added":
            assert index == len(parts), f"{stem}: part indexes count parts in order"
            assert all(one.done is not None for one in parts), "a part begins before the end of the one before"
            assert part.get("text", part.get("refusal")) == "", "an added part with text: deltas follow for it"
            parts.append(_Part(part))
            return
        assert verb == "done"
        opened = parts[index]
        assert opened.done is None, "a part is done twice"
        assert opened.kind == part["type"]
        text = part["refusal"] if opened.kind == "refusal" else part["text"]
        assert opened.text is not None, "a part is done before its text"
        assert text == opened.text
        if opened.kind == "output_text":
            assert (part.get("logprobs") or []) == opened.logprobs, "logprobs differ from those of the deltas"
        opened.done = part

    def _text(self, stem: str, verb: str, data: dict[str, Any]) -> None:
        kind, field, index_field = _TEXTS[stem]
        item = self._open_item(f"{stem}.{verb}", data)
        parts = item.parts[index_field]
        assert 0 <= data[index_field] < len(parts), f"{stem}.{verb} for a part that was not added"
        part = parts[data[index_field]]
        assert part.kind == kind, f"{stem}.{verb} in a part of the type {part.kind}"
        assert part.text is None, f"{stem}.{verb} after the part's text is done"
        if verb == "delta":
            assert isinstance(data["delta"], str)
            part.deltas.append(data["delta"])
            part.logprobs += data.get("logprobs") or []
            return
        assert verb == "done"
        assert data[field] == "".join(part.deltas), f"{stem}: the deltas add up to another text"
        if kind == "output_text":
            assert (data.get("logprobs") or []) == part.logprobs, "logprobs differ from those of the deltas"
        part.text = data[field]

    def _input(self, stem: str, verb: str, data: dict[str, Any]) -> None:
        kind, field = _INPUTS[stem]
        item = self._open_item(f"{stem}.{verb}", data)
        assert item.added["type"] == kind
        assert item.text is None, f"{stem}.{verb} after {field} is done"
        if verb == "delta":
            item.deltas.append(data["delta"])
            return
        assert verb == "done"
        assert data[field] == "".join(item.deltas), f"{stem}: the deltas add up to another text"
        if "name" in data:
            assert data["name"] == item.added["name"]
        item.text = data[field]

    def _end(self, name: str, response: dict[str, Any]) -> None:
        self.final = response
        status = FINAL[name]
        assert response["status"] == status
        for field in ("id", "object", "created_at"):
            assert response[field] == self._first[field], f"{field} changed within the stream"
        assert (response.get("error") is not None) == (status == "failed")
        assert (response.get("incomplete_details") is not None) == (status == "incomplete")
        if status != "failed":
            assert all(item.done is not None for item in self._items), "the response ends before one of its items"
            assert response["usage"]["total_tokens"] >= 0
        assert len(response["output"]) == len(self._items), "the final output has other items than the events"
        for item, last in zip(self._items, response["output"], strict=True):
            if item.done is not None:
                assert last == item.done, "an item of the final output differs from the item that is done"
            else:
                assert (last["id"], last["type"]) == (item.added["id"], item.added["type"])
                assert last.get("status", "incomplete") == "incomplete", "an item of a failed response is complete"
        if status == "completed":
            assert all(item.get("status", "completed") == "completed" for item in response["output"])
