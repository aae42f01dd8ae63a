"""A learned model is numbers in a file: read with suspicion, and by arithmetic alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gateway.policy.book import check_book
from gateway.policy.length_model import MAX_FILE_BYTES, FittedLengths, read_lengths
from gateway.policy.question_features import FEATURES

if TYPE_CHECKING:
    from pathlib import Path

ZEROS = [0.0] * len(FEATURES)
WHENCE = {
    "data": "made-up",
    "data_sha256": "0" * 64,
    "questions": 80,
    "teacher": "big",
    "student": "small",
    "setting": "chat",
    "created": 1,
    "version": "0.1.0",
}
FILE: dict[str, Any] = {
    "name": "chat.1",
    "features": list(FEATURES),
    "means": ZEROS,
    "scales": [1.0] * len(FEATURES),
    "lengths": [
        {"tokens": 0, "intercept": 0.0, "weights": ZEROS, "cost_usd": 0.001},
        {"tokens": 40, "intercept": 0.0, "weights": [1.0, *ZEROS[1:]], "cost_usd": 0.003},
    ],
    "usd_for_right": 0.01,
    "provenance": WHENCE,
}


def test_the_length_is_taken_that_is_worth_most_after_its_cost() -> None:
    """A right answer is worth a cent here: 40 tokens, which cost 0.2 cents more, must make it likelier by a fifth."""
    model = FittedLengths.model_validate(FILE)
    assert model.predict([0.0, *ZEROS[1:]]).tokens == 0
    assert model.predict([0.8, *ZEROS[1:]]).tokens == 0  # 0.69, by 0.19
    likelier = model.predict([0.9, *ZEROS[1:]])  # 0.71
    assert likelier.tokens == 40
    assert likelier.score == pytest.approx(0.7109, abs=1e-4)


def test_numbers_far_from_those_of_its_training_break_nothing() -> None:
    model = FittedLengths.model_validate(FILE)
    assert model.predict([1e9, *ZEROS[1:]]).tokens == 40
    assert model.predict([-1e9, *ZEROS[1:]]).tokens == 0


def changed(**more: Any) -> dict[str, Any]:
    return FILE | more


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (changed(features=["log_bytes"]), "fit it again"),
        (changed(means=[0.0]), "14 means"),
        (changed(scales=[0.0] * len(FEATURES)), "scales.0"),
        (changed(lengths=[]), "lengths"),
        (changed(lengths=[FILE["lengths"][0]] * 2), "a length twice"),
        (changed(usd_for_right=0), "usd_for_right"),
        (changed(kind="pickle"), "kind"),
        (changed(format=2), "format"),
        (changed(code="import os"), "code"),
        (changed(name="../../x"), "name"),
    ],
)
def test_a_file_that_is_none_is_refused_with_what_is_wrong(tmp_path: Path, file: dict[str, Any], said: str) -> None:
    (tmp_path / "m.json").write_text(json.dumps(file))
    with pytest.raises(ValueError, match=said):
        read_lengths(tmp_path / "m.json")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is no file of"),
        (b"\x80\x04\x95", "is no file of"),
        (b'{"means": [NaN]}', "is no file of"),
        (b" " * (MAX_FILE_BYTES + 1), "is larger than"),
    ],
)
def test_a_file_of_another_kind_or_size_is_refused(tmp_path: Path, raw: bytes, said: str) -> None:
    (tmp_path / "m.json").write_bytes(raw)
    with pytest.raises(ValueError, match=said):
        read_lengths(tmp_path / "m.json")


POLICY = """\
tenant: acme
routes:
  - model: chat
    mode: guided
    teacher: big
    student: small
    guidance:
      tokens: auto
      auto: {AUTO}
"""


def told(folder: Path, auto: str) -> list[str]:
    (folder / "acme.yaml").write_text(POLICY.replace("{AUTO}", auto))
    _, mistakes = check_book(folder, ["big", "small"])
    return [str(one).partition("acme.yaml:")[2] for one in mistakes]


def test_a_policy_names_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "lengths").mkdir()
    (tmp_path / "lengths/chat.json").write_text(json.dumps(FILE))
    (tmp_path / "acme.yaml").write_text(POLICY.replace("{AUTO}", "{model: lengths/chat.json}"))
    book, mistakes = check_book(tmp_path, ["big", "small"])
    assert not mistakes
    assert book is not None
    model = book.policies[0].routes[0].guidance.auto.model
    assert model is not None
    assert model.name == "chat.1"


@pytest.mark.parametrize(
    ("auto", "line"),
    [
        ("{model: lengths/none.json}", "9: routes[0].guidance.auto.model: lengths/none.json cannot be read"),
        ("{model: ../other.json}", "9: routes[0].guidance.auto.model: must stand in the policies folder or below it"),
        ("{model: /etc/passwd}", "9: routes[0].guidance.auto.model: must stand in the policies folder or below it"),
        ("{min: 50, max: 40}", "9: routes[0].guidance.auto.max: must be at least min, 50"),
        ("{default: 90}", "9: routes[0].guidance.auto.default: must be at most max, 80"),
        ("{rules: [{name: a, tokens: 20}]}", "9: routes[0].guidance.auto.rules[0]: holds for every request"),
        ("{rules: [{name: a, prompt: maths, tokens: 8}]}", "9: routes[0].guidance.auto.rules: a (the 1. rule)"),
        ("{probe: {confident: 0}}", "9: routes[0].guidance.auto.probe.confident: must be more than 0"),
        ("{stop_at: word}", "9: routes[0].guidance.auto.stop_at: must be step, sentence or none"),
    ],
)
def test_what_cannot_be_is_a_mistake_with_its_place(tmp_path: Path, auto: str, line: str) -> None:
    (found,) = told(tmp_path, auto)
    assert found.startswith(line)


@pytest.mark.parametrize("said", ["automatic", "true", "1.5", "[40]"])
def test_tokens_are_a_number_or_auto(tmp_path: Path, said: str) -> None:
    (tmp_path / "acme.yaml").write_text(POLICY.replace("tokens: auto", f"tokens: {said}").replace("{AUTO}", "{}"))
    _, (found,) = check_book(tmp_path, ["big", "small"])
    assert str(found).endswith("routes[0].guidance.tokens: must be a whole number, or auto")
