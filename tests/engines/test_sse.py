from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.engines.sse import EventTooLarge, SseDecoder


def decode(*packets: bytes, max_event_bytes: int = 1_000_000) -> list[bytes]:
    decoder = SseDecoder(max_event_bytes)
    events = [event for packet in packets for event in decoder.feed(packet)]
    return events + decoder.end()


def outcome(packets: list[bytes], max_event_bytes: int) -> list[bytes] | str:
    try:
        return decode(*packets, max_event_bytes=max_event_bytes)
    except EventTooLarge:
        return "too large"


def split(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    return [raw[start:end] for start, end in pairwise(edges)]


PIECES = st.sampled_from(
    [
        *(b"data: ", b"data:", b"data", b": ping", b"event: x", b"\n", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r"),
        *(b"a b", b" ", "héllo".encode(), "語".encode(), b'{"choices":[]}', b"[DONE]"),
    ]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=30).map(b"".join), st.lists(st.integers(0, 500), max_size=12))
@example(b"data: ab\r\n\r\n", [9, 10, 11])
def test_any_split_of_the_bytes_gives_the_same_events(raw: bytes, cuts: list[int]) -> None:
    """Packet boundaries have no effect."""
    assert decode(*split(raw, cuts)) == decode(raw)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=30).map(b"".join), st.lists(st.integers(0, 500), max_size=12), st.integers(1, 12))
@example(b": ping\n", [6], 5)
def test_the_bound_does_not_depend_on_the_split(raw: bytes, cuts: list[int], bound: int) -> None:
    """An event that is too large in many packets is too large in one."""
    assert outcome(split(raw, cuts), bound) == outcome([raw], bound)


@pytest.mark.parametrize(
    ("raw", "events"),
    [
        (b"data: one\n\n", [b"one"]),
        (b"data:one\n\n", [b"one"]),
        (b"data:  one \n\n", [b" one "]),
        (b"data: one\r\n\r\n", [b"one"]),
        (b"data: one\n\ndata: two\n\n", [b"one", b"two"]),
        (b"data: one\ndata: two\n\n", [b"one\ntwo"]),
        (b": ping\n\n: ping\n\ndata: one\n\n", [b"one"]),
        (b"event: message\nid: 7\nretry: 10\ndata: one\n\n", [b"one"]),
        (b"data: one\n: in the middle\ndata: two\n\n", [b"one\ntwo"]),
        (b"datum: one\n\n", []),
        (b"\n\n\n", []),
        (b"", []),
        (b"data: one", [b"one"]),
        (b"data: one\n", [b"one"]),
        (b"data: one\n\ndata: tw", [b"one", b"tw"]),
        (b"data:\n\n", [b""]),
    ],
)
def test_events_are_parsed_according_to_the_standard(raw: bytes, events: list[bytes]) -> None:
    """Line ends, comments, other fields, several data lines, the optional space, and a missing last blank line."""
    assert decode(raw) == events


def test_a_split_inside_a_character_does_no_harm() -> None:
    """A character of four bytes arrives in four packets."""
    face = "😀".encode()
    assert decode(b"data: ", *(face[at : at + 1] for at in range(4)), b"\n\n") == [face]


def test_an_event_is_returned_as_soon_as_its_blank_line_is_there() -> None:
    """The event does not wait for the next packet."""
    decoder = SseDecoder()
    assert decoder.feed(b"data: one\n") == []
    assert decoder.feed(b"\ndata: two") == [b"one"]


def test_a_line_that_never_ends_is_bounded() -> None:
    """The decoder gives up as soon as it holds more than its bound."""
    decoder = SseDecoder(max_event_bytes=10)
    assert decoder.feed(b"data: 6789") == []
    with pytest.raises(EventTooLarge, match="10 bytes"):
        decoder.feed(b"0")


def test_an_event_of_many_lines_is_bounded() -> None:
    """Short lines add up."""
    decoder = SseDecoder(max_event_bytes=9)
    assert decoder.feed(b"data:x\n" * 5) == []
    with pytest.raises(EventTooLarge):
        decoder.feed(b"data:\n")


def test_a_byte_order_mark_is_passed_over() -> None:
    """The standard allows one, and what stands behind it is an event."""
    assert decode(b"\xef\xbb\xbfdata: one\n\n") == [b"one"]


def test_many_events_together_may_exceed_the_bound() -> None:
    """The bound is on one event, not on a packet or a stream."""
    assert decode(b"data: 1234\n\n" * 50, max_event_bytes=10) == [b"1234"] * 50
