"""The policy file of a recommendation, ready for `gkt-gateway check`, with expected results in its comments."""

from __future__ import annotations

import os
import textwrap
from contextlib import suppress
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from gateway.config.yaml_source import display_path, parse, read
from gateway.errors import StartupError
from gateway.evaluation.advice.explanation import comments
from gateway.evaluation.folder import shown_hash
from gateway.evaluation.questions.data import exemplars
from gateway.evaluation.setting import REQUEST_PARAMETERS, RunLibrary, Setting, with_first_exemplars
from gateway.policy.files import PROJECTIONS_FOLDER
from gateway.policy.library import ENDINGS
from gateway.policy.schema import TenantPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gateway.evaluation.advice.recommend import Recommendation
    from gateway.evaluation.summary import SettingSummary
    from gateway.policy.projections import Exemplar, Projection

# Keys of a setting that belong to the caller or to the route, or that name sources of the measurement. The other keys
# are those of a policy's guidance.
_NOT_GUIDANCE = {*REQUEST_PARAMETERS, "name", "mode", "shown", "policies", "route", "exemplar_count"}
_WIDTH = 108
_POLICIES_VARIABLE = "GKT_POLICIES"  # of `gateway/config/settings.py`
_MAX_CONFIG_BYTES = 300_000  # parsing takes seconds for 100 KB


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
        if "exemplar_count" in setting and "projection" not in more:
            guidance["exemplars"] = _first_exemplars_path(setting)
        elif "exemplars" in guidance:
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
        issues = source.check(TenantPolicy)[1]
    if issues:
        raise StartupError(
            "a policy cannot contain this: " + "; ".join(f"{one.field}: {one.message}" for one in issues)
        )


def exemplars_path(file: str) -> str:
    """Return the policy's path of a copied exemplars file, relative to the policies folder."""
    path = Path(file)
    return f"exemplars/{path.name if path.suffix in ENDINGS else path.name + '.yaml'}"


def _first_exemplars_path(setting: Mapping[str, Any]) -> str:
    """Return the policy's path of the first exemplars of a setting, which get a file of their own."""
    stem = Path(setting.get("exemplars", setting["projection"])).stem
    return f"exemplars/{stem}-first-{setting['exemplar_count']}.yaml"


def _contents(setting: Mapping[str, Any]) -> Iterator[tuple[Path, str, bytes]]:
    """Yield each file of a setting with its path under policies and its contents there. Raises OSError."""
    count, own = setting.get("exemplar_count"), setting.get("exemplars")
    for file, name in files_of(setting):
        if count is None or str(file) != own:
            yield file, name, file.read_bytes()
    if count is not None:
        yaml, output = YAML(), StringIO()
        yaml.width = _WIDTH
        projection, _ = _measured(setting)
        yaml.dump([{"question": one.question, "answer": one.answer} for one in projection.exemplars], output)
        yield Path(own or setting["projection"]), _first_exemplars_path(setting), output.getvalue().encode()


def files_of(setting: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield each file of a setting (as `Setting.as_dict`, `projection` is optional) and its path under policies."""
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
    try:
        contents = [
            (file, name, content, (folder / name).read_bytes() if (folder / name).exists() else None)
            for setting in settings
            for file, name, content in _contents(setting)
        ]
    except OSError as error:
        raise StartupError(
            f"{display_path(Path(error.filename))} cannot be read ({(error.strerror or 'error').lower()}): the run "
            "used it, so restore it, or name other exemplars with --guidance exemplars=FILE"
        ) from error
    for file, name, content, existing in contents:
        target = folder / name
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


def reader_of(policy: Path) -> Path | None:
    """Return a file or folder that shows that a gateway may read a new policy; None: there is none.

    That is a configuration that names the policy's folder, or a policy in it, also the one to overwrite. Configurations
    are sought in the working directory and in all folders above the policy's. Links are followed. Blocks.
    """
    folders = {policy.parent.absolute(): None, _resolved(policy.parent): None, _resolved(policy).parent: None}
    live = set(map(_resolved, folders))
    variable = os.environ.get(_POLICIES_VARIABLE)
    if variable and _resolved(Path(variable)) in live:
        return Path(variable)
    for place in dict.fromkeys((Path(), *(above for folder in folders for above in folder.parents))):
        for config in _yaml_files(place, b"models"):
            source = read(config, environ=os.environ)[0]
            if source is None or not source.get("models"):
                continue
            for named in (source.get("policies") or "policies", variable):
                if isinstance(named, str) and _resolved(place / named) in live:
                    return config
    policies = (file for folder in folders for file in _yaml_files(folder, b"tenant"))
    return next((file for file in policies if (found := read(file)[0]) is None or found.get("tenant")), None)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a null byte
        return path.absolute()


def _yaml_files(folder: Path, word: bytes) -> list[Path]:
    """Return the YAML files of a folder that contain a word: to parse all files would take long."""
    found = []
    for file in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
        with suppress(OSError):
            if file.is_file() and file.stat().st_size <= _MAX_CONFIG_BYTES and word in file.read_bytes():
                found.append(file)
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
    projection, listed = _measured(setting)
    return shown_hash(Setting(mode="guided", shots=setting["shots"], projection=projection), listed)


def _measured(setting: Mapping[str, Any]) -> tuple[Projection, Sequence[Exemplar]]:
    """Return a setting's projection as its files have it now, and the exemplars of its own file, if any."""
    sources = (setting.get(name) for name in ("exemplars", "policies"))
    exemplars_file, policies = (None if source is None else Path(source) for source in sources)
    listed = () if exemplars_file is None else exemplars(exemplars_file)
    projection = RunLibrary.read(policies, exemplars_file, listed).find(setting["projection"])
    if (count := setting.get("exemplar_count")) is not None:
        projection = with_first_exemplars(projection, count)
    return projection, listed
