"""The recommended setting of a route: selection, tests, and evaluation on questions outside the selection.

A guided setting is recommended if two claims are shown: it reaches the target, and it pays. The claims hold at the
given confidence, simultaneously for all settings (`target.claims`). A setting pays if it is more often correct than a
random mixture of student and teacher at the same cost (`AnswerPanel.over_mixture`). Otherwise the student alone, the
teacher alone or no setting is recommended.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from gateway.evaluation.advice.target import AnswerPanel, BoundedMean, claims, percent
from gateway.evaluation.statistics import MIN_QUESTIONS, Interval, paired_bootstrap
from gateway.pricing import total_usd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from gateway.evaluation.advice.evidence import Evidence
    from gateway.evaluation.advice.target import RecommendationTarget
    from gateway.evaluation.summary import SettingSummary

Verdict = Literal["guided", "none_pays", "too_few"]


class SettingResult(NamedTuple):
    """Tests of one setting: that it reaches the target, and that it beats a mixture; None for the two alone."""

    within: BoundedMean
    pays: BoundedMean | None

    @property
    def shown(self) -> bool:
        """Return whether the setting may be recommended."""
        return self.within.shown and (self.pays is None or self.pays.shown)

    @property
    def likely(self) -> bool:
        """Return whether the setting would be recommended if the measured values were exact."""
        return self.within.likely and (self.pays is None or self.pays.point > 0)


class HeldOutResult(NamedTuple):
    """Cross-validated result of the procedure: each fold is answered by the setting that the other folds select.

    The questions are those of folds with a selection. `teacher_*` are results of the teacher alone on them. Costs are
    means of an answer. Intervals come from a bootstrap over the questions (95 %). `chosen` counts folds by setting.
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
        results: Tests of the candidates, in their order.
        held_out: The cross-validated result; None for too few questions.
    """

    evidence: Evidence
    target: RecommendationTarget
    confidence: float
    verdict: Verdict
    results: tuple[SettingResult, ...]
    chosen: int | None
    favorite: int | None
    more: int | None
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
            shown = "it reaches the target and beats a student-teacher mixture at its cost"
            return f"{shown}, each with {confidence} confidence"
        if self.verdict == "too_few":
            return f"no guided setting is shown to reach the target and to pay yet: {self._missing_evidence()}"
        if not guided:
            return "the run has no guided setting: add some to the grid of `gkt-gateway eval run`"
        cheapest, favorite = self.target.minimizes_cost, self.favorite_setting
        if cheapest and favorite is None and not evidence.candidates[evidence.teacher].correct:
            return "none pays: the teacher answered no question correctly, so it has no accuracy to keep"
        reach = [one for one in guided if one.within.likely]
        if not reach:
            return f"none pays: none of the {len(guided)} guided settings reaches the target"
        best = max(one.pays.point for one in reach if one.pays is not None)
        if best <= 0:
            return (
                f"none pays: {len(reach)} of {len(guided)} guided settings reach the target, but none beats a mixture "
                f"of student and teacher at the same cost; the best is {abs(best) * 100:.1f} points below"
            )
        assert favorite is not None, "a setting that reaches the target and beats the mixture would be the favorite"
        is_chosen = self.favorite == self.chosen
        doubt = "" if is_chosen else f" (as measured; not shown with {confidence} confidence)"
        return (
            f"none pays: the {favorite.setting['mode']} alone reaches the target{doubt}, and is "
            f"{'cheaper' if cheapest else 'better'} than every guided setting that reaches it and beats a mixture of "
            "student and teacher"
        )

    def _missing_evidence(self) -> str:
        n, more, favorite = len(self.evidence.questions), self.more, self.favorite_setting
        needed = "" if more is None else f"about {more:,} questions in addition to these {n} would show it"
        if favorite is None or not favorite.guided:
            return needed or f"nothing is claimed with fewer than {MIN_QUESTIONS} questions, and these are {n}"
        chosen = f"as measured {favorite.name} would be chosen"
        if more is None:
            return f"{chosen}, but it is too close to the limit for a reasonable number of questions"
        return f"{chosen}; {needed}"


def recommend(
    evidence: Evidence, target: RecommendationTarget, *, confidence: float, folds: int, seed: int
) -> Recommendation:
    """Return the recommendation with this one-sided `confidence` (above 0.5) of each claim, always alike for a seed."""
    panel = AnswerPanel.of(evidence)
    results = check_settings(panel, target, confidence, seed)
    chosen, favorite = choice(panel, target, results), choice(panel, target, results, exact=True)
    enough = len(evidence.questions) >= MIN_QUESTIONS
    verdict: Verdict = "none_pays"
    if chosen is not None and panel.guided[chosen]:
        verdict = "guided"
    elif not enough or (favorite is not None and panel.guided[favorite]):
        verdict = "too_few"
    more = _more(evidence, results, favorite) if verdict == "too_few" else 0
    held_out = _held_out(evidence, panel, target, confidence, folds, seed) if enough else None
    return Recommendation(evidence, target, confidence, verdict, results, chosen, favorite, more, held_out)


def check_settings(
    panel: AnswerPanel, target: RecommendationTarget, confidence: float, seed: int
) -> tuple[SettingResult, ...]:
    columns = range(len(panel.guided))
    guided = [column for column in columns if panel.guided[column]]
    # The teacher equals its own accuracy, so it needs no test.
    tested = [column for column in columns if not (target.minimizes_cost and column == panel.teacher)]
    margins = {column: target.margin(panel, column) for column in columns}
    within = dict(zip(tested, claims([margins[column] for column in tested], confidence, seed), strict=True))
    own_margin = margins[panel.teacher].point
    within.setdefault(panel.teacher, BoundedMean(own_margin, own_margin, True, 0))
    advantages = [panel.over_mixture(column) for column in guided]
    pays = dict(zip(guided, claims(advantages, confidence, seed), strict=True))
    if len(panel.correct) < MIN_QUESTIONS:
        within = {
            column: claim._replace(shown=target.minimizes_cost and column == panel.teacher)
            for column, claim in within.items()
        }
    return tuple(SettingResult(within[column], pays.get(column)) for column in columns)


def choice(
    panel: AnswerPanel, target: RecommendationTarget, results: Sequence[SettingResult], *, exact: bool = False
) -> int | None:
    """Return the best column for the target among those shown to reach it; with `exact` among those measured to.

    Ties are resolved by the other one of cost and accuracy, then by order. Returns None if the target is relative to a
    teacher's accuracy of 0, which the cheapest setting would always keep.
    """
    if target.minimizes_cost and not panel.correct[:, panel.teacher].any():
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
    one = results[favorite]
    needed = [claim.more for claim in (one.within, one.pays) if claim is not None]
    estimates = [more for more in needed if more is not None]
    return max(missing, *estimates) if len(estimates) == len(needed) else None


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
    teacher = [float(panel.correct[row, panel.teacher]) for row, _ in cells]
    costs = [evidence.candidates[column].examples[row].cost_usd for row, column in cells]
    alone = [evidence.candidates[panel.teacher].examples[row].cost_usd for row, _ in cells]
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
