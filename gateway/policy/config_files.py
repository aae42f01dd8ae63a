"""Read config.yaml and the policies of a running process together, and detect changes of these files."""

from __future__ import annotations

import os
from hashlib import sha256
from time import time
from typing import TYPE_CHECKING, NamedTuple

from gateway.config.changes import needs_restart
from gateway.config.effective import ReadSettings, settings_in_effect
from gateway.config.settings import check_settings, environment, operator_environment
from gateway.config.yaml_source import display_path, read_bytes
from gateway.errors import ConfigIssue
from gateway.policy.book import PolicyFileCache, check_book, load_all
from gateway.policy.files import PROJECTIONS_FOLDER
from gateway.policy.policies import PolicyEdition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from gateway.config.effective import EffectiveSetting
    from gateway.config.models import ModelSettings
    from gateway.config.settings import Settings
    from gateway.config.yaml_source import YamlSource
    from gateway.policy.book import PolicySet

Signature = tuple[object, ...]
"""Names, inodes, times and sizes of the files; it changes when a file does."""


class ConfigReading(NamedTuple):
    """The result of one reading of all files.

    The policies are valid with the models of `settings`, or with those in use where `settings` is None.
    """

    version: str  # a hash of config.yaml
    edition: PolicyEdition
    settings: Settings | None  # None: config.yaml has issues, alone or together with the policies
    policy_set: PolicySet | None  # None: the policies have issues, also with the models in use
    config_issues: tuple[str, ...] = ()
    policy_issues: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()  # changed settings that need a restart, with their lines


class _Checked(NamedTuple):
    """A valid config.yaml. It is read again if its hash changes."""

    digest: str
    read: ReadSettings


class ConfigFiles:
    """Read the files of a running process and detect their changes.

    All methods block, so call them in a thread. Invalid file content raises no error after `open`.
    """

    def __init__(self, config: Path, started: _Checked, settings: Settings, cache: PolicyFileCache) -> None:
        self._config, self._cache = config, cache
        self._started = self._used = self._checked = started
        self._folder, self._models, self._issuers = settings.policies, settings.models, settings.identity.urls
        self._is_current = True  # whether the last reading of config.yaml found no issue
        self._refused: tuple[str, str] | None = None  # a hash of config.yaml, and why it cannot be used

    @classmethod
    def open(cls, config: Path) -> tuple[Settings, PolicySet, ConfigFiles]:
        """Load config.yaml and its policies, and watch them. Raises ConfigError with every issue of both."""
        cache, digest = PolicyFileCache(), _digest(config)
        settings, policy_set, source = load_all(config, cache)
        read = _read(settings, source)
        if (environ := operator_environment()) != environment():
            configured, source_of_it, _ = check_settings(config, environ)
            if configured is not None and source_of_it is not None:
                read = _read(configured, source_of_it)
        return settings, policy_set, cls(config, _Checked(digest, read), settings, cache)

    def signature(self) -> Signature:
        """Return a signature of the files without reading them; a change of any file changes it. Symbolic links are
        followed, since Kubernetes updates a ConfigMap by replacing a link."""
        named = [_stamp(self._folder / name) for name in self._cache.registry.named]
        projections = _stamps(self._folder / PROJECTIONS_FOLDER)
        return (_stamp(self._config), *_stamps(self._folder), "projections", *projections, "named", *named)

    def read(self, *, fresh: bool = False) -> ConfigReading:
        """Check config.yaml and the policies together; if both are not valid, the policies with the models in use.

        With `fresh`, also read an unchanged config.yaml again, for the secrets in the files that it names.
        """
        raw = read_bytes(self._config)
        digest = "" if isinstance(raw, ConfigIssue) else sha256(raw).hexdigest()
        checked, found = self._check_config(raw, digest, fresh=fresh)
        self._is_current = checked is not None
        if checked is not None:
            settings, source = checked.read
            policy_set, issues = self._check_policies(settings.models, settings.identity.urls)
            if policy_set is not None:
                restart = needs_restart(self._started.read.settings, settings, source)
                restart += self._issues_of_new_folder(settings)
                lines = tuple(map(str, restart))
                return ConfigReading(_short(digest), self.edition(), settings, policy_set, restart=lines)
            found = issues
        policy_set, issues = self._check_policies(self._models, self._issuers)
        config_issues = [str(issue) for issue in found if issue not in issues]
        if not config_issues and digest != self._used.digest:
            config_issues.append(f"{display_path(self._config)}: not used while the policies have issues")
        return ConfigReading(
            _short(digest), self.edition(), None, policy_set, tuple(config_issues), tuple(map(str, issues))
        )

    def accept(self, settings: Settings) -> None:
        """Check later policies against these models and issuers, which are in use now."""
        self._models, self._issuers, self._used = settings.models, settings.identity.urls, self._checked

    def refuse(self, reason: str) -> None:
        """Treat the last valid config.yaml as invalid: the process cannot use it."""
        self._refused = self._checked.digest, reason

    def in_effect(self) -> tuple[str, list[EffectiveSetting]]:
        """Return the name of config.yaml and the settings in effect; with lines, unless the file has changed since."""
        started, used = self._started, self._used
        is_unchanged = _digest(self._config) == used.digest
        return display_path(self._config), settings_in_effect(started.read, used.read, is_unchanged=is_unchanged)

    def edition(self) -> PolicyEdition:
        """Return the version of the policies at the last reading."""
        return PolicyEdition(self._cache.version, self._cache.files, time())

    @property
    def version(self) -> str:
        """Return a hash of config.yaml as it was last valid."""
        return _short(self._checked.digest)

    def _check_config(
        self, raw: bytes | ConfigIssue, digest: str, *, fresh: bool
    ) -> tuple[_Checked | None, list[ConfigIssue]]:
        if isinstance(raw, ConfigIssue):
            return None, [raw]
        if self._refused is not None and self._refused[0] == digest and not fresh:
            return None, [ConfigIssue(display_path(self._config), 0, 0, "", self._refused[1])]
        if digest == self._checked.digest and self._is_current and not fresh:
            return self._checked, []
        settings, source, issues = check_settings(self._config, operator_environment(), raw)
        if settings is None or source is None:
            return None, issues
        self._checked = _Checked(digest, _read(settings, source))
        return self._checked, []

    def _check_policies(
        self, models: Sequence[ModelSettings], issuers: Mapping[str, str]
    ) -> tuple[PolicySet | None, list[ConfigIssue]]:
        protocols: dict[str, str] = {model.name: model.protocol for model in models}
        return check_book(self._folder, list(protocols), protocols, self._cache, issuers)

    def _issues_of_new_folder(self, settings: Settings) -> Iterable[ConfigIssue]:
        """Return the issues that a restart would find in another folder of policies."""
        if settings.policies == self._folder:
            return ()
        protocols: dict[str, str] = {model.name: model.protocol for model in settings.models}
        return check_book(settings.policies, list(protocols), protocols, None, settings.identity.urls)[1]


def _read(settings: Settings, source: YamlSource) -> ReadSettings:
    source.root = None  # `issue` parses the text again when it needs a line
    return ReadSettings(settings, source)


def _digest(config: Path) -> str:
    try:
        return sha256(config.read_bytes()).hexdigest()
    except OSError:
        return ""


def _short(digest: str) -> str:
    return digest[:16]


def _stamps(folder: Path) -> list[tuple[object, ...]]:
    try:
        with os.scandir(folder) as entries:
            files = (entry for entry in entries if not entry.name.startswith("."))
            return sorted(_stamp(file) for file in files if file.name.endswith((".yaml", ".yml")))
    except OSError as error:
        return [(type(error).__name__,)]


def _stamp(file: Path | os.DirEntry[str]) -> tuple[object, ...]:
    try:
        stat = file.stat()
    except OSError as error:
        return (file.name, type(error).__name__)
    # The inode detects a rename, and ctime a tool that resets mtime.
    return (file.name, stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
