"""Collect a student's stream into one reply, for a caller that requested JSON. Sans-io.

A streamed call has the timeouts `first_token` and `idle`, and ends at a stop string across the seam. Another engine can
continue it after it broke off. The caller receives nothing before the end, so an answer may also start anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.pipeline.stream import StreamRelay
from gateway.protocol.content_run import ContentRun
from gateway.protocol.reply import ReplyHead, engine_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.guidance.seam import SeamJoin
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.reasoning import ReasoningFilter
    from gateway.protocol.content_run import ChunkGroup

_HEAD = ReplyHead("", 0, "")  # the caller's reply gets its own
_ITEM_CHARS = 100  # the size of an item of a list that arrives whole, such as a token's log-probability; at least
# Some engines repeat these in each delta of a tool call or of reasoning. The others are parts of one text.
_NOT_IN_PARTS = frozenset({"format", "id", "name", "role", "type"})


class CollectingRelay(StreamRelay):
    """Convert a student's chunks as for a stream, and collect them. Nothing is sent before `reply`."""

    def __init__(self) -> None:
        super().__init__(_HEAD, wants_usage=False)
        self.size = 0  # characters of the answers and their other fields
        self._guidance = ""  # the beginning of the first choice
        self._texts: dict[int, list[str]] = {}
        self._content_parts: dict[int, list[_Fields]] = {}  # of choices whose content is a list; they follow the texts
        self._choices: dict[int, Json] = {}
        self._fields: Json = {}

    def join(self, seam: SeamJoin | None, reasoning_filter: ReasoningFilter | None = None) -> list[Json]:
        super().join(seam, reasoning_filter)
        self._shown_chars = 0
        self._guidance = "" if seam is None else seam.initial_text
        return []

    def restart(self) -> bool:
        for collected in (self._roles, self._roles_sent, self._finished, self._choices, self._fields):
            collected.clear()
        self._texts.clear()
        self._content_parts.clear()
        self.finish_reason, self.has_sent_other, self.size = None, False, 0
        return True

    def collect(self, group: ChunkGroup) -> None:
        """Add chunks that this relay converted."""
        for part in group:
            if isinstance(part, ContentRun):
                self._add_texts(part.template.index, part.contents)
                continue
            self._fields.update(engine_fields(part))
            for choice in part["choices"]:
                index = choice["index"]
                kept = self._choices.setdefault(index, _Fields(index=index, message=_Fields()))
                delta = choice.pop("delta")
                if content := delta.pop("content", None):
                    self._add_texts(index, content if isinstance(content, list) else [content])
                # Texts of a choice, such as the severity that a content filter found, are repeated in each chunk.
                self.size += _merge(kept["message"], delta) + _merge(kept, choice, in_parts=False)

    def reply(self) -> Json:
        """Return the reply with all chunks so far."""
        self._texts.setdefault(0, []).insert(0, self._guidance)
        for index, choice in self._choices.items():
            message, content = choice["message"], self._content(index)
            message.setdefault("role", "assistant")  # the chunk with the role may have had the guidance
            message["content"] = content if content or not message.get("tool_calls") else None
        choices = [_whole(self._choices[index]) for index in sorted(self._choices)]
        for choice in choices:
            calls = choice["message"].get("tool_calls")
            for call in calls if isinstance(calls, list) else ():
                if isinstance(call, dict):
                    call.pop("index", None)
        return {**self._fields, "choices": choices}

    def _add_texts(self, index: int, contents: Sequence[Any]) -> None:
        """Add texts, or parts of a content that is a list, such as the thoughts of Mistral's models."""
        parts = self._content_parts.get(index)
        if parts is None:
            if all(isinstance(one, str) for one in contents):
                self._texts.setdefault(index, []).extend(contents)
                self.size += sum(map(len, contents))
                return
            parts = self._content_parts[index] = []
        for one in contents:
            part = {"type": "text", "text": one} if isinstance(one, str) else one
            if not isinstance(part, dict):
                continue
            if not parts or parts[-1].get("type") != part.get("type"):
                parts.append(_Fields())
            self.size += _merge(parts[-1], part)

    def _content(self, index: int) -> str | list[Any]:
        """Return the content of a choice: a text, or a list of parts if the engine sent parts."""
        text, parts = "".join(self._texts.get(index, ())), self._content_parts.get(index)
        if parts is None:
            return text
        return [*([{"type": "text", "text": text}] if text else ()), *map(_whole, parts)]


class _Parts(list[str]):
    """The parts of one text."""


class _Fields(dict[str, Any]):
    """An object whose fields arrive in parts."""


def _merge(into: Json, fields: Json, *, in_parts: bool = True) -> int:
    """Add the fields of one delta, and return their size in characters. Lists continue.

    Texts continue, too, if they arrive `in_parts`. Otherwise the last one counts. The fields of an item with an
    `index`, such as a tool call, continue the item with the same one.
    """
    size = 0
    for name, value in fields.items():
        known = into.get(name)
        if value is None or value == "":
            into.setdefault(name, value)
        elif isinstance(value, str) and not in_parts:
            into[name] = value
        elif isinstance(value, str) and name not in _NOT_IN_PARTS:
            if not isinstance(known, _Parts):
                into[name] = known = _Parts()
            known.append(value)
            size += len(value)
        elif isinstance(value, dict):
            if not isinstance(known, dict):
                into[name] = known = _Fields()
            size += _merge(known, value, in_parts=in_parts)
        elif isinstance(value, list):
            if not isinstance(known, list) or isinstance(known, _Parts):
                into[name] = known = []
            size += _extend(known, value)
        elif not known:
            into[name] = value
    return size


def _extend(known: list[Any], items: list[Any]) -> int:
    size = 0
    for item in items:
        index = item.get("index") if isinstance(item, dict) else None
        if index is None:
            known.append(item)
            size += _ITEM_CHARS
            continue
        same = next((one for one in known if isinstance(one, _Fields) and one["index"] == index), None)
        if same is None:
            known.append(same := _Fields())
        size += _merge(same, item)
    return size


def _whole(value: Any) -> Any:
    """Return a value with its texts joined. Items that arrived whole, such as log-probabilities, are not read."""
    if isinstance(value, _Parts):
        return "".join(value)
    if isinstance(value, _Fields):
        return {name: _whole(part) for name, part in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], _Fields):
        return [_whole(item) for item in value]
    return value
