"""config.yaml + environment -> frozen Settings. The only reader of os.environ (gateway/local aside).

What may stand in the file is in sections.py and models.py; here is what reads it, and what no section can tell
by itself. Containers may override single values: the variables are in OVERRIDES. An empty variable counts as not set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from gateway.config.models import ModelSettings
from gateway.config.scalars import InvalidValue, ValueOrigin, origin
from gateway.config.sections import (
    MAX_WORKERS,
    AdminSettings,
    AlertSettings,
    Defaults,
    LogSettings,
    MetricsSettings,
    ReceiptSettings,
    RedisSettings,
    ServerSettings,
    TracingSettings,
    UsageSettings,
)
from gateway.config.yaml_source import StrictModel, YamlSource, in_file_order, read
from gateway.errors import ConfigError, ConfigIssue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.config.yaml_messages import Loc

ADMIN_KEY_VARIABLE = "GKT_ADMIN_KEY"
"""Where commands that ask a running gateway look for the admin key first."""

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
_RENAMED = {"GKT_ARCHIVE_URL": "GKT_USAGE_URL"}
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


class WorkerSettings(StrictModel):
    """The part of config.yaml that a usage worker needs. Build with `worker_settings`."""

    model_config = ConfigDict(extra="ignore")

    redis: RedisSettings = RedisSettings()
    """Where the outboxes are."""
    usage: UsageSettings = UsageSettings()
    """The database."""
    data: Path = Field(Path("data"), validate_default=True)
    """The folder of the database's file."""
    log: LogSettings = LogSettings()
    """What the process logs."""

    @field_validator("data", mode="before")
    @classmethod
    def _beside_the_file(cls, value: object, info: ValidationInfo) -> object:
        return _folder(value, info)


class Settings(StrictModel):
    """All of config.yaml. Build with `check_settings`."""

    server: ServerSettings = ServerSettings()
    """The callers' listener."""
    admin: AdminSettings = AdminSettings()
    """The operators' listener."""
    redis: RedisSettings = RedisSettings()
    """Where replicas share batches, limits and receipts."""
    receipts: ReceiptSettings = ReceiptSettings()
    """What is kept of each request."""
    usage: UsageSettings = UsageSettings()
    """The database of receipts and of their sums."""
    data: Path = Field(Path("data"), validate_default=True)
    """The folder of the gateway's own files: the usage database, and receipts that Redis did not take yet."""
    log: LogSettings = LogSettings()
    """What the process says."""
    metrics: MetricsSettings = MetricsSettings()
    """How much is told apart in metrics."""
    tracing: TracingSettings = TracingSettings()
    """Where the spans of requests go."""
    defaults: Defaults = Defaults()
    """What holds for tenants and keys whose policy says nothing of it."""
    alerts: AlertSettings = AlertSettings()
    """Who is told of budgets."""
    policies: Path = Field(Path("policies"), validate_default=True)
    """The folder of the policy files; absolute when loaded from a file."""
    models: Annotated[tuple[ModelSettings, ...], Field(min_length=1)]
    """The engines. A policy says which one plays the teacher and which one the student."""
    foreign: ClassVar[Mapping[str, str]] = {
        "model_list": "here it is called models",
        "general_settings": "its settings stand under server, admin and redis here",
        "router_settings": "routes stand in the policy files here",
        "litellm_settings": "its settings stand in the policy files here",
        "archive": "it is called usage now: usage.url, usage.keep and usage.run (docs/deployment.md#upgrades)",
        "rollups": "its settings are in usage now: minutes, hours, days, max_rows (docs/deployment.md#upgrades)",
        "include": "every file in the policies folder is read",
        "environment_variables": "set them where the gateway is started; a secret here refers to one as env:NAME",
    }

    @field_validator("policies", "data", mode="before")
    @classmethod
    def _beside_the_file(cls, value: object, info: ValidationInfo) -> object:
        return _folder(value, info)

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[ModelSettings, ...], info: ValidationInfo) -> tuple[ModelSettings, ...]:
        names = [model.name for model in models]
        # Those of a file are told by `check_settings`, with their lines and beside all other mistakes.
        if info.context is None and len(set(names)) < len(names):
            raise InvalidValue("names must differ: engines are found by them")
        return models

    @cached_property
    def by_name(self) -> Mapping[str, ModelSettings]:
        """The models by name."""
        return MappingProxyType({model.name: model for model in self.models})


def admin_listener(path: Path, environ: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Host and port of `admin`, for who is to connect there. Raises ConfigError where they cannot be read.

    What else is wrong in the file is no matter: the shell of an operator need not hold the engines' secrets.
    """
    _, source, mistakes = check_settings(path, environ)
    listener = None if source is None else _listener(source, "admin", AdminSettings)
    if listener is None:
        raise ConfigError([one for one in mistakes if one.field.startswith(("admin", "GKT_ADMIN"))] or mistakes)
    return listener


def worker_settings(path: Path, environ: Mapping[str, str] | None = None) -> WorkerSettings:
    """Return the sections that a usage worker needs. Raises ConfigError where one of them is invalid.

    Mistakes in other sections do not matter: the worker's environment need not hold the engines' secrets.
    """
    environ = environment() if environ is None else environ
    source, mistakes = read(path)
    if source is None:
        raise ConfigError(mistakes)
    parts = tuple(WorkerSettings.model_fields)
    mistakes = [one for one in [*mistakes, *override(source, environ)] if one.field.startswith(parts)]
    settings, more = source.check(WorkerSettings, ValueOrigin(environ, path.absolute().parent))
    if settings is None or mistakes:
        raise ConfigError(in_file_order([*mistakes, *more]))
    return settings


def admin_key(path: Path, environ: Mapping[str, str] | None = None) -> SecretStr | None:
    """The admin key, for who is to show it: GKT_ADMIN_KEY, else `admin.key`; None if neither says it.

    Raises ConfigError where `admin.key` cannot be read. What else is wrong in the file is no matter.
    """
    environ = environment() if environ is None else environ
    if environ.get(ADMIN_KEY_VARIABLE, "").strip():
        return _checked_key(
            YamlSource("environment", {"key": f"env:{ADMIN_KEY_VARIABLE}"}), ValueOrigin(environ, path.parent)
        )
    source, _ = read(path)
    reference = None if source is None else source.get("admin", "key")
    if source is None or reference is None:
        return None
    return _checked_key(source.part({"key": reference}), ValueOrigin(environ, path.absolute().parent))


def _checked_key(source: YamlSource, where: ValueOrigin) -> SecretStr | None:
    admin, mistakes = source.check(AdminSettings, where)
    if admin is None:
        raise ConfigError(
            [ConfigIssue(source.file, 0, 0, "admin.key", one.message, one.suggestion) for one in mistakes]
        )
    return admin.key


def environment() -> Mapping[str, str]:
    """This process's environment, as it is now."""
    return dict(os.environ)


def check_settings(
    path: Path, environ: Mapping[str, str] | None = None
) -> tuple[Settings | None, YamlSource | None, list[ConfigIssue]]:
    """(settings, the file as read, every mistake). Settings are None when there is a mistake."""
    environ = environment() if environ is None else environ
    source, mistakes = read(path)
    if source is None:
        return None, None, mistakes
    mistakes += override(source, environ)
    settings, more = source.check(Settings, ValueOrigin(environ, path.absolute().parent))
    mistakes = in_file_order([*mistakes, *more, *_cross_checks(source)])
    return (None if mistakes else settings), source, mistakes


def override(source: YamlSource, environ: Mapping[str, str]) -> list[ConfigIssue]:
    """Put the values of OVERRIDES that are set into the data."""
    mistakes = [
        ConfigIssue("environment", 0, 0, old, f"is called {new} now (docs/deployment.md#upgrades)")
        for old, new in _RENAMED.items()
        if environ.get(old, "").strip()
    ]
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
                hint += "; Kubernetes sets this one for a Service of that name: set enableServiceLinks to false"
            mistakes.append(ConfigIssue("environment", 0, 0, variable, hint))
    return mistakes


def _cross_checks(source: YamlSource) -> Iterator[ConfigIssue]:
    """What no single value can tell. Reads the raw data, so that other mistakes do not hide these."""
    server, admin = _listener(source, "server", ServerSettings), _listener(source, "admin", AdminSettings)
    if server and admin and _same_listener(server, admin):
        yield source.mistake(("admin", "port"), f"server listens on port {admin[1]} already: take another")
    seen: dict[str, int] = {}
    for index, model in enumerate(source.items("models")):
        if not isinstance(model, dict):
            continue
        name = model.get("name")
        if isinstance(name, str) and seen.setdefault(name, index) != index:
            yield source.mistake(
                ("models", index, "name"), f"models[{seen[name]}] is called {name} too: names must differ"
            )
        if any(_points_at(model.get("api_base"), listener) for listener in (server, admin) if listener):
            yield source.mistake(("models", index, "api_base"), "points at this gateway itself: name the engine")


def _listener(source: YamlSource, key: str, shape: type[ServerSettings | AdminSettings]) -> tuple[str, int] | None:
    try:
        found = shape.model_validate(
            {name: source.get(key, name) for name in ("host", "port") if source.get(key, name) is not None}
        )
    except ValidationError:
        return None
    return found.host, found.port


_ANY = {"0.0.0.0", "::"}  # noqa: S104  compared with, not listened on
_HERE = {"localhost", "::1", *_ANY}


def _same_listener(one: tuple[str, int], other: tuple[str, int]) -> bool:
    return one[1] == other[1] != 0 and (one[0] == other[0] or bool({one[0], other[0]} & _ANY))


def _points_at(api_base: Any, listener: tuple[str, int]) -> bool:
    try:
        parts = urlsplit(api_base)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except (ValueError, TypeError, AttributeError):
        return False
    here = host in _HERE or host.startswith("127.")
    at_home = listener[0] in _HERE or listener[0].startswith("127.")
    return port == listener[1] and (host == listener[0] or (here and at_home))
