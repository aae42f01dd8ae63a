"""The oracle of the seam: a student that knows a hidden text and continues it from the prefix it was sent.

It has the quirks that real engines have, so whatever they do, the joined answer must be the hidden text.
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
    """hidden: the whole answer, without leading whitespace. The rest are an engine's quirks.

    rstrips_prefix: it strips whitespace at the end of the prefix before it continues.
    echo_after: it repeats the prefix before its continuation, and this before that; None: it does not.
    strips_leading_space: it strips the whitespace its continuation begins with.
    second_role: it sends a role and an empty content again where its own text begins.
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
        """What it repeats, and its own text."""
        seen = prefix.rstrip() if self.rstrips_prefix else prefix
        assert self.hidden.startswith(seen), "the student was sent what the teacher did not write"
        own = upto_first_stop(self.hidden[len(seen) :], self.stop)
        if self.strips_leading_space:
            own = own.lstrip()
        # Nothing to repeat: an empty prefix is not sent.
        return "" if self.echo_after is None or not seen else self.echo_after + seen, own

    def deltas(self, prefix: str, sizes: Iterable[int]) -> list[dict[str, Any]]:
        """The reply as the deltas of a stream, in chunks of these sizes, again and again."""
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        repeated, own = self._reply(prefix)
        before = len(repeated)  # what is still to come before its own text
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
    """What a caller sees of these deltas."""
    return seam.opening() + "".join(seam.feed(delta.get("content") or "") for delta in deltas) + seam.finish()


def relayed(seam: SeamJoin, deltas: Sequence[dict[str, Any]]) -> str:
    """What a caller sees of these deltas as a stream: one answer, with one role and one finish."""
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
    """Where the stop string stands that is completed first when the text is written character by character."""
    for end in range(1, len(text) + 1):
        completed = [end - len(one) for one in stop if one and text.endswith(one, 0, end)]
        if completed:
            return min(completed), end
    return None


def upto_first_stop(text: str, stop: Sequence[str]) -> str:
    """The text as an engine with these stop strings would leave it."""
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
    """Teacher's text, seam, student and relay, as the gateway puts them together."""

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
    """The hidden text as taught up to every cut point, cut by length and ended by the teacher itself."""
    for at in range(len(hidden) + 1):
        for cut in (True, False):
            yield at, trim(hidden[:at], cut=cut, stop=stop)
