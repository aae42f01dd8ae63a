"""`gkt-gateway eval recommend`: recommend a route's guidance from the results of runs."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gateway.cli import eval_options
from gateway.cli.eval_options import NUMBER, confidence_level, of_the_extra, share
from gateway.config.yaml_source import display_path
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.evaluation.advice.evidence import Evidence
    from gateway.evaluation.advice.target import RecommendationTarget
    from gateway.pricing import Price

NONE_PAYS, TOO_FEW = 3, 4
"""Exit statuses where no guided setting is recommended."""
_to = partial(typer.Option, rich_help_panel="Target (one of these)")
_policy = partial(typer.Option, rich_help_panel="Policy file")
_prices = partial(typer.Option, rich_help_panel="Prices")
_ENGINE = "Name of the {} in config.yaml. Default: that of the run."


def recommend(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of `eval run`, one for each route.", metavar="FOLDER...")
    ],
    keep: Annotated[
        str | None,
        _to(
            help="Cheapest setting with at least this share of the teacher's accuracy.",
            metavar="95%",
            show_default="95%",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        _to(help="Cheapest setting at most this many points less accurate than the teacher.", metavar="POINTS"),
    ] = None,
    budget_usd_per_1k: Annotated[
        str | None, _to(help="Most accurate setting for at most this cost per 1000 answers.", metavar="USD")
    ] = None,
    cost_share: Annotated[
        str | None, _to(help="Most accurate setting for at most this share of the teacher's cost.", metavar="60%")
    ] = None,
    confidence: Annotated[
        str, typer.Option(help="Simultaneous confidence of the claims for all settings.", metavar="80%")
    ] = "80%",
    folds: Annotated[int, typer.Option(min=2, max=20, help="Folds of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    asked: Annotated[
        str | None, typer.Option(help="Form of requests that callers use, if the run has several.", metavar="'chat'")
    ] = None,
    price: Annotated[
        list[str] | None,
        _prices(
            help="Use other prices, in USD per 1M input and output tokens, like teacher=0.90,0.90. The optional third "
            "and fourth number for the teacher are the prices of reading and writing exemplars in its prompt cache.",
            metavar="ROLE=IN,OUT[,CACHED[,WRITE]]",
        ),
    ] = None,
    sheets: Annotated[
        str | None,
        _prices(
            help="Report also whether guidance pays at the list prices of several models: `shipped`, or a YAML file of "
            "price sheets.",
            metavar="shipped|FILE",
        ),
    ] = None,
    cache_hits: Annotated[
        str | None,
        _prices(
            help="With --price or --sheets: part of the exemplars' tokens read from the prompt cache. The rest is "
            "written to it. 0%: there is no cache. measured: what the engines of the run reported.",
            metavar="95%",
            show_default="95%",
        ),
    ] = None,
    cache_ttl: Annotated[
        Literal["5m", "1h"], _prices(help="Time to live of cache writes, where a sheet has a price for each.")
    ] = "5m",
    one: Annotated[bool, typer.Option("--one", help="Recommend one setting for all folders together.")] = False,
    out: Annotated[Path | None, _policy("--out", "-o", help="Policy file to write.", metavar="FILE")] = None,
    force: Annotated[
        bool,
        _policy(
            "--force", help="Overwrite existing files (a policy: with --apply), and accept files edited since the run."
        ),
    ] = False,
    apply: Annotated[
        bool, _policy("--apply", help="Write into a policies folder that a gateway reads. The policy applies at once.")
    ] = False,
    tenant: Annotated[str, _policy("--tenant", "-t", help="Tenant of the policy.", metavar="NAME")] = "default",
    route: Annotated[
        list[str] | None,
        _policy(
            help="Route (`model` of requests), once for each folder. Default: chat, or the data sets' names.",
            metavar="NAME",
        ),
    ] = None,
    teacher: Annotated[str | None, _policy(help=_ENGINE.format("teacher"), metavar="NAME")] = None,
    student: Annotated[str | None, _policy(help=_ENGINE.format("student"), metavar="NAME")] = None,
    guidance: Annotated[
        list[str] | None,
        _policy(
            help="Additional guidance keys of the policy, like deadline=5s or exemplars=exemplars/mine.yaml.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend a route's guidance from a run, or report that none pays.

    `gkt-gateway eval recommend runs/mine --keep 95% --out mine.yaml`

    It compares projections, placements and lengths with each other, with the student alone and with each configuration
    of the teacher alone. A guided setting is recommended if it significantly beats a random mixture of student and
    teacher at the same cost. Its estimated accuracy or cost must also reach the target. The output states the loss of
    accuracy and the savings, with intervals. The choice is validated by cross-validation.

    Exits with 0 if each route has a guided setting, with 3 if none pays, and with 4 if there are too few questions.
    In the last two cases the policy uses the teacher or the student alone, if one of them reaches the target.
    Otherwise no policy is written. A folder of policies that a gateway reads needs --apply. See
    `gkt-gateway docs evaluation`.

    --sheets charges the answers of the run at the prices of other models. The break-even is the smallest ratio of the
    teacher's output price to the student's at which guidance pays as measured.
    """
    with of_the_extra():
        from gateway.evaluation.advice.evidence import combine, evidence_of
        from gateway.evaluation.advice.policy_file import files_to_write, policy_text, reader_of, write_files
        from gateway.evaluation.advice.recommend import recommend as recommended
        from gateway.evaluation.advice.repricing import PromptCaching
        from gateway.evaluation.record import read_run
    from gateway.cli.eval_recommend_prices import PriceOptions, list_prices, plain_list_prices, print_list_prices
    from gateway.cli.eval_recommend_print import in_json, print_recommendations

    if out is not None and not apply and (reader := reader_of(out)) is not None:
        raise StartupError(
            f"{display_path(out.parent)} may be read by a gateway (see {display_path(reader)}), which would use the "
            "policy at once: write the file to another folder, or add --apply"
        )
    target = _target(keep, loss, budget_usd_per_1k, cost_share)
    level = confidence_level(confidence)
    prices = dict(_price(text) for text in price or ())
    if cache_hits is not None and not prices and sheets is None:
        raise typer.BadParameter(
            "needs --price or --sheets, since the run has the costs already", param_hint="--cache-hits"
        )
    hits = eval_options.cache_hits(cache_hits or "95%")
    runs = [read_run(folder) for folder in folders]
    evidences = [evidence_of(run, asked, prices, PromptCaching(hits)) for run in runs]
    if one and len(evidences) > 1:
        evidences = [combine(evidences)]
    for evidence in evidences:
        if not any(candidate.cost_usd for candidate in evidence.candidates):
            raise StartupError(
                f"{', '.join(evidence.sources)}: all answers cost 0: set prices with --price teacher=IN,OUT and "
                "--price student=IN,OUT"
            )
    listed = []
    if sheets is not None:
        file = None if sheets == "shipped" else Path(sheets)
        listed = [list_prices(run, PriceOptions(file, hits, cache_ttl, asked, level, seed)) for run in runs]
    recommendations = [
        (name, recommended(evidence, target, confidence=level, folds=folds, seed=seed))
        for name, evidence in zip(_routes(route, evidences), evidences, strict=True)
    ]
    more = dict(map(_guidance_key, guidance or ()))
    written: list[str] = []
    if out is not None:
        text = policy_text(recommendations, tenant=tenant, teacher=teacher, student=student, guidance=more)
        if text is None:
            written = [f"{out} is not written: no setting reaches the target"]
        else:
            chosen = [one.setting for _, one in recommendations if one.setting is not None and one.setting.guided]
            replaced = {*more, *(("exemplar_count",) if {"exemplars", "projection"} & more.keys() else ())}
            settings = [{key: value for key, value in one.setting.items() if key not in replaced} for one in chosen]
            files = files_to_write(settings, out.parent, force=force)
            _check_unedited(settings, force=force)
            files = {out: text.encode()} | files
            write_files(files, new=None if force else out)
            written = [f"written: {file}" for file in files]
    if as_json:
        typer.echo(in_json(recommendations, [plain_list_prices(found) for found in listed]))
    else:
        print_recommendations(recommendations)
        for found in listed:
            print_list_prices(found)
        for line in written:
            typer.echo(line)
    codes = {"guided": 0, "none_pays": NONE_PAYS, "too_few": TOO_FEW}
    raise typer.Exit(max(codes[each.verdict] for _, each in recommendations))


def _target(keep: str | None, loss: str | None, budget: str | None, cost_share: str | None) -> RecommendationTarget:
    from gateway.evaluation.advice.target import RecommendationTarget

    if sum(text is not None for text in (keep, loss, budget, cost_share)) > 1:
        names = "--keep, --loss, --budget-usd-per-1k, --cost-share"
        raise typer.BadParameter("cannot be combined: keep one", param_hint=names)
    if loss is not None:
        return RecommendationTarget("loss", _number(loss.removesuffix("points").strip(), "--loss", "2 or 1.5") / 100)
    if budget is not None:
        return RecommendationTarget("budget", _number(budget, "--budget-usd-per-1k", "0.50") / 1000)
    if cost_share is not None:
        return RecommendationTarget("share", share(cost_share, "--cost-share"))
    return RecommendationTarget("keep", share(keep or "95%", "--keep"))


def _number(text: str, option: str, example: str) -> Decimal:
    if not re.fullmatch(NUMBER, text):
        raise typer.BadParameter(f"must be a number of 0 or more, like {example}", param_hint=option)
    return Decimal(text)


def _price(text: str) -> tuple[str, Price]:
    from gateway.pricing import Price

    match = re.fullmatch(rf"(?:(teacher)|student)=({NUMBER}),({NUMBER})(?(1)(?:,({NUMBER})(?:,({NUMBER}))?)?)", text)
    if match is None:
        raise typer.BadParameter(
            "must be teacher=IN,OUT or teacher=IN,OUT,CACHED or teacher=IN,OUT,CACHED,WRITE or student=IN,OUT, in USD "
            "per 1M tokens, like teacher=0.90,0.90",
            param_hint="--price",
        )
    usd = [None if number is None else Decimal(number) for number in match.groups()[1:]]
    return match[1] or "student", Price.of_tokens(Decimal(match[2]), Decimal(match[3]), *usd[2:])


def _guidance_key(text: str) -> tuple[str, object]:
    """Return name and YAML value of a --guidance option. Raises BadParameter."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    name, equals, value = text.partition("=")
    try:
        return name.strip(), YAML(typ="safe", pure=True).load(value if equals and name.strip() else "[")
    except YAMLError:
        raise typer.BadParameter("must be NAME=VALUE, like deadline=5s", param_hint="--guidance") from None


def _check_unedited(settings: Sequence[Mapping[str, Any]], *, force: bool) -> None:
    """Raise StartupError if a file of a setting was edited since the run; with `force` only print a warning."""
    from gateway.evaluation.advice.policy_file import edited_files

    for files in filter(None, dict.fromkeys(map(edited_files, settings))):
        problem = f"{' or '.join(map(display_path, files))} was edited since the run"
        if not force:
            raise StartupError(
                f"{problem}: restore the file, measure it with `gkt-gateway eval run` in another folder, or accept it "
                "with --force"
            )
        typer.echo(f"{problem}: the policy uses the edited file", err=True)


def _routes(names: list[str] | None, evidences: Sequence[Evidence]) -> list[str]:
    default = [re.sub(r"[^A-Za-z0-9._-]+", "-", one.manifests[0].data) for one in evidences]
    names = names or (["chat"] if len(evidences) == 1 else default)
    if len(names) != len(evidences):
        raise typer.BadParameter(f"needs {len(evidences)} names, one for each route", param_hint="--route")
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"names must be unique, and are {', '.join(names)}", param_hint="--route")
    return names
