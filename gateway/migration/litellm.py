"""Convert a LiteLLM proxy configuration to config.yaml and a policy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.config.yaml_messages import MUST_BE
from gateway.config.yaml_source import in_file_order
from gateway.errors import ConfigError, ConfigIssue
from gateway.migration.litellm_models import ModelConverter
from gateway.migration.litellm_routes import RouteConverter
from gateway.migration.notes import ImportNotes
from gateway.migration.source import SourceKeys, read_litellm
from gateway.migration.yaml_text import yaml_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.migration.litellm_models import Deployment
    from gateway.migration.litellm_routes import RequestedGuidance
    from gateway.migration.source import SourceField

CONFIG_FILE = Path("config.yaml")
POLICY_FILE = Path("policies") / "default.yaml"
_TENANT = "default"
_CONFIG_HEAD = """Written by `gkt-gateway import litellm`. Keys that are not here have their defaults:
`gkt-gateway docs configuration`. `gkt-gateway check` validates this file and the policies.
"""
_POLICY_HEAD = """Written by `gkt-gateway import litellm`: a route for each model_name.
See `gkt-gateway docs policies`.
"""
_REDIS_VARIABLE = "GKT_REDIS_URL"
_ADMIN_VARIABLE = "GKT_ADMIN_KEY"
_REDIS_KEYS = ("redis_url", "redis_host", "redis_port", "redis_password", "redis_db", "redis_username", "redis_ssl")
_REDIS_ADDRESS = re.compile(r"[A-Za-z0-9.-]+:[0-9]+", re.ASCII)
_REFERENCE = re.compile(r"\$\{(\w+)\}|\benv:(\w+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Conversion:
    """The result of an import.

    Attributes:
        files: the texts of config.yaml and of the policy, by path.
        not_converted: settings of the file that the new files do not have, in file order.
        variables: environment variables to set before the gateway starts.
        models: number of models in config.yaml.
        routes: number of routes in the policy.
    """

    files: Mapping[Path, str]
    not_converted: Sequence[ConfigIssue]
    variables: Sequence[str]
    models: int
    routes: int


def convert_litellm(path: Path, guidance: RequestedGuidance | None = None) -> Conversion:
    """Convert a LiteLLM proxy configuration.

    Args:
        path: the file.
        guidance: guidance of one route; None: no route is guided.

    Raises:
        ConfigError: the file is not valid, or has no model that can be converted.
        StartupError: a name in `guidance` is unknown.
    """
    keys, issues, referenced = read_litellm(path)
    notes = ImportNotes(issues, referenced)
    general, litellm, router = (
        SourceKeys(keys.take(name)) for name in ("general_settings", "litellm_settings", "router_settings")
    )
    sections = {"admin": _admin(general, notes), "redis": _redis(router, notes)}
    deployments = _deployments(path, keys.take("model_list"), notes)
    converter = RouteConverter(deployments, notes)
    converter.add_aliases(router.take("model_group_alias"))
    converter.add_fallbacks(*(router.take(name) or litellm.take(name) for name in ("fallbacks", "default_fallbacks")))
    routes = converter.routes(guidance)
    notes.add_rest(general, litellm, router, keys)
    config = {name: section for name, section in sections.items() if section is not None}
    config_text = yaml_text(config | {"models": [one.data for one in deployments]}, {}, _CONFIG_HEAD)
    policy_text = yaml_text({"tenant": _TENANT, "routes": routes}, {}, _POLICY_HEAD)
    return Conversion(
        {CONFIG_FILE: config_text, POLICY_FILE: policy_text},
        in_file_order(notes.issues),
        sorted({braced or plain for braced, plain in _REFERENCE.findall(config_text)}),
        len(deployments),
        len(routes),
    )


def _deployments(path: Path, models: SourceField | None, notes: ImportNotes) -> list[Deployment]:
    """Return the deployments of model_list. Raise ConfigError if there is none."""
    if models is None:
        raise ConfigError([ConfigIssue(str(path), 1, 1, "model_list", "missing: LiteLLM's models are read from here")])
    if not isinstance(models.value, list):
        raise ConfigError([models.issue(MUST_BE[list])])
    converter = ModelConverter(notes)
    found = [one for entry in models.children() if (one := converter.convert(entry)) is not None]
    if not found:
        raise ConfigError([*notes.issues, models.issue("no model of the file can be imported")])
    return found


def _admin(general: SourceKeys, notes: ImportNotes) -> dict[str, Any] | None:
    """Return the section `admin` for the master key, which only operators have here."""
    key = general.take("master_key")
    return None if key is None else {"key": notes.secret(key, _ADMIN_VARIABLE)}


def _redis(router: SourceKeys, notes: ImportNotes) -> dict[str, Any] | None:
    """Return the section `redis`, without secrets: the URL is a reference unless it is a host with a port."""
    fields = {name: field for name in _REDIS_KEYS if (field := router.take(name)) is not None}
    if not fields:
        return None
    if fields.keys() == {"redis_url"}:
        return {"url": notes.secret(fields["redis_url"], _REDIS_VARIABLE)}
    host, port = (fields[name].value if name in fields else 6379 for name in ("redis_host", "redis_port"))
    address = f"{host}:{port}"
    if fields.keys() <= {"redis_host", "redis_port"} and "redis_host" in fields and _REDIS_ADDRESS.fullmatch(address):
        return {"url": f"redis://{address}"}
    for field in fields.values():
        notes.add(field, f"set {_REDIS_VARIABLE} to redis://:PASSWORD@HOST:6379/0")
    return {"url": f"env:{_REDIS_VARIABLE}"}
