"""The settings of a run: points of a grid, from options or a YAML file, and the projections that they may name.

tokens: [20, 40]              every combination of the lists is one setting
form: [chat, completion]
grids:                        several grids in one run; each inherits the keys above
  - {form: completion, shots: 8}
  - {projection: concise, tokens: 40}
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

import orjson
from msgspec import structs
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from gateway.config.scalars import InvalidValue, Name, Number, Whole
from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import StrictModel, YamlSource, display_path, read
from gateway.errors import ConfigError, StartupError
from gateway.policy.files import PROJECTIONS_FOLDER
from gateway.policy.guidance_rule import MAX_GUIDANCE_TOKENS, Boundary
from gateway.policy.library import ProjectionRegistry
from gateway.policy.projection_shapes import MAX_CHARS, MAX_EXEMPLARS
from gateway.policy.projections import CUTOFF, PRIMED, PROJECTIONS, Placement
from gateway.policy.resolve import resolve
from gateway.policy.schema import Route, TenantPolicy
from gateway.protocol.chat import parse_chat
from gateway.protocol.messages import RULES
from gateway.protocol.text import parse_text_completion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gateway.errors import ConfigIssue
    from gateway.evaluation.record import Question
    from gateway.policy.plan import EngineSnapshot, Plan
    from gateway.policy.projections import Exemplar, Projection
    from gateway.protocol.requests import CompletionRequest

TEACHER, STUDENT = "teacher", "student"
"""Names of the engines."""
Mode = Literal["teacher", "student", "guided"]
Form = Literal["chat", "completion"]
SAMPLING = ("temperature", "top_p", "seed")
REQUEST_PARAMETERS = ("form", "shots", "max_tokens", *SAMPLING)
"""Fields of `Setting`: settings with equal values have equal requests of the caller."""
# A model that was given example questions may continue with a question of its own.
_NEXT_QUESTION = "\nQ:"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The way in which questions are answered. `projection`, `placement` and `boundary` are as in a policy.

    Attributes:
        mode: The teacher alone, the student alone, or the student after the teacher's guidance.
        form: The question as a chat, or after `shots` exemplars as a raw prompt (paper, Appendix D).
        shots: Number of exemplars in the caller's prompt, for both models; in a chat they are earlier turns.
        max_tokens: Token limit of the answer, including guidance.
        temperature, top_p, seed: Sampling parameters of the caller.
        tokens: m, the length of the guidance in tokens; 0 unless guided.
        exemplar_count: k, if the projection has only the first k exemplars of its file; None: all of them.
        exemplars_file: File of the projection's exemplars, if they are not its own.
        policies: Folder with the projection's file, if it is not a shipped one.
    """

    mode: Mode
    form: Form = "chat"
    shots: int = 0
    max_tokens: int = 300
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None
    tokens: int = 0
    projection: Projection = CUTOFF
    placement: Placement = "prefix"
    boundary: Boundary = "word"
    exemplar_count: int | None = None
    exemplars_file: str | None = None
    policies: str | None = None

    @property
    def name(self) -> str:
        """Return a readable name that is unique in a run."""
        request = f"{self.form}, {self.shots} shots" if self.shots else self.form
        sampling = f", temperature {self.temperature:g}" if self.temperature else ""
        sampling += "" if self.top_p is None else f", top_p {self.top_p:g}"
        sampling += "" if self.seed is None else f", seed {self.seed}"
        name = f"{self.mode}, {request}, {self.max_tokens} tokens{sampling}"
        if self.mode != "guided":
            return name
        cut = "" if self.boundary == "word" else f", cut at a {self.boundary}"
        part = "" if self.exemplar_count is None else f", exemplars={self.exemplar_count}"
        return f"{name}, {self.projection.name}{part}, {self.placement}, m={self.tokens}{cut}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for files."""
        plain = {name: getattr(self, name) for name in ("name", "mode", *REQUEST_PARAMETERS)}
        if self.mode != "guided":
            return plain
        plain |= {"tokens": self.tokens, "projection": self.projection.name}
        plain |= {"placement": self.placement, "boundary": self.boundary}
        sources = {
            "exemplar_count": self.exemplar_count,
            "exemplars": self.exemplars_file,
            "policies": self.policies,
        }
        return plain | {name: value for name, value in sources.items() if value is not None}

    def route(self, model: str) -> dict[str, Any]:
        """Return a policy's route for this setting, without its projection."""
        guidance = {"tokens": self.tokens or 1, "placement": self.placement, "boundary": self.boundary}
        engines = {"teacher": TEACHER, "student": STUDENT, "baseline": TEACHER}
        return {"model": model, "mode": self.mode, **engines, "guidance": guidance}

    def request(self, question: Question, exemplars: Sequence[Exemplar]) -> CompletionRequest:
        """Return the caller's request. Raises InvalidRequest for an empty question."""
        body: dict[str, Any] = {"model": "eval", "max_tokens": self.max_tokens, "temperature": self.temperature}
        body |= {name: value for name, value in (("top_p", self.top_p), ("seed", self.seed)) if value is not None}
        shown = exemplars[: self.shots]
        if self.form == "completion":
            prompt = "".join(f"Q: {one.question}\nA: {one.answer}\n\n" for one in shown) + f"Q: {question.text}\nA:"
            return parse_text_completion(orjson.dumps(body | {"prompt": prompt, "stop": [_NEXT_QUESTION]}))
        turns = [turn for one in shown for turn in (("user", one.question), ("assistant", one.answer))]
        chat = question.messages or (("user", question.text),)
        rules = next(index for index, (role, _) in enumerate(chat) if role not in RULES)
        messages = [{"role": role, "content": text} for role, text in (*chat[:rules], *turns, *chat[rules:])]
        return parse_chat(orjson.dumps(body | {"messages": messages}))

    def plan(self, request: CompletionRequest, snapshot: Callable[[str], EngineSnapshot]) -> Plan:
        """Return the plan of a gateway with a policy of this setting."""
        route = Route.model_validate(self.route("eval"))
        plan = resolve(TenantPolicy(tenant="eval", routes=(route,)), route, request, snapshot)
        if plan.guidance is None:
            return plan
        return structs.replace(plan, guidance=structs.replace(plan.guidance, projection=self.projection, stream=False))


def _as_tuple(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


OneOrMore: TypeAlias = Annotated[tuple[T, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
"""One value, or a list of them."""


class Grid(StrictModel):
    """Parameters of a run's settings: every combination of the listed values is one setting.

    `Setting` describes `mode`, `form`, `shots`, `max_tokens`, `temperature` and `top_p`.

    Attributes:
        tokens: Lengths of the guidance in tokens.
        projection: Names of projections.
        placement: Places of the guidance in the student's request. Default: the projection's.
        boundary: Units of text at which guidance may end.
        exemplar_count: Numbers of exemplars of projections such as primed: the first ones. Default: all.
        seed: Seed of all random numbers. The samples have consecutive seeds from here on.
        samples: Number of answers to each question, at a temperature above 0.
    """

    mode: OneOrMore[Mode] = ("teacher", "student", "guided")
    tokens: OneOrMore[Annotated[Whole, Field(ge=1, le=MAX_GUIDANCE_TOKENS)]] = (20, 40, 80)
    projection: OneOrMore[Name] = ("cutoff",)
    placement: OneOrMore[Placement] | None = None
    boundary: OneOrMore[Boundary] = ("word",)
    exemplar_count: OneOrMore[Annotated[Whole, Field(ge=1, le=MAX_EXEMPLARS)]] | None = None
    form: OneOrMore[Form] = ("chat",)
    shots: OneOrMore[Annotated[Whole, Field(ge=0, le=64)]] = (0,)
    max_tokens: OneOrMore[Annotated[Whole, Field(ge=1, le=100_000)]] = (300,)
    temperature: Annotated[Number, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    seed: Annotated[Whole, Field(ge=0, le=2**31 - 1)] = 0
    samples: Annotated[Whole, Field(ge=1, le=100)] = 1

    @field_validator("samples")
    @classmethod
    def _check_samples(cls, samples: int, info: ValidationInfo) -> int:
        if samples > 1 and not info.data.get("temperature"):
            raise InvalidValue("needs a temperature above 0: at 0 all samples are identical")
        return samples


class GridFile(Grid):
    """The contents of a grid file. Each of `grids` inherits the other keys."""

    grids: tuple[Grid, ...] = ()

    @property
    def forms(self) -> set[Form]:
        """Return the request forms of all grids."""
        own = [one.form if "form" in one.model_fields_set else self.form for one in self.grids]
        return {form for forms in own or [self.form] for form in forms}


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


def settings_of(grid: GridFile, projection: Callable[[str], Projection]) -> list[Setting]:
    """Return the distinct settings of the grid, teachers first, since their texts may serve as guidance.

    `projection` returns one by name, or raises StartupError.
    """
    grids = [grid.model_copy(update={name: getattr(one, name) for name in one.model_fields_set}) for one in grid.grids]
    found = [setting for one in grids or [grid] for setting in _settings(one, projection)]
    order = {"teacher": 0, "student": 1, "guided": 2}
    return sorted(dict.fromkeys(found), key=lambda setting: order[setting.mode])


def _settings(grid: Grid, projection: Callable[[str], Projection]) -> Iterator[Setting]:
    seeds: Iterable[int | None] = range(grid.seed, grid.seed + grid.samples) if grid.temperature else (None,)
    sampling = Setting(mode="student", temperature=grid.temperature, top_p=grid.top_p)
    for form, shots, max_tokens, seed in product(grid.form, grid.shots, grid.max_tokens, seeds):
        common = replace(sampling, form=form, shots=shots, max_tokens=max_tokens, seed=seed)
        for mode in grid.mode:
            if mode == "guided":
                yield from _guided(grid, common, [projection(name) for name in grid.projection])
            else:
                yield replace(common, mode=mode)


def _guided(grid: Grid, common: Setting, projections: Sequence[Projection]) -> Iterator[Setting]:
    if (longest := max(grid.tokens)) > common.max_tokens:
        raise StartupError(
            f"tokens {longest} is more than max_tokens {common.max_tokens}: guidance is a part of the answer. "
            "Use fewer tokens, or a larger max_tokens."
        )
    for whole, boundary, m in product(projections, grid.boundary, grid.tokens):
        if whole.exemplars and common.form == "completion":
            continue  # a raw prompt has no turns, so the setting would equal cutoff
        for count in (whole.exemplars and grid.exemplar_count) or (None,):
            projection = whole if count is None else with_first_exemplars(whole, count)
            for placement in grid.placement or (projection.default_placement,):
                yield replace(
                    common,
                    mode="guided",
                    tokens=m,
                    projection=projection,
                    placement=placement,
                    boundary=boundary,
                    exemplar_count=count,
                )


def with_first_exemplars(projection: Projection, count: int) -> Projection:
    """Return the projection with its first exemplars. Raises StartupError if it has fewer."""
    if count > len(projection.exemplars):
        raise StartupError(
            f"exemplar_count {count}: projection {projection.name} has {len(projection.exemplars)} exemplars. Use a "
            "smaller number, or name a file with more by --exemplars."
        )
    return replace(projection, exemplars=projection.exemplars[:count])


class RunLibrary(NamedTuple):
    """Projections by name, from a policies folder or shipped. `primed` has the exemplars of a file if given."""

    projections: Mapping[str, Projection]
    policies: Path | None
    exemplars_file: Path | None
    issues: Sequence[ConfigIssue]

    @classmethod
    def read(cls, policies: Path | None, exemplars_file: Path | None, exemplars: Iterable[Exemplar]) -> RunLibrary:
        """Read the projections. Blocks. Raises StartupError if `exemplars`, from the file, exceed a policy's limits."""
        library = ProjectionRegistry()
        issues = library.read(policies) if policies is not None else []
        found = dict(library.projections)
        if exemplars_file is not None:
            found[PRIMED.name] = primed = replace(PRIMED, exemplars=tuple(exemplars))
            size = sum(map(len, primed.shown))
            if len(primed.exemplars) > MAX_EXEMPLARS or size > MAX_CHARS:
                raise StartupError(
                    f"{display_path(exemplars_file)} holds {len(primed.exemplars)} exemplars with {size:,} characters: "
                    f"the limits are {MAX_EXEMPLARS} exemplars and {MAX_CHARS:,} characters. Remove some."
                )
        return cls(found, policies, exemplars_file, issues)

    def find(self, name: str) -> Projection:
        """Return a projection. Raises StartupError for an unknown name and ConfigError for errors in its file."""
        if name in self.projections:
            return self.projections[name]
        if self.policies is not None and (self.policies / PROJECTIONS_FOLDER / f"{name}.yaml").is_file():
            raise ConfigError(self.issues)
        close = nearest(name, self.projections)
        where = "--policies DIR" if self.policies is None else f"{display_path(self.policies)}/{PROJECTIONS_FOLDER}"
        hint = f" Did you mean '{close}'?" if close else f" Your own files belong in {where}."
        raise StartupError(f"There is no projection '{name}'; known: {', '.join(self.projections)}.{hint}")

    def with_source(self, setting: Setting) -> Setting:
        """Return the setting with the source of its projection."""
        if setting.mode != "guided":
            return setting
        name = setting.projection.name
        if name == PRIMED.name and self.exemplars_file is not None:
            return replace(setting, exemplars_file=str(self.exemplars_file.absolute()))
        if name not in PROJECTIONS and self.policies is not None:
            return replace(setting, policies=str(self.policies.absolute()))
        return setting
