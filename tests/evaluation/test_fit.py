"""Fitted length models are evaluated on other questions, and beat a fixed length only if something can be learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import orjson
import pytest

from gateway.errors import StartupError
from gateway.evaluation.advice.fit import compare, families, figures_of, fit, tables_of
from gateway.evaluation.setting import Setting
from gateway.evaluation.statistics import agresti_min, sign_test
from gateway.policy.length_model import lengths_of
from gateway.policy.projections import Exemplar
from gateway.policy.question_features import features_of
from gateway.protocol.chat import parse_chat
from tests.evaluation.families import examples, manifest, questions

if TYPE_CHECKING:
    from gateway.evaluation.setting import Form
    from gateway.policy.length_model import FittedLengths

COUNT = 80
ASKED = questions(COUNT)
FAMILY = families(manifest(COUNT), examples(ASKED, by_kind=True), ASKED)[0]


@pytest.fixture(scope="module")
def model() -> FittedLengths:
    return fit(FAMILY, manifest(COUNT), "chat", 7)


def test_lengths_that_depend_on_words_are_learned(model: FittedLengths) -> None:
    """Each half of the questions gets its own length; a fixed length is right for one half only."""
    assert model.figures is not None
    assert model.figures.beats
    assert model.figures.auto_right == 1.0
    assert model.figures.fixed_right == 0.6
    assert model.figures.auto_usd <= model.figures.fixed_usd * 1.01
    chosen = [model.predict(features_of(request, request.max_tokens).numbers).tokens for request in FAMILY.requests]
    cells = [row[FAMILY.lengths.index(tokens)] for row, tokens in zip(FAMILY.cells, chosen, strict=True)]
    assert {cell.score for cell in cells} == {1.0}


def test_random_lengths_do_not_beat_a_fixed_length() -> None:
    family = families(manifest(COUNT), examples(ASKED, by_kind=False), ASKED)[0]
    compared = compare(tables_of(family), family.lengths)
    assert not compared.beats
    assert compared.low <= 0 <= compared.high


def test_the_model_is_compared_with_the_given_length(model: FittedLengths) -> None:
    fixed = compare(tables_of(FAMILY), FAMILY.lengths, 40)
    assert (fixed.fixed_tokens, fixed.fixed_right) == (40, 0.0)
    assert fixed.auto_usd <= fixed.fixed_usd * 1.1


def test_the_file_reads_back_as_it_was_written(model: FittedLengths) -> None:
    again = lengths_of(model.model_dump_json().encode())
    assert again == model
    numbers = features_of(FAMILY.requests[1], 200).numbers
    assert again.predict(numbers) == model.predict(numbers)
    assert (again.name, again.provenance.questions) == ("chat.7", COUNT)


def test_too_few_questions_or_no_prices_teach_nothing() -> None:
    few = families(manifest(10), examples(ASKED[:10], by_kind=True), ASKED[:10])[0]
    with pytest.raises(StartupError, match="needs at least 40"):
        tables_of(few)


@pytest.mark.parametrize("form", ["chat", "completion"])
@pytest.mark.parametrize("shots", [0, 2])
def test_features_are_equal_in_training_and_in_the_gateway(form: Form, shots: int) -> None:
    """Features depend neither on the exemplars nor on the builder of the request."""
    shown = (Exemplar("How many are 2 and 2?", "Four."), Exemplar("What is blue?", "The sky."))
    for one in ASKED[:4]:
        trained = Setting(mode="student", form=form, max_tokens=200).request(one, ())
        request = Setting(mode="student", form=form, shots=shots, max_tokens=200).request(one, shown)
        ours, theirs = features_of(trained, 200), features_of(request, 200)
        assert ours.prompt == theirs.prompt
        differ = [
            index for index, pair in enumerate(zip(ours.numbers, theirs.numbers, strict=True)) if len({*pair}) > 1
        ]
        assert differ == ([10] if form == "chat" and shots else []), "the earlier turns are counted, and nothing else"
    body = {"model": "x", "messages": [{"role": "user", "content": ASKED[1].text}], "max_tokens": 200, "stream": True}
    on_the_path = parse_chat(orjson.dumps(body))
    assert features_of(on_the_path, 200) == features_of(
        Setting(mode="student", max_tokens=200).request(ASKED[1], ()), 200
    )


def test_four_questions_do_not_show_that_chosen_lengths_are_better() -> None:
    """Four for and none against: McNemar's p is 0.125, but a bootstrap's interval is above 0."""
    auto, fixed = (np.array([[1.0] * right + [0.0] * (100 - right), [1.0] * 100]) for right in (64, 60))
    found = figures_of(80, auto, fixed)
    assert (found.low, found.high) == agresti_min([1.0] * 4 + [0.0] * 96)
    assert sign_test(4, 0) == pytest.approx(0.125)
    assert not found.beats
