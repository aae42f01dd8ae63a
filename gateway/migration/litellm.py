"""Convert a LiteLLM proxy configuration to config.yaml and a policy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config.settings import Settings
from gateway.config.yaml_messages import MISSING
from gateway.config.yaml_source import in_file_order
from gateway.errors import ConfigError, ConfigIssue
from gateway.migration.builder import DataBuilder
from gateway.migration.context import ImportContext
from gateway.migration.litellm_models import DeploymentConverter
from gateway.migration.litellm_routes import RouteConverter
from gateway.migration.litellm_settings import SectionConverter, use_free_ports
from gateway.migration.source import SourceKeys, read_litellm
from gateway.migration.yaml_text import yaml_text
from gateway.policy.schema import TenantPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from gateway.migration.litellm_models import Deployment
    from gateway.migration.litellm_routes import RequestedGuidance
    from gateway.migration.source import LiteLLMFile, SourceField

CONFIG_FILE = Path("config.yaml")
POLICY_FILE = Path("policies") / "default.yaml"
_TENANT = "default"
_CONFIG_HEAD = """Written by `gkt-gateway import litellm`. Keys that are not here have their defaults:
`gkt-gateway docs configuration`. `gkt-gateway check` validates this file and the policies.
"""
_POLICY_HEAD = """Written by `gkt-gateway import litellm`: a route for each model_name and alias.
See `gkt-gateway docs policies`.
The file has no key: `gkt-gateway keys create --tenant default --id NAME --print-yaml` prints an entry of `keys`.
"""


@dataclass(frozen=True, slots=True)
class Conversion:
    """The result of an import.

    Attributes:
        files: the texts of config.yaml and of the policy, by path.
        notices: settings without an equivalent, and remarks, in the order of the files.
        variables: environment variables to set before the gateway starts.
        missing: values to fill in.
        models: number of models in config.yaml.
        left_out: each model_name of model_list with an entry that is not imported.
        modes: modes of the routes, by route.
        sources: LiteLLM's file, and the files that it includes.
    """

    files: Mapping[Path, str]
    notices: Sequence[ConfigIssue]
    variables: Sequence[str]
    missing: Sequence[str]
    models: int
    left_out: Sequence[str]
    modes: Mapping[str, str]
    sources: Sequence[Path]


def convert_litellm(path: Path, environ: Mapping[str, str], guidance: RequestedGuidance | None = None) -> Conversion:
    """Convert a LiteLLM proxy configuration.

    Args:
        path: the file; files that it includes are read too.
        environ: environment for the present values of references other than secrets.
        guidance: guidance of the routes; None: no route is guided.

    Raises:
        ConfigError: a file is not valid, or has no model that can be imported.
        StartupError: a name in `guidance` is unknown.
    """
    file = read_litellm(path)
    entries = _entries(file, path)
    config, policy = DataBuilder(), DataBuilder({"tenant": _TENANT})
    context = ImportContext(environ)
    sections = SectionConverter(file, config, policy, context)
    sections.read_environment()
    settings = sections.convert()
    credentials = _credentials(file, context)
    sections.report_others()
    converter = DeploymentConverter(context, settings.engines, credentials)
    groups = Counter(_group(entry) for entry in entries)
    found = [converter.convert(entry, is_alone=groups[_group(entry)] == 1) for entry in entries]
    deployments = [one for one in found if one is not None]
    for name in credentials.keys() - converter.used_credentials:
        context.notice(credentials[name], "not imported: no imported model names this credential")
    if not deployments:
        raise ConfigError([*context.notices, entries[0].issue("no model of the file can be imported")])
    routes = RouteConverter(deployments, settings, context, guidance)
    policy.data["routes"] = [route.data for route in routes.routes()]
    _add_models(config, deployments, routes.guided_students)
    for builder, model in ((config, Settings), (policy, TenantPolicy)):
        issue = builder.validate(model, context, context.origin(Path()) if builder is config else None)
        assert issue is None, f"{model.__name__}: {issue}"
    for one in deployments:
        one.model.clear_unknown()
    texts = {
        CONFIG_FILE: yaml_text(config.data, config.comments, _CONFIG_HEAD),
        POLICY_FILE: yaml_text(policy.data, policy.comments, _POLICY_HEAD),
    }
    notices = dict.fromkeys([*file.notices, *context.notices])
    modes = {route["model"]: route["mode"] for route in policy.data["routes"]}
    left_out = [_group(entry) for entry, one in zip(entries, found, strict=True) if one is None]
    return Conversion(
        texts,
        _in_order(notices),
        sorted(context.variables),
        context.missing,
        len(deployments),
        list(dict.fromkeys(left_out)),
        modes,
        file.paths,
    )


def _in_order(notices: Iterable[ConfigIssue]) -> list[ConfigIssue]:
    """Return notices by file, in the order in which the files were read, and by line."""
    by_file: dict[str, list[ConfigIssue]] = {}
    for notice in notices:
        by_file.setdefault(notice.file, []).append(notice)
    return [notice for file in by_file.values() for notice in in_file_order(file)]


def _add_models(config: DataBuilder, deployments: Sequence[Deployment], guided_students: AbstractSet[str]) -> None:
    """Add the models, and the ports that their addresses leave free. The sections get the order of Settings."""
    use_free_ports(config, [one.model.data.get("api_base", "") for one in deployments])
    for one in deployments:
        if one.is_probed_at_cost and not one.embeds and one.name not in guided_students:
            comment = "auto, for students of guided routes, makes small calls at each start"
            one.model.put("continuation", value="none", comment=comment)
    config.data["models"] = [one.model.data for one in deployments]
    config.data = {name: config.data[name] for name in Settings.model_fields if name in config.data}
    for index, one in enumerate(deployments):
        config.comments |= {("models", index, *loc): text for loc, text in one.model.comments.items()}


def _group(entry: SourceField) -> str:
    return str(entry.value["model_name"])


def _entries(file: LiteLLMFile, path: Path) -> list[SourceField]:
    """Return the entries of model_list. Raise ConfigError where an entry is not complete, or there is none."""
    entries = file.entries("model_list")
    if not entries:
        message = "missing: LiteLLM's models are read from here. Add those of LiteLLM's database, too"
        raise ConfigError([ConfigIssue(str(path), 1, 1, "model_list", message)])
    issues = []
    for entry in entries:
        keys = SourceKeys(entry)
        name, params = keys.take("model_name"), keys.take("litellm_params")
        if name is None:
            issues.append(entry.issue(f"model_name: {MISSING}"))
        if params is None or SourceKeys(params).take("model") is None:
            issues.append((params or entry).issue(f"{'' if params else 'litellm_params.'}model: {MISSING}"))
    if issues:
        raise ConfigError(issues)
    return entries


def _credentials(file: LiteLLMFile, context: ImportContext) -> dict[str, SourceField]:
    """Return the values of credential_list by name. Report entries without a name or without values."""
    found = {}
    for entry in file.entries("credential_list"):
        keys = SourceKeys(entry)
        name, values = keys.take("credential_name"), keys.take("credential_values")
        if name is None or values is None:
            context.notice(entry, "not imported: needs credential_name and credential_values")
            continue
        found[str(name.value)] = values
        for field in keys.rest():
            context.notice(field, "information for LiteLLM only")
    return found
