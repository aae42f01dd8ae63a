"""Positions of the tokens' ends in a text, found from the token texts that an engine reports."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.engines.token_ends import token_ends, token_texts, tokens_in


@pytest.mark.parametrize(
    ("text", "tokens", "ends"),
    [
        ("The sky is", ["The", " sky", " is"], (3, 7, 10)),
        ("The sky", ["The", " sky", "<|im_end|>"], (3, 7)),
        ("The sky", ["The", " sky", "\n\n", "Q:"], (3, 7)),  # the stop string is not in the text
        ("The sk", ["The", " sky"], (3, 6)),  # the stop string began within a token
        ("The sky", ["The", "sky"], (3, 7)),  # decoded alone, a token of SentencePiece has no leading space
        ("a \U0001f600 b", ["a", " ", "\ufffd", "\ufffd", " b"], (1, 2, 2, 3, 5)),
        ("a \U0001f600", ["a", " ", "\ufffd", "\ufffd"], (1, 2, 2, 3)),
        ("a \U0001f600", ["a", " ", "", "", "\U0001f600"], (1, 2, 2, 2, 3)),
        ("a \ufffd", ["a", " ", "\ufffd"], (1, 2, 3)),
        ("The sky", ["token_id:7", "token_id:8"], None),
        ("The sky", ["The"], None),
        ("The answer", ["<think>", "So", "</think>", "The", " answer"], None),  # the engine removed the reasoning
        ("", [], ()),
    ],
)
def test_tokens_are_found_in_the_text(text: str, tokens: list[str], ends: tuple[int, ...] | None) -> None:
    assert token_ends(text, tokens) == ends


@pytest.mark.parametrize(
    ("begin", "end", "count"),
    [(0, 3, 1), (0, 7, 2), (0, 5, 2), (0, 10, 3), (3, 10, 2), (4, 10, 2), (7, 10, 1), (0, 0, 1), (0, 12, 3)],
)
def test_a_part_of_a_token_counts_as_one(begin: int, end: int, count: int) -> None:
    assert tokens_in((3, 7, 10), begin, end) == count


@pytest.mark.parametrize(
    ("logprobs", "texts"),
    [
        ({"content": [{"token": "The"}, {"token": " sky"}]}, ["The", " sky"]),
        ({"tokens": ["The", " sky"], "text_offset": [0, 3]}, ["The", " sky"]),
        ({"content": None}, None),
        ({"content": ["The"]}, None),
        ({"tokens": [1]}, None),
        ("The", None),
        (None, None),
    ],
)
def test_the_texts_are_those_of_chats_or_text_completions(logprobs: Any, texts: list[str] | None) -> None:
    assert token_texts({"logprobs": logprobs}) == texts
