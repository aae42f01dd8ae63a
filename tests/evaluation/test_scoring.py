from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from gateway.errors import StartupError
from gateway.evaluation.record import Question, ScoredAnswer
from gateway.evaluation.scoring import KNOWN, SCORERS, Judge, Scoring, Unscored, check_name, plug_in

if TYPE_CHECKING:
    from pathlib import Path


def question_for(scorer: str, answer: str, **options: str) -> Question:
    return Question("q1", "What is it? (x) 99", answer, scorer, tuple(options.items()))


def score(question: Question, answer: str) -> ScoredAnswer:
    return SCORERS[question.scorer](answer, question)


@pytest.mark.parametrize(
    "answer", ["Oslo", " oslo. ", "**Oslo**", "It is far north. The answer is Oslo.", "Answer: Oslo"]
)
def test_exact_compares_the_whole_or_the_stated_answer(answer: str) -> None:
    assert score(question_for("exact", "Oslo"), answer).correct


def test_exact_is_not_content_with_a_part() -> None:
    assert not score(question_for("exact", "Oslo"), "Oslo or Bergen").correct


def test_numeric_returns_the_number_found() -> None:
    assert score(question_for("numeric", "1200"), "The answer is $1,200.") == ScoredAnswer(1.0, "$1,200")
    assert score(question_for("numeric", "1200"), "The answer is 1,201.") == ScoredAnswer(0.0, "1,201")
    assert score(question_for("numeric", "1200"), "Hard to say.") == ScoredAnswer(0.0, None)


def test_numeric_takes_the_question_s_tolerance() -> None:
    assert score(question_for("numeric", "3.333", tolerance="0.01"), "The answer is 3.33.").correct


def test_choice_takes_letters_of_either_case() -> None:
    question = question_for("choice", "B", a="up", b="down")
    assert score(question, "The answer is (b).") == ScoredAnswer(1.0, "b")
    assert not score(question, "The answer is (a).").correct


@pytest.mark.parametrize(
    ("answer", "right"), [("In New  York, of course", True), ("newt", False), ("New Yorkers", False)]
)
def test_contains_matches_whole_words(answer: str, right: bool) -> None:
    assert score(question_for("contains", "new york"), answer).correct is right


def test_contains_does_not_read_a_next_question() -> None:
    assert not score(question_for("contains", "Oslo"), "Bergen.\n\nQ: Where is Oslo?").correct


def test_a_pattern_without_a_group_is_correct_if_it_matches() -> None:
    question = question_for("regex", "a sum", pattern=r"total: \d+")
    assert score(question, "total: 12") == ScoredAnswer(1.0, "total: 12")
    assert score(question, "total: none") == ScoredAnswer(0.0, None)


def test_a_pattern_with_a_group_compares_its_last_match() -> None:
    question = question_for("regex", "12", pattern=r"total: (\d+)")
    assert score(question, "total: 11, no, total: 12").correct
    assert score(question, "total: 12, no, total: 11") == ScoredAnswer(0.0, "11")


@pytest.mark.parametrize("name", SCORERS)
def test_no_scorer_reads_the_question(name: str) -> None:
    """The question's text contains the correct answer, but an empty answer is wrong."""
    options = {"numeric": {}, "choice": {"x": "99"}, "regex": {"pattern": "99"}}.get(name, {})
    right = "x" if name == "choice" else "99"
    assert score(question_for(name, right, **options), "") == ScoredAnswer(0.0, "" if name == "exact" else None)


async def test_all_go_through_one_function() -> None:
    scoring = Scoring()
    assert (await scoring.score("The answer is 4.", question_for("numeric", "4"))).correct
    assert not (await scoring.score("no", question_for("exact", "yes"))).correct


# the judge


def judge(*replies: str) -> tuple[Judge, list[str]]:
    prompts: list[str] = []
    left = list(replies)

    async def ask(prompt: str) -> str:
        prompts.append(prompt)
        return left.pop(0)

    return ask, prompts


@pytest.mark.parametrize(
    ("reply", "expected"), [("Score: 10", 1.0), ("score: 7.5\n", 0.75), ("**Score:** 0", 0.0), ("Score: 4/10", 0.4)]
)
async def test_a_judge_s_score_is_read(reply: str, expected: float) -> None:
    asker, _ = judge(reply)
    assert (await Scoring(asker).score("It is far.", question_for("judge", "far away"))).score == expected


@pytest.mark.parametrize(
    "reply", ["", "10", "Right!", "Score: 11", "Score: high", "Score: 3 or Score: 4", "I say\nScore: 3"]
)
async def test_a_reply_that_is_no_score_is_an_error_and_never_a_0(reply: str) -> None:
    asker, _ = judge(reply)
    with pytest.raises(Unscored, match="'q1'") as raised:
        await Scoring(asker).score("It is far.", question_for("judge", "far away"))
    assert raised.value.label == "judge_unreadable"


async def test_a_judge_sees_question_reference_and_answer_and_no_slot_is_filled_twice() -> None:
    asker, prompts = judge("Score: 1")
    await Scoring(asker).score("{reference} {question}", question_for("judge", "far away"))
    assert f"<question>\n{question_for('judge', 'far away').text}\n</question>" in prompts[0]
    assert "<answer>\n{reference} {question}\n</answer>" in prompts[0]
    assert "<reference>\nfar away\n</reference>" in prompts[0]


async def test_an_empty_answer_is_wrong_and_costs_no_judge() -> None:
    asker, prompts = judge()
    assert await Scoring(asker).score(" ", question_for("judge", "far away")) == ScoredAnswer(0.0)
    assert not prompts


async def test_a_question_for_a_missing_judge_is_an_error() -> None:
    with pytest.raises(StartupError, match="--judge"):
        await Scoring().score("far", question_for("judge", "far away"))


# plug-ins


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_scorer.py").write_text(
        "from gateway.evaluation.record import ScoredAnswer\n"
        "def longer(answer, question):\n    return ScoredAnswer(1.0 if len(answer) > int(question.answer) else 0.0)\n"
        "def breaks(answer, question):\n    raise KeyError('no')\n"
        "def says_yes(answer, question):\n    return True\n"
        "length = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_scorer", raising=False)
    return "own_scorer"


async def test_a_plug_in_is_one_function(own: str) -> None:
    scoring = Scoring()
    assert (await scoring.score("a long answer", question_for(f"{own}:longer", "5"))).correct
    assert not (await scoring.score("no", question_for(f"{own}:longer", "5"))).correct


async def test_a_function_may_score_every_question(own: str) -> None:
    scoring = Scoring(override=plug_in(f"{own}:longer"))
    assert (await scoring.score("a long answer", question_for("exact", "5"))).correct


@pytest.mark.parametrize("function", ["breaks", "says_yes"])
async def test_a_plug_in_that_fails_is_an_error_and_no_0(own: str, function: str) -> None:
    with pytest.raises(Unscored, match="'q1'") as raised:
        await Scoring().score("no", question_for(f"{own}:{function}", "5"))
    assert raised.value.label == "scorer_failed"


@pytest.mark.parametrize("function", ["missing", "length", ""])
def test_a_plug_in_that_is_no_function_is_refused(own: str, function: str) -> None:
    with pytest.raises(StartupError, match="has no function"):
        plug_in(f"{own}:{function}")


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(StartupError, match="importing 'no_such_module_of_ours' failed"):
        plug_in("no_such_module_of_ours:score")


def test_an_unknown_scorer_names_the_nearest() -> None:
    assert all(check_name(name) is None for name in KNOWN)
    message = check_name("numerical")
    assert message is not None
    assert message.endswith("Did you mean 'numeric'?")
