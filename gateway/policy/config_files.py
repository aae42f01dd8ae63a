"""Read config.yaml and the policies of a running process, and detect changes of these files."""

from __future__ import annotations

import os
from hashlib import sha256
from time import time
from typing import TYPE_CHECKING, NamedTuple

from gateway.config.effective import ReadSettings, settings_in_effect
from gateway.config.settings import check_settings
from gateway.config.yaml_source import display_path, read_bytes
from gateway.errors import ConfigIssue
from gateway.policy.book import PolicyFileCache, check_book, load_all
from gateway.policy.files import PROJECTIONS_FOLDER
from gateway.policy.policies import PolicyEdition

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.edits import Signature
    from gateway.config.effective import EffectiveSetting
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet


class PolicyReading(NamedTuple):
    """The result of one reading of the policies."""

    edition: PolicyEdition
    policy_set: PolicySet | None  # None: the policies have issues
    issues: tuple[str, ...] = ()


class ConfigFiles:
    """The configuration of a process: its config.yaml, which it does not read again, and its policies, which change.

    All methods block, so call them in a thread. Invalid file content raises no error after `open`.
    """

    def __init__(self, config: Path, digest: str, started: ReadSettings, cache: PolicyFileCache) -> None:
        self._config, self._digest, self._started, self._cache = config, digest, started, cache

    @classmethod
    def open(cls, config: Path) -> tuple[Settings, PolicySet, ConfigFiles]:
        """Load config.yaml and its policies, and watch the policies. Raises ConfigError with every issue of both."""
        cache, digest = PolicyFileCache(), digest_of(read_bytes(config))
        settings, policy_set, source = load_all(config, cache)
        source.root = None  # `issue` parses the text again when it needs a line
        return settings, policy_set, cls(config, digest, ReadSettings(settings, source), cache)

    def signature(self) -> Signature:
        """Return a signature of the policies without reading them; a change of any file changes it."""
        return policy_signature(self._started.settings.policies, self._cache)

    def read(self) -> PolicyReading:
        """Check the policies with the models of the process."""
        policy_set, issues = check_policies(self._started.settings, self._cache)
        return PolicyReading(self.edition(), policy_set, tuple(map(str, issues)))

    def in_effect(self) -> tuple[str, list[EffectiveSetting]]:
        """Return the name of config.yaml and the settings in effect; with lines, unless the file has changed since."""
        is_unchanged = digest_of(read_bytes(self._config)) == self._digest
        return display_path(self._config), settings_in_effect(self._started, is_unchanged=is_unchanged)

    def edition(self) -> PolicyEdition:
        """Return the version of the policies at the last reading."""
        return PolicyEdition(self._cache.version, self._cache.files, time())

    @property
    def version(self) -> str:
        """Return a short hash of config.yaml."""
        return version_of(self._digest)


class ConfigReading(NamedTuple):
    """The result of one reading of config.yaml, with the policies that name its models."""

    digest: str  # a hash of config.yaml
    settings: Settings | None  # None: config.yaml or the policies have issues
    issues: tuple[str, ...] = ()
    policies: Path | None = None  # the folder of policies that was checked


def read_config(config: Path, used: Settings, used_digest: str, cache: PolicyFileCache) -> ConfigReading:
    """Check config.yaml, and the policies with its models if its settings differ from those in use."""
    raw = read_bytes(config)
    digest = digest_of(raw)
    if isinstance(raw, ConfigIssue):
        return ConfigReading(digest, None, (str(raw),))
    settings, _, issues = check_settings(config, raw=raw)
    if settings is not None and (digest != used_digest or settings != used):
        _, issues = check_policies(settings, cache)
    policies = None if settings is None else settings.policies
    return ConfigReading(digest, None if issues else settings, tuple(map(str, issues)), policies)


def check_policies(settings: Settings, cache: PolicyFileCache) -> tuple[PolicySet | None, list[ConfigIssue]]:
    """Check the policies with the models and issuers of the settings. Return them, or None if there are issues."""
    protocols: dict[str, str] = {model.name: model.protocol for model in settings.models}
    return check_book(settings.policies, list(protocols), protocols, cache, settings.identity.urls)


def config_signature(config: Path) -> Signature:
    """Return a signature of config.yaml without reading it.

    Symbolic links are followed, since Kubernetes updates a ConfigMap by replacing a link.
    """
    return _stamp(config)


def policy_signature(folder: Path, cache: PolicyFileCache) -> Signature:
    """Return a signature of the policies in a folder, and of the files that they name."""
    named = [_stamp(folder / name) for name in cache.registry.named]
    return (*_stamps(folder), "projections", *_stamps(folder / PROJECTIONS_FOLDER), "named", *named)


def digest_of(raw: bytes | ConfigIssue) -> str:
    """Return a hash of the content of a file; empty if the file cannot be read."""
    return "" if isinstance(raw, ConfigIssue) else sha256(raw).hexdigest()


def version_of(digest: str) -> str:
    """Return the version that `/readyz` and the log show for a hash."""
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
