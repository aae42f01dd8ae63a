"""Which setting a route should have: chosen, tested, and held against questions that it was not chosen on.

A guided setting is recommended when two things are shown, each at the confidence asked for and for all settings
together (`bounds.claims`): it reaches the target, and it pays: it is right more often than student and teacher mixed
at random at its cost (`AnswerPanel.over_mixture`). Else the answer is one of the two alone, or none.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from gateway.evaluation.advice.bounds import BoundedMean, claims
from gateway.evaluation.advice.target import AnswerPanel, percent
from gateway.evaluation.statistics import LEAST_QUESTIONS, Interval, paired_bootstrap
from gateway.pricing import total_usd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from gateway.evaluation.advice.evidence import CandidateSetting, Evidence
    from gateway.evaluation.advice.target import RecommendationTarget

CONFIDENCE = 0.8
FOLDS = 5

Verdict = Literal["guided", "none_pays", "too_few"]


@dataclass(frozen=True, slots=True)
class SettingResult:
    """How one setting does.

    Attributes:
        within: whether it reaches the target.
        pays: whether it beats student and teacher mixed at random; None for those alone.
    """

    within: BoundedMean
    pays: BoundedMean | None

    @property
    def shown(self) -> bool:
        """Whether it may be recommended."""
        return self.within.shown and (self.pays is None or self.pays.shown)

    @property
    def likely(self) -> bool:
        """Whether it would be, were the figures exact."""
        return self.within.likely and (self.pays is None or self.pays.point > 0)


@dataclass(frozen=True, slots=True)
class HeldOutResult:
    """What the whole procedure came to on questions that it did not see: each fold by what the others chose.

    Attributes:
        n: of how many questions; those of a fold for which nothing was chosen are not in it.
        accuracy, teacher: of the procedure, and of the teacher on the same questions.
        cost_usd, teacher_usd: likewise, the mean answer.
        interval, cost_interval: 95 %, from a bootstrap over the questions.
        chosen: how often each setting was, by its name.
    """

    folds: int
    n: int
    accuracy: float
    interval: Interval | None
    teacher: float
    cost_usd: Decimal
    cost_interval: Interval | None
    teacher_usd: Decimal
    chosen: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to do on a route.

    Attributes:
        verdict: guided: `chosen` is such a setting. none_pays: none is worth it, and `chosen` is the teacher or the
            student alone, or None where neither reaches the target. too_few: likewise for now, but `favourite` would
            be chosen were the figures exact, and `more` questions might show it; None: they are not to be told.
        standings: of the candidates, in their order.
        held_out: None where there are too few questions for it.
    """

    evidence: Evidence
    target: RecommendationTarget
    confidence: float
    verdict: Verdict
    standings: tuple[SettingResult, ...]
    chosen: int | None
    favourite: int | None
    more: int | None
    held_out: HeldOutResult | None

    @property
    def setting(self) -> CandidateSetting | None:
        """What is recommended."""
        return None if self.chosen is None else self.evidence.candidates[self.chosen]

    @property
    def why(self) -> str:
        """The verdict in a sentence."""
        return _why(self)


def recommend(
    evidence: Evidence,
    target: RecommendationTarget,
    *,
    confidence: float = CONFIDENCE,
    folds: int = FOLDS,
    seed: int = 0,
) -> Recommendation:
    """The recommendation. The same seed and evidence give the same.

    confidence: of each of the two claims, one-sided; more than 0.5.
    """
    panel = AnswerPanel.of(evidence)
    standings = judged(panel, target, confidence, seed)
    chosen, favourite = choice(panel, target, standings), choice(panel, target, standings, exact=True)
    enough = len(evidence.questions) >= LEAST_QUESTIONS
    verdict: Verdict = "none_pays"
    if chosen is not None and panel.guided[chosen]:
        verdict = "guided"
    elif not enough or (favourite is not None and panel.guided[favourite]):
        verdict = "too_few"
    more = _more(evidence, standings, favourite) if verdict == "too_few" else 0
    held_out = _held_out(evidence, panel, target, confidence, folds, seed) if enough else None
    return Recommendation(evidence, target, confidence, verdict, standings, chosen, favourite, more, held_out)


def judged(panel: AnswerPanel, target: RecommendationTarget, confidence: float, seed: int) -> tuple[SettingResult, ...]:
    """How each setting stands."""
    columns = range(len(panel.guided))
    guided = [column for column in columns if panel.guided[column]]
    # The teacher is as accurate as itself: of it nothing is to be shown.
    tested = [column for column in columns if not (target.spares and column == panel.teacher)]
    margins = {column: target.margin(panel, column) for column in columns}
    within = dict(zip(tested, claims([margins[column] for column in tested], confidence, seed), strict=True))
    own = margins[panel.teacher].point
    within.setdefault(panel.teacher, BoundedMean(own, own, True, 0))
    beats = [panel.over_mixture(column) for column in guided]
    pays = dict(zip(guided, claims(beats, confidence, seed), strict=True))
    if len(panel.correct) < LEAST_QUESTIONS:
        within = {
            column: claim._replace(shown=target.spares and column == panel.teacher) for column, claim in within.items()
        }
    return tuple(SettingResult(within[column], pays.get(column)) for column in columns)


def choice(
    panel: AnswerPanel, target: RecommendationTarget, standings: Sequence[SettingResult], *, exact: bool = False
) -> int | None:
    """The best column for the target among those shown to do, or with `exact` among those that do as measured.

    Equals are told apart by the other of cost and accuracy, and then by their order. None where a teacher's accuracy is
    to be kept that has none: the cheapest of all would keep it.
    """
    if target.spares and not panel.correct[:, panel.teacher].any():
        return None
    fit = [column for column, one in enumerate(standings) if (one.likely if exact else one.shown)]
    accuracy, cost = panel.correct.mean(axis=0), panel.cost.mean(axis=0)

    def rank(column: int) -> tuple[float, float]:
        wrong, usd = -float(accuracy[column]), float(cost[column])
        return (usd, wrong) if target.spares else (wrong, usd)

    return min(fit, key=rank, default=None)


def _more(evidence: Evidence, standings: Sequence[SettingResult], favourite: int | None) -> int | None:
    """How many questions more would show what the favourite seems to be."""
    short = max(0, LEAST_QUESTIONS - len(evidence.questions))
    if favourite is None:
        return short
    one = standings[favourite]
    wanted = [claim.more for claim in (one.within, one.pays) if claim is not None]
    told = [more for more in wanted if more is not None]
    return max(short, *told) if len(told) == len(wanted) else None


def _held_out(
    evidence: Evidence, panel: AnswerPanel, target: RecommendationTarget, confidence: float, folds: int, seed: int
) -> HeldOutResult | None:
    n = len(evidence.questions)
    shuffled = np.random.default_rng(seed).permutation(n)
    places: list[tuple[int, int]] = []
    chosen: Counter[str] = Counter()
    for fold in np.array_split(shuffled, folds):
        seen = panel.of_rows(np.setdiff1d(shuffled, fold))
        column = choice(seen, target, judged(seen, target, confidence, seed))
        chosen["nothing" if column is None else evidence.candidates[column].name] += 1
        if column is not None:
            places += [(int(row), column) for row in fold]
    if not places:
        return None
    right = [float(panel.correct[row, column]) for row, column in places]
    teacher = [float(panel.correct[row, panel.teacher]) for row, _ in places]
    costs = [evidence.candidates[column].costs_usd[row] for row, column in places]
    alone = [evidence.candidates[panel.teacher].costs_usd[row] for row, _ in places]
    return HeldOutResult(
        folds=folds,
        n=len(places),
        accuracy=float(np.mean(right)),
        interval=paired_bootstrap(lambda mean: mean, right, seed=seed),
        teacher=float(np.mean(teacher)),
        cost_usd=total_usd(*costs) / len(costs),
        cost_interval=paired_bootstrap(lambda mean: mean, [float(usd) for usd in costs], seed=seed),
        teacher_usd=total_usd(*alone) / len(alone),
        chosen=dict(chosen.most_common()),
    )


def _why(said: Recommendation) -> str:
    sure = percent(said.confidence, 0)
    guided = [one for one in said.standings if one.pays is not None]
    if said.verdict == "guided":
        return f"it reaches the target and beats student and teacher mixed at its cost, each shown at {sure}"
    if said.verdict == "too_few":
        return f"no guided setting is shown to reach the target and to pay yet: {_wanting(said)}"
    if not guided:
        return "no guided setting was run: add some to the grid of `gkt-gateway eval run`"
    if said.target.spares and said.favourite is None and not said.evidence.correct[:, said.evidence.teacher].any():
        return "none pays: the teacher got no question right, so there is nothing of its accuracy to keep"
    reach = [one for one in guided if one.within.likely]
    if not reach:
        return f"none pays: no guided setting reaches the target, of {len(guided)} that were tried"
    best = max(one.pays.point for one in reach if one.pays is not None)
    if best <= 0:
        return (
            f"none pays: {len(reach)} of {len(guided)} guided settings reach the target, and none of them beats "
            f"student and teacher mixed at the same cost; the best is {abs(best) * 100:.1f} points below"
        )
    assert said.favourite is not None, "a setting that reaches the target and beats the mixture would be it"
    alone = said.evidence.candidates[said.favourite].setting["mode"]
    which = "cheaper" if said.target.spares else "better"
    doubt = "" if said.favourite == said.chosen else f" (as measured; it is not shown at {sure})"
    return (
        f"none pays: the {alone} alone reaches the target{doubt}, and is {which} than every guided setting that does "
        "and beats student and teacher mixed"
    )


def _wanting(said: Recommendation) -> str:
    n = len(said.evidence.questions)
    more = "" if said.more is None else f"about {said.more:,} more than these {n} questions would tell"
    if said.favourite is None or not said.evidence.candidates[said.favourite].guided:
        return more or f"of fewer than {LEAST_QUESTIONS} questions nothing is claimed, and these are {n}"
    name = said.evidence.candidates[said.favourite].name
    if said.more is None:
        return f"as measured {name} would be chosen, but it is so near the limit that questions will hardly tell"
    return f"as measured {name} would be chosen, and {more}"
