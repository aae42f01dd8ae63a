"""Results of chosen lengths, computed from records without calling a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import msgspec
import orjson
import pytest

from gateway.errors import StartupError
from gateway.evaluation.advice.fit import families, tables_of
from gateway.evaluation.setting import read_auto
from gateway.policy.length import AutoRule, LengthRule, choose_length
from gateway.protocol.chat import parse_chat
from tests.evaluation.families import GUIDED, LENGTHS, examples, manifest, questions

COUNT = 40
ASKED = questions(COUNT)
FAMILY = families(manifest(COUNT), examples(ASKED, by_kind=True), ASKED)[0]


def test_a_family_is_one_setting_at_all_its_lengths_and_the_student_alone() -> None:
    assert FAMILY.lengths == (0, *LENGTHS)
    assert FAMILY.setting["projection"] == "cutoff"
    assert len(FAMILY.cells) == COUNT
    assert [cell.teacher_output_tokens for cell in FAMILY.cells[0]] == [0, *LENGTHS]


def test_a_question_that_one_length_did_not_answer_is_left_out() -> None:
    """With such questions, lengths would be compared on different questions."""
    lost = replace(GUIDED, tokens=20).name
    some = [one for one in examples(ASKED, by_kind=True) if (one.setting, one.question) != (lost, "7")]
    family = families(manifest(COUNT), some, ASKED)[0]
    assert set(family.questions) == {one.id for one in ASKED} - {"7"}


def test_a_run_without_lengths_is_an_error() -> None:
    alone = [one for one in examples(ASKED, by_kind=True) if one.mode == "student"]
    with pytest.raises(StartupError, match="several --tokens"):
        families(manifest(COUNT), alone, ASKED)


def test_every_fixed_length_reproduces_the_records() -> None:
    tables = tables_of(FAMILY)
    assert tables.right.mean(axis=0).tolist() == [0.5, 0, 0, 0.6]
    assert {row[FAMILY.lengths.index(80)].teacher_output_tokens for row in FAMILY.cells} == {80}
    assert tables.usd[:, FAMILY.lengths.index(40)].mean() == pytest.approx(0.0005)


def test_rules_choose_the_same_length_as_the_gateway() -> None:
    """The choice equals the gateway's for the same body."""
    rule = AutoRule(rules=(LengthRule(name="sums", prompt="maths", tokens=80),), default=20)
    chosen = [choose_length(rule, request, request.max_tokens, {}).tokens for request in FAMILY.requests]
    for question, tokens in zip(ASKED, chosen, strict=True):
        body = {"model": "chat", "max_tokens": 200, "messages": [{"role": "user", "content": question.text}]}
        on_the_path = parse_chat(orjson.dumps(body))
        assert choose_length(rule, on_the_path, 200, {}).tokens == tokens
    assert Counter(chosen) == {20: COUNT // 2, 80: COUNT // 2}


def test_other_facts_of_a_setting_do_not_split_a_family() -> None:
    """The hash of shown texts differs between the student alone and guided settings."""
    with_source = manifest(8)
    settings = [one | {"shown": one["mode"], "policies": "/theirs"} for one in with_source.settings]
    sample = questions(8)
    (family,) = families(
        msgspec.structs.replace(with_source, settings=settings), examples(sample, by_kind=True), sample
    )
    assert family.lengths == (0, 20, 40, 80)
    assert "theirs" not in family.name


def test_a_setting_that_chooses_its_length_is_of_no_family() -> None:
    with_source = manifest(8)
    chosen = replace(GUIDED, tokens=0, auto=read_auto(None)).as_dict()
    sample = questions(8)
    more = msgspec.structs.replace(with_source, settings=[*with_source.settings, chosen])
    (family,) = families(more, examples(sample, by_kind=True), sample)
    assert family.lengths == (0, 20, 40, 80)
