from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.engines.stops import StopFilter, before_stop

STOPS = st.lists(st.text("ab", max_size=4), max_size=3)


@settings(deadline=None)
@given(st.lists(st.text("abc", max_size=4), max_size=8), STOPS)
@example(["a", "b", "a"], ["aba", "b"])
def test_any_split_of_a_text_ends_at_the_same_place(pieces: list[str], stops: list[str]) -> None:
    """At the start of the stop string that is complete first, or of the longest of several."""
    text = "".join(pieces)
    ends = [(at + len(stop), at) for stop in stops if stop and (at := text.find(stop)) >= 0]
    expected = text[: min(ends)[1]] if ends else text
    seen = StopFilter(stops)
    shown = "".join(map(seen.feed, pieces)) + seen.finish()
    assert (shown, seen.met) == (expected, bool(ends))
    assert before_stop(text, stops) == (expected, bool(ends))


def test_only_possible_beginnings_of_stop_strings_are_held_back() -> None:
    """Other text is shown at once."""
    seen = StopFilter(["\nQ:"])
    assert seen.feed("One\n") == "One"
    assert seen.feed("\nQ") == "\n"
    assert seen.feed("uick") == "\nQuick"
    assert seen.finish() == ""


def test_nothing_is_shown_after_a_stop_string() -> None:
    seen = StopFilter(["x"])
    assert seen.feed("One x two") == "One "
    assert seen.feed("three") == ""
    assert seen.finish() == ""


def test_without_stop_strings_nothing_is_held_back() -> None:
    """An empty stop string is ignored."""
    assert StopFilter([""]).feed("One") == "One"
