"""A learned model of the guidance's length: numbers in a file, evaluated by arithmetic, without executable code.

For each length it has a logistic regression of the probability of a correct answer, and the cost of such an answer. The
length with the highest expected value is chosen. LLM Shepherding (arXiv 2601.22132) first decides whether a hint is
needed, then how long it is; this model treats 0 as one of the lengths.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.policy.question_features import FEATURES

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_FILE_BYTES = 64_000
"""Maximum size of one file."""
_MAX_LENGTHS = 16
_MAX_EXPONENT = 40.0

_Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
_Share = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1)]


class PredictedLength(NamedTuple):
    """The length chosen by a model. `score`: the predicted probability of a correct answer with it."""

    tokens: int
    score: float


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OneLength(_Part):
    """A length: P(correct) = 1 / (1 + exp(-(intercept + sum of weight x standardized feature))).

    Attributes:
        cost_usd: average cost of an answer with this length when the model was fitted.
    """

    tokens: Annotated[int, Field(ge=0, le=4096)]
    intercept: _Finite
    weights: tuple[_Finite, ...]
    cost_usd: Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e6)]


class FitProvenance(_Part):
    """The data that the model was fitted on."""

    data: Annotated[str, Field(max_length=200)]
    data_sha256: Annotated[str, Field(max_length=64)]  # hash of the questions and their answers
    questions: Annotated[int, Field(ge=1)]  # number of questions
    teacher: Annotated[str, Field(max_length=200)]
    student: Annotated[str, Field(max_length=200)]
    setting: Annotated[str, Field(max_length=500)]  # the setting of the examples, without the length
    created: int  # Unix seconds
    version: Annotated[str, Field(max_length=100)]  # version of the gateway that fitted the model


class FitFigures(_Part):
    """Results on questions outside the fit (nested cross-validation), compared with a fixed length.

    Attributes:
        auto_right, fixed_right: shares of correct answers.
        auto_usd, fixed_usd: average cost of an answer.
        difference, low, high: auto_right - fixed_right, and its 95 % interval (Agresti and Min, for pairs).
    """

    folds: int
    fixed_tokens: int  # the fixed length with the same cost limit
    auto_right: _Share
    fixed_right: _Share
    auto_usd: Annotated[float, Field(ge=0)]
    fixed_usd: Annotated[float, Field(ge=0)]
    difference: Annotated[float, Field(ge=-1, le=1)]
    low: Annotated[float, Field(ge=-1, le=1)]
    high: Annotated[float, Field(ge=-1, le=1)]
    beats: bool  # whether the interval is above 0 at no higher cost


class FittedLengths(_Part):
    """The file of a length model. `usd_for_right`: the value of a correct answer, to compare with costs."""

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
            raise ValueError("has a length twice: lengths must differ")
        return self

    def predict(self, numbers: Sequence[float]) -> PredictedLength:
        """Return the length with the highest expected value for a question's features, in the order of FEATURES. Of
        equal values, the cheaper length is returned. The length 0 means no guidance."""
        standard = [
            (number - mean) / scale for number, mean, scale in zip(numbers, self.means, self.scales, strict=True)
        ]
        best, best_value = PredictedLength(0, 0.0), -math.inf
        for one in sorted(self.lengths, key=lambda length: length.cost_usd):
            exponent = one.intercept + sum(map(float.__mul__, one.weights, standard))
            score = 1 / (1 + math.exp(-max(-_MAX_EXPONENT, min(_MAX_EXPONENT, exponent))))
            value = score * self.usd_for_right - one.cost_usd
            if value > best_value:
                best, best_value = PredictedLength(one.tokens, score), value
        return best


def lengths_of(raw: bytes) -> FittedLengths:
    """Return the model in an `eval fit` file. Raises ValueError with a one-line reason."""
    try:
        return FittedLengths.model_validate_json(raw)
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ValueError(f"is no file of `eval fit`: {where}: {message}") from None
