"""The oracle of the seam tests: a student that knows a hidden text and continues it from the prefix that it gets.

It imitates the quirks of real engines. Whatever they are, the joined answer must equal the hidden text.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from gateway.guidance.seam import SeamJoin
from gateway.guidance.trim import TrimmedText, trim
from gateway.pipeline.stream import StreamRelay
from gateway.protocol.reply import ReplyHead

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TEXTS = {
    "words": "I don't know who's there, but well-kept foo_bar.baz says: \"go on\"  and on.\n\nThen it ends. ",
    "code": (
        "Here you are:\n\n```python\ndef f(x):\n    if x < 3:\n        return '\\n'\n\n"
        "    return f(x - 1)\n```\n\nDone.\n"
    ),
    "two fences": '~~~\nraw `text`\n~~~\nand\n  ```sh\n  echo "<table>" > x\n  ```',
    "cjk": "你好\uff0c世界\uff01日本語のテキストとカタカナ語。한국어 문장입니다. ประเทศไทย",
    "emoji": "A family 👨‍👩‍👧 and flags 🇫🇷🇩🇪 and ❤️ and 👍🏽!",
    "numbers": "Pi is 3.14159, so 2 * 3.14 = 6.28; a total of 1,234,567.80 at 12:30. #### 72",
    "repetition": "ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha",
    "json": '{\n  "name": "x",\n  "values": [1, 2.5, {"deep\\n": null}],\n\t"ok" : true\n}',
    "latex": "So \\(\\frac{1}{2}\\cdot\\sqrt{3}\\) \\\\\nand $$x^2$$.",
    "blanks": " \n\n  Leading,  double  and\u00a0odd\u3000 blanks \t\r\n here\n\n\n",
}
"""What a hidden text may look like, by what is hard about it."""

HEAD = ReplyHead("chatcmpl-1", 1_700_000_000, "route")


@dataclass(frozen=True)
class HiddenTextStudent:
    """A student with a hidden text and an engine's quirks.

    Attributes:
        hidden: the whole answer, without leading whitespace.
        rstrips_prefix: whether it strips trailing whitespace of the prefix before it continues.
        echo_after: text that it sends before a repetition of the prefix; None: it does not repeat the prefix.
        strips_leading_space: whether it strips the whitespace with which its continuation begins.
        second_role: whether it sends a role and empty content again where its own text begins.
        stop: it stops before the first of these that its own text completes.
    """

    hidden: str
    rstrips_prefix: bool = False
    echo_after: str | None = None
    strips_leading_space: bool = False
    second_role: bool = False
    stop: tuple[str, ...] = ()

    def reply(self, prefix: str) -> str:
        return "".join(self._reply(prefix))

    def _reply(self, prefix: str) -> tuple[str, str]:
        """Return the repetition and the student's own text."""
        seen = prefix.rstrip() if self.rstrips_prefix else prefix
        assert self.hidden.startswith(seen), "the student was sent what the teacher did not write"
        own = upto_first_stop(self.hidden[len(seen) :], self.stop)
        if self.strips_leading_space:
            own = own.lstrip()
        # Nothing to repeat: an empty prefix is not sent.
        return "" if self.echo_after is None or not seen else self.echo_after + seen, own

    def deltas(self, prefix: str, sizes: Iterable[int]) -> list[dict[str, Any]]:
        """Return the reply as the deltas of a stream, in chunks of these sizes, which repeat."""
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        repeated, own = self._reply(prefix)
        before = len(repeated)  # number of characters before the student's own text
        for chunk in chunks(repeated + own, sizes):
            if self.second_role and 0 <= before < len(chunk):
                deltas.append({"role": "assistant", "content": ""})
            before -= len(chunk)
            deltas.append({"content": chunk})
        return [*deltas, {}]


def chunks(text: str, sizes: Iterable[int]) -> list[str]:
    out = []
    for size in cycle(sizes):
        if not text:
            break
        out.append(text[:size])
        text = text[size:]
    return out


def play(seam: SeamJoin, deltas: Sequence[dict[str, Any]]) -> str:
    """Return the text that a caller gets for these deltas."""
    return seam.initial_text + "".join(seam.feed(delta.get("content") or "") for delta in deltas) + seam.finish()


def relayed(seam: SeamJoin, deltas: Sequence[dict[str, Any]]) -> str:
    """Return the text that a caller gets for these deltas as a stream, with one role and one finish_reason."""
    relay = StreamRelay(HEAD, wants_usage=False)
    sent = relay.join(seam)
    finishes = [None] * (len(deltas) - 1) + ["stop"]
    for delta, finish in zip(deltas, finishes, strict=True):
        chunk = relay.feed({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
        sent += [] if chunk is None else [chunk]
    choices = [choice for chunk in [*sent, *relay.end()] for choice in chunk["choices"]]
    roles = [choice["delta"]["role"] for choice in choices if "role" in choice["delta"]]
    assert roles == ["assistant"]
    assert "role" in choices[0]["delta"]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def first_stop_span(text: str, stop: Sequence[str]) -> tuple[int, int] | None:
    """Return the span of the stop string that is completed first if the text is written character by character."""
    for end in range(1, len(text) + 1):
        completed = [end - len(one) for one in stop if one and text.endswith(one, 0, end)]
        if completed:
            return min(completed), end
    return None


def upto_first_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text as an engine with these stop strings returns it."""
    span = first_stop_span(text, stop)
    return text if span is None else text[: span[0]]


def answer(
    student: HiddenTextStudent,
    trimmed: TrimmedText,
    sizes: Iterable[int] = (3,),
    *,
    echo: bool | None,
    stop: Sequence[str] = (),
) -> str:
    """Return the answer of teacher's text, seam, student and relay, combined as in the gateway."""

    def seam() -> SeamJoin:
        return SeamJoin(
            trimmed.text,
            pending_space=trimmed.pending_space,
            echo=echo,
            strips_leading_space=student.strips_leading_space,
            stop=stop,
        )

    deltas = student.deltas(trimmed.text, sizes)
    joined = play(seam(), deltas)
    assert relayed(seam(), deltas) == joined
    return joined


def teachers(hidden: str, stop: Sequence[str] = ()) -> Iterable[tuple[int, TrimmedText]]:
    """Yield the hidden text cut at every point, both cut by length and ended by the teacher."""
    for at in range(len(hidden) + 1):
        for cut in (True, False):
            yield at, trim(hidden[:at], cut=cut, stop=stop)
