"""Write the tokens of a call to its connection, and count the call until it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from load_tests.fake.batching import Sequence
from load_tests.fake.http import EVENTS_HEAD, reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from load_tests.fake.http import FakeConnection
    from load_tests.fake.replies import Form, Text
    from load_tests.fake.stats import Stats

Fault = Literal["fail_424", "fail_500", "hang", "break_off"]


@dataclass(frozen=True, slots=True)
class PlannedAnswer:
    """The planned answer of a call.

    Attributes:
        reads: tokens of each prompt. `texts` has the same number of texts for each prompt, in order.
        form: encoder of a stream's events; None for a whole reply, which `body` returns.
        usage: whether a stream contains its token counts.
        headers: whether a whole reply has TGI's headers with counts and times. `compute_time` is one of them.
    """

    texts: tuple[Text, ...]
    reads: tuple[int, ...]
    body: Callable[[], bytes]
    form: Form | None
    usage: bool
    headers: bool
    compute_time: bool

    @property
    def read(self) -> int:
        return sum(self.reads)

    @property
    def written(self) -> int:
        return sum(text.length for text in self.texts)


class Call:
    """An accepted call.

    Args:
        fault: `break_off` ends the connection halfway, `hang` never answers.
    """

    def __init__(self, connection: FakeConnection, answer: PlannedAnswer, fault: Fault | None, stats: Stats) -> None:
        self.gone = False
        self._connection = connection
        self._write = connection.write
        self._answer = answer
        self._form = answer.form
        self._fault = fault
        self._stats = stats
        self._unfinished = len(answer.texts)
        self._arrived = self._joined = time.monotonic()
        stats.enter(self._unfinished)
        stats.prompt_tokens += answer.read
        connection.on_lost = self._leave

    def sequences(self) -> Iterator[Sequence]:
        """Return the sequences of the call for the batch. A stream starts here, before its first token."""
        if self._form is not None:
            self._write(EVENTS_HEAD)
        each = len(self._answer.texts) // len(self._answer.reads)
        for number in range(len(self._answer.texts)):
            yield Sequence(self, number, self._answer.reads[number // each])

    def joins(self) -> None:
        self._joined = time.monotonic()

    def token(self, sequence: Sequence) -> bool:
        text = self._answer.texts[sequence.number]
        written, last = sequence.written, sequence.written == text.length
        self._stats.tokens_written += 1
        if self._form is not None:
            if written == 1 and (first_events := self._form.first_events(text.choice)):
                self._write(first_events)
            if last:
                self._write(self._form.closing(text, self._read_by(text)))
            else:
                events = self._form.events(text.choice, text.tape)
                self._write(events[(text.at + written - 1) % len(events)])
        if self._fault == "break_off" and 2 * written >= text.length:
            self._break(b"" if self._form is not None else self._whole())
        elif last:
            self._stats.in_flight -= 1
            self._unfinished -= 1
            if not self._unfinished:
                self._finish(self._end_of_stream() if self._form is not None else self._whole())
        return last

    def answer_now(self) -> None:
        """Send the whole answer at once."""
        if self._form is None:
            whole = self._whole()
        else:
            form = self._form
            events = (form.all_events(text, self._read_by(text)) for text in self._answer.texts)
            whole = b"".join((EVENTS_HEAD, *events, self._end_of_stream()))
        if self._fault == "break_off":
            self._break(whole)
        else:
            self._stats.tokens_written += self._answer.written
            self._stats.in_flight -= self._unfinished
            self._finish(whole)

    def _finish(self, rest: bytes) -> None:
        self._write(rest)
        self._stats.completed += 1
        self._connection.end()

    def _break(self, whole: bytes) -> None:
        """Send half of the answer and close the connection."""
        self._write(whole[: len(whole) // 2])
        self.gone = True
        self._stats.in_flight -= self._unfinished
        self._stats.failed += 1
        self._connection.end(close=True)

    def _leave(self) -> None:
        self.gone = True
        self._stats.in_flight -= self._unfinished
        if self._fault == "hang":
            self._stats.failed += 1
        else:
            self._stats.cancelled += 1

    def _read_by(self, text: Text) -> int:
        """Return the tokens of the prompt that a text answers; 0 if its last event does not contain them."""
        reads = self._answer.reads
        if self._form is None or not self._form.counts_in_closing:
            return 0
        return reads[text.choice * len(reads) // len(self._answer.texts)]

    def _end_of_stream(self) -> bytes:
        assert self._form is not None
        return self._form.end(self._answer.read, self._answer.written, usage=self._answer.usage)

    def _whole(self) -> bytes:
        return reply(self._answer.body(), headers=self._counts() if self._answer.headers else b"")

    def _counts(self) -> bytes:
        """Return TGI's headers. Times are in milliseconds, except for the compute time in seconds."""
        queue_s, inference_s = self._joined - self._arrived, time.monotonic() - self._joined
        compute_time = b"x-compute-time: %.6f\r\n" % (queue_s + inference_s) if self._answer.compute_time else b""
        return (
            b"x-compute-type: fake\r\n%sx-total-time: %d\r\nx-validation-time: 0\r\n"
            b"x-queue-time: %d\r\nx-inference-time: %d\r\nx-time-per-token: %d\r\n"
            b"x-prompt-tokens: %d\r\nx-generated-tokens: %d\r\n"
        ) % (
            compute_time,
            (queue_s + inference_s) * 1000,
            queue_s * 1000,
            inference_s * 1000,
            inference_s * 1000 / self._answer.written,
            self._answer.read,
            self._answer.written,
        )
