"""The exemplars file of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from gateway.errors import StartupError
from gateway.evaluation.priming.exemplars import ExemplarCandidate, Style, exemplar_yaml, write_file
from gateway.policy.projections import Exemplar

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), min_size=1, max_size=90)


def made_of(question: str, answer: str, name: str = "q1") -> ExemplarCandidate:
    return ExemplarCandidate(Exemplar(question, answer), "result first", name, 7, "b")


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=3), TEXTS)
def test_a_written_file_is_read_back_unchanged(texts: list[tuple[str, str, str]], comment: str) -> None:
    """Any text in a question, an answer, an id or a comment survives."""
    text = exemplar_yaml([made_of(*one) for one in texts], [comment, "second: line"])
    read = YAML(typ="safe", pure=True).load(text)
    assert read == [{"question": question, "answer": answer} for question, answer, _ in texts]


def test_line_breaks_are_kept_and_each_exemplar_has_its_source() -> None:
    text = exemplar_yaml([made_of("Which?\n(a) one\n(b) two", "(b) two: it is even.", "csqa-7")], ["Found today."])
    assert text == (
        "# Found today.\n\n"
        "# Question csqa-7 of the data; its answer is the teacher's, with its result moved to the start, 7 tokens.\n"
        "- question: |-\n    Which?\n    (a) one\n    (b) two\n"
        "  answer: '(b) two: it is even.'\n"
    )


def test_an_existing_file_is_overwritten_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "exemplars.yaml"
    write_file(path, "one", overwrite=False)
    with pytest.raises(StartupError, match=r"exists.*--force"):
        write_file(path, "two", overwrite=False)
    assert path.read_text() == "one"
    write_file(path, "two", overwrite=True)
    assert path.read_text() == "two"


def test_an_unwritable_file_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"cannot be written: No such file or directory\. Name another"):
        write_file(tmp_path / "none" / "exemplars.yaml", "one", overwrite=False)


def test_an_exemplar_of_every_style_has_its_source() -> None:
    for style in get_args(Style):
        one = ExemplarCandidate(Exemplar("Which?", "This."), style, "3 of --exemplars", 2)
        comment = [line for line in exemplar_yaml([one], []).splitlines() if line.startswith("# ")]
        assert len(comment) == 1
        assert "3 of --exemplars" in comment[0]
