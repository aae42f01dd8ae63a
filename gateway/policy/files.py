"""config.yaml and the policies folder, as they are on disk while a gateway runs.

Everything here blocks: it is for a thread. Nothing raises for what stands in the files.
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
"""What changes when a file does: names, inodes, times and sizes."""


@dataclass(frozen=True, slots=True)
class PolicyFolder:
    """The folder as it was read. `book` is None when it has a mistake."""

    book: PolicySet | None
    mistakes: tuple[str, ...]
    edition: PolicyEdition


class PolicyFiles:
    """What the process was started with, and what stands there now.

    Args:
        config: the file that the process was started with.
        digest: the hash of what stood in it then.
        settings: what that meant. Models and folder stay so until the process ends.
        pages: what remembers the policy files.
    """

    def __init__(self, config: Path, digest: str, settings: Settings, pages: PolicyFileCache) -> None:
        self._config = config
        self._digest = digest
        self._folder = settings.policies
        self._models = list(settings.by_name)
        self._protocols: dict[str, str] = {model.name: model.protocol for model in settings.models}
        self._pages = pages

    @classmethod
    def open(cls, config: Path) -> tuple[Settings, PolicySet, PolicyFiles]:
        """config.yaml and its policies, to be watched from here on. Raises ConfigError with every mistake of both."""
        pages, digest = PolicyFileCache(), _digest(config)
        settings, book = load_all(config, pages)
        return settings, book, cls(config, digest, settings, pages)

    def signature(self) -> Signature:
        """A look at the files without reading them: a change of any of them changes it.

        It looks through symbolic links: a ConfigMap of Kubernetes is changed by turning one around.
        """
        named = [_stamp(self._folder / name) for name in self._pages.library.named]
        own = _stamps(self._folder / PROJECTIONS_FOLDER)
        return (_stamp(self._config), *_stamps(self._folder), "projections", *own, "named", *named)

    def config_is_as_it_was(self) -> bool:
        """Whether config.yaml holds what the process was started with. Names that it refers to are not followed."""
        return _digest(self._config) == self._digest

    def config_mistakes(self) -> tuple[str, ...]:
        """What a restart would say of config.yaml, and of the policies by it."""
        return tuple(str(mistake) for mistake in check_all(self._config, self._pages)[2])

    def read(self) -> PolicyFolder:
        """The policies, against the configuration that the process runs with."""
        book, mistakes = check_book(self._folder, self._models, self._protocols, self._pages)
        return PolicyFolder(book, tuple(map(str, mistakes)), self.edition())

    def edition(self) -> PolicyEdition:
        """What was read last."""
        return PolicyEdition(self._pages.version, self._pages.files, time())


def _digest(config: Path) -> str:
    try:
        return sha256(config.read_bytes()).hexdigest()
    except OSError:
        return ""


def _stamps(folder: Path) -> list[tuple[object, ...]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(_stamp(entry) for entry in entries if _counts(entry.name))
    except OSError as error:
        return [(type(error).__name__,)]


def _counts(name: str) -> bool:
    return not name.startswith(".") and name.endswith((".yaml", ".yml"))


def _stamp(file: Path | os.DirEntry[str]) -> tuple[object, ...]:
    try:
        found = file.stat()
    except OSError as error:
        return (file.name, type(error).__name__)
    # The inode tells an editor that renames; ctime a tool that sets mtime back.
    return (file.name, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
