"""Read config.yaml and the environment into frozen Settings. Only this module and gateway/local read os.environ.

The sections are in sections.py and models.py. This module reads the file, applies the environment variables in
OVERRIDES, and checks rules that concern several sections. An empty variable counts as not set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from gateway.config import sections
from gateway.config.identity import IdentitySettings
from gateway.config.models import ModelSettings
from gateway.config.providers import completed
from gateway.config.scalars import InvalidValue, ValueOrigin, origin
from gateway.config.sections import MAX_WORKERS, AdminSettings, ServerSettings
from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import StrictModel, YamlSource, display_path, in_file_order, parse, read
from gateway.errors import ConfigError, ConfigIssue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.config.yaml_messages import Loc

ADMIN_KEY_VARIABLE = "GKT_ADMIN_KEY"
"""Environment variable from which CLI commands read the admin key first."""

OVERRIDES: Mapping[str, Loc] = {
    "GKT_HOST": ("server", "host"),
    "GKT_PORT": ("server", "port"),
    "GKT_WORKERS": ("server", "workers"),
    "GKT_ADMIN_HOST": ("admin", "host"),
    "GKT_ADMIN_PORT": ("admin", "port"),
    "GKT_REDIS_URL": ("redis", "url"),
    "GKT_POLICIES": ("policies",),
    "GKT_DATA": ("data",),
    "GKT_USAGE_URL": ("usage", "url"),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("tracing", "endpoint"),
    "OTEL_SERVICE_NAME": ("tracing", "service"),
}
_NUMBERS: Mapping[str | int, str] = {
    "port": "must be a port: a whole number up to 65535",
    "workers": f"must be a number of processes: a whole number up to {MAX_WORKERS}",
}


def _folder(value: object, info: ValidationInfo) -> object:
    source = origin(info)
    if source and isinstance(value, str | Path) and str(value):
        return source.folder / value
    if isinstance(value, Path):
        return value
    raise InvalidValue("must be the path of a folder")


_Folder = Annotated[Path, BeforeValidator(_folder)]


class WorkerSettings(StrictModel):
    """Sections of config.yaml that a usage worker needs. Build with `worker_settings`."""

    model_config = ConfigDict(extra="ignore")

    redis: sections.RedisSettings = sections.RedisSettings()
    usage: sections.UsageSettings = sections.UsageSettings()
    data: _Folder = Field(Path("data"), validate_default=True)
    log: sections.LogSettings = sections.LogSettings()


class Settings(StrictModel):
    """All of config.yaml. Build with `check_settings`."""

    server: ServerSettings = ServerSettings()
    """Public listener for callers."""
    admin: AdminSettings = AdminSettings()
    """Listener for operators."""
    redis: sections.RedisSettings = sections.RedisSettings()
    """Redis, in which replicas share batches, limits and receipts."""
    receipts: sections.ReceiptSettings = sections.ReceiptSettings()
    """Receipts of requests in Redis."""
    usage: sections.UsageSettings = sections.UsageSettings()
    """Usage database: receipts and their sums."""
    data: _Folder = Field(Path("data"), validate_default=True)
    """Folder of the gateway's own files: the usage database, and receipts that are not in Redis yet. A relative path
    is relative to config.yaml."""
    log: sections.LogSettings = sections.LogSettings()
    """Log of the process."""
    metrics: sections.MetricsSettings = sections.MetricsSettings()
    """Limits of metric labels."""
    labels: sections.LabelSettings = sections.LabelSettings()
    """Labels of requests."""
    tracing: sections.TracingSettings = sections.TracingSettings()
    """OpenTelemetry tracing."""
    defaults: sections.Defaults = sections.Defaults()
    """Limits and budgets of tenants and keys whose policy sets none."""
    alerts: sections.AlertSettings = sections.AlertSettings()
    """Notifications about budgets, the quality fallback and unusual spend."""
    identity: IdentitySettings = IdentitySettings()
    """Issuers whose tokens identify callers, beside API keys."""
    policies: _Folder = Field(Path("policies"), validate_default=True)
    """Folder of the policy files. A relative path is relative to config.yaml."""
    models: Annotated[tuple[ModelSettings, ...], Field(min_length=1)]
    """Engines. A policy assigns them the roles teacher and student."""
    key_hints: ClassVar[Mapping[str, str]] = {
        "model_list": "use models. `gkt-gateway import litellm` converts LiteLLM's file",
        "general_settings": "put its settings under server, admin and redis",
        "router_settings": "put routes into the policy files",
        "litellm_settings": "put its settings into the policy files",
        "include": "remove it: every file in the policies folder is read",
        "environment_variables": "set them in the gateway's environment, and refer to secrets as env:NAME",
    }

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[ModelSettings, ...], info: ValidationInfo) -> tuple[ModelSettings, ...]:
        names = [model.name for model in models]
        # For models of a file, `check_settings` reports duplicates with their lines.
        if info.context is None and len(set(names)) < len(names):
            raise InvalidValue("model names must be unique")
        return models

    @cached_property
    def by_name(self) -> Mapping[str, ModelSettings]:
        """Models by name."""
        return MappingProxyType({model.name: model for model in self.models})


def admin_listener(path: Path, environ: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Return host and port of the admin listener, for clients. Raises ConfigError where they are invalid. Issues in
    other sections are ignored: an operator's environment need not contain the engines' secrets."""
    _, source, issues = check_settings(path, environ)
    unusable = source is None or not {("admin", "host"), ("admin", "port")}.isdisjoint(source.unusable)
    listener = None if source is None or unusable else _listener(source, "admin", AdminSettings)
    if listener is None:
        raise ConfigError([issue for issue in issues if issue.field.startswith(("admin", "GKT_ADMIN"))] or issues)
    return listener


def worker_settings(path: Path, environ: Mapping[str, str] | None = None) -> WorkerSettings:
    """Return the sections that a usage worker needs. Raises ConfigError where one of them is invalid. Issues in other
    sections are ignored: the worker's environment need not contain the engines' secrets."""
    environ = environment() if environ is None else environ
    source, issues = read(path, environ=environ)
    if source is None:
        raise ConfigError(issues)
    names = tuple(WorkerSettings.model_fields)
    issues = [issue for issue in [*issues, *override(source, environ)] if issue.field.startswith(names)]
    settings, more = source.check(WorkerSettings, ValueOrigin(environ, path.absolute().parent))
    if settings is None or issues:
        raise ConfigError(in_file_order([*issues, *more]))
    return settings


def admin_key(path: Path, environ: Mapping[str, str] | None = None) -> SecretStr | None:
    """Return the admin key, for clients: GKT_ADMIN_KEY, else `admin.key`, else None. Raises ConfigError where
    `admin.key` cannot be resolved. Other issues of the file are ignored."""
    environ = environment() if environ is None else environ
    if environ.get(ADMIN_KEY_VARIABLE, "").strip():
        source = YamlSource("environment", {"key": f"env:{ADMIN_KEY_VARIABLE}"})
    else:
        file, issues = read(path, environ=environ)
        if unresolved := [issue for issue in issues if issue.field == "admin.key"]:
            raise ConfigError(unresolved)
        if file is None or (reference := file.get("admin", "key")) is None:
            return None
        source = YamlSource(file.file, {"key": reference})
    admin, issues = source.check(AdminSettings, ValueOrigin(environ, path.absolute().parent))
    if admin is None:
        raise ConfigError([ConfigIssue(source.file, 0, 0, "admin.key", one.message, one.suggestion) for one in issues])
    return admin.key


def environment() -> Mapping[str, str]:
    """Return a copy of this process's environment."""
    return dict(os.environ)


def check_settings(
    path: Path, environ: Mapping[str, str] | None = None, raw: bytes | None = None
) -> tuple[Settings | None, YamlSource | None, list[ConfigIssue]]:
    """Return the settings, the file as read, and all issues. The settings are None if there is an issue.

    `raw` is the content of the file; None: read it.
    """
    environ = environment() if environ is None else environ
    source, issues = read(path, environ=environ) if raw is None else parse(raw, display_path(path), environ=environ)
    if source is None:
        return None, None, issues
    issues += override(source, environ)
    settings, more = source.check(Settings, ValueOrigin(environ, path.absolute().parent))
    issues = in_file_order([*issues, *more, *_cross_checks(source)])
    return (None if issues else settings), source, issues


def override(source: YamlSource, environ: Mapping[str, str]) -> list[ConfigIssue]:
    """Put the values of the variables in OVERRIDES into the data. Return the issues of these variables."""
    issues: list[ConfigIssue] = []
    for variable, loc in OVERRIDES.items():
        text = environ.get(variable, "").strip()
        if not text:
            continue
        if loc[-1] not in _NUMBERS:
            source.override(loc, text, variable)
        elif text.isascii() and text.isdigit() and len(text) <= 5:
            source.override(loc, int(text), variable)
        else:
            hint = _NUMBERS[loc[-1]]
            if text.startswith("tcp://"):
                hint += "; Kubernetes sets this variable for a Service of that name: set enableServiceLinks to false"
            issues.append(ConfigIssue("environment", 0, 0, variable, hint))
    return issues


def _cross_checks(source: YamlSource) -> Iterator[ConfigIssue]:
    """Yield issues that concern several values. This reads the raw data, so that other issues do not hide them."""
    server, admin = _listener(source, "server", ServerSettings), _listener(source, "admin", AdminSettings)
    if server and admin and server[1] == admin[1] != 0 and (server[0] == admin[0] or {server[0], admin[0]} & _ANY):
        yield source.issue(("admin", "port"), f"server already listens on port {admin[1]}: use another port")
    yield from _duplicate_issuers(source)
    yield from _unknown_issuer(source)
    seen: dict[str, int] = {}
    for index, entry in enumerate(source.items("models")):
        if not isinstance(entry, dict):
            continue
        model = completed(entry)
        name = model.get("name")
        if isinstance(name, str) and seen.setdefault(name, index) != index:
            yield source.issue(
                ("models", index, "name"), f"models[{seen[name]}] is also called {name}: names must be unique"
            )
        if any(_points_at(model.get("api_base"), listener) for listener in (server, admin) if listener):
            yield source.issue(("models", index, "api_base"), "is the address of this gateway itself: use the engine's")


def _duplicate_issuers(source: YamlSource) -> Iterator[ConfigIssue]:
    """Yield the names and URLs of issuers that an earlier issuer has. The URL in a token selects its issuer."""
    for field in ("name", "issuer"):
        seen: dict[str, int] = {}
        for index, entry in enumerate(source.items("identity", "issuers")):
            value = entry.get(field) if isinstance(entry, dict) else None
            if isinstance(value, str) and (first := seen.setdefault(value, index)) != index:
                message = f"issuers[{first}] has this {field} too: merge the two"
                yield source.issue(("identity", "issuers", index, field), message)


def _unknown_issuer(source: YamlSource) -> Iterator[ConfigIssue]:
    """Yield the issuer of the operators' login if `identity.issuers` has none of that name."""
    name = source.get("admin", "oidc", "issuer")
    known = [one["name"] for one in source.items("identity", "issuers") if isinstance(one, dict) and "name" in one]
    if isinstance(name, str) and name not in known:
        message = f"there is no issuer '{name}' in identity.issuers: add it there, or correct the name"
        yield source.issue(
            ("admin", "oidc", "issuer"), message, nearest(name, [one for one in known if isinstance(one, str)])
        )


def _listener(source: YamlSource, key: str, section: type[ServerSettings | AdminSettings]) -> tuple[str, int] | None:
    try:
        values = {name: source.get(key, name) for name in ("host", "port")}
        listener = section.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError:
        return None
    return listener.host, listener.port


_ANY = {"0.0.0.0", "::"}  # noqa: S104  compared, not listened on
_LOCAL = {"localhost", "::1", *_ANY}


def _points_at(api_base: Any, listener: tuple[str, int]) -> bool:
    try:
        parts = urlsplit(api_base)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except (ValueError, TypeError, AttributeError):
        return False
    both_local = all(name in _LOCAL or name.startswith("127.") for name in (host, listener[0]))
    return port == listener[1] and (host == listener[0] or both_local)
