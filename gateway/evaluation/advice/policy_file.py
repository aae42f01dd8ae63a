"""The policy file of a recommendation, ready for `gkt-gateway check`, with expected results in its comments."""

from __future__ import annotations

import textwrap
from copy import deepcopy
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from gateway.config.yaml_source import display_path, parse, read
from gateway.errors import StartupError
from gateway.evaluation.advice.target import percent
from gateway.evaluation.folder import shown_hash
from gateway.evaluation.questions.data import exemplars
from gateway.evaluation.setting import REQUEST_PARAMETERS, AutoLength, RunLibrary, Setting
from gateway.policy.files import PROJECTIONS_FOLDER
from gateway.policy.length import AutoRule
from gateway.policy.length_model import lengths_of
from gateway.policy.library import ENDINGS
from gateway.policy.projections import PROJECTIONS
from gateway.policy.schema import TenantPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from decimal import Decimal

    from gateway.evaluation.advice.recommend import HeldOutResult, Recommendation
    from gateway.evaluation.summary import SettingSummary

# Keys of a setting that belong to the caller or to the route, or that name sources of the measurement. The other keys
# are those of a policy's guidance.
_NOT_GUIDANCE = {*REQUEST_PARAMETERS, "name", "mode", "shown", "policies", "auto_file", "route"}
_WIDTH = 108
# Default deadline of guidance in a policy.
_DEADLINE_S = 2.0
_SLOW = 0.95


def policy_text(
    recommendations: Sequence[tuple[str, Recommendation]],
    *,
    tenant: str,
    teacher: str | None = None,
    student: str | None = None,
    guidance: Mapping[str, Any] | None = None,
) -> str | None:
    """Return the file with one route for each recommendation that has a setting; None if none has.

    Each recommendation comes with the name of its route. `teacher` and `student` are names of config.yaml; None: those
    of the run. `guidance` has additional or overriding keys. Raises StartupError if a policy cannot contain a name or a
    key.
    """
    routes = CommentedSeq()
    without: list[str] = []
    for route, one in recommendations:
        if one.setting is None:
            without += [f"No route {route}:", *comments(one)]
            continue
        manifest = one.evidence.manifests[0]
        engines = {"teacher": teacher or manifest.teacher, "student": student or manifest.student}
        routes.append(_route(route, engines, one.setting, guidance or {}))
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
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
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


def _expected(one: SettingSummary, teacher: SettingSummary) -> str:
    comparison = share = ""
    if one is not teacher:
        comparison = f", the teacher alone {percent(teacher.accuracy)}"
        share = f", {percent(float(one.cost_usd / teacher.cost_usd), 0)} of the teacher's" if teacher.cost_usd else ""
    return (
        f"Expected from {one.n} questions: {percent(one.accuracy)} right{_interval(one.interval)}"
        f"{comparison}; {usd_per_1k(one.cost_per_answer)} USD per 1000 answers{share}; each answer has "
        f"{one.teacher_output_tokens / one.n:.0f} teacher tokens and {one.student_output_tokens / one.n:.0f} student "
        "tokens."
    )


def _held_out(held: HeldOutResult, *, guided: bool) -> str:
    kept = f", of which {percent(held.accuracy / held.teacher_accuracy)} is kept" if held.teacher_accuracy else ""
    advice = " Expect this result: the best of many settings looks better on the questions that selected it."
    return (
        f"Selected and measured on different questions ({held.folds} folds): {percent(held.accuracy)} right"
        f"{_interval(held.interval)} at {usd_per_1k(held.cost_usd)} USD per 1000 answers; the teacher alone "
        f"{percent(held.teacher_accuracy)}{kept}.{advice if guided else ''}"
    )


def usd_per_1k(usd: Decimal) -> str:
    """Return the cost of 1000 answers with four significant digits."""
    amount = usd * 1000
    return f"{amount:.{max(2, 3 - amount.adjusted())}f}" if amount else "0"


def _interval(found: tuple[float, float] | None) -> str:
    return "" if found is None else f" (95 %: {percent(found[0])} to {percent(found[1])})"


def _route(name: str, engines: Mapping[str, str], one: SettingSummary, more: Mapping[str, Any]) -> dict[str, Any]:
    setting = one.setting
    # `check` warns about an engine that the mode does not use.
    roles = engines if one.guided else [setting["mode"]]
    route = {"model": name, "mode": setting["mode"], **{role: engines[role] for role in roles}}
    route |= {"baseline": engines["teacher"], "default_max_tokens": setting["max_tokens"]}
    if one.guided:
        guidance = {
            key: value for key, value in setting.items() if key not in _NOT_GUIDANCE and value not in (None, "", [])
        }
        if "exemplars" in guidance:
            guidance["exemplars"] = exemplars_path(guidance["exemplars"])
        route["guidance"] = deepcopy(guidance | dict(more))  # a value shared by two routes would become a YAML alias
    return route


def _wrapped(sentences: Iterable[str]) -> str:
    # A line break in a name from a file must not end a comment.
    printable = ("".join(letter if letter.isprintable() else " " for letter in one) for one in sentences)
    return "\n".join(line for one in printable for line in textwrap.wrap(one, _WIDTH, subsequent_indent="  "))


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


def exemplars_path(file: str) -> str:
    """Return the policy's path of a copied exemplars file, relative to the policies folder."""
    path = Path(file)
    return f"exemplars/{path.name if path.suffix in ENDINGS else path.name + '.yaml'}"


def files_of(setting: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield each file of a setting (as `Setting.as_dict`, `projection` is optional) and its path under policies."""
    auto, auto_file = setting.get("auto"), setting.get("auto_file")
    if auto is not None and auto_file is not None and (model := auto.get("model")) is not None:
        yield Path(auto_file).parent / model, model
    exemplars_file = setting.get("exemplars")
    if exemplars_file is not None and Path(exemplars_file).is_absolute():
        yield Path(exemplars_file), exemplars_path(exemplars_file)
    if (policies := setting.get("policies")) is not None and "projection" in setting:
        name = f"{PROJECTIONS_FOLDER}/{setting['projection']}.yaml"
        yield Path(policies) / name, name
        source, _ = read(Path(policies) / name)
        exemplars_name = source.get("exemplars") if source is not None else None
        if isinstance(exemplars_name, str) and exemplars_file is None:
            yield Path(policies) / exemplars_name, exemplars_name


def files_to_write(settings: Iterable[Mapping[str, Any]], folder: Path, *, force: bool = False) -> dict[Path, bytes]:
    """Return the contents to write into the policies `folder`, for settings as `Setting.as_dict`.

    Files with equal contents are left out. Raises StartupError if a file of the run is missing, or another file exists
    at its path and `force` is not set.
    """
    found: dict[Path, bytes] = {}
    for file, name in (pair for setting in settings for pair in files_of(setting)):
        target = folder / name
        try:
            content = file.read_bytes()
            existing = target.read_bytes() if target.exists() else None
        except OSError as error:
            raise StartupError(
                f"{display_path(Path(error.filename))} cannot be read ({(error.strerror or 'error').lower()}): the run "
                "used it, so restore it, or name other exemplars with --guidance exemplars=FILE"
            ) from error
        if found.get(target, content) != content:
            raise StartupError(f"two routes need different files with the path {name}: rename one, and repeat its run")
        if existing is not None and existing != content and not force:
            raise StartupError(
                f"{display_path(target)} exists with other contents than {display_path(file)}: "
                "overwrite it with --force"
            )
        if existing != content:
            found[target] = content
    return found


def write_files(files: Mapping[Path, bytes], *, new: Path | None = None) -> None:
    """Write the files. Raises StartupError if one cannot be written, or if the file `new` exists."""
    for file, content in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("xb" if file == new else "wb") as stream:
                stream.write(content)
        except OSError as error:
            if isinstance(error, FileExistsError) and file == new:
                message = f"{display_path(file)} exists: overwrite it with --force, or choose another --out"
                raise StartupError(message) from None
            message = f"{display_path(file)} cannot be written: {(error.strerror or 'error').lower()}"
            raise StartupError(message) from error


def edited_files(setting: Mapping[str, Any]) -> tuple[Path, ...]:
    """Return the files of a guided setting if they have changed since the run, else an empty tuple. Blocks.

    `setting`: the result of `Setting.as_dict`, with `shown_hash`. The hash covers all shown texts together, so of two
    files it is unknown which one changed. An unusable file has changed too. Settings without a hash (older
    folders, routes of a remote gateway) cannot be checked. Nor can few-shot prompts whose exemplars no file names.
    """
    files = tuple(file for file, _ in files_of(setting))
    unknown_shots = setting["shots"] and setting.get("exemplars") is None
    if not files or "shown" not in setting or "projection" not in setting or unknown_shots:
        return ()
    try:
        return () if _current_hash(setting) == setting["shown"] else files
    except (StartupError, OSError, ValueError):
        return files


def _current_hash(setting: Mapping[str, Any]) -> str:
    sources = (setting.get(name) for name in ("exemplars", "policies"))
    exemplars_file, policies = (None if source is None else Path(source) for source in sources)
    listed = () if exemplars_file is None else exemplars(exemplars_file)
    projection = RunLibrary.read(policies, exemplars_file, listed).find(setting["projection"])
    auto = learned = None
    if (block := setting.get("auto")) is not None:
        if (model := block.get("model")) is not None and "auto_file" in setting:
            learned = lengths_of((Path(setting["auto_file"]).parent / model).read_bytes())
        auto = AutoLength(AutoRule(), block, learned=learned)
    return shown_hash(Setting(mode="guided", shots=setting["shots"], projection=projection, auto=auto), listed)
