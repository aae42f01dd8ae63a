"""Reload the policies while the gateway runs: valid edits apply to new requests, invalid ones do not.

The names, times and sizes of the files are polled: 1,000 files take six milliseconds of a thread. Events of inotify are
missing on NFS, and a user has 128 instances. On Kubernetes, edits replace links, so a watched file does not change.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog

from gateway.config.edits import EditDebounce, EditResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Counter, Gauge

    from gateway.policy.book import PolicySet
    from gateway.policy.config_files import ConfigFiles, PolicyReading
    from gateway.policy.policies import Policies

log = structlog.get_logger()

_T = TypeVar("_T")

MAX_LOGGED = 50
"""Maximum issues and tenants in one log line. `gkt-gateway check` lists all."""


@dataclass(frozen=True, slots=True)
class ReloadInterval:
    """Seconds between polls, the longest wait for changing files and for the disk, and the pause after an error."""

    poll_every_s: float = 0.35
    latest_s: float = 1.0
    disk_limit_s: float = 60.0
    error_pause_s: float = 5.0


class ReloadMetrics(Protocol):
    """Metrics that a reload changes; see telemetry/metrics.py."""

    config_reloads: Counter
    config_stale: Gauge
    policy_loaded: Gauge
    policy_reloads: Counter
    policy_stale: Gauge


class Reloader:
    """Reload the policies after each edit, and hold the results of edits of config.yaml.

    An edit of config.yaml starts other workers (server/supervisor.py), so here it changes nothing but its result.

    Args:
        now: set it to read the policies at once, changed or not.

    Attributes:
        files: the files of the process.
        loaded_at: when config.yaml was loaded, in Unix seconds.
        last_config: the result of the last edit of config.yaml; None: there was none.
        last_policies: the result of the last edit of the policies.
    """

    def __init__(
        self,
        files: ConfigFiles,
        policies: Policies,
        metrics: ReloadMetrics,
        now: asyncio.Event,
        pace: ReloadInterval = ReloadInterval(),
    ) -> None:
        self.files, self._policies, self._metrics = files, policies, metrics
        self._now, self._pace = now, pace
        self._debounce = EditDebounce(pace.latest_s)
        self._on_disk: asyncio.Future[Any] | None = None
        self._is_retired = False
        self.loaded_at = time()
        self.last_config: EditResult | None = None
        self.last_policies: EditResult | None = None
        metrics.policy_stale.set(0)
        metrics.config_stale.set(0)
        metrics.policy_loaded.set(policies.edition.loaded_at)

    @property
    def config_issues(self) -> tuple[str, ...]:
        """Return why the current config.yaml is not in use; empty if it is."""
        return () if self.last_config is None else self.last_config.issues

    async def follow(self, edits: asyncio.Queue[EditResult]) -> None:
        """Record the results of edits of config.yaml until canceled."""
        while True:
            self.last_config = edit = await edits.get()
            self._metrics.config_reloads.labels("refused" if edit.result == "refused" else "loaded").inc()
            self._metrics.config_stale.set(int(bool(edit.issues)))

    def retire(self) -> None:
        """Stop polling, and report no invalid files: other workers, which replace this one, report them."""
        self._is_retired = True
        self._metrics.policy_stale.set(0)
        self._metrics.config_stale.set(0)

    async def run(self) -> None:
        """Poll the policies until `retire`."""
        while not self._is_retired:
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
        seen = await self._in_thread(self.files.signature)
        if not self._debounce.is_complete(seen, asyncio.get_running_loop().time()) and not requested:
            return
        reading = await self._in_thread(self.files.read)
        if self._is_retired:
            return
        self._put(reading, requested=requested)
        self._debounce.mark_read(seen)

    def _put(self, reading: PolicyReading, *, requested: bool) -> None:
        policies, policy_set, edition = self._policies, reading.policy_set, reading.edition
        if policy_set is None:
            self._refuse(reading.issues)
        elif edition.version != policies.edition.version:
            changes = _changes(policies.policy_set, policy_set)
            policies.put(policy_set, edition)
            self.last_policies = EditResult(time(), "applied")
            self._metrics.policy_reloads.labels("loaded").inc()
            self._metrics.policy_loaded.set(edition.loaded_at)
            log.info("policies_loaded", version=edition.version, files=edition.files, **changes)
        elif policies.issues:
            policies.issues = ()
            self.last_policies = EditResult(time(), "applied")
            log.info("policies_valid_again", version=edition.version, files=edition.files)
        elif requested:
            log.info("policies_unchanged", version=edition.version, files=edition.files)
        self._metrics.policy_stale.set(int(bool(policies.issues)))

    def _refuse(self, issues: tuple[str, ...]) -> None:
        if self._is_retired or issues == self._policies.issues:
            return
        self._policies.issues = issues
        self.last_policies = EditResult(time(), "refused", issues=issues[:MAX_LOGGED])
        self._metrics.policy_reloads.labels("refused").inc()
        self._metrics.policy_stale.set(1)
        log_issues("policies_refused", self._policies.edition.version, issues)

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


def log_issues(event: str, holds: str | None, issues: tuple[str, ...]) -> None:
    """Log why an edit is not used, and the version that stays in use."""
    log.error(event, holds=holds, issues=issues[:MAX_LOGGED], more=max(0, len(issues) - MAX_LOGGED))


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
    return {kind: sorted(tenants)[:MAX_LOGGED] for kind, tenants in changes.items()}
