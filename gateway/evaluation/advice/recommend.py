"""The recommended setting of a route: selection, tests, and evaluation on questions outside the selection.

A guided setting is recommended if it is shown to pay, and its estimate reaches the target. It pays if it is more often
correct than a random mixture of student and teacher at the same cost. It must beat the mixtures with all configurations
of the teacher alone (`target.advantages`). The claims hold at the given confidence, simultaneously for all pairs of a
setting and a teacher. Otherwise the student alone, the teacher alone or no setting is recommended.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from gateway.evaluation.advice.target import AnswerPanel, advantages, percent
from gateway.evaluation.statistics import MIN_QUESTIONS, Interval, agresti_min, paired_bootstrap
from gateway.pricing import total_usd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from gateway.evaluation.advice.evidence import Evidence
    from gateway.evaluation.advice.target import Advantage, RecommendationTarget
    from gateway.evaluation.summary import SettingSummary

Verdict = Literal["guided", "none_pays", "too_few"]


class SettingResult(NamedTuple):
    """Results of one setting.

    Attributes:
        margin: Measured margin to the target (`RecommendationTarget.margin`).
        enough: Whether the questions suffice to compare the setting with the target.
        pays: The advantage over a mixture; None for the two alone.
        selectable: Whether a policy can have the setting.
    """

    margin: float
    enough: bool
    pays: Advantage | None
    selectable: bool

    @property
    def reaches(self) -> bool:
        """Return whether the estimate reaches the target."""
        return self.margin >= 0

    @property
    def shown(self) -> bool:
        """Return whether the setting may be recommended."""
        return self.likely and self.enough and (self.pays is None or self.pays.shown)

    @property
    def likely(self) -> bool:
        """Return whether the setting would be recommended if the measured values were exact."""
        return self.selectable and self.reaches and (self.pays is None or self.pays.claim.point > 0)


class Loss(NamedTuple):
    """A difference of two accuracies with its 95 % interval."""

    value: float
    interval: Interval


class SavedShare(NamedTuple):
    """A part of costs with its 95 % interval; None if the costs of questions do not differ."""

    value: float
    interval: Interval | None


class Benefit(NamedTuple):
    """The three answers about a guided setting.

    Attributes:
        setting: Index of the setting.
        advantage: Whether it beats a mixture of student and teacher.
        loss: The teacher's accuracy minus the setting's, for the most accurate configuration of the teacher.
        best_teacher: Index of that configuration.
        saved_usd: Savings of an answer, against the configuration of `advantage`.
        saved_share: The savings as a part of its costs; None if it costs nothing.
    """

    setting: int
    advantage: Advantage
    loss: Loss
    best_teacher: int
    saved_usd: Decimal
    saved_share: SavedShare | None


class HeldOutResult(NamedTuple):
    """Cross-validated result of the procedure: each fold is answered by the setting that the other folds select.

    The questions are those of folds with a selection. `teacher_*` are results of the teacher alone on them, in its most
    accurate configuration. Costs are means of an answer. Intervals come from a bootstrap over the questions (95 %).
    `chosen` counts folds by setting.
    """

    folds: int
    questions: int
    accuracy: float
    interval: Interval | None
    teacher_accuracy: float
    cost_usd: Decimal
    cost_interval: Interval | None
    teacher_cost_usd: Decimal
    chosen: Mapping[str, int]


class Recommendation(NamedTuple):
    """Recommendation for a route.

    Attributes:
        verdict: guided: `chosen` is a guided setting. none_pays: no guided setting pays; `chosen` is the teacher or the
            student alone, or None if neither reaches the target. too_few: as none_pays for now, but `favorite` would be
            chosen if the measured values were exact, and about `more` questions would show it; None: cannot be
            estimated.
        results, losses: Results of the candidates, and their losses of accuracy.
        best_teacher: The most accurate configuration of the teacher alone.
        benefit: The three answers about the guided setting that is chosen, or nearest to it; None without guidance.
        held_out: The cross-validated result; None for too few questions.
    """

    evidence: Evidence
    target: RecommendationTarget
    confidence: float
    verdict: Verdict
    results: tuple[SettingResult, ...]
    losses: tuple[Loss, ...]
    best_teacher: int
    chosen: int | None
    favorite: int | None
    more: int | None
    benefit: Benefit | None
    held_out: HeldOutResult | None

    @property
    def setting(self) -> SettingSummary | None:
        return None if self.chosen is None else self.evidence.candidates[self.chosen]

    @property
    def favorite_setting(self) -> SettingSummary | None:
        return None if self.favorite is None else self.evidence.candidates[self.favorite]

    @property
    def reason(self) -> str:
        """Return the reason of the verdict in words."""
        confidence, evidence = percent(self.confidence, 0), self.evidence
        guided = [one for one in self.results if one.pays is not None]
        if self.verdict == "guided":
            shown = f"it beats a student-teacher mixture at its cost with {confidence} confidence"
            return f"{shown}, and its estimate reaches the target"
        if self.verdict == "too_few":
            return (
                "no guided setting that reaches the target is shown to beat a student-teacher mixture yet: "
                f"{self._missing_evidence()}"
            )
        if not guided:
            return "the run has no guided setting: add some to the grid of `gkt-gateway eval run`"
        cheapest, favorite = self.target.minimizes_cost, self.favorite_setting
        if cheapest and favorite is None and not evidence.candidates[self.best_teacher].correct:
            return "none pays: the teacher answered no question correctly, so it has no accuracy to keep"
        reach = [one for one in guided if one.reaches]
        if not reach:
            return f"none pays: none of the {len(guided)} guided settings reaches the target"
        best = max(one.pays.claim.point for one in reach if one.pays is not None)
        if best <= 0:
            return (
                f"none pays: {len(reach)} of {len(guided)} guided settings reach the target, but none beats a mixture "
                f"of student and teacher at the same cost; the best is {abs(best) * 100:.1f} points below"
            )
        assert favorite is not None, "a setting that reaches the target and beats the mixture would be the favorite"
        return (
            f"none pays: the {favorite.setting['mode']} alone reaches the target, and is "
            f"{'cheaper' if cheapest else 'better'} than every guided setting that reaches it and beats a mixture of "
            "student and teacher"
        )

    def _missing_evidence(self) -> str:
        n, more, favorite = len(self.evidence.questions), self.more, self.favorite_setting
        if favorite is None or not favorite.guided:
            return f"nothing is claimed with fewer than {MIN_QUESTIONS} questions, and these are {n}"
        chosen = f"as measured {favorite.name} would be chosen"
        if more is None:
            return f"{chosen}, but it is too close to the limit for a reasonable number of questions"
        return f"{chosen}; about {more:,} questions in addition to these {n} would show it"


def recommend(
    evidence: Evidence, target: RecommendationTarget, *, confidence: float, folds: int, seed: int
) -> Recommendation:
    """Return the recommendation with this one-sided `confidence` (above 0.5) of each claim, always alike for a seed."""
    panel = AnswerPanel.of(evidence)
    results = check_settings(panel, target, confidence, seed)
    chosen, favorite = choice(panel, target, results), choice(panel, target, results, exact=True)
    guided = [column for column, is_guided in enumerate(panel.guided) if is_guided]
    enough = len(evidence.questions) >= MIN_QUESTIONS
    verdict: Verdict = "none_pays"
    if chosen is not None and panel.guided[chosen]:
        verdict = "guided"
    elif not enough or (favorite is not None and panel.guided[favorite]):
        verdict = "too_few"
    more = _more(evidence, results, favorite) if verdict == "too_few" else 0
    held_out = _held_out(evidence, panel, target, confidence, folds, seed) if enough else None
    best = next((one for one in (chosen, favorite) if one in guided), None)
    if best is None and guided:
        best = max(guided, key=lambda column: _nearly(results[column]))
    losses = tuple(loss_of(panel, column) for column in range(len(results)))
    benefit = None if best is None else _benefit(evidence, panel, best, results[best], seed)
    return Recommendation(
        evidence=evidence,
        target=target,
        confidence=confidence,
        verdict=verdict,
        results=results,
        losses=losses,
        best_teacher=panel.best_teacher,
        chosen=chosen,
        favorite=favorite,
        more=more,
        benefit=benefit,
        held_out=held_out,
    )


def check_settings(
    panel: AnswerPanel, target: RecommendationTarget, confidence: float, seed: int
) -> tuple[SettingResult, ...]:
    pays = advantages(panel, confidence, seed)
    enough = len(panel.correct) >= MIN_QUESTIONS
    # The best teacher has its own accuracy, for any number of questions.
    known = panel.best_teacher if target.minimizes_cost else None
    return tuple(
        SettingResult(target.margin(panel, column), enough or column == known, pays.get(column), is_selectable)
        for column, is_selectable in enumerate(panel.selectable)
    )


def loss_of(panel: AnswerPanel, column: int) -> Loss:
    """Return the loss of accuracy compared with the most accurate configuration of the teacher alone."""
    difference = panel.correct[:, panel.best_teacher] - panel.correct[:, column]
    return Loss(float(difference.mean()), agresti_min(difference.tolist()))


def _nearly(one: SettingResult) -> tuple[bool, float]:
    assert one.pays is not None, "of a guided setting"
    return one.reaches, one.pays.claim.point


def _benefit(evidence: Evidence, panel: AnswerPanel, column: int, result: SettingResult, seed: int) -> Benefit:
    assert result.pays is not None, "of a guided setting"
    own, alone = (evidence.candidates[index].cost_per_answer for index in (column, result.pays.teacher))
    share = None
    if alone:
        costs = (panel.cost[:, index].tolist() for index in (column, result.pays.teacher))
        interval = paired_bootstrap(lambda cost, whole: 1 - cost / whole, *costs, seed=seed)
        share = SavedShare(float(1 - own / alone), interval)
    return Benefit(column, result.pays, loss_of(panel, column), panel.best_teacher, alone - own, share)


def choice(
    panel: AnswerPanel, target: RecommendationTarget, results: Sequence[SettingResult], *, exact: bool = False
) -> int | None:
    """Return the best column for the target among those shown to reach it; with `exact` among those measured to.

    Ties are resolved by the other one of cost and accuracy, then by order. Returns None if the target is relative to a
    teacher's accuracy of 0, which the cheapest setting would always keep.
    """
    if target.minimizes_cost and not panel.correct[:, panel.best_teacher].any():
        return None
    fit = [column for column, one in enumerate(results) if (one.likely if exact else one.shown)]
    accuracy, cost = panel.correct.mean(axis=0), panel.cost.mean(axis=0)

    def rank(column: int) -> tuple[float, float]:
        wrong, usd = -float(accuracy[column]), float(cost[column])
        return (usd, wrong) if target.minimizes_cost else (wrong, usd)

    return min(fit, key=rank, default=None)


def _more(evidence: Evidence, results: Sequence[SettingResult], favorite: int | None) -> int | None:
    """Return how many additional questions would show the measured advantage of the favorite."""
    missing = max(0, MIN_QUESTIONS - len(evidence.questions))
    if favorite is None:
        return missing
    pays = results[favorite].pays
    if pays is None:
        return missing
    return None if pays.claim.more is None else max(missing, pays.claim.more)


def _held_out(
    evidence: Evidence, panel: AnswerPanel, target: RecommendationTarget, confidence: float, folds: int, seed: int
) -> HeldOutResult | None:
    n = len(evidence.questions)
    shuffled = np.random.default_rng(seed).permutation(n)
    cells: list[tuple[int, int]] = []
    chosen: Counter[str] = Counter()
    for fold in np.array_split(shuffled, folds):
        seen = panel.rows_of(np.setdiff1d(shuffled, fold))
        column = choice(seen, target, check_settings(seen, target, confidence, seed))
        chosen["nothing" if column is None else evidence.candidates[column].name] += 1
        if column is not None:
            cells += [(int(row), column) for row in fold]
    if not cells:
        return None
    right = [float(panel.correct[row, column]) for row, column in cells]
    teacher = [float(panel.correct[row, panel.best_teacher]) for row, _ in cells]
    costs = [evidence.candidates[column].examples[row].cost_usd for row, column in cells]
    alone = [evidence.candidates[panel.best_teacher].examples[row].cost_usd for row, _ in cells]
    return HeldOutResult(
        folds=folds,
        questions=len(cells),
        accuracy=float(np.mean(right)),
        interval=paired_bootstrap(lambda mean: mean, right, seed=seed),
        teacher_accuracy=float(np.mean(teacher)),
        cost_usd=total_usd(*costs) / len(costs),
        cost_interval=paired_bootstrap(lambda mean: mean, [float(usd) for usd in costs], seed=seed),
        teacher_cost_usd=total_usd(*alone) / len(alone),
        chosen=dict(chosen.most_common()),
    )
