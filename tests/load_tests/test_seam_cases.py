"""The seam experiment: differences between answers, and their causes."""

from __future__ import annotations

import pytest

from load_tests.seam_cases import (
    SeamCase,
    differs,
    is_doubtful,
    is_within_a_word,
    reason,
    seam_word,
    tokens_within,
    words_of,
)
from load_tests.seam_engine import UNREPORTED, Written
from load_tests.seam_equality import chosen

PROMPT = "Q\nA: "


def written(*pieces: str, ids: tuple[int, ...] | None = None) -> Written:
    ends = [sum(map(len, pieces[: at + 1])) for at in range(len(pieces))]
    return Written((1, 2), "".join(pieces), ids or tuple(range(10, 10 + len(pieces))), tuple(ends), ended=True)


def why(teacher: Written, kept: str, sent_ids: list[int], sent: str | None = None) -> str:
    return reason(teacher, kept, prompt=PROMPT, sent=PROMPT + kept if sent is None else sent, sent_ids=sent_ids)


def test_answers_differ_only_within_their_common_length() -> None:
    assert not differs("abc", "ab", complete=False)
    assert differs("abc", "abx", complete=False)
    assert differs("abc", "abcd", complete=True)
    assert not differs("abc", "abc", complete=True)


def test_the_text_up_to_a_token_equals_the_answer_with_max_tokens() -> None:
    teacher = written("So", " it", " is")
    assert teacher.upto(2) == ("So it", True)
    assert teacher.upto(3) == ("So it is", False)
    assert tokens_within(teacher, 5) == 2
    assert tokens_within(teacher, 4) == 1


@pytest.mark.parametrize(
    ("teacher", "kept", "sent_ids", "blamed"),
    [
        (written("So", " it", " is"), "So it", [1, 2, 10, 11], "arithmetic"),
        (written("So", " it", " is"), "So it", [1, 2, 10, 77], "tokenisation"),
        (written("So", " it", " is"), "So it", [1, 2, 77], "tokenisation"),
        (written("So", " it", " is", ids=(10, UNREPORTED, 12)), "So it", [1, 2, 10, 77], "arithmetic"),
        (written("So", ".\n\n", "It"), "So.", [1, 2, 10, 77], "white space"),
        (written("So", " better", " is"), "So bet", [1, 2, 10, 77], "half token"),
        (written(" So", " it"), "So", [1, 2, 77], "white space"),
    ],
)
def test_the_cause_of_a_difference_follows_from_the_tokens(
    teacher: Written, kept: str, sent_ids: list[int], blamed: str
) -> None:
    assert why(teacher, kept, sent_ids) == blamed


def test_a_template_that_changes_the_text_is_the_first_cause() -> None:
    assert why(written("So", " it"), "So", [1, 2, 10], sent=PROMPT + "So<|end|>") == "template"


def case(kept: str, expected: str, got: str) -> SeamCase:
    return SeamCase("prose", "Why?", 5, "token", kept, 1, kept + expected, kept + got, None)


def test_an_unknown_word_at_the_seam_is_doubtful() -> None:
    known = words_of(["The organised orchestra. ", "half-wri"])
    assert seam_word("an org", "anised thing") == "organised"
    assert not is_doubtful(case("an org", "an, too", "anised thing"), known)
    assert not is_doubtful(case("an org", "an, too", "an of"), known)
    assert is_doubtful(case("an org", "an, too", "flute of"), known)
    assert not is_doubtful(case("in 20", "24", "25"), known)
    assert not is_doubtful(case("an organ.", " So", "xyz"), known)
    assert "wri" not in known


def test_only_scripts_with_spaces_have_an_inside_of_words() -> None:
    assert is_within_a_word(case("an org", "an", ""))
    assert is_within_a_word(case("in 20", "24", ""))
    assert not is_within_a_word(case("an", " organ", ""))
    assert not is_within_a_word(case("长城", "是", ""))


def test_there_are_fifty_prompts_and_every_kind_comes_early() -> None:
    prompts = chosen(1000)
    assert len(prompts) == len(set(prompts)) == 50
    assert {kind for kind, _ in chosen(7)} == {kind for kind, _ in prompts}
