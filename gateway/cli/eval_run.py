"""`gkt-gateway eval run`: ask real models every question under every setting, into a folder."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.demo import STUDENT, TEACHER
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.evaluation.data import LoadedData, Part
    from gateway.evaluation.pair import Pair
    from gateway.policy.projections import Exemplar, Projection

_DATA, _GRID, _ENGINES, _LIVE = "The questions", "The grid", "The engines", "Through a whole gateway"
_LIST = "A value, or several with commas."


def run(
    folder: Annotated[Path, typer.Argument(help="Where all of it is kept. The same folder goes on where it stopped.")],
    data: Annotated[
        str, typer.Option(help="generated, gsm8k, csqa, or a file of JSON lines.", rich_help_panel=_DATA)
    ] = "generated",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.", rich_help_panel=_DATA)] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="So many, drawn from all by --seed.", rich_help_panel=_DATA)
    ] = None,
    offset: Annotated[int, typer.Option(min=0, help="Leave out the first.", rich_help_panel=_DATA)] = 0,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Pass over lines that cannot be used.", rich_help_panel=_DATA)
    ] = False,
    exemplars: Annotated[
        Path | None, typer.Option(help="Worked examples, for --shots and primed.", rich_help_panel=_DATA)
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            help="How answers are scored, whatever the data says; package.module:function is your own.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="A model of --config that scores what no rule can.", rich_help_panel=_DATA)
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help=f"teacher, student, guided. {_LIST} Default: all.", rich_help_panel=_GRID)
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help=f"Lengths of the guidance. {_LIST} Default: 20,40,80.", rich_help_panel=_GRID)
    ] = None,
    projection: Annotated[
        str | None,
        typer.Option(help=f"cutoff, concise, hint, primed. {_LIST} Default: cutoff.", rich_help_panel=_GRID),
    ] = None,
    placement: Annotated[
        str | None,
        typer.Option(help=f"prefix, context, input. {_LIST} Default: the projection's.", rich_help_panel=_GRID),
    ] = None,
    form: Annotated[
        str | None, typer.Option(help=f"chat, completion. {_LIST} Default: chat.", rich_help_panel=_GRID)
    ] = None,
    shots: Annotated[
        str | None, typer.Option(help=f"Worked examples in the prompt. {_LIST} Default: 0.", rich_help_panel=_GRID)
    ] = None,
    max_tokens: Annotated[
        str | None, typer.Option(help=f"Limits on an answer. {_LIST} Default: 300.", rich_help_panel=_GRID)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Default: 0, greedy.", rich_help_panel=_GRID)] = None,
    top_p: Annotated[float | None, typer.Option(help="Default: not sent.", rich_help_panel=_GRID)] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn. Default: 0.", rich_help_panel=_GRID)] = None,
    samples: Annotated[
        int | None, typer.Option(help="Answers to each question, at a temperature.", rich_help_panel=_GRID)
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="A YAML file that says all this; options win.", rich_help_panel=_GRID)
    ] = None,
    local: Annotated[
        bool,
        typer.Option("--local", help="Models on this machine. So it is without --config.", rich_help_panel=_ENGINES),
    ] = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Take models of this file.", rich_help_panel=_ENGINES)
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help=f"A model of --config; else of the catalogue, or a .gguf file. Default: {TEACHER}.",
            rich_help_panel=_ENGINES,
        ),
    ] = None,
    student: Annotated[
        str | None, typer.Option(help=f"Likewise. Default: {STUDENT}.", rich_help_panel=_ENGINES)
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=1024, help="Questions under way at once.", rich_help_panel=_ENGINES)
    ] = 16,
    slot_tokens: Annotated[
        int,
        typer.Option(min=256, help="Context of each, on this machine: prompt and answer.", rich_help_panel=_ENGINES),
    ] = 2048,
    live: Annotated[
        bool, typer.Option("--live", help="A gateway in this process, called over HTTP.", rich_help_panel=_LIVE)
    ] = False,
    gateway: Annotated[
        str | None, typer.Option(help="One that runs: http(s)://host:port.", rich_help_panel=_LIVE)
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Your key for --gateway: env:NAME or file:/path.", rich_help_panel=_LIVE)
    ] = None,
    route: Annotated[
        list[str] | None, typer.Option(help="A route of --gateway; once for each.", rich_help_panel=_LIVE)
    ] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score the texts of the folder anew; no model is asked.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Begin a large run without asking.")] = False,
    most_calls: Annotated[int, typer.Option(min=1, help="More calls than this are a large run.")] = 20_000,
) -> None:
    """Ask real models every question under every setting of a grid, and keep what they write.

    `gkt-gateway eval run FOLDER --limit 40` asks small models on this machine 40 word problems: the teacher alone, the
    student alone, and the student after the teacher's first 20, 40 and 80 tokens. That takes minutes on a laptop; the
    first time 1.6 GB of weights are fetched.

    The teacher is asked first, for everything, and then the student: on one machine only one of them runs at a time.
    Ctrl-C, a kill or a lost engine cost no answer: the same command goes on where it stopped. More settings, and more
    questions of the same data, are added to what is there.
    """
    from gateway.cli.eval_sitting import Sitting, hold
    from gateway.evaluation.data import Part
    from gateway.evaluation.grid import read_grid, settings_of
    from gateway.evaluation.scoring import plug_in

    options = _given(
        lists={"mode": mode, "projection": projection, "placement": placement, "form": form},
        numbers={"tokens": tokens, "shots": shots, "max_tokens": max_tokens},
        single={"temperature": temperature, "top_p": top_p, "seed": seed, "samples": samples},
    )
    _check_together(
        {"--local": local, "--config": config},
        {"--live": live, "--gateway": gateway, "--rescore": rescore},
        {"--gateway": gateway, "--config": config},
    )
    if gateway is not None and (not route or key is None):
        raise typer.BadParameter("needs --route, once for each route, and --key env:NAME", param_hint="--gateway")
    if gateway is not None:
        options["mode"] = ["student"]  # what a route does is the gateway's to say
    asked = read_grid(grid, options)
    part = Part(offset=offset, limit=limit, sample=sample, seed=asked.seed)
    loaded = _loaded(data, part, scorer, exemplars, skip_bad=skip_bad)
    settings = settings_of(asked, _projections(loaded.exemplars))
    if (most := max(setting.shots for setting in settings)) > len(loaded.exemplars):
        raise StartupError(f"--shots {most}: there are {len(loaded.exemplars)} exemplars. Name more with --exemplars.")
    pair = pair_of(config, teacher, student, concurrency, slot_tokens)
    sitting = Sitting(
        folder=folder,
        data=loaded,
        settings=settings,
        pair=pair,
        scorer=plug_in(scorer) if scorer is not None and ":" in scorer else None,
        judge=judge,
        concurrency=concurrency,
        seed=asked.seed,
        live=live,
        gateway=gateway,
        key=key,
        routes=tuple(route or ()),
        rescore=rescore,
        yes=yes,
        most_calls=most_calls,
    )
    hold(sitting)


def _given(lists: dict[str, str | None], numbers: dict[str, str | None], single: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as a grid's file would say them."""
    found: dict[str, Any] = {name: text.split(",") for name, text in lists.items() if text is not None}
    for name, text in numbers.items():
        if text is not None:
            found[name] = [int(part) if part.strip().isdigit() else part for part in text.split(",")]
    return found | {name: value for name, value in single.items() if value is not None}


def _check_together(*apart: dict[str, Any]) -> None:
    for options in apart:
        given = [name for name, value in options.items() if value]
        if len(given) > 1:
            raise typer.BadParameter(f"and {given[1]} are not for one run: keep one", param_hint=given[0])


def _projections(exemplars: tuple[Exemplar, ...]) -> Callable[[str], Projection]:
    """Finds a projection by its name. `primed` shows the data's exemplars to the teacher alone."""
    from dataclasses import replace

    from gateway.policy.projections import CUTOFF, PROJECTIONS
    from gateway.yaml_words import nearest

    known = dict(PROJECTIONS)
    if exemplars:
        known["primed"] = replace(known.get("primed", CUTOFF), name="primed", exemplars=tuple(exemplars))

    def find(name: str) -> Projection:
        if name in known:
            return known[name]
        if name == "primed":
            raise StartupError("--projection primed shows exemplars to the teacher: name them with --exemplars FILE.")
        close = nearest(name, known)
        hint = f" Did you mean '{close}'?" if close else ""
        raise StartupError(f"There is no projection '{name}'; known: {', '.join(known)}.{hint}")

    return find


def pair_of(config: Path | None, teacher: str | None, student: str | None, concurrency: int, slot_tokens: int) -> Pair:
    """The engines that the options name. Raises StartupErrors."""
    from gateway.evaluation.pair import ConfiguredPair, LocalPair

    if config is None:
        return LocalPair(teacher or TEACHER, student or STUDENT, concurrency, slot_tokens)
    from gateway.config import check_settings
    from gateway.errors import ConfigError

    if teacher is None or student is None:
        raise typer.BadParameter("needs --teacher and --student: names of its models", param_hint="--config")
    settings, _, mistakes = check_settings(config)
    if settings is None:
        raise ConfigError(mistakes)
    return ConfiguredPair(settings, teacher, student)


def _loaded(spec: str, part: Part, scorer: str | None, exemplars: Path | None, *, skip_bad: bool) -> LoadedData:
    """Of problems that are made, as many as are asked for."""
    from gateway.evaluation.data import DEFAULT_COUNT, load

    count = max(DEFAULT_COUNT, part.offset + max(part.limit or 0, part.sample or 0))
    loaded = load(spec, part, count=count, seed=part.seed, scorer=scorer, exemplars_file=exemplars, skip_bad=skip_bad)
    if loaded.skipped:
        typer.echo(f"{len(loaded.skipped)} lines were passed over; the first: {loaded.skipped[0]}", err=True)
    return loaded
