"""`gkt-gateway eval recommend`: the guidance that a route should have, out of what was measured."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.eval_options import of_the_extra
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.evaluation.advice.evidence import Evidence
    from gateway.evaluation.advice.recommend import Recommendation
    from gateway.evaluation.advice.target import RecommendationTarget
    from gateway.pricing import Price

NONE_PAYS, TOO_FEW = 3, 4
"""How the command leaves where no guided setting is recommended."""
_TARGET = "What is wanted: one of these"
_POLICY = "The policy file"
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,12})?"


def recommend(
    folders: Annotated[
        list[Path], typer.Argument(help="What `eval run` has filled; several are several routes.", metavar="FOLDER...")
    ],
    keep: Annotated[
        str | None,
        typer.Option(
            help="The cheapest that keeps this part of the teacher's accuracy.",
            metavar="95%",
            show_default="95%",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="The cheapest at most so many points below the teacher.", metavar="POINTS", rich_help_panel=_TARGET
        ),
    ] = None,
    budget_usd_per_1k: Annotated[
        str | None,
        typer.Option(help="The best at most so dear: USD for 1000 answers.", metavar="USD", rich_help_panel=_TARGET),
    ] = None,
    cost_share: Annotated[
        str | None,
        typer.Option(help="The best for this part of the teacher's cost.", metavar="60%", rich_help_panel=_TARGET),
    ] = None,
    confidence: Annotated[
        str, typer.Option(help="How sure each claim is to be, for all settings together.", metavar="80%")
    ] = "80%",
    folds: Annotated[int, typer.Option(min=2, max=20, help="Of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds and the draws.")] = 0,
    asked: Annotated[
        str | None,
        typer.Option(help="Where the run asked in several ways: which of them callers use.", metavar="'chat'"),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            help="What if: teacher=0.90,0.90 in USD per 1M tokens, read and written. Also student=... With a third "
            "number for the teacher, exemplars cost that: engines keep them.",
            metavar="ROLE=IN,OUT[,CACHED]",
        ),
    ] = None,
    one: Annotated[bool, typer.Option("--one", help="One setting over all folders, and not one for each.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write it.", metavar="FILE", rich_help_panel=_POLICY)
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Write over a file that is there, and take files that were edited since the run.",
            rich_help_panel=_POLICY,
        ),
    ] = False,
    tenant: Annotated[
        str, typer.Option("--tenant", "-t", help="Whose policy.", metavar="NAME", rich_help_panel=_POLICY)
    ] = "default",
    route: Annotated[
        list[str] | None,
        typer.Option(
            help="What callers send as `model`; once for each folder. Default: chat, or the data sets' names.",
            metavar="NAME",
            rich_help_panel=_POLICY,
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Its name in config.yaml. Default: as in the run.", metavar="NAME", rich_help_panel=_POLICY),
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Likewise of the student.", metavar="NAME", rich_help_panel=_POLICY)
    ] = None,
    guidance: Annotated[
        list[str] | None,
        typer.Option(
            help="What else the policy's guidance is to say, like deadline=5s or exemplars=exemplars/mine.yaml.",
            metavar="NAME=VALUE",
            rich_help_panel=_POLICY,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Choose a route's guidance out of what `gkt-gateway eval run` has measured, or say that none pays.

    `gkt-gateway eval recommend runs/mine --keep 95% --out policies/mine.yaml`

    It compares projections, placements and lengths with each other and with the student alone and the teacher alone.
    A guided setting is recommended only if it is shown to reach what is wanted, and to be right more often than student
    and teacher mixed at random at the same cost. The choice is tried on questions that it was not made on.

    It leaves with 0 where each route has a guided setting, with 3 where none pays, with 4 where there are too few
    questions to tell. Then the policy has the teacher or the student alone, if one of them reaches what is wanted, and
    else none is written. See docs/evaluation.md for the decision rule.
    """
    with of_the_extra():
        from gateway.evaluation.advice.evidence import combine, evidence_of
        from gateway.evaluation.advice.policy_file import policy_text, write_policy
        from gateway.evaluation.advice.policy_files import files_to_write, write_files
        from gateway.evaluation.advice.recommend import recommend as recommended
        from gateway.evaluation.run_records import read_run
    from gateway.cli.eval_recommend_print import in_json, recommendations_shown

    target = _target(keep, loss, budget_usd_per_1k, cost_share)
    sure = float(_share(confidence, "--confidence"))
    if not 0.5 < sure < 1:
        raise typer.BadParameter("must be more than 50% and less than 100%", param_hint="--confidence")
    prices = dict(_price(text) for text in price or ())
    found = [evidence_of(read_run(folder), asked, prices) for folder in folders]
    if one and len(found) > 1:
        found = [combine(found)]
    _costs_something(found)
    names = _routes(route, found)
    said = [
        (name, recommended(evidence, target, confidence=sure, folds=folds, seed=seed))
        for name, evidence in zip(names, found, strict=True)
    ]
    more = dict(map(_said, guidance or ()))
    text = None if out is None else policy_text(said, tenant=tenant, teacher=teacher, student=student, guidance=more)
    files: Mapping[Path, bytes] = {}
    if out is not None and text is not None:
        settings = _named_in(said, more)
        files = files_to_write(settings, out.parent, force=force)
        _say_what_was_edited(settings, force=force)
        write_policy(out, text, force=force)
        write_files(files)
    if as_json:
        typer.echo(in_json(said))
    else:
        recommendations_shown(said)
        if out is not None:
            typer.echo(
                f"written: {out}" if text is not None else f"{out} is not written: nothing is shown to reach the target"
            )
            for file in files:
                typer.echo(f"written: {file}")
    codes = {"guided": 0, "none_pays": NONE_PAYS, "too_few": TOO_FEW}
    raise typer.Exit(max(codes[each.verdict] for _, each in said))


def _target(keep: str | None, loss: str | None, budget: str | None, share: str | None) -> RecommendationTarget:
    from gateway.evaluation.advice.target import RecommendationTarget

    if sum(text is not None for text in (keep, loss, budget, share)) > 1:
        raise typer.BadParameter(
            "only one can be wanted at a time", param_hint="--keep, --loss, --budget-usd-per-1k, --cost-share"
        )
    if loss is not None:
        return RecommendationTarget("loss", _number(loss.removesuffix("points").strip(), "--loss", "2 or 1.5") / 100)
    if budget is not None:
        return RecommendationTarget("budget", _number(budget, "--budget-usd-per-1k", "0.50") / 1000)
    if share is not None:
        return RecommendationTarget("share", _share(share, "--cost-share"))
    return RecommendationTarget("keep", _share(keep or "95%", "--keep"))


def _share(text: str, option: str) -> Decimal:
    """A part of a whole, as 95% or 0.95."""
    found = re.fullmatch(rf"({_NUMBER}) ?(%?)", text)
    share = None if found is None else Decimal(found[1]) / (100 if found[2] else 1)
    if share is None or not 0 < share <= 1:
        raise typer.BadParameter("must be more than 0 and at most 100%, like 95% or 0.95", param_hint=option)
    return share


def _number(text: str, option: str, example: str) -> Decimal:
    if not re.fullmatch(_NUMBER, text):
        raise typer.BadParameter(f"must be a number that is not below 0, like {example}", param_hint=option)
    return Decimal(text)


def _price(text: str) -> tuple[str, Price]:
    from gateway.pricing import Price

    found = re.fullmatch(rf"(?:(teacher)|student)=({_NUMBER}),({_NUMBER})(?(1)(?:,({_NUMBER}))?)", text)
    if found is None:
        raise typer.BadParameter(
            "must be teacher=IN,OUT or teacher=IN,OUT,CACHED or student=IN,OUT, in USD per 1M tokens, like "
            "teacher=0.90,0.90",
            param_hint="--price",
        )
    cached = None if found[4] is None else Decimal(found[4])
    return found[1] or "student", Price.of_tokens(Decimal(found[2]), Decimal(found[3]), cached)


def _said(text: str) -> tuple[str, object]:
    """A line of `guidance`, as YAML would have it."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    name, equals, value = text.partition("=")
    try:
        return name.strip(), YAML(typ="safe", pure=True).load(value if equals and name.strip() else "[")
    except YAMLError:
        raise typer.BadParameter("must be NAME=VALUE, like deadline=5s", param_hint="--guidance") from None


def _named_in(said: Sequence[tuple[str, Recommendation]], more: Mapping[str, object]) -> list[Mapping[str, Any]]:
    """The guided settings of the policy, whose files it needs. One that --guidance names the caller has put there."""
    chosen = [one.setting.setting for _, one in said if one.setting is not None and one.setting.guided]
    return [{key: value for key, value in setting.items() if key not in more} for setting in chosen]


def _say_what_was_edited(settings: Sequence[Mapping[str, Any]], *, force: bool) -> None:
    """Raises StartupError where a file is not what was measured, and `force` does not say that it will do."""
    from gateway.config.yaml_source import shown
    from gateway.evaluation.edited import edited_files

    for files in filter(None, dict.fromkeys(map(edited_files, settings))):
        said = f"{' or '.join(map(shown, files))} says something else than the run has shown the models"
        if not force:
            raise StartupError(
                f"{said}: put back what it said then, measure it with `gkt-gateway eval run` in another folder, or "
                "take it as it is with --force"
            )
        typer.echo(f"{said}: the policy takes it as it is", err=True)


def _costs_something(found: Sequence[Evidence]) -> None:
    for one in found:
        if not any(usd for candidate in one.candidates for usd in candidate.costs_usd):
            raise StartupError(
                f"{', '.join(one.sources)}: all answers cost 0, so none is cheaper: say --price teacher=IN,OUT and "
                "--price student=IN,OUT"
            )


def _routes(asked: list[str] | None, found: Sequence[Evidence]) -> list[str]:
    names = asked or (
        ["chat"] if len(found) == 1 else [re.sub(r"[^A-Za-z0-9._-]+", "-", one.manifests[0].data) for one in found]
    )
    if len(names) != len(found):
        raise typer.BadParameter(f"there are {len(found)} routes to name, and {len(names)} names", param_hint="--route")
    if len(set(names)) < len(names):
        raise typer.BadParameter(
            f"name the routes apart, once for each folder; now: {', '.join(names)}", param_hint="--route"
        )
    return names
