"""What a request asked and what it was answered, for the log of a tenant that wants it there. Bounded, and text alone.

Nothing else may hold it: no receipt, no metric, no error, no Redis.
"""

from __future__ import annotations

import json
from io import StringIO
from typing import TYPE_CHECKING, Any

from gateway.protocol.messages import text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.protocol.body import CallerRequest, Json

MAX_BYTES = 16_000
"""Of what was asked, and of what was answered."""
_MAX_DEPTH = 8
_MAX_DATA_CHARS = 64
_ASKED = ("messages", "prompt", "input")


class LoggedContent:
    """One request's. Listens to the answer as it goes out to the caller."""

    def __init__(self, asked: CallerRequest) -> None:
        raw = next((asked.body[name] for name in _ASKED if name in asked.body), None)
        if isinstance(raw, str):
            self._asked = _bounded(raw[:MAX_BYTES], max(0, len(raw) - MAX_BYTES))
        else:
            # Cut before it is written as JSON: a body may have megabytes, and the caller waits.
            self._asked = _bounded(json.dumps(_Copy().of(raw), ensure_ascii=False))
        self._answers: dict[int, _Answer] = {}
        self._room = MAX_BYTES
        self._more = 0

    def hear(self, replies: Iterable[Json]) -> None:
        """A whole reply, or chunks of one."""
        for reply in replies:
            for choice in reply["choices"]:
                answer = self._answers.setdefault(choice.get("index", 0), _Answer())
                for kind, text in _said(choice):
                    kept = text[: self._room]
                    self._room -= len(kept)
                    self._more += len(text) - len(kept)
                    answer.write(kind, kept)

    def as_dict(self) -> dict[str, str]:
        """For the log line."""
        answers = [answer.text() for _, answer in sorted(self._answers.items())]
        if len(answers) > 1:
            answers = [f"(choice {index}) {text}" for index, text in enumerate(answers)]
        return {
            "asked": self._asked,
            "answered": _bounded("\n".join(answers), self._more),
        }


class _Answer:
    def __init__(self) -> None:
        self._text = StringIO()
        self._kind = "answers"

    def write(self, kind: str, text: str) -> None:
        if not text:
            return
        if kind != self._kind:
            self._text.write(f"\n({kind}) " if self._text.tell() else f"({kind}) ")
            self._kind = kind
        self._text.write(text)

    def text(self) -> str:
        return self._text.getvalue()


def _said(choice: Json) -> Iterator[tuple[str, str]]:
    """The words in a choice of a reply or of a chunk, each with what it is."""
    said = choice.get("delta") or choice.get("message") or {}
    if isinstance(thought := said.get("reasoning_content") or said.get("reasoning"), str):
        yield "thinks", thought
    if text := text_of(said.get("content")) or choice.get("text"):
        yield "answers", text
    if isinstance(refusal := said.get("refusal"), str):
        yield "refuses", refusal
    for call in said.get("tool_calls") or ():
        function = call.get("function") or {}
        for part in (function.get("name"), function.get("arguments")):
            if isinstance(part, str) and part:
                yield "calls", f"{part} " if part == function.get("name") else part


class _Copy:
    """Copies of plain data with no more text than there is room for; what is left out is marked."""

    def __init__(self) -> None:
        self._room = MAX_BYTES

    def of(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict | list) and depth >= _MAX_DEPTH:
            return "(left out)"
        if isinstance(value, dict):
            return {self._text(key): self.of(one, depth + 1) for key, one in self._some(value.items())}
        if isinstance(value, list):
            return [self.of(one, depth + 1) for one in self._some(value)]
        self._room -= len(str(value))
        return value

    def _text(self, text: str) -> str:
        # A picture says nothing here, and would take the room of all words behind it.
        most = _MAX_DATA_CHARS if text.startswith("data:") else self._room
        kept = text[: max(0, most)]
        self._room -= len(kept)
        return kept if len(kept) == len(text) else f"{kept}({len(text) - len(kept)} characters left out)"

    def _some(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            if self._room <= 0:
                return
            self._room -= 1
            yield item


def _bounded(text: str, more: int = 0) -> str:
    """`text` within MAX_BYTES, and how many characters are missing, with the `more` that are already."""
    raw = text.encode("utf-8", "replace")
    if len(raw) > MAX_BYTES:
        kept = raw[:MAX_BYTES].decode("utf-8", "ignore")
        more += len(text) - len(kept)
    else:
        kept = raw.decode()
    return f"{kept}({more} characters left out)" if more else kept
