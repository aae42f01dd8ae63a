"""Questions with turns, such as collected requests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gateway.errors import ConfigError
from gateway.evaluation.folder import digest
from gateway.evaluation.questions.data import load
from gateway.evaluation.record import Question
from gateway.evaluation.setting import Grid, GridFile, Setting
from gateway.policy.projections import Exemplar

if TYPE_CHECKING:
    from pathlib import Path

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Why is the sky blue?"}
TURNS = [SYSTEM, USER, {"role": "assistant", "content": "Scattering."}, {"role": "user", "content": "And red?"}]


def write(folder: Path, *lines: dict[str, Any]) -> str:
    file = folder / "requests.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def messages_of(question: Question, *exemplars: Exemplar, shots: int = 0) -> Any:
    return Setting(mode="student", shots=shots).request(question, exemplars).body["messages"]


def test_a_collected_request_is_a_question_that_a_judge_compares(tmp_path: Path) -> None:
    line = {"id": "req_1", "route": "chat", "created": 1, "messages": TURNS, "max_tokens": 90, "stop": ["END"]}
    (question,) = load(write(tmp_path, line)).questions
    assert (question.id, question.answer, question.scorer) == ("req_1", "", "preference")
    assert (
        question.text == "system: Be brief.\n\nuser: Why is the sky blue?\n\nassistant: Scattering.\n\nuser: And red?"
    )
    assert messages_of(question) == TURNS


def test_a_single_message_is_its_text(tmp_path: Path) -> None:
    (question,) = load(write(tmp_path, {"messages": [USER]})).questions
    assert (question.text, messages_of(question)) == (USER["content"], [USER])


def test_an_answer_is_scored_by_its_rule(tmp_path: Path) -> None:
    lines = [
        {"messages": TURNS, "answer": 4},
        {"messages": TURNS, "answer": "Dust.", "scorer": "judge"},
        {"messages": TURNS, "answer": "total 4", "pattern": r"\d"},
    ]
    found = [(one.scorer, one.answer) for one in load(write(tmp_path, *lines)).questions]
    assert found == [("numeric", "4"), ("judge", "Dust."), ("regex", "total 4")]
    (question,) = load(write(tmp_path, {"messages": TURNS}), scorer="judge").questions
    assert (question.scorer, question.answer) == ("judge", "")


def test_exemplars_stand_after_the_system_prompt(tmp_path: Path) -> None:
    (question,) = load(write(tmp_path, {"messages": TURNS})).questions
    shot = [{"role": "user", "content": "Hot?"}, {"role": "assistant", "content": "No."}]
    assert messages_of(question, Exemplar("Hot?", "No."), shots=1) == [SYSTEM, *shot, *TURNS[1:]]


def test_the_turns_distinguish_data_sets_and_plain_questions_keep_their_hash() -> None:
    plain = Question("a", "user: b", "", "judge")
    assert digest([plain]) != digest([Question("a", "user: b", "", "judge", messages=(("user", "b"),))])
    # Folders of recorded runs have this hash.
    assert digest([Question("q1", "What?", "4", "numeric")]) == (
        "212dd1d1e3b2666265caec520bc78f534cb14c97871c38bc26f2757bb36b35ff"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"messages": []}, "1: messages: must be a list of messages"),
        ({"messages": "Hi"}, "1: messages: must be a list of messages"),
        (
            {"messages": [{"role": "tool", "content": "4"}]},
            "1: messages[0].role: must be one of developer, system",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "1: messages[0].content: must be text"),
        ({"messages": TURNS[:3]}, "1: messages: the last one must be of role user"),
        ({"messages": TURNS, "question": "And?"}, "1: question: conflicts with 'messages'"),
        ({"messages": TURNS, "choices": ["a", "b"]}, "1: choices: conflicts with 'messages'"),
        ({"messages": TURNS, "scorer": "numeric"}, "1: answer: missing: the scorer numeric needs it; preference and"),
        ({"mesages": TURNS}, "1: mesages: unknown field. Did you mean 'messages'?"),
    ],
)
def test_an_invalid_line_names_its_field_and_the_fix(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(tmp_path, line))
    (issue,) = error.value.issues
    assert f"{issue.line}: {issue.field}: {issue.message}".startswith(message)


def test_raw_prompts_have_no_turns(tmp_path: Path) -> None:
    plain = {"question": "How many?", "answer": 4}
    path = write(tmp_path, plain, {"messages": TURNS, "answer": 4})
    assert len(load(path).questions) == 2
    with pytest.raises(ConfigError) as error:
        load(path, only_chats=False)
    (issue,) = error.value.issues
    assert (issue.line, issue.field) == (2, "messages")
    assert issue.message == "a raw prompt has no turns: use --form chat for these questions"


def test_the_forms_of_a_grid_are_those_of_all_its_parts() -> None:
    assert GridFile().forms == {"chat"}
    assert GridFile(form=("completion",), grids=(Grid(tokens=(20,)),)).forms == {"completion"}
    both = GridFile(form=("completion",), grids=(Grid(form=("chat",)), Grid(tokens=(20,))))
    assert both.forms == {"chat", "completion"}
