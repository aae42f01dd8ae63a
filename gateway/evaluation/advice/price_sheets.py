"""Price sheets: dated list prices of models, under which the answers of a run are charged again."""

from __future__ import annotations

from datetime import date as Date  # noqa: N812  a field has the name; pydantic reads the annotation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, TypeAlias

from pydantic import Field

from gateway.config.scalars import Usd, Whole
from gateway.config.yaml_source import StrictModel, read
from gateway.errors import ConfigError
from gateway.evaluation.advice.evidence import evidence_of
from gateway.evaluation.advice.repricing import PromptCaching
from gateway.evaluation.advice.target import AnswerPanel, advantages
from gateway.pricing import Price

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from gateway.evaluation.advice.evidence import Evidence
    from gateway.evaluation.advice.target import Advantage
    from gateway.evaluation.record import RunRecords

CacheTtl: TypeAlias = Literal["5m", "1h"]
"""Time to live of entries in a prompt cache. Some providers have a price for each."""
SHIPPED = Path(__file__).with_name("price_sheets.yaml")


class ListPrice(StrictModel):
    """A model's prices in USD per 1M tokens. `source` is the page that states them."""

    model: str
    source: str
    input_per_1m: Usd
    output_per_1m: Usd
    cached_input_per_1m: Usd | None = None
    cache_write_per_1m: Usd | None = None
    cache_write_1h_per_1m: Usd | None = None
    min_cached_tokens: Annotated[Whole, Field(ge=0)] = 0
    """Prompts with a shorter common beginning are not cached."""

    def price(self, ttl: CacheTtl = "5m") -> Price:
        """Return the prices with those of cache writes for a time to live."""
        write = self.cache_write_per_1m
        if ttl == "1h" and self.cache_write_1h_per_1m is not None:
            write = self.cache_write_1h_per_1m
        return Price.of_tokens(self.input_per_1m, self.output_per_1m, self.cached_input_per_1m, write)


class TeacherPrice(ListPrice):
    """The prices of a teacher, and of its student if that is not the sheets' own."""

    student: ListPrice | None = None


class PriceSheets(StrictModel):
    """The contents of a file of price sheets, one for each teacher."""

    date: Date
    student: ListPrice
    teachers: Annotated[tuple[TeacherPrice, ...], Field(min_length=1)]


class PricedSetting(NamedTuple):
    """A guided setting at the prices of a sheet, compared with the teacher that leaves the smallest advantage.

    Attributes:
        pays: The advantage over a mixture of student and teacher at the same cost, for all settings together.
        break_even: The smallest ratio of the output prices of teacher and student at which the setting beats the
            mixture, as measured, with the student's prices changed in proportion; None: none.
    """

    setting: int
    pays: Advantage
    break_even: float | None


class SheetResult(NamedTuple):
    """The guided settings of a run at the prices of one sheet, the one with the largest advantage first.

    `price_ratio` is the teacher's output price as a multiple of the student's.
    """

    teacher: ListPrice
    student: ListPrice
    price_ratio: float
    evidence: Evidence
    settings: tuple[PricedSetting, ...]


def read_price_sheets(file: Path | None) -> PriceSheets:
    """Read a file of price sheets; None: the one of this package. Raises ConfigError with every issue."""
    source, issues = read(file or SHIPPED)
    if source is None:
        raise ConfigError(issues)
    sheets, more = source.check(PriceSheets)
    if sheets is None or issues:
        raise ConfigError([*issues, *more])
    return sheets


def at_list_prices(
    run: RunRecords,
    sheets: PriceSheets,
    request_form: str | None,
    cache_hits: Decimal | None,
    confidence: float,
    seed: int,
    cache_ttl: CacheTtl = "5m",
) -> Iterator[SheetResult]:
    """Yield the results of a run under each sheet. Raises the errors of `evidence_of`.

    `cache_hits` is that of `PromptCaching`.
    """
    for teacher in sheets.teachers:
        student = teacher.student or sheets.student
        prices = {"teacher": teacher.price(cache_ttl), "student": student.price(cache_ttl)}
        caching = PromptCaching(cache_hits, teacher.min_cached_tokens, student.min_cached_tokens)
        evidence = evidence_of(run, request_form, prices, caching)
        ratio = float(teacher.output_per_1m / student.output_per_1m) if student.output_per_1m else float("inf")
        found = advantages(AnswerPanel.of(evidence), confidence, seed)
        settings = [PricedSetting(index, pays, _break_even(evidence, index, ratio)) for index, pays in found.items()]
        settings.sort(key=lambda one: -one.pays.claim.point)
        yield SheetResult(teacher, student, ratio, evidence, tuple(settings))


def _break_even(evidence: Evidence, guided: int, ratio: float) -> float | None:
    """Return the smallest ratio at which a guided setting beats the mixtures with all teachers; None: there is none."""
    found = [_break_even_with(evidence, guided, teacher, ratio) for teacher in evidence.teachers]
    return None if None in found else max(one for one in found if one is not None)


def _break_even_with(evidence: Evidence, guided: int, teacher: int, ratio: float) -> float | None:
    """Return the ratio at which a guided setting costs as much as the mixture with its accuracy.

    With k times the student's prices, the setting costs T + k S. The mixture sends a part p of the questions to the
    teacher and costs p t + (1 - p) k s. Both are equal for k = (p t - T) / (S - (1 - p) s). A student that costs more
    than the teacher is in no mixture.
    """
    one, alone, small = (evidence.candidates[index] for index in (guided, teacher, evidence.student))
    gain = alone.accuracy - small.accuracy
    if gain <= 0:
        return None
    part = min(1.0, max(0.0, (one.accuracy - small.accuracy) / gain))
    spare = part * float(alone.cost_usd) - float(one.teacher_usd)  # below the cost of the teacher alone
    more = float(one.cost_usd - one.teacher_usd) - (1 - part) * float(small.cost_usd)
    if spare <= 0:
        return None
    return ratio * max(more / spare, float(small.cost_usd / alone.cost_usd))
