"""The stored figures of the paper are inconsistent only where the notes list it."""

from __future__ import annotations

import pytest

from gateway.evaluation.reporting.published import (
    ALONE,
    KEPT,
    PAIRS,
    TOKEN_SHARE,
    PublishedPair,
    alone,
    data_set,
    pairs,
)

ROUNDING = 0.011


def odd(data: str) -> list[PublishedPair]:
    """Return pairs whose accuracy is not the student's plus their delta."""
    found = []
    for pair in PAIRS[data]:
        own = alone(data, pair.student, pair.limit)
        assert own is not None
        if abs(own + pair.delta - pair.accuracy) > ROUNDING:
            found.append(pair)
    return found


def test_deltas_are_to_the_student_alone_but_in_table_6() -> None:
    assert {(pair.table, pair.student) for pair in odd("gsm8k")} == {("6", "Llama2-7B")}
    assert {round(pair.accuracy - pair.delta, 2) for pair in odd("gsm8k")} == {19.18}
    assert odd("csqa") == []


def test_the_claim_is_a_share_of_accuracy_and_of_output_tokens() -> None:
    assert round(KEPT * 100, 2) == 95.0
    assert round(TOKEN_SHARE * 100) == 52


@pytest.mark.parametrize(
    ("name", "found"),
    [("gsm8k", "gsm8k"), ("openai/GSM8K", "gsm8k"), ("commonsense_qa", "csqa"), ("CSQA", "csqa"), ("sums", None)],
)
def test_data_sets_are_known_by_their_names(name: str, found: str | None) -> None:
    assert data_set(name) == found


def test_a_model_alone_is_taken_at_the_nearest_limit() -> None:
    assert alone("gsm8k", "Llama2-7B", 200) == 13.87
    assert alone("gsm8k", "Llama2-7B", 512) == 14.4
    assert alone("csqa", "Llama2-7B", 100) == 60.69
    assert alone("csqa", "Mystery-1B", 100) is None


def test_pairs_of_a_length_that_the_paper_lacks_are_all() -> None:
    assert {pair.m for pair in pairs("csqa", {30})} == {30}
    assert list(pairs("csqa", {77})) == list(PAIRS["csqa"])
    assert ALONE.keys() == PAIRS.keys()
