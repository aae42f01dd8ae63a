"""The relay marks exactly the words of the shown opening as the teacher's."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.admin.playground import MarkedRelay
from gateway.guidance.seam import SeamJoin
from gateway.protocol.reply import ReplyHead
from tests.pipeline.test_stream import chunk, says, text_of

HEAD = ReplyHead("chatcmpl-ours", 1_700_000_000, "route")
GUIDANCE = "The quick brown fox jumps over the lazy dog."


def played(seam: SeamJoin | None, *deltas: str, ahead: str = "") -> list[dict[str, Any]]:
    """Return the sent chunks: the streamed opening, its rest, the student's chunks, the end."""
    relay = MarkedRelay(HEAD, wants_usage=True)
    chunks = relay.show(ahead)
    chunks += relay.join(seam)
    chunks += [one for each in deltas if (one := relay.feed(says(each))) is not None]
    last = relay.feed(chunk({}, "stop"))
    return [*chunks, *([last] if last else []), *relay.end()]


def marked(chunks: list[dict[str, Any]]) -> str:
    """Return the marked words; each is at the beginning of its chunk."""
    for one in chunks:
        if "x_gkt" in one:
            assert text_of([one]).startswith(one["x_gkt"]["opening"])
    return "".join(one["x_gkt"]["opening"] for one in chunks if "x_gkt" in one)


@pytest.mark.parametrize("ahead", ["", "The quick", GUIDANCE])
def test_guidance_is_marked_and_student_text_is_not(ahead: str) -> None:
    """The opening was streamed to the caller in part, wholly or not at all."""
    chunks = played(SeamJoin(GUIDANCE, echo=False), " And", " then.", ahead=ahead)
    assert text_of(chunks) == GUIDANCE + " And then."
    assert marked(chunks) == GUIDANCE


def test_nothing_is_marked_without_visible_guidance() -> None:
    chunks = played(None, "All of it", " is the student's.")
    assert text_of(chunks) == "All of it is the student's."
    assert marked(chunks) == ""


def test_an_end_that_the_seam_held_back_is_marked_in_the_students_chunk() -> None:
    """The held-back text may begin a stop text. It is sent with the student's words, marked as the teacher's."""
    seam = SeamJoin("One two END", echo=False, stop=("END OF",))
    chunks = played(seam, "LESS three")
    assert text_of(chunks) == "One two ENDLESS three"
    assert marked(chunks) == "One two END"
    assert sum("x_gkt" in one for one in chunks) == 2


def test_guidance_without_a_continuation_is_marked_at_the_end() -> None:
    chunks = played(SeamJoin("One two END", echo=False, stop=("END OF",)))
    assert text_of(chunks) == marked(chunks) == "One two END"


@pytest.mark.parametrize("pieces", [(GUIDANCE + " And then.",), (GUIDANCE[:9], GUIDANCE[9:], " And then.")])
def test_repeated_guidance_is_marked_as_the_teachers(pieces: tuple[str, ...]) -> None:
    chunks = played(SeamJoin(GUIDANCE, written_again=True), *pieces)
    assert text_of(chunks) == GUIDANCE + " And then."
    assert marked(chunks) == GUIDANCE


def test_of_a_student_that_began_otherwise_nothing_is_the_teachers() -> None:
    for deltas in (("Well, no.",), ("The quick", " red hen.")):
        chunks = played(SeamJoin(GUIDANCE, written_again=True), *deltas)
        assert text_of(chunks) == "".join(deltas)
        assert marked(chunks) == ""
    chunks = played(SeamJoin(GUIDANCE, written_again=True), "The quick")
    assert text_of(chunks) == "The quick"
    assert marked(chunks) == ""


def test_words_are_marked_by_characters_and_not_by_bytes() -> None:
    seam = SeamJoin("Grüße, 世界 🌍", echo=False, stop=("🌍!",))
    chunks = played(seam, " 🌞 ok")
    assert marked(chunks) == "Grüße, 世界 🌍"
