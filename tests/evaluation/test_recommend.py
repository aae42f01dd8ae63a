"""Recommendations for folders with known truth."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gateway.evaluation.advice.evidence import evidence_of
from gateway.evaluation.advice.recommend import Recommendation, check_settings, choice, loss_of, recommend
from gateway.evaluation.advice.target import AnswerPanel, RecommendationTarget
from gateway.evaluation.record import read_run
from gateway.evaluation.statistics import MIN_QUESTIONS
from tests.evaluation.known_truth import ALONE, CONCISE_40, M20, M40, M80, STUDENT, TEACHER, Truth, draws, folder_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KEEP = RecommendationTarget("keep", Decimal("0.95"))
RUNS = 200
# Three standard errors of a share of 0.2 over this number of runs.
SLACK = 3 * (0.2 * 0.8 / RUNS) ** 0.5


def panel(truths: Sequence[Truth], n: int, seed: int) -> AnswerPanel:
    cost = np.tile([float(one.cost_usd) for one in truths], (n, 1))
    guided = tuple(one.setting.mode == "guided" for one in truths)
    return AnswerPanel(draws(truths, n, seed), cost, (0,), 1, guided, (True,) * len(truths))


def chosen(truths: Sequence[Truth], n: int, target: RecommendationTarget) -> list[int | None]:
    """Return the chosen column of each simulated run."""
    found = []
    for seed in range(RUNS):
        own = panel(truths, n, seed)
        found.append(choice(own, target, check_settings(own, target, 0.8, seed)))
    return found


def recommendation(
    path: Path, truths: Sequence[Truth], n: int, target: RecommendationTarget = KEEP, seed: int = 0
) -> Recommendation:
    return recommend(evidence_of(read_run(folder_of(path, truths, n, seed))), target, confidence=0.8, folds=5, seed=0)


@pytest.mark.long
def test_the_stated_risk_covers_the_loss_of_a_setting_that_only_seems_to_reach_the_target() -> None:
    """Six settings narrowly miss the target. The cheapest one whose estimate reaches it is recommended."""
    missing = [Truth(replace(M40, tokens=30 + place), 0.755, 30 + place, 100) for place in range(6)]
    covered, recommended = 0, 0
    for seed in range(RUNS):
        own = panel([*ALONE, *missing], 150, seed)
        place = choice(own, KEEP, check_settings(own, KEEP, 0.8, seed))
        if place is not None and place > 1:
            recommended += 1
            covered += loss_of(own, place).interval.high >= 0.8 - 0.755
    assert recommended / RUNS > 0.6, "or the test is too easy"
    assert covered / recommended > 0.9


def test_settings_equal_to_a_mixture_are_recommended_at_most_at_the_level() -> None:
    """Settings with 40 to 80 teacher tokens that equal a random mixture with the teacher."""
    on_line = [
        Truth(replace(M40, tokens=tokens), 0.4 + 0.4 * (tokens + 16 - 20) / 180, tokens, 160) for tokens in (40, 60, 80)
    ]
    paid = 0
    for seed in range(RUNS):
        own = panel([*ALONE, *on_line], 200, seed)
        paid += any(one.pays is not None and one.pays.shown for one in check_settings(own, KEEP, 0.8, seed))
    assert paid / RUNS <= 0.2 + SLACK


@pytest.mark.parametrize(("n", "verdict"), [(40, "none_pays"), (8, "too_few")])
def test_a_teacher_that_got_nothing_right_has_nothing_to_keep(tmp_path: Path, n: int, verdict: str) -> None:
    """The cheapest setting must not count as keeping 95 % of an accuracy of 0."""
    nothing = [replace(one, accuracy=0.0) for one in (*ALONE, Truth(M40, 0.0, 40, 100))]
    found = recommendation(tmp_path, nothing, n)
    assert (found.verdict, found.chosen, found.favorite) == (verdict, None, None)
    assert found.held_out is None, "nor does the procedure choose anything on a part of them"
    if verdict == "none_pays":
        assert "answered no question correctly" in found.reason
    best = recommendation(tmp_path / "budget", nothing, n, RecommendationTarget("budget", Decimal("0.01")))
    assert best.chosen is not None or n < MIN_QUESTIONS, "what money buys has nothing to do with the teacher"


@pytest.mark.long
def test_where_guidance_is_clearly_worse_none_pays() -> None:
    worse = [Truth(M20, 0.3, 20, 180), Truth(M40, 0.32, 40, 180), Truth(M80, 0.4, 80, 180)]
    assert {
        place
        for target in (KEEP, RecommendationTarget("share", Decimal("0.6")))
        for place in chosen([*ALONE, *worse], 200, target)
    } == {
        0,
        1,
    }


def test_clearly_better_guidance_is_recommended() -> None:
    better = [Truth(M20, 0.5, 20, 160), Truth(M40, 0.8, 40, 120), Truth(M80, 0.8, 80, 80)]
    found = chosen([*ALONE, *better], 500, RecommendationTarget("keep", Decimal("0.9")))
    assert found.count(3) / RUNS > 0.95


def test_a_recommendation_states_expected_results(tmp_path: Path) -> None:
    found = recommendation(tmp_path, [*ALONE, Truth(M40, 0.8, 40, 120), Truth(M80, 0.8, 80, 80)], 400)
    assert found.verdict == "guided"
    assert found.setting is not None
    assert found.setting.setting["tokens"] == 40
    assert found.setting.cost_per_answer == Decimal("0.000052")
    held = found.held_out
    assert held is not None
    assert held.questions == 400
    assert sum(held.chosen.values()) == held.folds == 5
    assert held.interval is not None
    assert held.interval.low <= held.accuracy <= held.interval.high
    assert Decimal("0.00005") < held.cost_usd <= held.teacher_cost_usd == Decimal("0.0002")


@pytest.mark.long
def test_the_held_out_figure_is_that_of_the_procedure_and_not_of_the_winner(tmp_path: Path) -> None:
    """Twelve settings are equal, so the one that seems best is not as good as it seems."""
    alike = [Truth(replace(M40, tokens=30 + place), 0.6, 30 + place, 100) for place in range(12)]
    gaps = []
    for seed in range(8):
        found = recommendation(tmp_path, [*ALONE, *alike], 60, RecommendationTarget("share", Decimal("0.5")), seed)
        assert found.verdict == "guided"
        assert found.setting is not None
        assert found.held_out is not None
        gaps.append(found.setting.accuracy - found.held_out.accuracy)
    assert np.mean(gaps) > 0.02


def test_with_few_questions_the_missing_number_is_stated(tmp_path: Path) -> None:
    found = recommendation(tmp_path, [*ALONE, Truth(M40, 0.82, 170, 100)], 60, seed=0)
    assert found.verdict == "too_few"
    assert found.setting is not None
    assert found.setting.setting["mode"] == "teacher"
    assert found.favorite == 2
    assert found.more is not None
    assert found.more > 20
    assert f"about {found.more:,} questions in addition to these 60" in found.reason


def test_below_twenty_questions_nothing_is_claimed(tmp_path: Path) -> None:
    found = recommendation(tmp_path, [Truth(TEACHER, 1, 200, 0), Truth(STUDENT, 0, 0, 200), Truth(M40, 1, 40, 100)], 12)
    assert found.verdict == "too_few"
    assert found.setting is not None
    assert found.setting.setting["mode"] == "teacher"
    assert found.held_out is None
    assert found.more is not None
    assert found.more >= MIN_QUESTIONS - 12


@pytest.mark.parametrize(
    ("truths", "target", "mode", "why"),
    [
        ([*ALONE, Truth(M40, 0.5, 40, 100)], KEEP, "teacher", "none of the 1 guided settings reaches the target"),
        (
            [*ALONE, Truth(M40, 0.3, 40, 100)],
            RecommendationTarget("share", Decimal("0.5")),
            "student",
            "none beats a mixture of student and teacher at the same cost; the best is 16.7 points below",
        ),
        (
            [Truth(TEACHER, 0.8, 200, 0), Truth(STUDENT, 0.8, 0, 200), Truth(M40, 0.9, 40, 160)],
            RecommendationTarget("loss", Decimal("0.2")),
            "student",
            "the student alone reaches the target, and is cheaper than every guided setting that reaches it",
        ),
        ([*ALONE], KEEP, "teacher", "the run has no guided setting"),
        (
            [*ALONE, Truth(M40, 0.7, 40, 100)],
            RecommendationTarget("budget", Decimal("0.00001")),
            None,
            "none of the 1 guided settings reaches the target",
        ),
    ],
)
def test_without_a_recommendation_the_reason_and_the_next_step_are_stated(
    tmp_path: Path, truths: list[Truth], target: RecommendationTarget, mode: str | None, why: str
) -> None:
    found = recommend(
        evidence_of(read_run(folder_of(tmp_path, truths, 400, exactly=True))), target, confidence=0.8, folds=5, seed=0
    )
    assert found.verdict == "none_pays"
    assert (None if found.setting is None else found.setting.setting["mode"]) == mode
    assert why in found.reason


def test_of_equals_the_more_accurate_is_taken_and_then_the_first(tmp_path: Path) -> None:
    """The costs of the twins are equal in all digits."""
    twins = [
        Truth(M20, 0.8, 40, 100),
        Truth(M40, 0.85, 40, 100),
        Truth(M80, 0.85, 40, 100),
        Truth(CONCISE_40, 0.8, 40, 100),
    ]
    evidence = evidence_of(read_run(folder_of(tmp_path, [*ALONE, *twins], 400, exactly=True)))
    found = recommend(evidence, KEEP, confidence=0.8, folds=5, seed=0)
    assert found.setting is not None
    assert found.setting.setting["tokens"] == 40
    assert found.setting.setting["projection"] == "cutoff"


def test_the_same_seed_gives_the_same(tmp_path: Path) -> None:
    truths = [*ALONE, Truth(M40, 0.78, 40, 120), Truth(M80, 0.8, 80, 80)]
    one, other = (recommendation(tmp_path, truths, 100) for _ in range(2))
    assert one.results == other.results
    assert one.held_out == other.held_out


SHOTS = Truth(replace(TEACHER, form="completion", shots=8), 0.9, 100, 0)


def with_shots(path: Path, *truths: Truth, target: RecommendationTarget = KEEP) -> Recommendation:
    """Return the recommendation for a run whose teacher is more accurate, and cheaper, with exemplars in requests."""
    folder_of(path, [*ALONE, SHOTS, *truths], 400, exactly=True)
    return recommend(evidence_of(read_run(path), "chat"), target, confidence=0.8, folds=5, seed=0)


def test_the_target_is_relative_to_the_best_configuration_of_the_teacher(tmp_path: Path) -> None:
    """A setting as accurate as the teacher without exemplars misses 95 % of the teacher with exemplars."""
    found = with_shots(tmp_path, Truth(M40, 0.8, 40, 120))
    assert found.verdict == "none_pays"
    assert found.setting is None, "neither the teacher without exemplars nor the student reaches the target"
    assert found.evidence.candidates[found.best_teacher].name == SHOTS.setting.name
    assert not found.results[found.best_teacher].selectable
    benefit = found.benefit
    assert benefit is not None
    assert benefit.advantage.shown
    assert benefit.advantage.teacher == benefit.best_teacher == found.best_teacher
    assert benefit.loss.value == pytest.approx(0.1)
    assert benefit.loss.interval.low < 0.1 < benefit.loss.interval.high
    assert benefit.saved_usd == Decimal("0.000048")
    assert benefit.saved_share is not None
    assert benefit.saved_share.value == pytest.approx(0.48)


def test_a_teacher_with_other_requests_is_never_chosen(tmp_path: Path) -> None:
    dear = Truth(M40, 0.9, 90, 120)
    found = with_shots(tmp_path / "guided", dear, target=RecommendationTarget("loss", Decimal("0.01")))
    assert found.setting is None
    assert found.verdict == "none_pays"
    cheap = with_shots(tmp_path / "alone", dear, target=RecommendationTarget("share", Decimal(1)))
    assert cheap.setting is not None
    assert cheap.setting.name == TEACHER.name, "its own cost is the limit, not that of the teacher with exemplars"


def test_an_estimate_that_reaches_the_target_suffices_with_a_shown_advantage(tmp_path: Path) -> None:
    """The setting loses a point less than the target allows, on 100 questions."""
    truths = [*ALONE, Truth(M40, 0.77, 40, 120)]
    evidence = evidence_of(read_run(folder_of(tmp_path, truths, 100, exactly=True)))
    found = recommend(evidence, KEEP, confidence=0.8, folds=5, seed=0)
    assert found.verdict == "guided"
    assert found.benefit is not None
    assert found.benefit.setting == found.chosen
    assert found.benefit.loss.interval.high > 0.04, "the loss may miss the target"
    assert found.reason.endswith("80 % confidence, and its estimate reaches the target")
