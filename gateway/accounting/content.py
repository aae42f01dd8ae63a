"""The text of a request and its answer, for the log of a tenant that enables it. The size is bounded.

No receipt, metric, error or Redis key may contain this text.
"""

from __future__ import annotations

import json
from io import StringIO
from typing import TYPE_CHECKING, Any

from gateway.protocol.messages import text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.protocol.body import Json
    from gateway.protocol.requests import AnyRequest

MAX_BYTES = 16_000
"""The size limit of the request's text, and of the answer's text."""
_MAX_DEPTH = 8
_MAX_DATA_CHARS = 64
_REQUEST_FIELDS = ("messages", "prompt", "input")


class LoggedContent:
    """The text of one request and of its answer, collected while it is sent to the caller."""

    def __init__(self, request: AnyRequest) -> None:
        raw = next((request.body[name] for name in _REQUEST_FIELDS if name in request.body), None)
        if isinstance(raw, str):
            self._request = _bounded(raw[:MAX_BYTES], max(0, len(raw) - MAX_BYTES))
        else:
            # Truncate before encoding: a body may have megabytes, and the caller waits.
            self._request = _bounded(json.dumps(_Copy().of(raw), ensure_ascii=False))
        self._answers: dict[int, _Answer] = {}
        self._bytes_left = MAX_BYTES
        self._omitted = 0

    def add(self, replies: Iterable[Json]) -> None:
        """Add a whole reply, or chunks of one."""
        for reply in replies:
            for choice in reply["choices"]:
                answer = self._answers.setdefault(choice.get("index", 0), _Answer())
                for kind, text in _texts_of(choice):
                    kept = text[: self._bytes_left]
                    self._bytes_left -= len(kept)
                    self._omitted += len(text) - len(kept)
                    answer.add(kind, kept)

    def as_dict(self) -> dict[str, str]:
        """Return the fields for the log line."""
        answers = [answer.getvalue() for _, answer in sorted(self._answers.items())]
        if len(answers) > 1:
            answers = [f"(choice {index}) {text}" for index, text in enumerate(answers)]
        return {"request": self._request, "answer": _bounded("\n".join(answers), self._omitted)}


class _Answer(StringIO):
    kind = "answers"

    def add(self, kind: str, text: str) -> None:
        if text and kind != self.kind:
            self.write(f"\n({kind}) " if self.tell() else f"({kind}) ")
            self.kind = kind
        self.write(text)


def _texts_of(choice: Json) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) for each text in a choice of a reply or chunk."""
    message = choice.get("delta") or choice.get("message") or {}
    if isinstance(reasoning := message.get("reasoning_content") or message.get("reasoning"), str):
        yield "thinks", reasoning
    if text := text_of(message.get("content")) or choice.get("text"):
        yield "answers", text
    if isinstance(refusal := message.get("refusal"), str):
        yield "refuses", refusal
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        for part in (function.get("name"), function.get("arguments")):
            if isinstance(part, str) and part:
                yield "calls", f"{part} " if part == function.get("name") else part


class _Copy:
    """Copy plain data until the size limit is reached. Omitted parts are marked."""

    def __init__(self) -> None:
        self._bytes_left = MAX_BYTES

    def of(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict | list) and depth >= _MAX_DEPTH:
            return "(left out)"
        if isinstance(value, dict):
            return {self._text(key): self.of(one, depth + 1) for key, one in self._within_limit(value.items())}
        if isinstance(value, list):
            return [self.of(one, depth + 1) for one in self._within_limit(value)]
        self._bytes_left -= len(str(value))
        return value

    def _text(self, text: str) -> str:
        # An inline image has no readable text. It would use up the limit for all text after it.
        limit = _MAX_DATA_CHARS if text.startswith("data:") else self._bytes_left
        kept = text[: max(0, limit)]
        self._bytes_left -= len(kept)
        return kept if len(kept) == len(text) else f"{kept}({len(text) - len(kept)} characters left out)"

    def _within_limit(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            if self._bytes_left <= 0:
                return
            self._bytes_left -= 1
            yield item


def _bounded(text: str, omitted: int = 0) -> str:
    """Truncate `text` to MAX_BYTES. State the number of omitted characters, including `omitted` before."""
    raw = text.encode("utf-8", "replace")
    if len(raw) > MAX_BYTES:
        kept = raw[:MAX_BYTES].decode("utf-8", "ignore")
        omitted += len(text) - len(kept)
    else:
        kept = raw.decode()
    return f"{kept}({omitted} characters left out)" if omitted else kept
