"""config.yaml and the policies folder on disk while a gateway runs.

All functions block, so call them in a thread. Invalid file content raises no error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from time import time
from typing import TYPE_CHECKING

from gateway.policy.book import check_all, check_book, load_all
from gateway.policy.named_files import PROJECTIONS_FOLDER
from gateway.policy.pages import PolicyFileCache
from gateway.policy.policies import PolicyEdition

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet

Signature = tuple[object, ...]
"""Names, inodes, times and sizes of the files; it changes when a file does."""


@dataclass(frozen=True, slots=True)
class PolicyFolder:
    """The content of the folder. `policy_set` is None if there are issues."""

    policy_set: PolicySet | None
    issues: tuple[str, ...]
    edition: PolicyEdition


class PolicyFiles:
    """Read the policy files of a running process and detect changes of config.yaml.

    Args:
        config: the config.yaml of the process.
        digest: the hash of its content at start.
        settings: its settings at start. Models and folder stay the same until the process ends.
        cache: parsed policy files.
    """

    def __init__(self, config: Path, digest: str, settings: Settings, cache: PolicyFileCache) -> None:
        self._config = config
        self._digest = digest
        self._folder = settings.policies
        self._models = list(settings.by_name)
        self._protocols: dict[str, str] = {model.name: model.protocol for model in settings.models}
        self._cache = cache

    @classmethod
    def open(cls, config: Path) -> tuple[Settings, PolicySet, PolicyFiles]:
        """Load config.yaml and its policies, and watch them. Raises ConfigError with every issue of both."""
        cache, digest = PolicyFileCache(), _digest(config)
        settings, policy_set = load_all(config, cache)
        return settings, policy_set, cls(config, digest, settings, cache)

    def signature(self) -> Signature:
        """Return a signature of the files without reading them; a change of any file changes it.

        Symbolic links are followed, since Kubernetes updates a ConfigMap by replacing a link.
        """
        named = [_stamp(self._folder / name) for name in self._cache.registry.named]
        projections = _stamps(self._folder / PROJECTIONS_FOLDER)
        return (_stamp(self._config), *_stamps(self._folder), "projections", *projections, "named", *named)

    def config_is_unchanged(self) -> bool:
        """Return whether config.yaml has its content of the start. Files that it names are not compared."""
        return _digest(self._config) == self._digest

    def config_mistakes(self) -> tuple[str, ...]:
        """Return the issues that a restart would find in config.yaml and its policies."""
        return tuple(str(issue) for issue in check_all(self._config, self._cache)[2])

    def read(self) -> PolicyFolder:
        """Read the policies and check them against the configuration of the process."""
        policy_set, issues = check_book(self._folder, self._models, self._protocols, self._cache)
        return PolicyFolder(policy_set, tuple(map(str, issues)), self.edition())

    def edition(self) -> PolicyEdition:
        """Return the version of the last reading."""
        return PolicyEdition(self._cache.version, self._cache.files, time())


def _digest(config: Path) -> str:
    try:
        return sha256(config.read_bytes()).hexdigest()
    except OSError:
        return ""


def _stamps(folder: Path) -> list[tuple[object, ...]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(_stamp(entry) for entry in entries if _is_policy_file(entry.name))
    except OSError as error:
        return [(type(error).__name__,)]


def _is_policy_file(name: str) -> bool:
    return not name.startswith(".") and name.endswith((".yaml", ".yml"))


def _stamp(file: Path | os.DirEntry[str]) -> tuple[object, ...]:
    try:
        stat = file.stat()
    except OSError as error:
        return (file.name, type(error).__name__)
    # The inode detects a rename, and ctime a tool that resets mtime.
    return (file.name, stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
