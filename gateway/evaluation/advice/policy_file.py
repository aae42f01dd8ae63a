"""The policy file of a recommendation, ready for `gkt-gateway check`, with expected results in its comments."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from io import StringIO
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from gateway.config.yaml_source import display_path, parse
from gateway.errors import StartupError
from gateway.evaluation.advice.policy_files import exemplars_path
from gateway.evaluation.advice.target import percent
from gateway.evaluation.statistics import wilson
from gateway.policy.projections import PROJECTIONS
from gateway.policy.schema import TenantPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from decimal import Decimal
    from pathlib import Path

    from gateway.evaluation.advice.evidence import CandidateSetting
    from gateway.evaluation.advice.recommend import HeldOutResult, Recommendation

# Keys of a setting that belong to the caller or to the route, or that name sources of the measurement. The other keys
# are those of a policy's guidance.
_CALLERS = {"form", "shots", "max_tokens", "temperature", "top_p", "seed"}
_NOT_GUIDANCE = _CALLERS | {"name", "mode", "shown", "policies", "auto_file", "route"}
_WIDTH = 108
# Default deadline of guidance in a policy.
_DEADLINE_S = 2.0
_SLOW = 0.95


def write_policy(path: Path, text: str, *, force: bool = False) -> None:
    """Write the file. Raises StartupError if it exists and `force` is not set."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise StartupError(f"{display_path(path)} exists: overwrite it with --force, or choose another --out") from None
    except OSError as error:
        raise StartupError(f"{display_path(path)} cannot be written: {(error.strerror or 'error').lower()}") from error


def policy_text(
    recommendations: Sequence[tuple[str, Recommendation]],
    *,
    tenant: str,
    teacher: str | None = None,
    student: str | None = None,
    guidance: Mapping[str, Any] | None = None,
) -> str | None:
    """Return the file with one route for each recommendation that has a setting; None if none has.

    Args:
        recommendations: Each with the name of its route.
        tenant: The tenant.
        teacher, student: Names of the models in config.yaml; None: the names in the run.
        guidance: Additional or overriding keys of `guidance`.

    Raises:
        StartupError: A policy cannot contain a name or a key.
    """
    routes = CommentedSeq()
    without: list[str] = []
    for route, one in recommendations:
        if one.setting is None:
            without += [f"No route {route}:", *comments(one)]
            continue
        routes.append(_route(route, one, one.setting, teacher, student, guidance or {}))
        routes.yaml_set_comment_before_after_key(len(routes) - 1, before=_wrapped(comments(one)), indent=2)
    if not routes:
        return None
    policy = CommentedMap({"tenant": tenant, "routes": routes})
    head = [
        "Written by `gkt-gateway eval recommend`.",
        f"The file has no key yet: create one with `gkt-gateway keys create --tenant {tenant} --id NAME`.",
        *without,
    ]
    policy.yaml_set_start_comment(_wrapped(head) + "\n")
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 120
    output = StringIO()
    yaml.dump(policy, output)
    text = output.getvalue()
    _check(text)
    return text


def comments(recommendation: Recommendation) -> Iterator[str]:
    """Yield the expected results, their source and cautions, in a sentence or two each."""
    evidence = recommendation.evidence
    yield f"Target: {recommendation.target}. Result: {recommendation.reason}."
    for source, manifest in zip(evidence.sources, evidence.manifests, strict=True):
        when = datetime.fromtimestamp(manifest.created, UTC)
        yield (
            f"Source: {source} of {when:%Y-%m-%d}: {manifest.data}, {manifest.teacher} and {manifest.student}, "
            f"requests as {evidence.request_form}."
        )
    if recommendation.setting is not None:
        yield _expected(recommendation.setting, evidence.candidates[evidence.teacher])
    if recommendation.held_out is not None:
        yield _held_out(recommendation.held_out, guided=recommendation.verdict == "guided")
    yield from evidence.notes
    yield from cautions(recommendation)


def cautions(recommendation: Recommendation) -> Iterator[str]:
    """Yield the limits of the figures."""
    if recommendation.setting is None or not recommendation.setting.guided:
        return
    times = sorted(one.teacher_s for one in recommendation.setting.examples if one.teacher_s is not None)
    slow = times[int(_SLOW * (len(times) - 1))] if times else 0.0
    if slow > _DEADLINE_S:
        yield (
            f"In the run the teacher took up to {slow:.1f} s for guidance, with concurrent requests; a gateway waits "
            f"{_DEADLINE_S:g} s unless guidance.deadline is set."
        )
    setting = recommendation.setting.setting
    name = setting["projection"]
    if "route" in setting and setting["tokens"] == "auto":
        yield (
            "The measured gateway chooses the guidance length by its own rule, which receipts do not contain: copy its "
            "guidance.auto here."
        )
    if "route" in setting and (name not in PROJECTIONS or PROJECTIONS[name].exemplars):
        yield (
            f"The measured gateway used its own files for projection {name}: copy its projection, or its exemplars "
            "(guidance.exemplars), next to this policy."
        )
    if not all(manifest.live for manifest in recommendation.evidence.manifests):
        yield "Measured in two stages, not through a gateway: late or missing guidance is not included in the figures."


def _expected(one: CandidateSetting, teacher: CandidateSetting) -> str:
    n = len(one.examples)
    low, high = wilson(one.correct, n)
    comparison = share = ""
    if one is not teacher:
        comparison = f", the teacher alone {percent(teacher.accuracy)}"
        share = f", {percent(float(one.cost_usd / teacher.cost_usd), 0)} of the teacher's" if teacher.cost_usd else ""
    return (
        f"Expected from {n} questions: {percent(one.accuracy)} right (95 %: {percent(low)} to {percent(high)})"
        f"{comparison}; {usd_per_1k(one.cost_usd)} USD per 1000 answers{share}; each answer has "
        f"{one.teacher_tokens:.0f} teacher tokens and {one.student_tokens:.0f} student tokens."
    )


def _held_out(held: HeldOutResult, *, guided: bool) -> str:
    kept = f", of which {percent(held.accuracy / held.teacher)} is kept" if held.teacher else ""
    advice = " Expect this result: the best of many settings looks better on the questions that selected it."
    return (
        f"Selected and measured on different questions ({held.folds} folds): {percent(held.accuracy)} right"
        f"{_interval(held.interval)} at {usd_per_1k(held.cost_usd)} USD per 1000 answers; the teacher alone "
        f"{percent(held.teacher)}{kept}.{advice if guided else ''}"
    )


def usd_per_1k(usd: Decimal) -> str:
    """Return the cost of 1000 answers with four significant digits."""
    amount = usd * 1000
    return f"{amount:.{max(2, 3 - amount.adjusted())}f}" if amount else "0"


def _interval(found: tuple[float, float] | None) -> str:
    return "" if found is None else f" (95 %: {percent(found[0])} to {percent(found[1])})"


def _route(
    name: str,
    recommendation: Recommendation,
    one: CandidateSetting,
    teacher: str | None,
    student: str | None,
    more: Mapping[str, Any],
) -> CommentedMap:
    manifest = recommendation.evidence.manifests[0]
    setting = one.setting
    engines = {"teacher": teacher or manifest.teacher, "student": student or manifest.student}
    route = CommentedMap({"model": name, "mode": setting["mode"]})
    # `check` warns about an engine that the mode does not use.
    roles = engines if one.guided else [setting["mode"]]
    route.update({role: engines[role] for role in roles})
    route["baseline"] = engines["teacher"]
    route["default_max_tokens"] = setting["max_tokens"]
    if one.guided:
        route["guidance"] = _plain(_guidance(setting) | dict(more))
    return route


def _guidance(setting: Mapping[str, Any]) -> dict[str, Any]:
    guidance = {
        key: value for key, value in setting.items() if key not in _NOT_GUIDANCE and value not in (None, "", [])
    }
    return guidance | ({"exemplars": exemplars_path(guidance["exemplars"])} if "exemplars" in guidance else {})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return CommentedMap({key: _plain(one) for key, one in value.items()})
    if isinstance(value, list):
        return CommentedSeq(map(_plain, value))
    return value


def _wrapped(sentences: Iterable[str]) -> str:
    return "\n".join(
        line for one in sentences for line in textwrap.wrap(_printable(one), _WIDTH, subsequent_indent="  ")
    )


def _printable(text: str) -> str:
    """Replace line breaks, so that a name from a file cannot end a comment."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _check(text: str) -> None:
    source, issues = parse(text.encode(), "the policy")
    if source is not None and not issues:
        for route in source.data["routes"]:
            # The model file was read during the run, and is written next to the policy later.
            if isinstance(auto := route.get("guidance", {}).get("auto"), dict):
                auto.pop("model", None)
        issues = source.check(TenantPolicy)[1]
    if issues:
        raise StartupError(
            "a policy cannot contain this: " + "; ".join(f"{one.field}: {one.message}" for one in issues)
        )
