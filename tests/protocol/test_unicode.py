from __future__ import annotations

import json

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.body import locate_invalid_utf8, replace_lone_surrogates
from gateway.protocol.chat import parse_chat

LEAST = b'{"model":"m","messages":[{"role":"user","content":"%b"}]}'
PIECE = 1 << 17


def content(escaped: bytes) -> str:
    text: str = parse_chat(LEAST % escaped).messages[0]["content"]
    return text


@pytest.mark.parametrize(
    ("escaped", "read"),
    [
        (b"a\\ud83d", "a\ufffd"),
        (b"\\ude00b", "\ufffdb"),
        (b"\\uD83D\\uDE00\\ud83d", "😀\ufffd"),
        (b"\\ud83d\\ud83d\\ude00", "\ufffd😀"),
        (b"\\ude00\\ud83d", "\ufffd\ufffd"),
        (b"\\ud83d\\ude00\\ude00", "😀\ufffd"),
        (b"\\\\ud83d\\ude00", "\\ud83d\ufffd"),
        (b"\\\\ud83d \\ud83d\\n", "\\ud83d \ufffd\n"),
    ],
)
def test_a_lone_surrogate_becomes_the_replacement_character(escaped: bytes, read: str) -> None:
    """Pairs, and backslashes that are text, are unchanged."""
    assert content(escaped) == read


@pytest.mark.parametrize("before", range(14))
def test_pairs_across_pieces_stay_whole(before: int) -> None:
    raw = b'"' + b"x" * (PIECE - before) + b'\\ud83d\\ude00\\ude00\\ud83d"'
    assert orjson.loads(replace_lone_surrogates(raw)).endswith("x😀\ufffd\ufffd")


def test_surrogates_are_replaced_as_in_python() -> None:
    """In every order of halves."""
    halves = [b"\\ud83d", b"\\ude00", b"\\\\", b"a"]
    for number in range(4**5):
        raw = b'"' + b"".join(halves[number // 4**place % 4] for place in range(5)) + b'"'
        expected = json.loads(raw).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        assert orjson.loads(replace_lone_surrogates(raw)) == expected, raw


def test_names_may_contain_surrogates() -> None:
    assert parse_chat(b'{"\\ud83d":1,' + (LEAST % b"Why?")[1:]).body["\ufffd"] == 1


def test_a_byte_order_mark_is_ignored() -> None:
    raw = b"\xef\xbb\xbf" + LEAST % b"Why?"
    assert parse_chat(raw).messages[0]["content"] == "Why?"


def test_invalid_utf8_is_located() -> None:
    with pytest.raises(InvalidRequest, match=r"not valid UTF-8 \(byte 0xff at line 2, byte 4\)") as caught:
        parse_chat(b'{\n"mo\xffdel": 1}')
    assert caught.value.param is None
    assert locate_invalid_utf8("ä".encode()) is None


@pytest.mark.parametrize("raw", [b'{"model": "\\ud83"}', b'{"model": "\\ud83d}', b"\\ud83d"])
def test_a_broken_escape_is_no_json(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        parse_chat(raw)
