"""Reload policy files while the gateway runs: valid edits apply to new requests, invalid ones change nothing.

The names, times and sizes of the files are polled: 1,000 files take six milliseconds of a thread. Events of inotify are
missing on NFS, and a user has 128 instances. On Kubernetes, edits replace links, so a watched file does not change.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import structlog

from gateway.policy.book import PolicyFileCache, check_all, check_book, load_all
from gateway.policy.files import PROJECTIONS_FOLDER
from gateway.policy.policies import PolicyEdition

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prometheus_client import Counter, Gauge

    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet
    from gateway.policy.policies import Policies

log = structlog.get_logger()

_T = TypeVar("_T")

_MAX_LOGGED = 50
"""Maximum issues and tenants in one log line. `gkt-gateway check` lists all."""


Signature = tuple[object, ...]
"""Names, inodes, times and sizes of the files; it changes when a file does."""


class PolicyFiles:
    """Read the policy files of a running process and detect changes of config.yaml.

    All methods block, so call them in a thread. Invalid file content raises no error after `open`.
    """

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


@dataclass(frozen=True, slots=True)
class ReloadInterval:
    """Seconds between polls, the longest wait for changing files and for the disk, and the pause after an error."""

    poll_every_s: float = 0.35
    latest_s: float = 1.0
    disk_limit_s: float = 60.0
    error_pause_s: float = 5.0


class ConfigEdit(NamedTuple):
    """Changes of config.yaml since the process was started."""

    changed: bool = False
    issues: tuple[str, ...] = ()


class EditDebounce:
    """Decide when an edit is complete: when two polls return the same signature. Pure. Files that change all the time
    are read after `latest_s`, so that no edit waits forever."""

    def __init__(self, latest_s: float) -> None:
        self._latest_s = latest_s
        self._read: Signature | None = None
        self._seen: Signature | None = None
        self._since: float | None = None

    def is_complete(self, seen: Signature, now: float) -> bool:
        """Return whether the files changed and should be read at `now`, in seconds."""
        same, self._seen = seen == self._seen, seen
        if seen == self._read:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return same or now - self._since >= self._latest_s

    def mark_read(self, seen: Signature) -> None:
        """Record that the files with this signature were read."""
        self._read, self._since = seen, None


class ReloadMetrics(Protocol):
    """Metrics that a reload changes; see telemetry/metrics.py."""

    config_stale: Gauge
    policy_loaded: Gauge
    policy_reloads: Counter
    policy_stale: Gauge


class Reloader:
    """Reload the policies after each edit.

    Args:
        now: set it to read the files at once, changed or not.

    Attributes:
        config: changes of config.yaml since the start.
    """

    def __init__(
        self,
        files: PolicyFiles,
        policies: Policies,
        metrics: ReloadMetrics,
        now: asyncio.Event,
        pace: ReloadInterval = ReloadInterval(),
    ) -> None:
        self._files, self._policies, self._metrics = files, policies, metrics
        self._now, self._pace = now, pace
        self._debounce = EditDebounce(pace.latest_s)
        self._on_disk: asyncio.Future[Any] | None = None
        self.config = ConfigEdit()
        metrics.policy_stale.set(0)
        metrics.config_stale.set(0)
        metrics.policy_loaded.set(policies.edition.loaded_at)

    async def run(self) -> None:
        """Poll until canceled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.poll_every_s):
                    await self._now.wait()
            try:
                await self._poll()
            except TimeoutError:
                self._debounce = EditDebounce(self._pace.latest_s)  # the signature last read is unknown
                self._refuse((f"the disk has not answered for {self._pace.disk_limit_s:g} s",))
            except Exception:
                # The loop must survive any error to see the next edit.
                log.exception("reload_failed", retry_in_s=self._pace.error_pause_s)
                await asyncio.sleep(self._pace.error_pause_s)

    async def _poll(self) -> None:
        requested = self._now.is_set()
        self._now.clear()
        seen = await self._in_thread(self._files.signature)
        if not self._debounce.is_complete(seen, asyncio.get_running_loop().time()) and not requested:
            return
        reading = await self._in_thread(self._files.read)
        self._debounce.mark_read(seen)
        self._apply(*reading, requested=requested)
        await self._check_config()

    def _apply(
        self, policy_set: PolicySet | None, issues: tuple[str, ...], edition: PolicyEdition, *, requested: bool
    ) -> None:
        policies = self._policies
        if policy_set is None:
            self._refuse(issues)
        elif edition.version != policies.edition.version:
            changes = _changes(policies.policy_set, policy_set)
            policies.put(policy_set, edition)
            self._metrics.policy_reloads.labels("loaded").inc()
            self._metrics.policy_loaded.set(edition.loaded_at)
            log.info("policies_loaded", version=edition.version, files=edition.files, **changes)
        elif policies.issues:
            policies.issues = ()
            log.info("policies_valid_again", version=edition.version, files=edition.files)
        elif requested:
            log.info("policies_unchanged", version=edition.version, files=edition.files)
        self._metrics.policy_stale.set(int(bool(policies.issues)))

    def _refuse(self, issues: tuple[str, ...]) -> None:
        if issues == self._policies.issues:
            return
        self._policies.issues = issues
        self._metrics.policy_reloads.labels("refused").inc()
        self._metrics.policy_stale.set(1)
        more = max(0, len(issues) - _MAX_LOGGED)
        log.error("policies_refused", holds=self._policies.edition.version, issues=issues[:_MAX_LOGGED], more=more)

    async def _check_config(self) -> None:
        if await self._in_thread(self._files.config_is_unchanged):
            if self.config.changed:
                log.info("config_edit_reverted")
            self.config = ConfigEdit()
            self._metrics.config_stale.set(0)
            return
        edit = ConfigEdit(changed=True, issues=await self._in_thread(self._files.config_issues))
        if edit != self.config:
            then = "restart to apply it; a restart would fail now" if edit.issues else "restart to apply it"
            log.warning("config_changed", then=then, issues=edit.issues[:_MAX_LOGGED])
        self.config = edit
        self._metrics.config_stale.set(1)

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        """Run a blocking function in a thread. Raises TimeoutError if the disk hangs, which blocks one thread only."""
        async with asyncio.timeout(self._pace.disk_limit_s):
            if self._on_disk is not None:
                await asyncio.wait({self._on_disk})
            running = asyncio.get_running_loop().run_in_executor(None, function)
            self._on_disk = running
            try:
                return await asyncio.shield(running)
            finally:
                if running.done():
                    self._on_disk = None


def _changes(before: PolicySet, after: PolicySet) -> dict[str, list[str]]:
    """Return the tenants that an edit changed, for the log."""
    old = {policy.tenant: policy for policy in before.policies}
    new = {policy.tenant: policy for policy in after.policies}
    both = ((tenant, old[tenant], new[tenant]) for tenant in new.keys() & old.keys())
    changes = {
        "added": new.keys() - old.keys(),
        # Unchanged files keep their policy object; comparing thousands by value would block the loop.
        "changed": {tenant for tenant, was, now in both if was is not now and was != now},
        "removed": old.keys() - new.keys(),
    }
    return {kind: sorted(tenants)[:_MAX_LOGGED] for kind, tenants in changes.items()}
