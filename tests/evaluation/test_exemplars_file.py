from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.evaluation.questions.data import exemplars, shipped
from gateway.policy.projections import PRIMED, Exemplar
from gateway.scoring.choices import choice
from gateway.scoring.numbers import result

CHOICES = Path(__file__).parents[2] / "policies" / "exemplars" / "choices.yaml"


def write(folder: Path, text: str) -> Path:
    path = folder / "shots.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "- question: How many?\n  answer: The answer is 2.\n- {question: 'And now?', answer: Three.}\n",
        '[{"question": "How many?", "answer": "The answer is 2."},\n {"question": "And now?", "answer": "Three."}]',
    ],
)
def test_yaml_and_json_hold_the_same_list(tmp_path: Path, text: str) -> None:
    assert exemplars(write(tmp_path, text)) == (
        Exemplar("How many?", "The answer is 2."),
        Exemplar("And now?", "Three."),
    )


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["has no exemplars: it must be a list"]),
        ("[]", ["has no exemplars: it must be a list"]),
        ("question: a\nanswer: b\n", [":1: must be a list: one '- ...' per entry"]),
        ("- question: a\n  answer: b\n- question: c\n", [":3: answer: missing: add it"]),
        ("- question: a\n  answer: ''\n- just text\n", [":2: answer: must not be empty", ":3: must hold keys"]),
        ("- question: a\n  anwser: b\n", [":2: anwser: unknown key. Did you mean 'answer'?"]),
        ("- question: a\n  answer: 2\n", [":2: answer: must be text: put it in quotes"]),
        ("- question: a: b\n", [":1: not valid YAML: a second ': '"]),
    ],
)
def test_all_issues_are_reported_with_their_lines(tmp_path: Path, text: str, messages: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        exemplars(write(tmp_path, text))
    found = [str(issue) for issue in raised.value.issues]
    assert len(found) == len(messages)
    assert all(words in whole for words, whole in zip(messages, found, strict=True)), found


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: no such file"):
        exemplars(tmp_path / "none.yaml")


def test_our_own_arithmetic_is_right() -> None:
    """The last calculated line of each worked exemplar agrees with its statement."""
    for one in shipped(["numeric"]):
        steps, _, stated = one.answer.rpartition(" The answer is ")
        worked = result(steps)
        assert worked is not None
        assert f"{worked.value}." == stated, one.question


def choices_of(exemplar: Exemplar) -> dict[str, str]:
    listed = exemplar.question.partition(" Answer Choices: (")[2].split(" (")
    return dict(part.split(") ", 1) for part in listed)


def test_our_own_choices_name_one_of_theirs() -> None:
    for one in shipped(["choice"]):
        choices = choices_of(one)
        assert list(choices) == list("abcde")
        right = choice(one.answer, choices)
        assert right is not None
        assert choices[right] in one.answer, one.question


def test_answers_of_the_policys_choices_begin_with_their_letter_at_any_length() -> None:
    """Guidance of a few tokens already contains the choice, and it is scored as the whole answer is."""
    found = exemplars(CHOICES)
    assert len(found) == 8
    letters = [one.answer[1] for one in found]
    assert set(letters) == set("abcde"), "no letter is preferred"
    for one, right in zip(found, letters, strict=True):
        choices, words = choices_of(one), one.answer.split()
        assert list(choices) == list("abcde")
        assert one.answer.startswith(f"({right}) {choices[right]}, because "), one.question
        cut = {choice(" ".join(words[:count]), choices) for count in range(1, len(words) + 1)}
        reason = one.answer.partition(", because ")[2]
        assert cut | {choice(f"({right.upper()}) because {reason}", choices)} == {right}, one.question
    assert not {one.question for one in found} & {one.question for one in shipped(["choice"])}


def test_the_exemplars_of_primed_are_answered_right() -> None:
    sums, chosen, *_ = PRIMED.exemplars
    worked = result(sums.answer)
    assert worked is not None
    assert f"{worked.value}" == "54"
    assert choice(chosen.answer, {"A": "ruler", "B": "thermometer", "C": "scales", "D": "compass"}) == "B"


def test_mixed_questions_have_none() -> None:
    assert shipped(["numeric", "choice"]) == ()
