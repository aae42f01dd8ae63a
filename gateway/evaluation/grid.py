"""The grid of an evaluation: the varied parameters, from options or a YAML file, and the resulting settings.

tokens: [20, 40, auto]        every combination of the lists is one setting
form: [chat, completion]
grids:                        several grids in one run; each inherits the keys above
  - {form: completion, shots: 8}
  - {projection: concise, tokens: 40}
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from gateway.config.scalars import InvalidValue, Name, Number, Whole
from gateway.config.yaml_source import StrictModel, YamlSource, read
from gateway.errors import ConfigError, StartupError
from gateway.evaluation.auto_length import AutoLength, read_auto
from gateway.evaluation.setting import Form, Mode, Setting
from gateway.policy.length_rules import Tokens
from gateway.policy.projections import Placement
from gateway.policy.schema import Boundary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gateway.policy.projections import Projection

T = TypeVar("T")
MAX_UNCONFIRMED_CALLS = 20_000
"""A run with more calls than this needs confirmation."""


def _as_tuple(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


OneOrMore: TypeAlias = Annotated[tuple[T, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
"""One value, or a list of them."""


class Grid(StrictModel):
    """Lists of varied parameters. `Setting` describes each one."""

    mode: OneOrMore[Mode] = ("teacher", "student", "guided")
    """Which models answer."""
    tokens: OneOrMore[Tokens] = (20, 40, 80)
    """m of guided settings; auto: a rule chooses m for each question."""
    projection: OneOrMore[Name] = ("cutoff",)
    """The projection of guided settings: the request to the teacher."""
    placement: OneOrMore[Placement] | None = None
    """Position of the guidance in guided settings; None: the projection's default."""
    boundary: OneOrMore[Boundary] = ("word",)
    """The boundary at which truncated guidance ends."""
    form: OneOrMore[Form] = ("chat",)
    """Format of the question: a chat, or a raw prompt."""
    shots: OneOrMore[Annotated[Whole, Field(ge=0, le=64)]] = (0,)
    """Number of exemplars in the caller's prompt."""
    max_tokens: OneOrMore[Annotated[Whole, Field(ge=1, le=100_000)]] = (300,)
    """Token limit of an answer, including guidance."""
    temperature: Annotated[Number, Field(ge=0, le=2)] = 0.0
    """Sampling temperature of the caller; 0 always takes the most probable token."""
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Sampling top_p of the caller."""
    seed: Annotated[Whole, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of all random numbers: one seed per sample, counted up from here, and the report's resampling."""
    samples: Annotated[Whole, Field(ge=1, le=100)] = 1
    """Number of answers to each question, at a temperature above 0."""

    @field_validator("samples")
    @classmethod
    def _check_samples(cls, samples: int, info: ValidationInfo) -> int:
        if samples > 1 and not info.data.get("temperature"):
            raise InvalidValue("needs a temperature above 0: at 0 all samples are identical")
        return samples


class GridFile(Grid):
    """The contents of a grid file."""

    grids: tuple[Grid, ...] = ()
    """Several grids; each inherits the keys above."""

    @property
    def all_grids(self) -> Iterator[Grid]:
        """Yield each of `grids`, or this grid if there are none."""
        if not self.grids:
            yield self
        for one in self.grids:
            yield self.model_copy(update={name: getattr(one, name) for name in one.model_fields_set})


def read_grid(file: Path | None, options: Mapping[str, Any]) -> GridFile:
    """Read a file's grid; `options` override its keys in all of its grids. Raises ConfigError with every issue."""
    source, issues = (YamlSource("", {}), []) if file is None else read(file)
    if source is None:
        raise ConfigError(issues)
    grid, more_issues = source.check(GridFile)
    if grid is None or issues:
        raise ConfigError([*issues, *more_issues])
    if not options:
        return grid
    grids = [{**one, **options} for one in source.items("grids")]
    merged = {**source.data, **options} | ({"grids": grids} if grids else {})
    grid, more_issues = YamlSource("the command line", merged).check(GridFile)
    if grid is None:
        raise ConfigError([replace(issue, line=0) for issue in more_issues])
    return grid


def settings_of(
    grid: GridFile, projection: Callable[[str], Projection], auto: AutoLength | None = None
) -> list[Setting]:
    """Return the distinct settings of the grid, teachers first, since their texts may serve as guidance.

    Args:
        grid: The grid.
        projection: Returns a projection by name; raises StartupError for an unknown name.
        auto: The rule for `auto`; None: the built-in rule.
    """
    auto = auto or read_auto(None)
    found = [setting for one in grid.all_grids for setting in _settings(one, projection, auto)]
    order = {"teacher": 0, "student": 1, "guided": 2}
    return sorted(dict.fromkeys(found), key=lambda setting: order[setting.mode])


def _settings(grid: Grid, projection: Callable[[str], Projection], auto: AutoLength) -> Iterator[Setting]:
    seeds: Iterable[int | None] = range(grid.seed, grid.seed + grid.samples) if grid.temperature else (None,)
    for form, shots, max_tokens, seed in product(grid.form, grid.shots, grid.max_tokens, seeds):
        common = Setting(
            mode="student",
            form=form,
            shots=shots,
            max_tokens=max_tokens,
            temperature=grid.temperature,
            top_p=grid.top_p,
            seed=seed,
        )
        for mode in grid.mode:
            if mode == "guided":
                yield from _guided(grid, common, [projection(name) for name in grid.projection], auto)
            else:
                yield replace(common, mode=mode)


def _guided(grid: Grid, common: Setting, projections: Sequence[Projection], auto: AutoLength) -> Iterator[Setting]:
    if (longest := max((m for m in grid.tokens if isinstance(m, int)), default=0)) > common.max_tokens:
        raise StartupError(
            f"tokens {longest} is more than max_tokens {common.max_tokens}: guidance is a part of the answer. "
            "Use fewer tokens, or a larger max_tokens."
        )
    for projection, boundary, m in product(projections, grid.boundary, grid.tokens):
        if projection.exemplars and common.form == "completion":
            continue  # a raw prompt has no turns, so the setting would equal cutoff
        for placement in grid.placement or (projection.default_placement,):
            guided = replace(common, mode="guided", projection=projection, placement=placement, boundary=boundary)
            yield replace(guided, tokens=m) if isinstance(m, int) else replace(guided, auto=auto)
