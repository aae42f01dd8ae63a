"""`gkt-gateway eval run`: answer every question under every setting, and store the answers in a folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path  # noqa: TC003  typer reads it
from typing import Annotated, Any

import typer

from gateway.cli import eval_options
from gateway.errors import StartupError

_grid = partial(typer.Option, rich_help_panel="Grid")
_gateway = partial(typer.Option, rich_help_panel="Through a gateway")
_LIST = "One value, or several separated by commas."


def run(
    folder: Annotated[Path, typer.Argument(help="Folder of the run. An existing run is resumed.")],
    data: eval_options.Data = "gsm8k",
    limit: Annotated[int | None, eval_options.data_option(min=1, help="Use at most this many questions.")] = None,
    sample: Annotated[
        int | None, eval_options.data_option(min=1, help="Use a random sample of this size, drawn with --seed.")
    ] = None,
    offset: Annotated[int, eval_options.data_option(min=0, help="Skip this many questions.")] = 0,
    skip_bad: eval_options.SkipBad = False,
    exemplars: Annotated[
        Path | None, eval_options.data_option(help="File of exemplars for --shots and projection primed.")
    ] = None,
    scorer: eval_options.Scorer = None,
    judge: eval_options.Judge = None,
    mode: Annotated[str | None, _grid(help=f"Modes: teacher, student, guided. {_LIST} Default: all.")] = None,
    tokens: Annotated[str | None, _grid(help=f"Guidance lengths in tokens. {_LIST} Default: 20,40,80.")] = None,
    projection: Annotated[
        str | None,
        _grid(help=f"Projections: cutoff, concise, hint, primed, or of --policies. {_LIST} Default: cutoff."),
    ] = None,
    placement: Annotated[
        str | None, _grid(help=f"Placements: prefix, context, input. {_LIST} Default: the projection's.")
    ] = None,
    form: Annotated[str | None, _grid(help=f"API: chat, completion. {_LIST} Default: chat.")] = None,
    exemplar_count: Annotated[
        str | None, _grid(help=f"Number of exemplars of projection primed: the first ones. {_LIST} Default: all.")
    ] = None,
    shots: Annotated[str | None, _grid(help=f"Number of exemplars in the prompt. {_LIST} Default: 0.")] = None,
    max_tokens: Annotated[str | None, _grid(help=f"Token limits of an answer. {_LIST} Default: 300.")] = None,
    temperature: Annotated[float | None, _grid(help="Sampling temperature. Default: 0, greedy.")] = None,
    top_p: Annotated[float | None, _grid(help="Nucleus sampling. Default: not sent.")] = None,
    seed: Annotated[int | None, _grid(help="Random seed. Default: 0.")] = None,
    samples: Annotated[int | None, _grid(help="Answers per question, with a temperature above 0.")] = None,
    grid: Annotated[Path | None, _grid(help="YAML file with these settings; options override it.")] = None,
    policies: Annotated[
        Path | None,
        _grid(help="Folder of policies with your own projections. Default: that of --config.", metavar="DIR"),
    ] = None,
    local: Annotated[
        bool, eval_options.engine_option("--local", help="Use models on this machine, as without --config.")
    ] = False,
    config: eval_options.Config = None,
    teacher: eval_options.Teacher = None,
    student: eval_options.Student = None,
    concurrency: eval_options.Concurrency = 16,
    slot_tokens: eval_options.SlotTokens = 2048,
    gateway: Annotated[str | None, _gateway(help="Send requests to a running gateway, http(s)://host:port.")] = None,
    key: Annotated[str | None, _gateway(help="API key for --gateway: env:NAME or file:/path.")] = None,
    route: Annotated[list[str] | None, _gateway(help="Route of --gateway. Can be repeated.")] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score the stored answers again. Sends no requests.")
    ] = False,
    guidance_logprobs: Annotated[
        bool,
        typer.Option(
            "--guidance-logprobs",
            help="Request the log-probability of guidance from the student, a vLLM. Slower: without its prefix cache.",
        ),
    ] = False,
    answer_logprobs: Annotated[
        bool,
        typer.Option(
            "--answer-logprobs",
            help="Store the mean and the lowest log-probability of the tokens that the student writes.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Start a large run without confirmation.")] = False,
    most_calls: Annotated[int, typer.Option(min=1, help="Number of calls above which a run is large.")] = 20_000,
) -> None:
    """Answer every question under every setting of a grid with real models, and store the answers.

    `gkt-gateway eval run FOLDER --limit 20` runs 20 word problems of GSM8K with small models on this machine. The
    settings are the teacher alone, the student alone, and the student after 20, 40 and 80 tokens of guidance. The run
    takes some minutes, and downloads 1.6 GB of weights the first time.

    All calls of the teacher come first, then those of the student, so that one machine runs only one of them at a time.
    After Ctrl-C, a kill or an engine failure, the same command resumes the run without losing answers. More settings
    and more questions of the same data are added to an existing run.
    """
    from gateway.cli.eval_run_session import EvalSession, hold
    from gateway.evaluation.pair import ConfiguredPair
    from gateway.evaluation.questions.data import QuestionRange, load
    from gateway.evaluation.scoring import plug_in
    from gateway.evaluation.setting import RunLibrary, read_grid, settings_of

    options = _given(
        lists={"mode": mode, "projection": projection, "placement": placement, "form": form},
        numbers={"tokens": tokens, "exemplar_count": exemplar_count, "shots": shots, "max_tokens": max_tokens},
        single={"temperature": temperature, "top_p": top_p, "seed": seed, "samples": samples},
    )
    _check_exclusive(
        {"--local": local, "--config": config},
        {"--gateway": gateway, "--rescore": rescore},
        {"--gateway": gateway, "--guidance-logprobs": guidance_logprobs},
        {"--gateway": gateway, "--answer-logprobs": answer_logprobs},
        {"--gateway": gateway, "--config": config if judge is None else None},
    )
    if gateway is not None and judge is not None:
        teacher = student = judge  # the configuration names only the judge
    if gateway is not None and (not route or key is None):
        raise typer.BadParameter("needs --route, once for each route, and --key env:NAME", param_hint="--gateway")
    if gateway is not None:
        options["mode"] = ["student"]  # a placeholder: the gateway's routes have their own modes
    parsed_grid = read_grid(grid, options)
    part = QuestionRange(offset=offset, limit=limit, sample=sample, seed=parsed_grid.seed)
    only_chats = "completion" not in parsed_grid.forms
    loaded = load(
        data,
        part,
        scorer=scorer,
        exemplars_file=exemplars,
        skip_bad=skip_bad,
        only_chats=only_chats,
    )
    if loaded.skipped:
        typer.echo(f"{len(loaded.skipped)} lines were skipped; the first: {loaded.skipped[0]}", err=True)
    pair = eval_options.pair_of(config, teacher, student, concurrency, slot_tokens)
    if policies is not None and not policies.is_dir():
        raise typer.BadParameter(f"there is no folder {policies}", param_hint="--policies")
    if policies is None and isinstance(pair, ConfiguredPair):
        policies = pair.settings.policies
    library = RunLibrary.read(policies, exemplars, loaded.exemplars)
    settings = [library.with_source(setting) for setting in settings_of(parsed_grid, library.find)]
    if (shots_needed := max(setting.shots for setting in settings)) > len(loaded.exemplars):
        raise StartupError(
            f"--shots {shots_needed}: there are {len(loaded.exemplars)} exemplars. Add more with --exemplars."
        )
    session = EvalSession(
        folder=folder,
        data=loaded,
        settings=settings,
        pair=pair,
        scorer=plug_in(scorer) if scorer is not None and ":" in scorer else None,
        judge=judge,
        concurrency=concurrency,
        seed=parsed_grid.seed,
        gateway=gateway,
        key=key,
        routes=tuple(route or ()),
        rescore=rescore,
        scores_guidance=guidance_logprobs,
        scores_answers=answer_logprobs,
        yes=yes,
        most_calls=most_calls,
    )
    hold(session)


def _given(lists: dict[str, str | None], numbers: dict[str, str | None], single: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were set, in the format of a grid's file."""
    options: dict[str, Any] = {name: text.split(",") for name, text in lists.items() if text is not None}
    for name, text in numbers.items():
        if text is not None:
            options[name] = [int(part) if part.isdigit() else part for part in map(str.strip, text.split(","))]
    return options | {name: value for name, value in single.items() if value is not None}


def _check_exclusive(*groups: dict[str, Any]) -> None:
    for options in groups:
        names = [name for name, value in options.items() if value]
        if len(names) > 1:
            raise typer.BadParameter(f"cannot be combined with {names[1]}", param_hint=names[0])
