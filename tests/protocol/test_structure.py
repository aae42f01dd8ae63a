from __future__ import annotations

import pytest

from gateway.errors import InvalidRequest
from gateway.protocol import body as body_module
from gateway.protocol.chat import parse_chat
from gateway.protocol.structure import MAX_VALUES, check_values, escape_safe_chunks, is_large, is_light
from load_tests.hostile_bodies import MAX_BYTES, TEXTS, UNITS, list_body, text_body

CHAT = {"model": b'"m"', "messages": b'[{"role":"user","content":"Why?"}]'}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_has_no_values(text: bytes) -> None:
    """Text as large as a body may be, with brackets, commas and quotes."""
    check_values(text_body(CHAT, "content", text, MAX_BYTES))


@pytest.mark.parametrize("unit", [b"[]", b"{}", b'""', b"1", b'"[,"', b'"\\\\"', b'"\\""'])
def test_every_entry_counts(unit: bytes) -> None:
    """Text within strings does not. The limit is exact."""
    cost = 2 if unit in {b"[]", b"{}"} else 1
    count = (MAX_VALUES - 1) // cost
    check_values(b"[" + b",".join([unit] * count) + b"]")
    with pytest.raises(InvalidRequest, match=f"more than {MAX_VALUES} JSON"):
        check_values(b"[" + b",".join([unit] * (count + 2)) + b"]")


@pytest.mark.parametrize("size", [1_000, 3_000_000])
def test_the_bound_of_opening_brackets_holds(size: int) -> None:
    """In a large body it is exact, because text may contain many brackets."""
    assert check_values(list_body(CHAT, "x", b"[]", 1_000)) >= 200
    assert check_values(text_body(CHAT, "content", b"[", size)) == (3 if size > 2_000_000 else size - 200 + 3)


@pytest.mark.parametrize("before", range(5))
@pytest.mark.parametrize("backslashes", range(6))
def test_no_piece_ends_within_an_escape(before: int, backslashes: int) -> None:
    raw = b"x" * ((1 << 17) - before) + b"\\" * backslashes + b'"' + b"y" * 10
    pieces = list(escape_safe_chunks(raw))
    assert b"".join(pieces) == raw
    for piece in pieces[:-1]:
        assert (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 0


def refusal(raw: bytes) -> str | None:
    try:
        parse_chat(raw)
    except InvalidRequest as error:
        return error.message
    return None


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_hostile_lists_are_rejected_or_small(unit: bytes) -> None:
    """Accepted documents have few values."""
    raw = list_body(CHAT, "x", unit, MAX_BYTES)
    message = refusal(raw)
    assert raw.count(b",") < MAX_VALUES if message is None else str(MAX_VALUES) in message or "valid JSON" in message


class Counted(bytes):
    """A document that records how many of its bytes each count reads."""

    read: list[int]

    def count(self, sub: object, start: int = 0, end: int = -1) -> int:  # type: ignore[override]
        self.read.append((len(self) if end < 0 else min(end, len(self))) - start)
        return super().count(sub, start, end)  # type: ignore[arg-type]


@pytest.mark.parametrize("body", [text_body(CHAT, "x", b"a", MAX_BYTES), list_body(CHAT, "x", b"[]", MAX_BYTES)])
def test_no_call_reads_a_large_body_at_once(body: bytes) -> None:
    """A call that reads all of it would hold the interpreter lock. Only the beginning of a hostile body is read."""
    raw = Counted(body)
    raw.read = []
    try:
        check_values(raw)
    except InvalidRequest:
        assert sum(raw.read) < 1_500_000
    assert max(raw.read) <= 1 << 17


def test_a_chat_is_not_searched_for_token_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chats have no such field, and the search takes milliseconds."""
    searched: list[bytes] = []
    monkeypatch.setattr(body_module, "take_token_ids", searched.append)
    assert refusal(list_body(CHAT, "x", b"[]", MAX_BYTES))
    assert not searched


def test_small_and_textual_bodies_are_light() -> None:
    """Other bodies are decoded outside the event loop."""
    assert is_light(text_body(CHAT, "content", b"Why, or [when]? ", 50_000))
    assert not is_light(text_body(CHAT, "content", b"a", 300_000))
    assert not is_light(list_body(CHAT, "x", b"[]", 100_000))


@pytest.mark.parametrize(
    ("value", "large"),
    [
        ({"a": [1, {"b": "text"}]}, False),
        ({"a": [{"b": "text" * 100_000}]}, True),
        ({"name" * 100_000: 1}, True),
        ([[]] * 100_000, True),
        ([{"a": {}}] * 4_000, True),
        (("a", "b"), False),
    ],
)
def test_a_value_is_large_by_its_text_or_its_entries(value: object, large: bool) -> None:
    assert is_large(value) is large
