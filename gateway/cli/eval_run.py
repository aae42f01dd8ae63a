"""`gkt-gateway eval run`: ask real models every question under every setting, into a folder."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.eval_options import (
    DATA,
    ENGINES,
    Concurrency,
    Config,
    Data,
    Judge,
    Scorer,
    SkipBad,
    SlotTokens,
    Student,
    Teacher,
    pair_of,
)
from gateway.errors import StartupError

if TYPE_CHECKING:
    from gateway.evaluation.pair import Pair
    from gateway.evaluation.questions.data import LoadedData, QuestionRange

_GRID, _LIVE = "The grid", "Through a whole gateway"
_LIST = "A value, or several with commas."


def run(
    folder: Annotated[Path, typer.Argument(help="Where all of it is kept. The same folder goes on where it stopped.")],
    data: Data = "generated",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.", rich_help_panel=DATA)] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="So many, drawn from all by --seed.", rich_help_panel=DATA)
    ] = None,
    offset: Annotated[int, typer.Option(min=0, help="Leave out the first.", rich_help_panel=DATA)] = 0,
    skip_bad: SkipBad = False,
    exemplars: Annotated[
        Path | None, typer.Option(help="Worked examples, for --shots and for projection primed.", rich_help_panel=DATA)
    ] = None,
    scorer: Scorer = None,
    judge: Judge = None,
    mode: Annotated[
        str | None, typer.Option(help=f"teacher, student, guided. {_LIST} Default: all.", rich_help_panel=_GRID)
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help=f"Lengths of the guidance; auto. {_LIST} Default: 20,40,80.", rich_help_panel=_GRID),
    ] = None,
    auto: Annotated[
        Path | None,
        typer.Option(
            help="A YAML file with the rule of --tokens auto, as a policy's guidance.auto. Default: the built-in one.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    projection: Annotated[
        str | None,
        typer.Option(
            help=f"cutoff, concise, hint, primed, or one of --policies. {_LIST} Default: cutoff.",
            rich_help_panel=_GRID,
        ),
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
    policies: Annotated[
        Path | None,
        typer.Option(
            help="A folder of policies, with projections of your own. Default: that of --config.",
            metavar="DIR",
            rich_help_panel=_GRID,
        ),
    ] = None,
    local: Annotated[
        bool,
        typer.Option("--local", help="Models on this machine. So it is without --config.", rich_help_panel=ENGINES),
    ] = False,
    config: Config = None,
    teacher: Teacher = None,
    student: Student = None,
    concurrency: Concurrency = 16,
    slot_tokens: SlotTokens = 2048,
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

    `gkt-gateway eval run FOLDER --limit 20` asks small models on this machine 20 word problems: the teacher alone, the
    student alone, and the student after the teacher's first 20, 40 and 80 tokens. That takes some minutes; the first
    time 1.6 GB of weights are fetched.

    The teacher is asked first, for everything, and then the student: on one machine only one of them runs at a time.
    Ctrl-C, a kill or a lost engine cost no answer: the same command goes on where it stopped. More settings, and more
    questions of the same data, are added to what is there.
    """
    from gateway.cli.eval_run_sitting import EvalSession, hold
    from gateway.evaluation.auto_length import read_auto
    from gateway.evaluation.grid import read_grid, settings_of
    from gateway.evaluation.questions.data import QuestionRange
    from gateway.evaluation.run_library import RunLibrary
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
    part = QuestionRange(offset=offset, limit=limit, sample=sample, seed=asked.seed)
    loaded = _loaded(data, part, scorer, exemplars, skip_bad=skip_bad)
    pair = pair_of(config, teacher, student, concurrency, slot_tokens)
    library = RunLibrary.read(_policies(policies, pair), exemplars, loaded.exemplars)
    settings = [library.with_source(setting) for setting in settings_of(asked, library.find, read_auto(auto))]
    if auto is not None and all(setting.auto is None for setting in settings):
        raise typer.BadParameter("is the rule of --tokens auto, and no setting has that", param_hint="--auto")
    if (most := max(setting.shots for setting in settings)) > len(loaded.exemplars):
        raise StartupError(f"--shots {most}: there are {len(loaded.exemplars)} exemplars. Name more with --exemplars.")
    sitting = EvalSession(
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
            found[name] = [int(part) if part.isdigit() else part for part in map(str.strip, text.split(","))]
    return found | {name: value for name, value in single.items() if value is not None}


def _check_together(*apart: dict[str, Any]) -> None:
    for options in apart:
        given = [name for name, value in options.items() if value]
        if len(given) > 1:
            raise typer.BadParameter(f"and {given[1]} are not for one run: keep one", param_hint=given[0])


def _policies(folder: Path | None, pair: Pair) -> Path | None:
    """Where projections of one's own stand."""
    from gateway.evaluation.pair import ConfiguredPair

    if folder is not None and not folder.is_dir():
        raise typer.BadParameter(f"there is no folder {folder}", param_hint="--policies")
    return pair.settings.policies if folder is None and isinstance(pair, ConfiguredPair) else folder


def _loaded(
    spec: str, part: QuestionRange, scorer: str | None, exemplars: Path | None, *, skip_bad: bool
) -> LoadedData:
    """Of problems that are made, as many as are asked for."""
    from gateway.evaluation.questions.data import DEFAULT_COUNT, load

    count = max(DEFAULT_COUNT, part.offset + max(part.limit or 0, part.sample or 0))
    loaded = load(spec, part, count=count, seed=part.seed, scorer=scorer, exemplars_file=exemplars, skip_bad=skip_bad)
    if loaded.skipped:
        typer.echo(f"{len(loaded.skipped)} lines were passed over; the first: {loaded.skipped[0]}", err=True)
    return loaded
