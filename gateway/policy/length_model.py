"""A learned predictor of the guidance's length: numbers in a file, read by plain arithmetic, that cannot run code.

For each length it holds a logistic regression of whether an answer with that much guidance is right, and what such an
answer costs; the length with the best expected worth is taken. LLM Shepherding (arXiv 2601.22132) asks first whether a
hint is needed and then how long: here 0 is a length like the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.policy.question_features import FEATURES

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_FILE_BYTES = 64_000
"""Of one file."""
_MAX_LENGTHS = 16
_MOST_EXPONENT = 40.0

_Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
_Share = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class PredictedLength:
    """A length that a model chose. `score`: how likely it takes the answer with that much guidance to be right."""

    tokens: int
    score: float


class LengthModel(Protocol):
    """Chooses how many tokens of guidance a question gets."""

    @property
    def name(self) -> str:
        """Its name and version, as receipts tell them."""
        ...

    def predict(self, numbers: Sequence[float]) -> PredictedLength:
        """numbers: what a question looks like, in the order of FEATURES -> a length in tokens; 0: no guidance."""
        ...


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OneLength(_Part):
    """Of one length: P(right) = 1 / (1 + exp(-(intercept + sum of weight x standardised number))).

    cost_usd: what an answer with it cost on the average when the model was fitted.
    """

    tokens: Annotated[int, Field(ge=0, le=4096)]
    intercept: _Finite
    weights: tuple[_Finite, ...]
    cost_usd: Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e6)]


class FitProvenance(_Part):
    """What it was fitted on.

    Attributes:
        setting: of the examples, without the length.
        questions: how many; `data_sha256` of them and their answers.
        created: Unix seconds; `version`: of the gateway that fitted it.
    """

    data: Annotated[str, Field(max_length=200)]
    data_sha256: Annotated[str, Field(max_length=64)]
    questions: Annotated[int, Field(ge=1)]
    teacher: Annotated[str, Field(max_length=200)]
    student: Annotated[str, Field(max_length=200)]
    setting: Annotated[str, Field(max_length=500)]
    created: int
    version: Annotated[str, Field(max_length=100)]


class FitFigures(_Part):
    """How it did on questions that it was not fitted on (nested cross-validation), beside a fixed length.

    Attributes:
        fixed_tokens: the fixed length whose cost `auto` was allowed.
        auto_right, fixed_right: the shares of answers that are right.
        auto_usd, fixed_usd: what an answer cost on the average.
        difference, low, high: auto_right - fixed_right, and its 95 % interval (Agresti and Min's for pairs).
        beats: whether the interval is above 0 at no higher cost.
    """

    folds: int
    fixed_tokens: int
    auto_right: _Share
    fixed_right: _Share
    auto_usd: Annotated[float, Field(ge=0)]
    fixed_usd: Annotated[float, Field(ge=0)]
    difference: Annotated[float, Field(ge=-1, le=1)]
    low: Annotated[float, Field(ge=-1, le=1)]
    high: Annotated[float, Field(ge=-1, le=1)]
    beats: bool


class FittedLengths(_Part):
    """The file. `usd_for_right`: what a right answer is worth, which makes one number of right answers and costs."""

    kind: Literal["gkt-lengths"] = "gkt-lengths"
    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    features: tuple[str, ...]
    means: tuple[_Finite, ...]
    scales: tuple[Annotated[float, Field(allow_inf_nan=False, gt=0, le=1e6)], ...]
    lengths: Annotated[tuple[OneLength, ...], Field(min_length=1, max_length=_MAX_LENGTHS)]
    usd_for_right: Annotated[float, Field(allow_inf_nan=False, gt=0, le=1e9)]
    provenance: FitProvenance
    figures: FitFigures | None = None

    @model_validator(mode="after")
    def _agrees(self) -> FittedLengths:
        if self.features != FEATURES:
            raise ValueError("was fitted on other features than this version reads: fit it again")
        sizes = {len(self.means), len(self.scales), *(len(one.weights) for one in self.lengths)}
        if sizes != {len(FEATURES)}:
            raise ValueError(f"must hold {len(FEATURES)} means, scales and weights, one for each feature")
        if len({one.tokens for one in self.lengths}) < len(self.lengths):
            raise ValueError("names a length twice")
        return self

    def predict(self, numbers: Sequence[float]) -> PredictedLength:
        """As `LengthModel`: the length whose expected worth is highest; of equal ones the cheaper."""
        standard = [
            (number - mean) / scale for number, mean, scale in zip(numbers, self.means, self.scales, strict=True)
        ]
        best, best_worth = PredictedLength(0, 0.0), -math.inf
        for one in sorted(self.lengths, key=lambda length: length.cost_usd):
            score = _logistic(one.intercept + sum(map(float.__mul__, one.weights, standard)))
            worth = score * self.usd_for_right - one.cost_usd
            if worth > best_worth:
                best, best_worth = PredictedLength(one.tokens, score), worth
        return best


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-max(-_MOST_EXPONENT, min(_MOST_EXPONENT, value))))


def lengths_of(raw: bytes) -> FittedLengths:
    """What stands in a file that `eval fit` wrote. Raises ValueError, which says in one line what is wrong with it."""
    try:
        return FittedLengths.model_validate_json(raw)
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        said = str(first["msg"]).removeprefix("Value error, ")
        raise ValueError(f"is no file of `eval fit`: {where}: {said}") from None
