"""Read the server-sent events of /v1/responses and /v1/messages, strictly."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson


class Event(NamedTuple):
    """A named event and its JSON."""

    name: str
    data: dict[str, Any]


def read_events(raw: bytes) -> list[Event]:
    """Return the events of a whole stream.

    Each event has exactly a name and one line of JSON whose `type` is the name. [DONE] may follow the last event: Open
    Responses requires it, OpenAI's and Anthropic's own APIs do not send it.
    """
    assert raw.endswith(b"\n\n"), f"the last event has no end: {raw[-200:]!r}"
    events: list[Event] = []
    for block in raw.removesuffix(b"data: [DONE]\n\n").removesuffix(b"\n\n").split(b"\n\n"):
        lines = block.split(b"\n")
        assert len(lines) == 2, f"an event with other lines than 'event' and 'data': {block[:300]!r}"
        assert lines[0].startswith(b"event: "), block[:300]
        assert lines[1].startswith(b"data: "), block[:300]
        name, data = lines[0].removeprefix(b"event: ").decode(), orjson.loads(lines[1].removeprefix(b"data: "))
        assert data.get("type") == name, f"event {name!r} with the type {data.get('type')!r}"
        events.append(Event(name, data))
    return events
