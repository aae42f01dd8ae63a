"""Fitting of a length model from a run, with an unbiased estimate of its benefit.

For each length a logistic regression predicts the probability of a correct answer. The length with the highest expected
value minus cost is chosen. The value of a correct answer is set so that the total cost does not exceed that of the best
fixed length. All figures come from questions outside the fit: nested cross-validation.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.errors import StartupError
from gateway.evaluation.setting import Setting
from gateway.evaluation.statistics import agresti_min
from gateway.evaluation.summary import request_key
from gateway.policy.length_model import FitFigures, FitProvenance, FittedLengths, OneLength
from gateway.policy.question_features import FEATURES, features_of
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gateway.evaluation.advice.target import Numbers
    from gateway.evaluation.record import Example, Manifest, Question
    from gateway.protocol.requests import CompletionRequest

# Keys of a guided setting that differ in its family, or do not belong to its description.
_LENGTH_KEYS = ("name", "mode", "tokens", "shown", "policies")
_MIN_LENGTHS = 3
Indices = NDArray[np.intp]
MIN_FIT_QUESTIONS = 40
"""A fold of fewer questions has no information."""
_FOLDS = 5
_STRENGTH = 0.1  # of the regression; small, for a few hundred questions and more than a dozen features
_VALUES = 81
_MARGIN = 1.01  # relative tolerance in comparisons of costs


class LengthFamily(NamedTuple):
    """A setting (the shared keys of `Setting.as_dict`) at several lengths in tokens. The first is 0, the student alone.

    `questions` are ids, with the caller's request of each. `cells` has their examples in the order of `lengths`.
    """

    setting: dict[str, Any]
    lengths: tuple[int, ...]
    questions: tuple[str, ...]
    requests: tuple[CompletionRequest, ...]
    cells: tuple[tuple[Example, ...], ...]

    @property
    def name(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.setting.items() if value not in (None, 0))


def families(manifest: Manifest, examples: Iterable[Example], questions: Sequence[Question]) -> list[LengthFamily]:
    """Return the families of a run, sorted by their number of lengths, the largest first.

    A family has the questions that all of its lengths answered. Raises StartupError if the run has no family: the
    student alone, and guidance of at least two lengths.
    """
    by_setting: dict[str, dict[str, Example]] = defaultdict(dict)
    for one in examples:
        if one.error is None:
            by_setting[one.setting][one.question] = one
    known = {one.id: one for one in questions}
    found = []
    for shared, named in _groups(manifest.settings):
        tried = {tokens: by_setting.get(name, {}) for tokens, name in named.items()}
        ids = [one for one in known if all(one in examples_of for examples_of in tried.values())]
        if ids:
            found.append(_family(shared, tried, [known[one] for one in ids]))
    if not found:
        raise StartupError(
            "The run needs a setting with the student alone and guidance of at least two lengths, each with answers to "
            "these questions: run it with several --tokens, and name the data of the run."
        )
    return sorted(found, key=lambda one: (-len(one.lengths), -len(one.questions)))


def _groups(settings: Sequence[dict[str, Any]]) -> Iterable[tuple[dict[str, Any], dict[int, str]]]:
    """Return settings that differ only in the length, each with the names by length, including the student's."""
    alone = {request_key(one): one["name"] for one in reversed(settings) if one["mode"] == "student"}
    groups: dict[str, tuple[dict[str, Any], dict[int, str]]] = {}
    for one in settings:
        if one["mode"] == "guided" and one["tokens"] != "auto" and request_key(one) in alone:
            shared = {name: value for name, value in one.items() if name not in _LENGTH_KEYS}
            key = repr(sorted(shared.items()))
            _, named = groups.setdefault(key, (shared, {0: alone[request_key(one)]}))
            named[one["tokens"]] = one["name"]
    return [one for one in groups.values() if len(one[1]) >= _MIN_LENGTHS]


def _family(
    shared: dict[str, Any], tried: Mapping[int, Mapping[str, Example]], questions: list[Question]
) -> LengthFamily:
    lengths = tuple(sorted(tried))
    request_setting = Setting(
        mode="student", form=shared["form"], max_tokens=shared["max_tokens"], temperature=shared["temperature"]
    )
    return LengthFamily(
        setting=shared,
        lengths=lengths,
        questions=tuple(one.id for one in questions),
        # The exemplars of the prompt are left out: the request path does not use them for the choice either.
        requests=tuple(request_setting.request(one, ()) for one in questions),
        cells=tuple(tuple(tried[length][one.id] for length in lengths) for one in questions),
    )


class FitTables(NamedTuple):
    """A family as arrays: features (questions x features); right and usd (questions x lengths)."""

    features: Numbers
    right: Numbers
    usd: Numbers

    def part(self, rows: Indices) -> FitTables:
        return FitTables(self.features[rows], self.right[rows], self.usd[rows])


class _Regressions(NamedTuple):
    """P(right) for each length: intercepts (lengths), weights (lengths x features) of standardized features."""

    means: Numbers
    scales: Numbers
    intercepts: Numbers
    weights: Numbers

    def probabilities(self, features: Numbers) -> Numbers:
        """Return the probabilities: questions x features -> questions x lengths."""
        odds = (features - self.means) / self.scales @ self.weights.T + self.intercepts
        return np.asarray(1 / (1 + np.exp(-np.clip(odds, -40, 40))), dtype=np.float64)


def tables_of(family: LengthFamily) -> FitTables:
    """Convert a family to arrays. Raises StartupError for too few questions, or without costs."""
    if len(family.questions) < MIN_FIT_QUESTIONS:
        raise StartupError(
            f"{len(family.questions)} questions have answers at every length: `eval fit` needs at least "
            f"{MIN_FIT_QUESTIONS}, and a few hundred for a useful model. Run more questions."
        )
    usd = np.array([[float(cell.cost_usd) for cell in row] for row in family.cells])
    if not usd.any():
        raise StartupError("All answers of this run have zero cost: run it with prices, so that costs can be compared.")
    features = np.array([features_of(request, request.max_tokens).numbers for request in family.requests])
    right = np.array([[float(cell.correct) for cell in row] for row in family.cells])
    return FitTables(features, right, usd)


def compare(tables: FitTables, lengths: tuple[int, ...], tokens: int | None = None, *, seed: int = 0) -> FitFigures:
    """Compare chosen lengths with a fixed one, whose cost limits theirs; None: the most accurate one of other folds."""
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
    return figures_of(lengths[_best(tables)] if tokens is None else tokens, auto, fixed)


def figures_of(tokens: int, auto: Numbers, fixed: Numbers) -> FitFigures:
    """Compare chosen lengths with a fixed one of `tokens`. Both arrays have the shape (2, questions): right and USD."""
    # A bootstrap would take four questions that only one of the two answers correctly for proof.
    low, high = agresti_min((auto[0] - fixed[0]).tolist())
    auto_right, auto_usd, fixed_right, fixed_usd = (float(one.mean()) for one in (*auto, *fixed))
    return FitFigures(
        folds=_FOLDS,
        fixed_tokens=tokens,
        auto_right=auto_right,
        fixed_right=fixed_right,
        auto_usd=auto_usd,
        fixed_usd=fixed_usd,
        difference=auto_right - fixed_right,
        low=low,
        high=high,
        beats=low > 0 and auto_usd <= fixed_usd * _MARGIN,
    )


def fit(family: LengthFamily, manifest: Manifest, name: str, created: int, *, seed: int = 0) -> FittedLengths:
    """Fit a model to all questions, with the figures of `compare`. Takes seconds. Raises as `tables_of` does."""
    tables = tables_of(family)
    value = _value(tables, float(tables.usd[:, _best(tables)].mean()), seed)
    regressions = _fitted(tables)
    costs = tables.usd.mean(axis=0)
    return FittedLengths(
        name=f"{name}.{created}",
        features=FEATURES,
        means=tuple(regressions.means.tolist()),
        scales=tuple(regressions.scales.tolist()),
        lengths=tuple(
            OneLength(
                tokens=length,
                intercept=float(regressions.intercepts[index]),
                weights=tuple(regressions.weights[index].tolist()),
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
        figures=compare(tables, family.lengths, seed=seed),
    )


def _folds(count: int, seed: int) -> Iterator[tuple[Indices, Indices]]:
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
    """Return the value of a correct answer in USD that yields most correct answers in budget, outside the fit."""
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
