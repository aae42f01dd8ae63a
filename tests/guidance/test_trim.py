from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.guidance.trim import LONGEST_WORD_CHARS, TrimmedText, fences, open_reasoning, trim, without_begun
from gateway.policy.guidance_rule import Boundary
from tests.guidance.hidden_text_student import TEXTS

BOUNDARIES: tuple[Boundary, ...] = get_args(Boundary)


def kept(text: str, boundary: Boundary = "word") -> str:
    return trim(text, cut=True, boundary=boundary).text


# the division


def test_a_cut_text_is_divided_into_text_pending_space_and_dropped() -> None:
    assert trim("  One two  thr", cut=True) == TrimmedText("One two", "  ", "thr", stopped=False)


def test_a_finished_text_loses_only_its_outer_whitespace() -> None:
    assert trim(" One tw\n", cut=False) == TrimmedText("One tw", "\n", "", stopped=False)


def test_empty_text_stays_empty() -> None:
    for text in ("", " \n"):
        for cut in (True, False):
            assert trim(text, cut=cut, stop=["x"]) == TrimmedText("", "", "", stopped=False)


# words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So:\n`wor", "So"),
        ("I don't", "I"),
        ("I don'", "I"),
        ("I don\u2019", "I"),
        ("is 3.5", "is"),
        ("is 3.", "is"),
        ("is 1,", "is"),
        ("use foo_", "use"),
        ("the end.", "the end."),
        ("the answer:", "the answer:"),
        ("(so)", "(so)"),
        ("well-kno", "well-"),
        ("whole ", "whole"),
        ("whole\n\n", "whole"),
        ("one", ""),
        ("Ответ: сто", "Ответ:"),
        ("cafe\u0301", ""),
    ],
)
def test_a_last_word_that_may_go_on_is_dropped(text: str, expected: str) -> None:
    assert kept(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好\uff0c世界", "你好\uff0c世界"),
        ("ひらがな", "ひらがな"),
        ("日本のテキス", "日本の"),
        ("한국어 문장", "한국어"),
        ("ประเทศ", "ประเทศ"),
    ],
)
def test_scripts_without_spaces_keep_all_but_a_word_of_several_characters(text: str, expected: str) -> None:
    assert kept(text) == expected


@pytest.mark.parametrize("tail", ["👨\u200d", "👨\u200d👩\u200d", "🇫"])
def test_half_an_emoji_is_dropped(tail: str) -> None:
    assert kept("so " + tail) == "so"


@pytest.mark.parametrize("tail", ["👨\u200d👩\u200d👧", "🇫🇷", "❤\ufe0f", "👍🏽"])
def test_a_whole_emoji_is_kept(tail: str) -> None:
    assert kept("so " + tail) == "so " + tail


def test_a_backslash_goes_with_what_it_escapes() -> None:
    assert kept("so \\fra") == "so"
    assert kept('"a\\') == '"a'


@pytest.mark.parametrize("cut", [True, False])
def test_a_broken_character_is_dropped(cut: bool) -> None:
    for tail in ("\ufffd", "\ufffd\ufffd", "\ud83d"):
        assert trim("so. " + tail, cut=cut) == TrimmedText("so.", " ", tail, stopped=False)
        assert trim("so. " + tail + " ", cut=cut).text == "so."


def test_a_word_before_a_broken_character_may_go_on_too() -> None:
    assert kept("one caf\ufffd") == "one"
    assert kept("日本\ufffd") == "日本"


# code fences


@pytest.mark.parametrize("line", ["```pyth", "```", "``", "`", "~~~", "```python title=x", "  ```js", "> ```js"])
def test_an_incomplete_opening_line_of_a_fence_is_dropped(line: str) -> None:
    assert kept("So\n" + line).rstrip(" >\n") == "So"
    assert kept(line).strip(" >") == ""


def test_an_open_fence_whose_opening_line_is_complete_is_kept() -> None:
    assert trim("So:\n```python\n", cut=True) == TrimmedText("So:\n```python", "\n", "", stopped=False)
    assert trim("So:\n```python\nx = (", cut=True).text == "So:\n```python\nx = ("
    assert trim("So:\n```python\nimpo", cut=True) == TrimmedText("So:\n```python", "\n", "impo", stopped=False)


def test_a_closed_fence_is_kept() -> None:
    assert kept("```\nx\n```") == "```\nx\n```"
    assert kept("```\nx\n```\n\n```py") == "```\nx\n```"
    assert kept("````\n```\n````\n") == "````\n```\n````"


def test_only_its_own_mark_closes_a_fence() -> None:
    assert kept("```\n~~~\n```") == "```\n~~~\n```"
    assert kept("````\n```\n````") == "````\n```\n````"
    assert kept("```\n```py\n```js (") == "```\n```py\n```js ("


def test_inline_code_at_the_beginning_of_a_line_is_no_fence() -> None:
    assert kept("```x``` is (") == "```x``` is ("
    assert kept("`x` is (") == "`x` is ("


def test_a_finished_text_may_end_anywhere() -> None:
    assert trim("So:\n```pyth", cut=False).text == "So:\n```pyth"


# reasoning


@pytest.mark.parametrize("cut", [True, False])
def test_text_after_an_open_think_block_is_dropped(cut: bool) -> None:
    assert trim("<think>I wonder", cut=cut) == TrimmedText("", "", "<think>I wonder", stopped=False)
    assert trim("Well, <think>I wonder", cut=cut) == TrimmedText("Well,", " ", "<think>I wonder", stopped=False)


def test_the_word_before_a_think_block_is_complete() -> None:
    assert kept("Well<think>I wonder") == "Well"


@pytest.mark.parametrize(
    "reasoning", ["<think>a</think>", " <think>\n\n</think>\n\n", "<think>a</think><think>b</think>"]
)
def test_leading_reasoning_is_no_part_of_the_answer(reasoning: str) -> None:
    assert trim(reasoning + "\nSo it is", cut=True) == TrimmedText("So it", " ", "is", stopped=False)


def test_reasoning_that_the_prompt_opened_is_no_part_of_the_answer() -> None:
    assert kept("I wonder</think>\n\nSo it is") == "So it"


def test_a_complete_think_block_within_the_answer_stays() -> None:
    assert kept("So <think>a</think> it is") == "So <think>a</think> it"
    assert kept("So <think>a</think> it <think>is") == "So <think>a</think> it"


def test_reasoning_that_ends_with_a_quote_is_closed() -> None:
    assert kept('<think>say "no"</think>So it is') == "So it"


def test_a_quoted_tag_is_text() -> None:
    for text in ("The `<think>` tag (", "split('</think>')[", 'a "<think>" ('):
        assert kept(text) == text


@pytest.mark.parametrize("half", ["<", "<t", "<think"])
def test_half_a_think_tag_is_dropped(half: str) -> None:
    assert kept("So. " + half) == "So."


# stop strings


def test_a_stop_string_ends_the_text() -> None:
    assert trim("One.\nQ: two", cut=True, stop=["\nQ:"]) == TrimmedText("One.", "", "\nQ: two", stopped=True)


def test_the_word_before_a_stop_string_is_complete() -> None:
    assert trim("One two STOP", cut=True, stop=["STOP"]) == TrimmedText("One two", " ", "STOP", stopped=True)


def test_the_stop_string_completed_first_counts() -> None:
    assert trim("xabcd", cut=False, stop=["abcd", "bc"]).text == "xa"
    assert trim("xabcd", cut=False, stop=["bc", "abc"]).text == "x"


def test_leading_whitespace_does_not_match_a_stop_string() -> None:
    assert trim("\n\nOne.\n\nTwo.", cut=False, stop=["\n\n"]) == TrimmedText("One.", "", "\n\nTwo.", stopped=True)
    assert trim("\nQ: two", cut=False, stop=["\nQ:"]) == TrimmedText("", "", "Q: two", stopped=True)


def test_a_stop_string_within_reasoning_is_not_met() -> None:
    assert not trim("<think>STOP</think>So", cut=False, stop=["STOP"]).stopped
    assert not trim("So <think>STOP", cut=False, stop=["STOP"]).stopped


def test_an_empty_stop_string_is_never_met() -> None:
    assert not trim("One", cut=False, stop=[""]).stopped


# boundaries


@pytest.mark.parametrize(
    ("text", "word", "sentence", "token"),
    [
        ("So it is. And then it we", "So it is. And then it", "So it is.", "So it is. And then it we"),
        ("Yes! (So it is.) And th", "Yes! (So it is.) And", "Yes! (So it is.)", "Yes! (So it is.) And th"),
        ("One line\nand ano", "One line\nand", "One line", "One line\nand ano"),
        ("One line\r\nand ano", "One line\r\nand", "One line", "One line\r\nand ano"),
        ("Steps\n1. Take a kni", "Steps\n1. Take a", "Steps", "Steps\n1. Take a kni"),
        (
            "\u4f60\u597d\u3002\u4e16\u754c",
            "\u4f60\u597d\u3002\u4e16\u754c",
            "\u4f60\u597d\u3002",
            "\u4f60\u597d\u3002\u4e16\u754c",
        ),
        ("It is 3.5 kilogr", "It is 3.5", "It is 3.5", "It is 3.5 kilogr"),
        ("No end he", "No end", "No end", "No end he"),
        ("```py\nx = 1. + 2\ny = fo", "```py\nx = 1. + 2\ny =", "```py\nx = 1. + 2", "```py\nx = 1. + 2\ny = fo"),
        ("One", "", "", "One"),
    ],
)
def test_a_cut_text_ends_at_its_boundary(text: str, word: str, sentence: str, token: str) -> None:
    assert [trim(text, cut=True, boundary=one).text for one in BOUNDARIES] == [word, sentence, token]


def test_the_end_of_a_sentence_is_not_sought_far_back() -> None:
    text = "It is so. " + "and " * 8
    assert kept(text + "o", "sentence") == "It is so. " + "and " * 7 + "and"
    assert kept("It is so. " + "and " * 7 + "o", "sentence") == "It is so."


def test_the_end_of_a_sentence_within_a_think_block_does_not_open_it() -> None:
    assert kept("So <think>a. b</think> it i", "sentence") == "So <think>a. b</think> it"


def test_a_word_longer_than_any_is_kept() -> None:
    hash_ = "a1B2" * 100
    assert kept("See " + hash_) == "See " + hash_
    assert kept("See " + hash_[: LONGEST_WORD_CHARS - 1]) == "See"


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(
    ("broken", "left"),
    [
        ("so. caf\ufffd", "so."),
        ("so. \ud83d", "so."),
        ("so. <thin", "so."),
        ("so. </thin", "so."),
        ("so. <think>a. b", "so."),
        ("so. \\", "so."),
        ("so. 👨\u200d👩\u200d", "so."),
        ("so 🇫🇷🇩", "so 🇫🇷"),
        ("so 🇫\u200d", "so"),
        ("so 🇫\u200d🇫", "so"),
        ("so 🇫🇷\u200d🇩", "so 🇫🇷"),
        ("so 🇫🇷🇩\u200d\u200d", "so 🇫🇷"),
        ("so\n```pyth", "so"),
        ("so\n``", "so"),
        ("so\r\n", "so"),
        ("so\r", "so"),
        ('["a\\ud83d\\', '["a'),
        ("[1, 2", "[1,"),
        ('{"ke', '{"'),
    ],
)
def test_broken_characters_are_cut_at_every_boundary(broken: str, left: str, boundary: Boundary) -> None:
    text = kept(broken, boundary)
    assert text in {left, "so. caf"}
    assert boundary == "token" or text == left


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(
    "whole", ["👨\u200d👩\u200d👧", "🇫🇷", "❤\ufe0f", "👍🏽", "e\u0301!", "か\u3099", "\u8449\U000e0100"]
)
def test_a_character_of_several_code_points_stays_whole_at_every_boundary(whole: str, boundary: Boundary) -> None:
    assert kept("so " + whole, boundary) == "so " + whole


# the marks of a line


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the steps:\n", "the steps"),
        ("the steps:\n\n", "the steps"),
        ("the steps:\r\n", "the steps"),
        ("the steps: \n", "the steps:"),
        ("the steps:", "the steps:"),
        ("**Steps:**\n", "**Steps"),
        ("\u597d\u3002\n", "\u597d"),
        ("| a | b |\n|---|---|\n", "| a | b |\n|---|---|"),
        ("So\n```json\n{\n", "So\n```json"),
        ("```\nx\n```\n", "```\nx\n```"),
        ("{\n", "{"),
        ('{"year": 1925,\n', '{"year":'),
    ],
)
def test_the_last_marks_of_a_line_go_with_its_end(text: str, expected: str, boundary: Boundary) -> None:
    r"""Qwen2.5 has one token for ":\n" and "{\n": after ":" alone it continues in the same line."""
    assert kept(text, boundary) == expected


# properties

pieces = st.sampled_from(
    [
        "a",
        "word",
        "don't",
        "3.",
        "14",
        ",",
        "语",
        "カナ",
        "👨",
        "\u200d",
        "🇫",
        "\u0301",
        "\ufffd",
        "\\",
        "`",
        "```",
        "~~~",
        *("One. ", "\u3002", "\r", '{"', '":', "[", "true", "-1.5", "\\u00", "</thi", "```json\n"),
        *(" ", " ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "<", "<think>", "</think>", '"', "py\n", ">", "\ud83d"),
    ]
)
texts = st.lists(pieces, max_size=20).map("".join)
stops = st.lists(st.sampled_from(["a", "\n", "\n\n", " w", "3.14", "`", "or"]), max_size=2)


@given(texts, st.booleans(), stops, st.sampled_from(BOUNDARIES))
@settings(max_examples=1000, deadline=None)
def test_text_pending_space_and_dropped_add_up_to_the_teachers_text(
    text: str, cut: bool, stop: list[str], boundary: Boundary
) -> None:
    trimmed = trim(text, cut=cut, stop=stop, boundary=boundary)
    whole = trimmed.text + trimmed.pending_space + trimmed.dropped
    assert text.endswith(whole)
    if "</think>" not in text:
        assert whole == text.lstrip()
    assert trimmed.text == trimmed.text.strip()
    assert not trimmed.text.endswith(("\ufffd", "\ud83d"))
    assert not trimmed.pending_space.strip()
    assert trimmed.stopped or trimmed.dropped == trimmed.dropped.lstrip()
    assert not any(one in trimmed.text for one in stop)


@given(texts, st.sampled_from(BOUNDARIES))
@settings(max_examples=1000, deadline=None)
def test_a_cut_leaves_nothing_broken(text: str, boundary: Boundary) -> None:
    trimmed = trim(text, cut=True, boundary=boundary)
    left, rest = trimmed.text, trimmed.pending_space + trimmed.dropped
    assert open_reasoning(left) == len(left)
    assert not left.endswith("\r")
    if (
        not rest[:1].isspace()
        and not rest.startswith(("<think>", "\ufffd", "\ud83d"))
        and trimmed.dropped[:1].isalnum()
    ):
        # The text there had not ended.
        assert not left.endswith(("<", "</", "<think", "</think", "\u200d", "\\"))
        assert fences(left)[1] == len(left)


@given(texts)
@example("🇫\u200d🇫")  # one word by the rule of words, half a flag for a reader
@settings(max_examples=600, deadline=None)
def test_a_sentence_ends_no_later_than_a_word_and_a_word_no_later_than_a_token(text: str) -> None:
    assert kept(text, "token").startswith(kept(text, "word"))
    assert kept(text, "word").startswith(kept(text, "sentence"))


@given(texts)
@settings(max_examples=300, deadline=None)
def test_a_cut_keeps_no_more_than_a_finished_text(text: str) -> None:
    assert trim(text, cut=False).text.startswith(trim(text, cut=True).text)


@pytest.mark.parametrize("name", TEXTS)
def test_a_cut_loses_no_more_than_the_last_line_and_mostly_a_word(name: str) -> None:
    text = TEXTS[name].lstrip()
    for at in range(len(text) + 1):
        lost = trim(text[:at], cut=True).dropped
        # The marks of the previous line are lost too if no text of the next line is left.
        assert lost.count("\n") == 0 or not lost[0].isalnum(), lost
        assert len(lost.split()) <= (3 if "`" in lost or "~" in lost else 2)


# words that must not be completed behind the text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["New York"], "I flew to"),
        (["to New York"], "I flew"),
        (["New York", "flew to Rome"], "I"),  # what remains begins another word
        (["Newark"], "I flew to"),
        (["w York"], "I flew to New"),  # no token begins it
        (["New"], "I flew to New"),  # complete: the teacher did not write it by its tokens
        (["I flew to New York"], ""),
        ([" York"], "I flew to New"),
        (["old York", "", "x"], "I flew to New"),
    ],
)
def test_text_that_may_begin_a_word_is_dropped(words: list[str], text: str) -> None:
    """The tokens are words with the space before them."""
    trimmed = TrimmedText("I flew to New", " ", "Yo", stopped=False)
    found = without_begun(trimmed, [0, 1, 6, 9], words, "word")
    assert found.text == text
    assert found.text + found.pending_space + found.dropped == "I flew to New Yo"
    assert not found.pending_space.strip()


def test_without_tokens_every_character_may_begin_a_word() -> None:
    trimmed = TrimmedText("I flew to New", " ", "", stopped=False)
    assert without_begun(trimmed, range(13), ["w York"], "word").text == "I flew to"
