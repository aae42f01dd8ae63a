"""The settings of a run: points of a grid, from options or a YAML file, and the projections that they may name.

tokens: [20, 40, auto]        every combination of the lists is one setting
form: [chat, completion]
grids:                        several grids in one run; each inherits the keys above
  - {form: completion, shots: 8}
  - {projection: concise, tokens: 40}
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

import orjson
from msgspec import structs
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from gateway.config.scalars import InvalidValue, Name, Number, ValueOrigin, Whole
from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import StrictModel, YamlSource, display_path, read
from gateway.errors import ConfigError, StartupError
from gateway.policy.files import PROJECTIONS_FOLDER
from gateway.policy.length import DEFAULT_RULES, AutoRule, Tokens
from gateway.policy.library import ProjectionRegistry, length_files
from gateway.policy.projection_shapes import MAX_CHARS, MAX_EXEMPLARS
from gateway.policy.projections import CUTOFF, PRIMED, PROJECTIONS, Placement
from gateway.policy.resolve import resolve
from gateway.policy.schema import Boundary, Route, TenantPolicy
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gateway.errors import ConfigIssue
    from gateway.evaluation.record import Question
    from gateway.policy.length_model import FittedLengths
    from gateway.policy.plan import EngineSnapshot, Plan
    from gateway.policy.projections import Exemplar, Projection
    from gateway.protocol.requests import CompletionRequest

TEACHER, STUDENT = "teacher", "student"
"""Names of the engines."""
Mode = Literal["teacher", "student", "guided"]
Form = Literal["chat", "completion"]
REQUEST_PARAMETERS = ("form", "shots", "max_tokens", "temperature", "top_p", "seed")
"""Fields of `Setting`: settings with equal values have equal requests of the caller."""
# A model that was given example questions may continue with a question of its own.
_NEXT_QUESTION = "\nQ:"
T = TypeVar("T")


class AutoLength(NamedTuple):
    """A rule that chooses m for each question: a policy's `auto` block from a file, or the built-in rule.

    `block` includes defaults, since later versions may have other ones. `file` is None for the built-in rule. `learned`
    has the contents of the rule's model file.
    """

    rule: AutoRule
    block: Mapping[str, Any]
    file: str | None = None
    learned: FittedLengths | None = None


def read_auto(file: Path | None) -> AutoLength:
    """Read a rule from a file with the keys of a policy's `auto:` block; None returns the built-in rule.

    The path of a model file is relative to the file. Raises ConfigError with every issue.
    """
    if file is None:
        return AutoLength(AutoRule(), _complete_block(AutoRule(), {}))
    source, issues = read(file)
    if source is None:
        raise ConfigError(issues)
    rule, more = source.check(AutoRule, ValueOrigin({}, file.parent))
    if rule is None or issues:
        raise ConfigError([*issues, *more])
    learned: FittedLengths | None = None
    if rule.model is not None:
        files = length_files()
        files.begin(file.parent)
        learned, issues = files.of(rule.model, source, ("model",))
        if learned is None:
            raise ConfigError(issues)
    # Contains JSON types only: decimals become floats.
    plain = orjson.loads(orjson.dumps(source.data, default=float))
    rule_with_model = rule if learned is None else rule.with_length_model(learned)
    return AutoLength(rule_with_model, _complete_block(rule, plain), str(file.absolute()), learned)


def _complete_block(rule: AutoRule, block: Mapping[str, Any]) -> dict[str, Any]:
    block_items: dict[str, Any] = {name: getattr(rule, name) for name in ("min", "max", "default", "stop_at")}
    if rule.rules is None and rule.model is None:
        # A policy can express the built-in rules only by their results.
        block_items["rules"] = [
            {"name": one.name, "prompt": one.prompt, "tokens": one.tokens and max(rule.min, min(rule.max, one.tokens))}
            for one in DEFAULT_RULES
        ]
    return block_items | {name: value for name, value in block.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The way in which questions are answered. `projection`, `placement` and `boundary` are as in a policy.

    Attributes:
        mode: The teacher alone, the student alone, or the student after the teacher's guidance.
        form: The question as a chat, or after `shots` exemplars as a raw prompt (paper, Appendix D).
        shots: Number of exemplars in the caller's prompt, for both models; in a chat they are earlier turns.
        max_tokens: Token limit of the answer, including guidance.
        temperature, top_p, seed: Sampling parameters of the caller.
        tokens: m, the length of the guidance in tokens; 0 unless guided, or if `auto` chooses it.
        auto: Rule that chooses m for each question; None: m is `tokens`.
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
    auto: AutoLength | None = field(default=None, hash=False)
    projection: Projection = CUTOFF
    placement: Placement = "prefix"
    boundary: Boundary = "word"
    exemplars_file: str | None = None
    policies: str | None = None

    @property
    def m(self) -> int | Literal["auto"]:
        return self.tokens if self.auto is None else "auto"

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
        return f"{name}, {self.projection.name}, {self.placement}, m={self.m}{cut}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for files."""
        plain = {name: getattr(self, name) for name in ("name", "mode", *REQUEST_PARAMETERS)}
        if self.mode != "guided":
            return plain
        plain |= {"tokens": self.m, "projection": self.projection.name}
        plain |= {"placement": self.placement, "boundary": self.boundary}
        sources = {
            "auto": None if self.auto is None else dict(self.auto.block),
            "auto_file": None if self.auto is None else self.auto.file,
            "exemplars": self.exemplars_file,
            "policies": self.policies,
        }
        return plain | {name: value for name, value in sources.items() if value is not None}

    def route(self, model: str, **guidance: object) -> dict[str, Any]:
        """Return a policy's route for this setting, with further keys of `guidance`."""
        length = {"tokens": self.tokens or 1} if self.auto is None else {"tokens": "auto", "auto": self.auto.rule}
        guidance = {**length, "placement": self.placement, "boundary": self.boundary, **guidance}
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
        messages = [{"role": role, "content": text} for role, text in (*turns, ("user", question.text))]
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
        tokens: Lengths of the guidance in tokens, or "auto".
        projection: Names of projections.
        placement: Places of the guidance in the student's request. Default: the projection's.
        boundary: Units of text at which guidance may end.
        seed: Seed of all random numbers. The samples have consecutive seeds from here on.
        samples: Number of answers to each question, at a temperature above 0.
    """

    mode: OneOrMore[Mode] = ("teacher", "student", "guided")
    tokens: OneOrMore[Tokens] = (20, 40, 80)
    projection: OneOrMore[Name] = ("cutoff",)
    placement: OneOrMore[Placement] | None = None
    boundary: OneOrMore[Boundary] = ("word",)
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

    `projection` returns one by name, or raises StartupError. `auto` is the rule for `auto`; None: the built-in rule.
    """
    auto = auto or read_auto(None)
    grids = [grid.model_copy(update={name: getattr(one, name) for name in one.model_fields_set}) for one in grid.grids]
    found = [setting for one in grids or [grid] for setting in _settings(one, projection, auto)]
    order = {"teacher": 0, "student": 1, "guided": 2}
    return sorted(dict.fromkeys(found), key=lambda setting: order[setting.mode])


def _settings(grid: Grid, projection: Callable[[str], Projection], auto: AutoLength) -> Iterator[Setting]:
    seeds: Iterable[int | None] = range(grid.seed, grid.seed + grid.samples) if grid.temperature else (None,)
    sampling = Setting(mode="student", temperature=grid.temperature, top_p=grid.top_p)
    for form, shots, max_tokens, seed in product(grid.form, grid.shots, grid.max_tokens, seeds):
        common = replace(sampling, form=form, shots=shots, max_tokens=max_tokens, seed=seed)
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
