"""Server-sent events, decoded from bytes in any split. Sans-io."""

from __future__ import annotations

# The standard lets a stream begin with one; no field's name does.
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventTooLarge(ValueError):
    """One event is larger than the bound."""


class SseDecoder:
    """Feed it bytes as they come; it returns the `data` of each event that became whole.

    Works on bytes, so that a split inside a UTF-8 character does no harm. Knows LF and CRLF line ends, comments,
    `data:` with and without a space, several data lines in one event; other fields are passed over.

    Args:
        max_event_bytes: bound on one line and on the data of one event, against one that never ends.
    """

    def __init__(self, max_event_bytes: int = 1_000_000) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, received: bytes) -> list[bytes]:
        """Return the events completed by `received`. Raises EventTooLarge."""
        events: list[bytes] = []
        *lines, self._rest = (self._rest + received).split(b"\n")
        for ended in lines:
            self._bound(len(ended))
            line = ended[:-1] if ended.endswith(b"\r") else ended
            if line:
                self._take(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
                self._data_bytes = 0
        self._bound(len(self._rest))
        return events

    def end(self) -> list[bytes]:
        """The stream has ended: an event whose closing blank line is missing still counts."""
        events = self.feed(b"\n\n")
        self._rest = b""
        return events

    def _take(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            value = line[5:]
            value = value[1:] if value.startswith(b" ") else value
            self._data.append(value)
            self._data_bytes += len(value) + 1  # lines without data take room too
            self._bound(self._data_bytes - 1)
        elif line.startswith(_BYTE_ORDER_MARK):
            self._take(line[len(_BYTE_ORDER_MARK) :])

    def _bound(self, size_bytes: int) -> None:
        if size_bytes > self._max_event_bytes:
            raise EventTooLarge(f"one event is larger than {self._max_event_bytes} bytes")
