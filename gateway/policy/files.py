"""config.yaml and the policies folder on disk while a gateway runs.

All functions block, so call them in a thread. Invalid file content raises no error.
"""

from __future__ import annotations

import os
from hashlib import sha256
from time import time
from typing import TYPE_CHECKING

from gateway.policy.book import PolicyFileCache, check_all, check_book, load_all
from gateway.policy.library import PROJECTIONS_FOLDER
from gateway.policy.policies import PolicyEdition

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet

Signature = tuple[object, ...]
"""Names, inodes, times and sizes of the files; it changes when a file does."""


class PolicyFiles:
    """Read the policy files of a running process and detect changes of config.yaml."""

    def __init__(self, config: Path, digest: str, settings: Settings, cache: PolicyFileCache) -> None:
        self._config, self._digest, self._cache = config, digest, cache
        self._folder = settings.policies
        self._protocols: dict[str, str] = {model.name: model.protocol for model in settings.models}

    @classmethod
    def open(cls, config: Path) -> tuple[Settings, PolicySet, PolicyFiles]:
        """Load config.yaml and its policies, and watch them. Raises ConfigError with every issue of both."""
        cache, digest = PolicyFileCache(), _digest(config)
        settings, policy_set = load_all(config, cache)
        return settings, policy_set, cls(config, digest, settings, cache)

    def signature(self) -> Signature:
        """Return a signature of the files without reading them; a change of any file changes it. Symbolic links are
        followed, since Kubernetes updates a ConfigMap by replacing a link."""
        named = [_stamp(self._folder / name) for name in self._cache.registry.named]
        projections = _stamps(self._folder / PROJECTIONS_FOLDER)
        return (_stamp(self._config), *_stamps(self._folder), "projections", *projections, "named", *named)

    def config_is_unchanged(self) -> bool:
        """Return whether config.yaml has its content of the start. Files that it names are not compared."""
        return _digest(self._config) == self._digest

    def config_issues(self) -> tuple[str, ...]:
        """Return the issues that a restart would find in config.yaml and its policies."""
        return tuple(str(issue) for issue in check_all(self._config, self._cache)[2])

    def read(self) -> tuple[PolicySet | None, tuple[str, ...], PolicyEdition]:
        """Check the policies against the configuration of the process. Return them, or None with their issues."""
        policy_set, issues = check_book(self._folder, list(self._protocols), self._protocols, self._cache)
        return policy_set, tuple(map(str, issues)), self.edition()

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
