"""Cache of parsed policy files. An unchanged file is not parsed again, since parsing takes milliseconds per file."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from gateway.config.yaml_source import display_path, in_file_order, parse, read_bytes
from gateway.errors import ConfigIssue
from gateway.policy.library import ProjectionRegistry
from gateway.policy.schema import TenantPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.config.yaml_source import YamlSource


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy file: its data, its policy and its issues. Data and policy are None if they cannot be read."""

    digest: str
    source: YamlSource | None
    policy: TenantPolicy | None
    issues: tuple[ConfigIssue, ...] = ()


class PolicyFileCache:
    """Read policy files and cache those without issues.

    Attributes:
        registry: the projections and files that the policies name.
    """

    def __init__(self) -> None:
        self.registry = ProjectionRegistry()
        self._cached: dict[Path, PolicyFile] = {}
        self._digests: dict[Path, str] = {}

    def read(self, file: Path) -> PolicyFile:
        """Return the current content of the file. Blocks; never raises."""
        raw = read_bytes(file)
        if isinstance(raw, ConfigIssue):
            return self._store(file, PolicyFile("", None, None, (raw,)))
        digest = sha256(raw).hexdigest()
        cached = self._cached.get(file)
        return self._store(
            file, cached if cached is not None and cached.digest == digest else _parse(raw, digest, file)
        )

    def _store(self, file: Path, policy_file: PolicyFile) -> PolicyFile:
        self._digests[file] = policy_file.digest
        if policy_file.source is None or policy_file.issues:
            self._cached.pop(file, None)
        else:
            self._cached[file] = policy_file
            policy_file.source.release_nodes()
        return policy_file

    def retain(self, files: Iterable[Path]) -> None:
        """Drop all other files from the cache."""
        files = set(files)
        for entries in (self._cached, self._digests):
            for file in entries.keys() - files:
                del entries[file]

    @property
    def files(self) -> int:
        """Return the number of files read."""
        return len(self._digests) + len(self.registry.digests)

    @property
    def version(self) -> str:
        """Return a hash over the names and the last contents of the files."""
        read = {file.name: digest for file, digest in self._digests.items()} | self.registry.digests
        lines = sorted(f"{name} {digest}" for name, digest in read.items())
        return sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _parse(raw: bytes, digest: str, file: Path) -> PolicyFile:
    source, issues = parse(raw, display_path(file))
    policy = None
    if source is not None:
        policy, wrong = source.check(TenantPolicy)
        issues = [*issues, *wrong]
    return PolicyFile(digest, source, policy, tuple(in_file_order(issues)))
