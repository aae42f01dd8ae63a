"""The grid of an evaluation: what is varied, as options or a YAML file say it, and the settings that come of it.

tokens: [20, 40, auto]        every combination of the lists is one setting
form: [chat, completion]
grids:                        several grids in one run; what one does not say, it has from above
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
MOST_CALLS = 20_000
"""A run of more calls than this is begun only when somebody said so."""


def _several(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


Several: TypeAlias = Annotated[tuple[T, ...], BeforeValidator(_several), Field(min_length=1)]
"""One value, or a list of them."""


class Grid(StrictModel):
    """Lists of what is varied. `Setting` says what each means."""

    mode: Several[Mode] = ("teacher", "student", "guided")
    """Who answers."""
    tokens: Several[Tokens] = (20, 40, 80)
    """m, of guided settings; auto: a rule chooses it for each question."""
    projection: Several[Name] = ("cutoff",)
    """How the teacher is asked, of guided settings."""
    placement: Several[Placement] | None = None
    """Where the guidance stands, of guided settings; None: as is usual for the projection."""
    boundary: Several[Boundary] = ("word",)
    """Where guidance that was cut may end."""
    form: Several[Form] = ("chat",)
    """The question as a chat, or as a raw prompt."""
    shots: Several[Annotated[Whole, Field(ge=0, le=64)]] = (0,)
    """How many exemplars the caller's prompt shows."""
    max_tokens: Several[Annotated[Whole, Field(ge=1, le=100_000)]] = (300,)
    """The limit on an answer, guidance included."""
    temperature: Annotated[Number, Field(ge=0, le=2)] = 0.0
    """The caller's; 0 always takes the likeliest token."""
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    """The caller's."""
    seed: Annotated[Whole, Field(ge=0, le=2**31 - 1)] = 0
    """Of all that is drawn: the samples, one seed each from here on, and what the report draws."""
    samples: Annotated[Whole, Field(ge=1, le=100)] = 1
    """How often each question is answered, at a temperature above 0."""

    @field_validator("samples")
    @classmethod
    def _are_drawn(cls, samples: int, info: ValidationInfo) -> int:
        if samples > 1 and not info.data.get("temperature"):
            raise InvalidValue("needs a temperature above 0: at 0 all samples are the same")
        return samples


class GridFile(Grid):
    """All of a grid's file."""

    grids: tuple[Grid, ...] = ()
    """Several grids; what one does not say is as above."""

    @property
    def each(self) -> Iterator[Grid]:
        """The grids to go through: this one, where it names no others."""
        if not self.grids:
            yield self
        for one in self.grids:
            yield self.model_copy(update={name: getattr(one, name) for name in one.model_fields_set})


def read_grid(file: Path | None, options: Mapping[str, Any]) -> GridFile:
    """The file's grid with what `options` say instead, for all of its grids. Raises ConfigError with every mistake."""
    source, mistakes = (YamlSource("", {}), []) if file is None else read(file)
    if source is None:
        raise ConfigError(mistakes)
    grid, more = source.check(GridFile)
    if grid is None or mistakes:
        raise ConfigError([*mistakes, *more])
    if not options:
        return grid
    grids = [{**one, **options} for one in source.items("grids")]
    both = {**source.data, **options} | ({"grids": grids} if grids else {})
    grid, more = YamlSource("the command line", both).check(GridFile)
    if grid is None:
        raise ConfigError([replace(mistake, line=0) for mistake in more])
    return grid


def settings_of(
    grid: GridFile, projection: Callable[[str], Projection], auto: AutoLength | None = None
) -> list[Setting]:
    """Every setting of the grid, none twice; teachers come first, since the guidance may be cut from what they wrote.

    Args:
        projection: finds one by its name; raises StartupError where there is none.
        auto: how m is chosen where the grid says `auto`; None: by the built-in rule.
    """
    auto = auto or read_auto(None)
    found = [setting for one in grid.each for setting in _settings(one, projection, auto)]
    order = {"teacher": 0, "student": 1, "guided": 2}
    return sorted(dict.fromkeys(found), key=lambda setting: order[setting.mode])


def _settings(grid: Grid, projection: Callable[[str], Projection], auto: AutoLength) -> Iterator[Setting]:
    drawn: Iterable[int | None] = range(grid.seed, grid.seed + grid.samples) if grid.temperature else (None,)
    for form, shots, max_tokens, seed in product(grid.form, grid.shots, grid.max_tokens, drawn):
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
            "Take fewer tokens, or a larger max_tokens."
        )
    for projection, boundary, m in product(projections, grid.boundary, grid.tokens):
        if projection.exemplars and common.form == "completion":
            continue  # a raw prompt has no turns: it would be cutoff under another name
        for placement in grid.placement or (projection.default_placement,):
            guided = replace(common, mode="guided", projection=projection, placement=placement, boundary=boundary)
            yield replace(guided, tokens=m) if isinstance(m, int) else replace(guided, auto=auto)
