"""Check the events of a streamed response: order, numbers, ids and texts."""

from __future__ import annotations

from typing import Any

import orjson

_FINAL = ("response.completed", "response.incomplete", "response.failed")
# The events of a part: of its beginning, its text, the end of its text, and its end.
_PARTS = {
    "output_text": ("content_part", "output_text", "text"),
    "refusal": ("content_part", "refusal", "refusal"),
    "reasoning_text": ("content_part", "reasoning_text", "text"),
    "summary_text": ("reasoning_summary_part", "reasoning_summary_text", "text"),
}
_CALLS = {
    "function_call": ("function_call_arguments", "arguments"),
    "custom_tool_call": ("custom_tool_call_input", "input"),
    "tool_search_call": (None, None),
}


def events_of(sent: bytes) -> list[dict[str, Any]]:
    """Return the data of the events. Each has its type as its name."""
    events = []
    for event in sent.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        events.append(orjson.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def check(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Check all events of a stream, and return the final response."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    created, final = events[0]["response"], events[-1]["response"]
    assert created == events[1]["response"]
    assert created["output"] == []
    assert created["status"] == "in_progress"
    assert events[-1]["type"] == f"response.{final['status']}"
    assert events[-1]["type"] in _FINAL
    assert {name: created[name] for name in ("id", "model", "created_at", "tools")} == {
        name: final[name] for name in ("id", "model", "created_at", "tools")
    }
    items: dict[int, list[dict[str, Any]]] = {}
    for event in events[2:-1]:
        assert event["type"] not in _FINAL
        items.setdefault(event["output_index"], []).append(event)
    assert sorted(items) == list(range(len(final["output"])))
    ids = [item["id"] for item in final["output"]]
    assert len(set(ids)) == len(ids)
    for index, item in enumerate(final["output"]):
        _check_item(items[index], item, final["status"])
    return dict(final)


def _check_item(events: list[dict[str, Any]], item: dict[str, Any], status: str) -> None:
    added = events[0]
    assert added["type"] == "response.output_item.added"
    assert (added["item"]["id"], added["item"]["type"]) == (item["id"], item["type"])
    assert added["item"]["status"] == "in_progress"
    assert all(event["item_id"] == item["id"] for event in events[1:] if "item" not in event)
    done = events[-1]
    if done["type"] == "response.output_item.done":
        assert done["item"] == item
        events = events[:-1]
    else:
        assert status == "failed"
        assert item["status"] == "incomplete"
    if item["type"] in _CALLS:
        _check_call(events[1:], item, complete=done["type"] == "response.output_item.done")
    else:
        _check_parts(events[1:], item, complete=done["type"] == "response.output_item.done")


def _check_call(events: list[dict[str, Any]], item: dict[str, Any], *, complete: bool) -> None:
    name, field = _CALLS[item["type"]]
    if name is None:
        assert events == []
        return
    if complete:
        assert events[-1]["type"] == f"response.{name}.done"
        assert events[-1][field] == item[field]
        events = events[:-1]
    assert all(event["type"] == f"response.{name}.delta" for event in events)
    assert "".join(event["delta"] for event in events) == item[field]


def _check_parts(events: list[dict[str, Any]], item: dict[str, Any], *, complete: bool) -> None:
    """Check that the parts follow one another, and that the deltas of each give its text."""
    parts = [*item.get("content", ()), *item.get("summary", ())]
    for index, part in enumerate(parts):
        ends, texts, field = _PARTS[part["type"]]
        place = "summary_index" if part["type"] == "summary_text" else "content_index"
        begin = events.pop(0)
        assert (begin["type"], begin[place]) == (f"response.{ends}.added", index)
        assert begin["part"] == {**part, field: "", **({"logprobs": []} if "logprobs" in part else {})}
        deltas = []
        while events and events[0]["type"] == f"response.{texts}.delta":
            deltas.append(events.pop(0))
        assert all(delta[place] == index for delta in deltas)
        assert "".join(delta["delta"] for delta in deltas) == part[field]
        if "logprobs" in part:
            assert [one for delta in deltas for one in delta["logprobs"]] == part["logprobs"]
        if complete or index < len(parts) - 1:
            end_of_text, end = events.pop(0), events.pop(0)
            assert (end_of_text["type"], end_of_text[field]) == (f"response.{texts}.done", part[field])
            assert (end["type"], end["part"], end[place]) == (f"response.{ends}.done", part, index)
    assert events == []
