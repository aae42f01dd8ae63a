"""An incremental decoder of server-sent events. Performs no I/O."""

from __future__ import annotations

# The standard permits one at the start of a stream.
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventTooLarge(ValueError):
    """An event exceeds the size limit."""


class SseDecoder:
    """Decodes bytes in any split to the `data` of events.

    The decoder works on bytes, so a chunk may end inside a UTF-8 character. It supports LF and CRLF line ends,
    comments, `data:` with and without a space, and several data lines in one event. It ignores other fields.
    """

    def __init__(self, max_event_bytes: int = 1_000_000) -> None:  # of a line, and of the data of an event
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, received: bytes) -> list[bytes]:
        """Return the events that `received` completes. Raises EventTooLarge."""
        raw = self._rest + received
        end = raw.rfind(b"\n\n")
        if end > 0 and raw.startswith(b"data: ") and not self._data and len(raw) <= self._max_event_bytes:
            # The usual case, in a fifth of the time: each event is one line, and at most a part of a line follows.
            events = raw[6:end].split(b"\n\ndata: ")
            if raw.count(b"\n") == 2 * len(events) and b"\r" not in raw:
                self._rest = raw[end + 2 :]
                return events
        events = []
        *lines, self._rest = raw.split(b"\n")
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
        """End the stream. Return the last event, if its closing blank line is missing."""
        events = self.feed(b"\n\n")
        self._rest = b""
        return events

    def _take(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            value = line[5:]
            value = value[1:] if value.startswith(b" ") else value
            self._data.append(value)
            self._data_bytes += len(value) + 1  # also for empty lines
            self._bound(self._data_bytes - 1)
        elif line.startswith(_BYTE_ORDER_MARK):
            self._take(line[len(_BYTE_ORDER_MARK) :])

    def _bound(self, size_bytes: int) -> None:
        if size_bytes > self._max_event_bytes:
            raise EventTooLarge(f"an event has more than {self._max_event_bytes} bytes")
