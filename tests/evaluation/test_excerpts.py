"""Ends of the models' answers."""

from __future__ import annotations

from gateway.evaluation.reporting.tables import MAX_CHARS, excerpt


def test_an_excerpt_is_the_end_of_a_text() -> None:
    words = [f"w{number}" for number in range(30)]
    assert excerpt(" ".join(words)) == "\u2026 " + " ".join(words[-20:])
    assert excerpt("The answer\n\n is\t8. ") == "The answer is 8."
    assert excerpt("") == ""


def test_a_text_without_blanks_is_cut_all_the_same() -> None:
    assert excerpt("x" * 10_000) == "\u2026 " + "x" * MAX_CHARS


def test_invisible_characters_are_omitted() -> None:
    assert excerpt("a\u202eb\x1b[31mc\u2028d\x00") == "a b [31mc d"
