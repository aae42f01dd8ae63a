"""Learns from a run how long guidance should be, question by question, and says honestly whether that pays.

For each length a logistic regression says how likely an answer with that much guidance is to be right; the length is
taken whose right answers are worth most after its cost. What a right answer is worth is chosen so that the whole costs
no more than the best fixed length. All figures are of questions that were not fitted on: nested cross-validation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gateway.errors import StartupError
from gateway.evaluation.statistics import agresti_min
from gateway.policy.length_model import FitFigures, FitProvenance, FittedLengths, OneLength
from gateway.policy.question_features import FEATURES, looks_of
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.evaluation.advice.auto import LengthFamily
    from gateway.evaluation.record import Manifest

Numbers = NDArray[np.float64]
Places = NDArray[np.intp]

FEWEST_QUESTIONS = 40
"""Below this a fold tells nothing."""
_FOLDS = 5
_STRENGTH = 0.1  # of the regression; small: a few hundred questions, more than a dozen features
_WORTHS = 81
_MARGIN = 1.01  # what costs are taken to be equal


@dataclass(frozen=True, slots=True)
class FitTables:
    """A family in numbers: features (questions x features); right and usd (questions x lengths)."""

    features: Numbers
    right: Numbers
    usd: Numbers

    def part(self, rows: Places) -> FitTables:
        return FitTables(self.features[rows], self.right[rows], self.usd[rows])


@dataclass(frozen=True, slots=True)
class _Regressions:
    """P(right) for each length: intercepts (lengths), weights (lengths x features) of standardised features."""

    means: Numbers
    scales: Numbers
    intercepts: Numbers
    weights: Numbers

    def likely(self, features: Numbers) -> Numbers:
        """questions x features -> questions x lengths."""
        odds = (features - self.means) / self.scales @ self.weights.T + self.intercepts
        return np.asarray(1 / (1 + np.exp(-np.clip(odds, -40, 40))), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class FitComparison:
    """Chosen lengths beside one fixed length, on questions that were not fitted on.

    Attributes:
        fixed_tokens: the fixed length, whose cost the chosen ones were allowed; None: the best one of each fold.
        *_right: shares of answers that are right; *_usd: what one cost on the average.
        low, high: the 95 % interval of auto_right - fixed_right.
    """

    fixed_tokens: int | None
    auto_right: float
    fixed_right: float
    auto_usd: float
    fixed_usd: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.auto_right - self.fixed_right

    @property
    def beats(self) -> bool:
        """Whether the chosen lengths are surely better at no higher cost."""
        return self.low > 0 and self.auto_usd <= self.fixed_usd * _MARGIN


def tables_of(family: LengthFamily) -> FitTables:
    """The family in numbers. Raises StartupError where it has too few questions, or where nothing was paid."""
    if len(family.questions) < FEWEST_QUESTIONS:
        raise StartupError(
            f"{len(family.questions)} questions were answered at every length: `eval fit` needs {FEWEST_QUESTIONS} or "
            "more, and a few hundred to tell anything. Run on more of them."
        )
    usd = np.array([[cell.usd for cell in row] for row in family.cells])
    if not usd.any():
        raise StartupError("No answer of this run cost anything: run it with prices, so that costs can be compared.")
    features = np.array([looks_of(asked, asked.max_tokens).numbers for asked in family.asked])
    right = np.array([[cell.score for cell in row] for row in family.cells])
    return FitTables(features, right, usd)


def compare(tables: FitTables, lengths: tuple[int, ...], tokens: int | None = None, *, seed: int = 0) -> FitComparison:
    """Chosen lengths beside a fixed one.

    tokens: the fixed length; None: in each fold the one that is right most often on the other folds.
    """
    count = len(tables.features)
    auto, fixed = np.zeros((2, count)), np.zeros((2, count))
    for fit_rows, test_rows in _folds(count, seed):
        fitting, testing = tables.part(fit_rows), tables.part(test_rows)
        place = _best(fitting) if tokens is None else lengths.index(tokens)
        worth = _worth(fitting, float(fitting.usd[:, place].mean()), seed)
        chosen = _chosen(_fitted(fitting).likely(testing.features), fitting.usd.mean(axis=0), worth)
        rows = np.arange(len(test_rows))
        auto[:, test_rows] = testing.right[rows, chosen], testing.usd[rows, chosen]
        fixed[:, test_rows] = testing.right[:, place], testing.usd[:, place]
    # A bootstrap would take four questions that only one of the two got right for proof.
    low, high = agresti_min((auto[0] - fixed[0]).tolist())
    return FitComparison(
        tokens,
        auto_right=float(auto[0].mean()),
        fixed_right=float(fixed[0].mean()),
        auto_usd=float(auto[1].mean()),
        fixed_usd=float(fixed[1].mean()),
        low=low,
        high=high,
    )


def fit(family: LengthFamily, manifest: Manifest, name: str, created: int, *, seed: int = 0) -> FittedLengths:
    """A model of all questions, with the figures of `compare` in it. Takes seconds.

    Raises StartupError as `tables_of`.
    """
    tables = tables_of(family)
    compared = compare(tables, family.lengths, seed=seed)
    best = _best(tables)
    worth = _worth(tables, float(tables.usd[:, best].mean()), seed)
    found = _fitted(tables)
    costs = tables.usd.mean(axis=0)
    return FittedLengths(
        name=f"{name}.{created}",
        features=FEATURES,
        means=_plain(found.means),
        scales=_plain(found.scales),
        lengths=tuple(
            OneLength(
                tokens=length,
                intercept=float(found.intercepts[place]),
                weights=_plain(found.weights[place]),
                cost_usd=float(costs[place]),
            )
            for place, length in enumerate(family.lengths)
        ),
        usd_for_right=worth,
        provenance=FitProvenance(
            data=manifest.data[:200],
            data_sha256=manifest.data_sha256[:64],
            questions=len(family.questions),
            teacher=manifest.teacher[:200],
            student=manifest.student[:200],
            setting=family.name[:500],
            created=created,
            version=__version__,
        ),
        figures=FitFigures(
            folds=_FOLDS,
            fixed_tokens=family.lengths[best],
            auto_right=compared.auto_right,
            fixed_right=compared.fixed_right,
            auto_usd=compared.auto_usd,
            fixed_usd=compared.fixed_usd,
            difference=compared.difference,
            low=compared.low,
            high=compared.high,
            beats=compared.beats,
        ),
    )


def _folds(count: int, seed: int) -> Iterator[tuple[Places, Places]]:
    """The rows to fit on, and those to judge by, _FOLDS times."""
    from sklearn.model_selection import KFold

    yield from KFold(_FOLDS, shuffle=True, random_state=seed).split(np.zeros(count))


def _fitted(tables: FitTables) -> _Regressions:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(tables.features)
    standard = scaler.transform(tables.features)
    lengths = tables.right.shape[1]
    intercepts, weights = np.zeros(lengths), np.zeros((lengths, tables.features.shape[1]))
    for place, right in enumerate(tables.right.T):
        if 0 < right.sum() < len(right):
            one = LogisticRegression(C=_STRENGTH, solver="newton-cholesky", max_iter=1000).fit(standard, right)
            intercepts[place], weights[place] = one.intercept_[0], one.coef_[0]
        else:  # all alike: nothing to tell apart
            share = (right.sum() + 0.5) / (len(right) + 1)
            intercepts[place] = math.log(share / (1 - share))
    return _Regressions(np.asarray(scaler.mean_), np.asarray(scaler.scale_), intercepts, weights)


def _chosen(likely: Numbers, costs: Numbers, worth: float) -> Places:
    """For each question the place of the length with the highest worth; of equal ones the cheaper."""
    order = np.argsort(costs, kind="stable")
    best = np.argmax(likely[:, order] * worth - costs[order], axis=1)
    return np.asarray(order[best])


def _best(tables: FitTables) -> int:
    """The place of the fixed length that is right most often, guidance or none; of equal ones the cheaper."""
    costs = tables.usd.mean(axis=0)
    return int(min(range(len(costs)), key=lambda place: (-tables.right[:, place].mean(), costs[place])))


def _worth(tables: FitTables, budget_usd: float, seed: int) -> float:
    """What a right answer is worth in USD: with which most are right, of those worths that keep within the budget.

    Judged by predictions for questions that the predictor was not fitted on, in folds of their own.
    """
    count = len(tables.features)
    likely = np.zeros_like(tables.right)
    for fit_rows, rest in _folds(count, seed + 1):
        likely[rest] = _fitted(tables.part(fit_rows)).likely(tables.features[rest])
    costs, rows = tables.usd.mean(axis=0), np.arange(count)
    scale = float(costs.max())
    found = []
    for worth in (scale * float(step) for step in np.logspace(-2, 3, _WORTHS)):
        chosen = _chosen(likely, costs, worth)
        found.append((float(tables.usd[rows, chosen].mean()), -float(tables.right[rows, chosen].mean()), worth))
    within = [one for one in found if one[0] <= budget_usd * (1 + 1e-9)] or [min(found)]
    return min(within, key=lambda one: (one[1], one[0]))[2]


def _plain(numbers: Numbers) -> tuple[float, ...]:
    return tuple(float(number) for number in numbers)
