"""The policy files as they were read last. What has not changed is not parsed again: that takes milliseconds a file."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from gateway.config.yaml_source import contents, in_file_order, parse, shown
from gateway.errors import ConfigIssue
from gateway.policy.library import ProjectionRegistry
from gateway.policy.schema import TenantPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.config.yaml_source import YamlSource


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """One file: its data, its policy, and what is wrong with it by itself. Either is None when it cannot be told."""

    digest: str
    source: YamlSource | None
    policy: TenantPolicy | None
    mistakes: tuple[ConfigIssue, ...] = ()


class PolicyFileCache:
    """Reads policy files, and remembers those without a mistake: as many as the folder has.

    Attributes:
        library: what stands beside them.
    """

    def __init__(self) -> None:
        self.library = ProjectionRegistry()
        self._kept: dict[Path, PolicyFile] = {}
        self._digests: dict[Path, str] = {}

    def read(self, file: Path) -> PolicyFile:
        """The file as it is now. Blocks; never raises."""
        raw = contents(file)
        if isinstance(raw, ConfigIssue):
            return self._noted(file, PolicyFile("", None, None, (raw,)))
        digest = sha256(raw).hexdigest()
        kept = self._kept.get(file)
        return self._noted(file, kept if kept is not None and kept.digest == digest else _page(raw, digest, file))

    def _noted(self, file: Path, page: PolicyFile) -> PolicyFile:
        self._digests[file] = page.digest
        if page.source is None or page.mistakes:
            self._kept.pop(file, None)
        else:
            self._kept[file] = page
            page.source.forget_places()
        return page

    def keep_only(self, files: Iterable[Path]) -> None:
        """Forget all other files."""
        files = set(files)
        for remembered in (self._kept, self._digests):
            for file in remembered.keys() - files:
                del remembered[file]

    @property
    def files(self) -> int:
        """How many files were read."""
        return len(self._digests) + len(self.library.digests)

    @property
    def version(self) -> str:
        """A hash over the names and the contents of the files, as they were read last."""
        read = {file.name: digest for file, digest in self._digests.items()} | self.library.digests
        lines = sorted(f"{name} {digest}" for name, digest in read.items())
        return sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _page(raw: bytes, digest: str, file: Path) -> PolicyFile:
    source, mistakes = parse(raw, shown(file))
    policy = None
    if source is not None:
        policy, wrong = source.check(TenantPolicy)
        mistakes = [*mistakes, *wrong]
    return PolicyFile(digest, source, policy, tuple(in_file_order(mistakes)))
