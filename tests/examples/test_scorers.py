"""examples/scorers: `eval run --scorer` accepts the scorer, and its questions are valid requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gateway.evaluation.questions.data import load
from gateway.evaluation.record import ScoredAnswer
from gateway.evaluation.scoring import plug_in

if TYPE_CHECKING:
    import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "scorers"


def test_the_scorer_distinguishes_brief_correct_answers_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    brief = plug_in("brief:brief")
    data = load(str(FOLDER / "questions.jsonl"), scorer="brief:brief")
    assert [question.id for question in data.questions] == ["sky", "ice", "tides"]
    sky = data.questions[0]
    assert brief("Rayleigh scattering.", sky) == ScoredAnswer(1.0, "2 words")
    assert brief("Scattering, " + "you see " * 40, sky) == ScoredAnswer(0.5, "81 words")
    assert brief("Nobody knows.", sky) == ScoredAnswer(0.0)
