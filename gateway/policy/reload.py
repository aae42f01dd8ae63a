"""Reload config.yaml and the policies while the gateway runs: valid edits apply to new requests, invalid ones do not.

The names, times and sizes of the files are polled: 1,000 files take six milliseconds of a thread. Events of inotify are
missing on NFS, and a user has 128 instances. On Kubernetes, edits replace links, so a watched file does not change.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

import structlog

from gateway.config.changes import ModelChanges
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Counter, Gauge

    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet
    from gateway.policy.config_files import ConfigFiles, ConfigReading, Signature
    from gateway.policy.policies import Policies

log = structlog.get_logger()

_T = TypeVar("_T")

_MAX_LOGGED = 50
"""Maximum issues and tenants in one log line. `gkt-gateway check` lists all."""


@dataclass(frozen=True, slots=True)
class ReloadInterval:
    """Seconds between polls, the longest wait for changing files and for the disk, and the pause after an error."""

    poll_every_s: float = 0.35
    latest_s: float = 1.0
    disk_limit_s: float = 60.0
    error_pause_s: float = 5.0


class ConfigState(NamedTuple):
    """The version of config.yaml in use, and the parts of the current file that are not."""

    version: str = ""
    loaded_at: float = 0.0  # Unix seconds
    issues: tuple[str, ...] = ()  # of a newer file, which therefore is not used
    restart: tuple[str, ...] = ()  # changed settings that need a restart, with their lines

    @property
    def is_stale(self) -> bool:
        """Return whether a part of the current file is not in use."""
        return bool(self.issues or self.restart)


class ReloadResult(NamedTuple):
    """The result of the last edit of config.yaml, or of the policies."""

    at: float  # Unix seconds
    result: Literal["applied", "refused"]
    settings: tuple[str, ...] = ()  # changed settings and models of config.yaml
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

    config_reloads: Counter
    config_stale: Gauge
    policy_loaded: Gauge
    policy_reloads: Counter
    policy_stale: Gauge


class SettingsChange(NamedTuple):
    """Names of the models and settings that an edit of config.yaml changed in the running process."""

    models: ModelChanges = ModelChanges()
    settings: tuple[str, ...] = ()  # names of other settings

    @property
    def is_empty(self) -> bool:
        return not (any(self.models) or self.settings)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the changed settings and models."""
        return (*self.settings, *(f"models.{name}" for names in self.models for name in names))


class LiveSettings(Protocol):
    """The settings of the running process."""

    async def apply(self, settings: Settings, policy_set: PolicySet, commit: Callable[[], None]) -> SettingsChange:
        """Prepare the new settings, then put them into effect and call `commit` in one step of the event loop.

        Raises StartupError if the process cannot use them. Then they have no effect.
        """
        ...


class Reloader:
    """Reload config.yaml and the policies after each edit.

    Args:
        live: receives each valid config.yaml.
        now: set it to read the files at once, changed or not.

    Attributes:
        files: the files that it reads.
        config: the state of config.yaml.
        last_config: the result of the last edit of config.yaml; None: there was none.
        last_policies: the result of the last edit of the policies.
    """

    def __init__(
        self,
        files: ConfigFiles,
        policies: Policies,
        live: LiveSettings,
        metrics: ReloadMetrics,
        now: asyncio.Event,
        pace: ReloadInterval = ReloadInterval(),
    ) -> None:
        self.files, self._policies, self._live, self._metrics = files, policies, live, metrics
        self._now, self._pace = now, pace
        self._debounce = EditDebounce(pace.latest_s)
        self._on_disk: asyncio.Future[Any] | None = None
        self.config = ConfigState(files.version, time())
        self.last_config: ReloadResult | None = None
        self.last_policies: ReloadResult | None = None
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
                self._refuse_policies((f"the disk has not answered for {self._pace.disk_limit_s:g} s",))
            except Exception:
                # The loop must survive any error to see the next edit.
                log.exception("reload_failed", retry_in_s=self._pace.error_pause_s)
                await asyncio.sleep(self._pace.error_pause_s)

    async def _poll(self) -> None:
        requested = self._now.is_set()
        self._now.clear()
        seen = await self._in_thread(self.files.signature)
        if not self._debounce.is_complete(seen, asyncio.get_running_loop().time()) and not requested:
            return
        reading = await self._in_thread(partial(self.files.read, fresh=requested))
        try:
            await self._apply(reading, requested=requested)
        except StartupError as error:
            self.files.refuse(error.message)
            await self._apply(await self._in_thread(self.files.read), requested=requested)
        self._debounce.mark_read(seen)

    async def _apply(self, reading: ConfigReading, *, requested: bool) -> None:
        put = partial(self._put_policies, reading, requested=requested)
        if reading.settings is not None and reading.policy_set is not None:
            try:
                change = await self._live.apply(reading.settings, reading.policy_set, put)
            except StartupError:
                raise
            except Exception as error:
                # Refuse the file after any error, so that policies still follow their edits.
                log.exception("config_not_applied")
                raise StartupError("not used after an internal error: see config_not_applied in the log") from error
            self.files.accept(reading.settings)
            self._record_config(reading, change)
        else:
            put()
            self._record_issues(reading)
        self._metrics.config_stale.set(int(self.config.is_stale))

    def _put_policies(self, reading: ConfigReading, *, requested: bool) -> None:
        policies, policy_set, edition = self._policies, reading.policy_set, reading.edition
        if policy_set is None:
            self._refuse_policies(reading.policy_issues)
        elif edition.version != policies.edition.version:
            changes = _changes(policies.policy_set, policy_set)
            policies.put(policy_set, edition)
            self.last_policies = ReloadResult(time(), "applied")
            self._metrics.policy_reloads.labels("loaded").inc()
            self._metrics.policy_loaded.set(edition.loaded_at)
            log.info("policies_loaded", version=edition.version, files=edition.files, **changes)
        elif policies.issues:
            policies.issues = ()
            self.last_policies = ReloadResult(time(), "applied")
            log.info("policies_valid_again", version=edition.version, files=edition.files)
        elif requested:
            log.info("policies_unchanged", version=edition.version, files=edition.files)
        self._metrics.policy_stale.set(int(bool(policies.issues)))

    def _refuse_policies(self, issues: tuple[str, ...]) -> None:
        if issues == self._policies.issues:
            return
        self._policies.issues = issues
        self.last_policies = ReloadResult(time(), "refused", issues=issues[:_MAX_LOGGED])
        self._metrics.policy_reloads.labels("refused").inc()
        self._metrics.policy_stale.set(1)
        _log_issues("policies_refused", self._policies.edition.version, issues)

    def _record_config(self, reading: ConfigReading, change: SettingsChange) -> None:
        """Record that the current config.yaml is in use."""
        before = self.config
        if reading.version != before.version or not change.is_empty:
            models = {f"models_{kind}": list(names) for kind, names in change.models._asdict().items()}
            log.info("config_loaded", version=reading.version, settings=list(change.settings), **models)
            self._metrics.config_reloads.labels("loaded").inc()
            self.config = ConfigState(reading.version, time(), restart=reading.restart)
            self.last_config = ReloadResult(time(), "applied", change.names)
        else:
            self.config = before._replace(issues=(), restart=reading.restart)
            if before.issues:
                self.last_config = ReloadResult(time(), "applied")
                log.info("config_valid_again", version=reading.version)
        if reading.restart and reading.restart != before.restart:
            log.warning("config_needs_restart", settings=reading.restart[:_MAX_LOGGED])

    def _record_issues(self, reading: ConfigReading) -> None:
        """Record why the current config.yaml is not in use; nothing if only the policies have issues."""
        issues = reading.config_issues
        if issues and issues != self.config.issues:
            self._metrics.config_reloads.labels("refused").inc()
            self.last_config = ReloadResult(time(), "refused", issues=issues[:_MAX_LOGGED])
            _log_issues("config_refused", self.config.version, issues)
        self.config = self.config._replace(issues=issues)

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


def _log_issues(event: str, holds: str | None, issues: tuple[str, ...]) -> None:
    log.error(event, holds=holds, issues=issues[:_MAX_LOGGED], more=max(0, len(issues) - _MAX_LOGGED))


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
