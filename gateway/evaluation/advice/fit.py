"""Fitting of a length model from a run, with an unbiased estimate of its benefit.

For each length a logistic regression predicts the probability of a correct answer. The length with the highest expected
value minus cost is chosen. The value of a correct answer is set so that the total cost does not exceed that of the best
fixed length. All figures come from questions outside the fit: nested cross-validation.
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
from gateway.policy.question_features import FEATURES, features_of
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.evaluation.advice.auto import LengthFamily
    from gateway.evaluation.record import Manifest

Numbers = NDArray[np.float64]
Indices = NDArray[np.intp]

MIN_FIT_QUESTIONS = 40
"""A fold of fewer questions has no information."""
_FOLDS = 5
_STRENGTH = 0.1  # of the regression; small, for a few hundred questions and more than a dozen features
_VALUES = 81
_MARGIN = 1.01  # relative tolerance in comparisons of costs


@dataclass(frozen=True, slots=True)
class FitTables:
    """A family as arrays: features (questions x features); right and usd (questions x lengths)."""

    features: Numbers
    right: Numbers
    usd: Numbers

    def part(self, rows: Indices) -> FitTables:
        return FitTables(self.features[rows], self.right[rows], self.usd[rows])


@dataclass(frozen=True, slots=True)
class _Regressions:
    """P(right) for each length: intercepts (lengths), weights (lengths x features) of standardized features."""

    means: Numbers
    scales: Numbers
    intercepts: Numbers
    weights: Numbers

    def probabilities(self, features: Numbers) -> Numbers:
        """Return the probabilities: questions x features -> questions x lengths."""
        odds = (features - self.means) / self.scales @ self.weights.T + self.intercepts
        return np.asarray(1 / (1 + np.exp(-np.clip(odds, -40, 40))), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class FitComparison:
    """Chosen lengths compared with one fixed length, on questions outside the fit.

    Attributes:
        fixed_tokens: The fixed length, whose cost limits that of the chosen ones; None: the best one of each fold.
        *_right: Shares of correct answers; *_usd: mean costs of an answer.
        low, high: The 95 % interval of auto_right - fixed_right.
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
        """Return whether the chosen lengths are significantly better at no higher cost."""
        return self.low > 0 and self.auto_usd <= self.fixed_usd * _MARGIN


def tables_of(family: LengthFamily) -> FitTables:
    """Convert a family to arrays. Raises StartupError for too few questions, or without costs."""
    if len(family.questions) < MIN_FIT_QUESTIONS:
        raise StartupError(
            f"{len(family.questions)} questions have answers at every length: `eval fit` needs at least "
            f"{MIN_FIT_QUESTIONS}, and a few hundred for a useful model. Run more questions."
        )
    usd = np.array([[cell.usd for cell in row] for row in family.cells])
    if not usd.any():
        raise StartupError("All answers of this run have zero cost: run it with prices, so that costs can be compared.")
    features = np.array([features_of(request, request.max_tokens).numbers for request in family.requests])
    right = np.array([[cell.score for cell in row] for row in family.cells])
    return FitTables(features, right, usd)


def compare(tables: FitTables, lengths: tuple[int, ...], tokens: int | None = None, *, seed: int = 0) -> FitComparison:
    """Compare chosen lengths with a fixed one.

    Args:
        tables: The family.
        lengths: Its lengths.
        tokens: The fixed length; None: in each fold the most accurate one of the other folds.
        seed: Seed of the folds.
    """
    count = len(tables.features)
    auto, fixed = np.zeros((2, count)), np.zeros((2, count))
    for fit_rows, test_rows in _folds(count, seed):
        fitting, testing = tables.part(fit_rows), tables.part(test_rows)
        index = _best(fitting) if tokens is None else lengths.index(tokens)
        value = _value(fitting, float(fitting.usd[:, index].mean()), seed)
        chosen = _chosen(_fitted(fitting).probabilities(testing.features), fitting.usd.mean(axis=0), value)
        rows = np.arange(len(test_rows))
        auto[:, test_rows] = testing.right[rows, chosen], testing.usd[rows, chosen]
        fixed[:, test_rows] = testing.right[:, index], testing.usd[:, index]
    # A bootstrap would take four questions that only one of the two answers correctly for proof.
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
    """Fit a model to all questions, and store the figures of `compare` in it. Takes seconds.

    Raises StartupError as `tables_of`.
    """
    tables = tables_of(family)
    comparison = compare(tables, family.lengths, seed=seed)
    best = _best(tables)
    value = _value(tables, float(tables.usd[:, best].mean()), seed)
    regressions = _fitted(tables)
    costs = tables.usd.mean(axis=0)
    return FittedLengths(
        name=f"{name}.{created}",
        features=FEATURES,
        means=_plain(regressions.means),
        scales=_plain(regressions.scales),
        lengths=tuple(
            OneLength(
                tokens=length,
                intercept=float(regressions.intercepts[index]),
                weights=_plain(regressions.weights[index]),
                cost_usd=float(costs[index]),
            )
            for index, length in enumerate(family.lengths)
        ),
        usd_for_right=value,
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
            auto_right=comparison.auto_right,
            fixed_right=comparison.fixed_right,
            auto_usd=comparison.auto_usd,
            fixed_usd=comparison.fixed_usd,
            difference=comparison.difference,
            low=comparison.low,
            high=comparison.high,
            beats=comparison.beats,
        ),
    )


def _folds(count: int, seed: int) -> Iterator[tuple[Indices, Indices]]:
    """Yield the rows of the fit and those of the test, _FOLDS times."""
    from sklearn.model_selection import KFold

    yield from KFold(_FOLDS, shuffle=True, random_state=seed).split(np.zeros(count))


def _fitted(tables: FitTables) -> _Regressions:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(tables.features)
    standard = scaler.transform(tables.features)
    lengths = tables.right.shape[1]
    intercepts, weights = np.zeros(lengths), np.zeros((lengths, tables.features.shape[1]))
    for index, right in enumerate(tables.right.T):
        if 0 < right.sum() < len(right):
            one = LogisticRegression(C=_STRENGTH, solver="newton-cholesky", max_iter=1000).fit(standard, right)
            intercepts[index], weights[index] = one.intercept_[0], one.coef_[0]
        else:  # all answers are equal: only the intercept is defined
            share = (right.sum() + 0.5) / (len(right) + 1)
            intercepts[index] = math.log(share / (1 - share))
    return _Regressions(np.asarray(scaler.mean_), np.asarray(scaler.scale_), intercepts, weights)


def _chosen(probabilities: Numbers, costs: Numbers, value: float) -> Indices:
    """Return the index of the length with the highest value for each question; the cheaper one on a tie."""
    order = np.argsort(costs, kind="stable")
    best = np.argmax(probabilities[:, order] * value - costs[order], axis=1)
    return np.asarray(order[best])


def _best(tables: FitTables) -> int:
    """Return the index of the most accurate fixed length; the cheaper one on a tie."""
    costs = tables.usd.mean(axis=0)
    return int(min(range(len(costs)), key=lambda index: (-tables.right[:, index].mean(), costs[index])))


def _value(tables: FitTables, budget_usd: float, seed: int) -> float:
    """Return the value of a correct answer in USD that yields the most correct answers within the budget.

    Its predictions are for questions outside the fit, in separate folds.
    """
    count = len(tables.features)
    probabilities = np.zeros_like(tables.right)
    for fit_rows, held_out in _folds(count, seed + 1):
        probabilities[held_out] = _fitted(tables.part(fit_rows)).probabilities(tables.features[held_out])
    costs, rows = tables.usd.mean(axis=0), np.arange(count)
    scale = float(costs.max())
    regressions = []
    for value in (scale * float(step) for step in np.logspace(-2, 3, _VALUES)):
        chosen = _chosen(probabilities, costs, value)
        regressions.append((float(tables.usd[rows, chosen].mean()), -float(tables.right[rows, chosen].mean()), value))
    within = [one for one in regressions if one[0] <= budget_usd * (1 + 1e-9)] or [min(regressions)]
    return min(within, key=lambda one: (one[1], one[0]))[2]


def _plain(numbers: Numbers) -> tuple[float, ...]:
    return tuple(float(number) for number in numbers)
