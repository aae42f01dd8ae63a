"""An answer that begins as JSON is never cut where later text could change the meaning of the kept part."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.guidance.json_opening import JsonOpening
from gateway.guidance.trim import trim
from gateway.policy.guidance_rule import Boundary

BOUNDARIES: tuple[Boundary, ...] = get_args(Boundary)
boundaries = st.sampled_from(BOUNDARIES)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(-1e6, 1e6),
    st.text(max_size=12),
    st.just("é👩\n\\"),
)
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
).filter(lambda value: isinstance(value, list | dict))


def kept(text: str, boundary: Boundary = "token") -> str:
    return trim(text, cut=True, boundary=boundary).text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"price": 12', '{"price":'),
        ('{"price": -', '{"price":'),
        ('{"price": 1.5e', '{"price":'),
        ('{"price": 12\n', '{"price":'),
        ('{"price": 12,', '{"price": 12,'),
        ("[1, 2", "[1,"),
        ("[1, 2]", "[1, 2]"),
        ('{"na', '{"'),
        ('{"first na', '{"'),
        ('{"name"', '{"name"'),
        ('{"a": tru', '{"a":'),
        ('{"a": true', '{"a": true'),
        ('{"a": "one tw', '{"a": "one tw'),
        ('{"a": "b\\', '{"a": "b'),
        ('{"a": "b\\u00', '{"a": "b'),
        ('{"a": "b\\u00e9', '{"a": "b\\u00e9'),
        ('{"a": "b\\ud83d', '{"a": "b'),
        ('{"a": "b\\ud83d\\ude', '{"a": "b'),
        ('{"a": "b\\ud83d\\ude00', '{"a": "b\\ud83d\\ude00'),
        ('{"a": "b\\\\u00', '{"a": "b\\\\u00'),
        ('So:\n```json\n{"price": 12', 'So:\n```json\n{"price":'),
        ('So:\n```json\n{"price": 12\n}\n```\nIt is 3', 'So:\n```json\n{"price": 12\n}\n```\nIt is 3'),
        ('{"a": 1}\n```json\n[1', '{"a": 1}\n```json\n['),
    ],
)
def test_numbers_keys_and_escapes_are_kept_whole_or_dropped(text: str, expected: str) -> None:
    assert kept(text) == expected


@pytest.mark.parametrize("text", ["[1] says 12", "[x] 12", "{a} 12", "[Note 12", "```python\n[12", '{"a": 1} is 12'])
def test_prose_and_code_that_begin_with_a_bracket_are_no_json(text: str) -> None:
    assert kept(text) == text


def test_only_lines_end_a_sentence_in_json() -> None:
    assert kept('{"a": "One. Two thr', "sentence") == '{"a": "One. Two'
    assert kept('{\n  "a": 1,\n  "b": "x y', "sentence") == '{\n  "a":'
    assert kept('{\n  "b": "x y', "sentence") == '{\n  "b": "x'
    assert kept('{"a": 1,  \n  "b": "x y', "sentence") == '{"a": 1,'


def bad_places(document: str) -> set[int]:
    """Return the positions in a document within a key, a number, a literal or an escape, or right after a number."""
    places: set[int] = set()
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"(?P<key>\s*:)?|(?P<number>-?\d[\d.eE+-]*)|[a-z]+', document):
        if token["key"] is not None:
            places |= set(range(token.start() + 2, token.end() - len(token["key"])))
        elif token["number"] is not None:
            places |= set(range(token.start() + 1, token.end() + 1))
        elif token[0].startswith('"'):
            for escape in re.finditer(r"\\u[dD][89abAB]..\\u....|\\u....|\\.", token[0]):
                places |= {token.start() + at for at in range(escape.start() + 1, escape.end())}
        else:
            places |= set(range(token.start() + 1, token.end()))
    return places


def surrogates_paired(value: Any) -> bool:
    return not any(0xD800 <= ord(char) < 0xE000 for char in json.dumps(value, ensure_ascii=False))


@pytest.mark.long
@given(documents.filter(surrogates_paired), st.sampled_from([None, 2]), st.booleans(), boundaries, st.data())
@settings(max_examples=1500, deadline=None)
def test_no_cut_of_a_document_lies_within_a_key_a_number_or_an_escape(
    value: Any, indent: int | None, fenced: bool, boundary: Boundary, data: st.DataObject
) -> None:
    document = json.dumps(value, indent=indent, ensure_ascii=data.draw(st.booleans()))
    before = "```json\n" if fenced else ""
    at = data.draw(st.integers(0, len(document)))
    text = kept(before + document[:at], boundary)
    if len(text) >= len(before):
        assert (before + document).startswith(text)
        assert len(text) - len(before) not in bad_places(document), text


@given(documents.filter(surrogates_paired), st.lists(st.integers(1, 6), max_size=30))
@settings(max_examples=400, deadline=None)
def test_the_limit_does_not_depend_on_the_pieces(value: Any, sizes: list[int]) -> None:
    text = json.dumps(value)
    limiter, held, taken, at = JsonOpening(), "", "", 0
    for size in sizes:
        held += text[at : at + size]
        at += size
        limit = limiter.limit(held)
        limiter.take(held[:limit])
        taken, held = taken + held[:limit], held[limit:]
        assert len(taken) == JsonOpening().limit(text[:at])
