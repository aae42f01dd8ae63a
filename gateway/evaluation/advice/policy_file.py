"""A policy file with what was recommended: ready for `gkt-gateway check`, and with what it expects in its comments."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from io import StringIO
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from gateway.config.yaml_source import parse, shown
from gateway.errors import StartupError
from gateway.evaluation.advice.policy_files import exemplars_beside
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

# What of a setting the caller decides, the route says itself, or tells where it was measured. All else is the
# guidance's, by a policy's own names.
_CALLERS = {"form", "shots", "max_tokens", "temperature", "top_p", "seed"}
_NOT_GUIDANCE = _CALLERS | {"name", "mode", "shown", "policies", "auto_file", "route"}
_WIDTH = 108
# A gateway waits so long for guidance unless its policy says otherwise.
_DEADLINE_S = 2.0
_SLOW = 0.95


def write_policy(path: Path, text: str, *, force: bool = False) -> None:
    """Raises StartupError where there is a file already and `force` does not say that it may go."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise StartupError(f"{shown(path)} is there already: --force writes over it, or choose another --out") from None
    except OSError as error:
        raise StartupError(f"{shown(path)} cannot be written: {(error.strerror or 'error').lower()}") from error


def policy_text(
    said: Sequence[tuple[str, Recommendation]],
    *,
    tenant: str,
    teacher: str | None = None,
    student: str | None = None,
    guidance: Mapping[str, Any] | None = None,
) -> str | None:
    """The file: one route for each recommendation that has a setting; None where none has.

    Args:
        said: each with the name of its route.
        teacher, student: what config.yaml calls the two; None: as the run does.
        guidance: what else is to stand in `guidance`, or in the place of what was measured.

    Raises:
        StartupError: a policy could not say it: a name that is none, a field that policies do not have.
    """
    routes = CommentedSeq()
    without: list[str] = []
    for route, one in said:
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
        f"No key is here yet: `gkt-gateway keys create --tenant {tenant} --id NAME` makes one.",
        *without,
    ]
    policy.yaml_set_start_comment(_wrapped(head) + "\n")
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 120
    into = StringIO()
    yaml.dump(policy, into)
    text = into.getvalue()
    _checked(text)
    return text


def comments(said: Recommendation) -> Iterator[str]:
    """What a recommendation expects, from which run, and what to be careful about; a sentence or two each."""
    evidence = said.evidence
    yield f"Wanted: {said.target}. Found: {said.why}."
    for source, manifest in zip(evidence.sources, evidence.manifests, strict=True):
        when = datetime.fromtimestamp(manifest.created, UTC)
        yield (
            f"From {source} of {when:%Y-%m-%d}: {manifest.data}, {manifest.teacher} and {manifest.student}, asked as "
            f"{evidence.asked}."
        )
    if said.setting is not None:
        yield _expected(said.setting, evidence.candidates[evidence.teacher])
    if said.held_out is not None:
        yield _held_out(said.held_out, guided=said.verdict == "guided")
    yield from evidence.notes
    yield from cautions(said)


def cautions(said: Recommendation) -> Iterator[str]:
    """What the figures do not tell."""
    if said.setting is None or not said.setting.guided:
        return
    waited = sorted(one.teacher_s for one in said.setting.examples if one.teacher_s is not None)
    slow = waited[int(_SLOW * (len(waited) - 1))] if waited else 0.0
    if slow > _DEADLINE_S:
        yield (
            f"In the run the teacher took up to {slow:.1f} s for its opening, beside others; a gateway waits for "
            f"{_DEADLINE_S:g} s unless guidance.deadline says otherwise."
        )
    name = said.setting.setting["projection"]
    if "route" in said.setting.setting and said.setting.setting["tokens"] == "auto":
        yield (
            "The gateway that was asked chooses the guidance's length by a rule of its own, which no receipt tells: "
            "put its guidance.auto here."
        )
    if "route" in said.setting.setting and (name not in PROJECTIONS or PROJECTIONS[name].exemplars):
        yield (
            f"Projection {name} does this with the files of the gateway that was asked: put its own, or that of its "
            "exemplars (guidance.exemplars), beside this policy."
        )
    if not all(manifest.live for manifest in said.evidence.manifests):
        yield "Measured in two stages, not through a gateway: a teacher that is late or away is not in these figures."


def _expected(one: CandidateSetting, teacher: CandidateSetting) -> str:
    n = len(one.examples)
    low, high = wilson(one.correct, n)
    beside = share = ""
    if one is not teacher:
        beside = f", the teacher alone {percent(teacher.accuracy)}"
        share = f", {percent(float(one.cost_usd / teacher.cost_usd), 0)} of the teacher's" if teacher.cost_usd else ""
    return (
        f"Expected of {n} questions: {percent(one.accuracy)} right (95 %: {percent(low)} to {percent(high)}){beside}; "
        f"{usd_per_1k(one.cost_usd)} USD per 1000 answers{share}; for each answer {one.teacher_tokens:.0f} tokens of "
        f"the teacher's and {one.student_tokens:.0f} of the student's."
    )


def _held_out(held: HeldOutResult, *, guided: bool) -> str:
    kept = f", of which {percent(held.accuracy / held.teacher)} were kept" if held.teacher else ""
    why = " Expect this rather than what it was chosen for: what wins among many looks better than it is."
    return (
        f"Chosen and measured on different questions ({held.folds} folds): {percent(held.accuracy)} right"
        f"{_interval(held.interval)} at {usd_per_1k(held.cost_usd)} USD per 1000 answers; the teacher alone "
        f"{percent(held.teacher)}{kept}.{why if guided else ''}"
    )


def usd_per_1k(usd: Decimal) -> str:
    """The cost of a thousand answers, to four digits that count."""
    amount = usd * 1000
    return f"{amount:.{max(2, 3 - amount.adjusted())}f}" if amount else "0"


def _interval(found: tuple[float, float] | None) -> str:
    return "" if found is None else f" (95 %: {percent(found[0])} to {percent(found[1])})"


def _route(
    name: str,
    said: Recommendation,
    one: CandidateSetting,
    teacher: str | None,
    student: str | None,
    more: Mapping[str, Any],
) -> CommentedMap:
    manifest = said.evidence.manifests[0]
    setting = one.setting
    engines = {"teacher": teacher or manifest.teacher, "student": student or manifest.student}
    route = CommentedMap({"model": name, "mode": setting["mode"]})
    # An engine that its mode leaves unused is one that `check` warns of.
    roles = engines if one.guided else [setting["mode"]]
    route.update({role: engines[role] for role in roles})
    route["baseline"] = engines["teacher"]
    route["default_max_tokens"] = setting["max_tokens"]
    if one.guided:
        route["guidance"] = _plain(_guidance(setting) | dict(more))
    return route


def _guidance(setting: Mapping[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in setting.items() if key not in _NOT_GUIDANCE and value not in (None, "", [])}
    return said | ({"exemplars": exemplars_beside(said["exemplars"])} if "exemplars" in said else {})


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
    """A name out of a file must not end a comment."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _checked(text: str) -> None:
    source, mistakes = parse(text.encode(), "the policy")
    if source is not None and not mistakes:
        for route in source.data["routes"]:
            # Its file was read when it was measured, and is written beside the policy only now.
            if isinstance(auto := route.get("guidance", {}).get("auto"), dict):
                auto.pop("model", None)
        mistakes = source.check(TenantPolicy)[1]
    if mistakes:
        raise StartupError("a policy cannot say this: " + "; ".join(f"{one.field}: {one.message}" for one in mistakes))
