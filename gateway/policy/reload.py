"""Follows the policy files while the gateway runs: a right edit holds for new requests, a wrong one changes nothing.

It looks at the files' names, times and sizes again and again, and asks the kernel for no notice. None comes from NFS;
each worker would take one of the 128 inotify instances that a user has by default; and where an edit goes through
links, as on Kubernetes, what is to be watched is not what changes. The library for it, watchfiles, would have to poll
there as well, and missed one of five edits that way when we tried it. A look at 1,000 files takes six milliseconds of a
thread.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Counter, Gauge

    from gateway.policy.book import PolicySet
    from gateway.policy.files import PolicyFiles, PolicyFolder, Signature
    from gateway.policy.policies import Policies

log = structlog.get_logger()

_T = TypeVar("_T")

_DISK_LIMIT_S = 60.0
_REST_S = 5.0
_MOST_SAID = 50
"""How many mistakes and tenants one log line names. The metric and `gkt-gateway check` know all."""


@dataclass(frozen=True, slots=True)
class ReloadInterval:
    """Seconds between two looks; and how long files that keep changing are waited for at most."""

    look_every_s: float = 0.35
    latest_s: float = 1.0


@dataclass(frozen=True, slots=True)
class ConfigEdit:
    """What became of config.yaml since the process was started with it.

    Attributes:
        mistakes: what a restart would say.
    """

    changed: bool = False
    mistakes: tuple[str, ...] = ()


class EditDebounce:
    """Tells when an edit is whole: when two looks saw the same. Pure; it is told the time.

    Files that change all the time are whole after `latest_s`: someone's edit among them must not wait for ever.
    """

    def __init__(self, latest_s: float) -> None:
        self._latest_s = latest_s
        self._read: Signature | None = None
        self._seen: Signature | None = None
        self._since: float | None = None

    def is_whole(self, seen: Signature, now: float) -> bool:
        """Whether what is seen now, at `now`, is news that should be read."""
        same, self._seen = seen == self._seen, seen
        if seen == self._read:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return same or now - self._since >= self._latest_s

    def was_read(self, seen: Signature) -> None:
        """The files were read, and looked like this before."""
        self._read, self._since = seen, None


class ReloadMetrics(Protocol):
    """The metrics that a reload changes; see telemetry/metrics.py."""

    @property
    def config_stale(self) -> Gauge: ...

    @property
    def policy_loaded(self) -> Gauge: ...

    @property
    def policy_reloads(self) -> Counter: ...

    @property
    def policy_stale(self) -> Gauge: ...


class Reloader:
    """Args:
    now: set by whoever wants the files read at once, changed or not.

    Attributes:
        config: what became of config.yaml.
    """

    def __init__(
        self,
        files: PolicyFiles,
        policies: Policies,
        metrics: ReloadMetrics,
        now: asyncio.Event,
        pace: ReloadInterval = ReloadInterval(),
    ) -> None:
        self._files = files
        self._policies = policies
        self._metrics = metrics
        self._now = now
        self._pace = pace
        self._quiet = EditDebounce(pace.latest_s)
        self._on_disk: asyncio.Future[Any] | None = None
        self.config = ConfigEdit()
        metrics.policy_stale.set(0)
        metrics.config_stale.set(0)
        metrics.policy_loaded.set(policies.edition.loaded_at)

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                async with asyncio.timeout(self._pace.look_every_s):
                    await self._now.wait()
            except TimeoutError:
                pass
            try:
                await self._look()
            except TimeoutError:
                self._quiet = EditDebounce(self._pace.latest_s)  # what was read is not known any more
                self._refuse((f"the disk has not answered for {_DISK_LIMIT_S:g} s",))
            except Exception:
                # Whatever it is, the next edit must be seen.
                log.exception("reload_broke", again_in_s=_REST_S)
                await asyncio.sleep(_REST_S)

    async def _look(self) -> None:
        asked = self._now.is_set()
        self._now.clear()
        seen = await self._in_thread(self._files.signature)
        if not self._quiet.is_whole(seen, asyncio.get_running_loop().time()) and not asked:
            return
        reading = await self._in_thread(self._files.read)
        self._quiet.was_read(seen)
        self._take(reading, asked=asked)
        await self._look_at_config()

    def _take(self, reading: PolicyFolder, *, asked: bool) -> None:
        policies, edition = self._policies, reading.edition
        if reading.book is None:
            self._refuse(reading.mistakes)
        elif edition.version != policies.edition.version:
            changes = _changes(policies.book, reading.book)
            policies.put(reading.book, edition)
            self._metrics.policy_reloads.labels("loaded").inc()
            self._metrics.policy_loaded.set(edition.loaded_at)
            log.info("policies_loaded", version=edition.version, files=edition.files, **changes)
        elif policies.mistakes:
            policies.note_mistakes(())
            log.info("policies_mended", version=edition.version, files=edition.files)
        elif asked:
            log.info("policies_unchanged", version=edition.version, files=edition.files)
        self._metrics.policy_stale.set(int(bool(policies.mistakes)))

    def _refuse(self, mistakes: tuple[str, ...]) -> None:
        if mistakes == self._policies.mistakes:
            return
        self._policies.note_mistakes(mistakes)
        self._metrics.policy_reloads.labels("refused").inc()
        self._metrics.policy_stale.set(1)
        log.error(
            "policies_refused",
            holds=self._policies.edition.version,
            mistakes=mistakes[:_MOST_SAID],
            more=max(0, len(mistakes) - _MOST_SAID),
        )

    async def _look_at_config(self) -> None:
        if await self._in_thread(self._files.config_is_as_it_was):
            if self.config.changed:
                log.info("config_edit_taken_back")
            self.config = ConfigEdit()
            self._metrics.config_stale.set(0)
            return
        edit = ConfigEdit(changed=True, mistakes=await self._in_thread(self._files.config_mistakes))
        if edit != self.config:
            log.warning(
                "config_changed",
                then="it takes a restart, which would fail now" if edit.mistakes else "it takes a restart",
                mistakes=edit.mistakes[:_MOST_SAID],
            )
        self.config = edit
        self._metrics.config_stale.set(1)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        """What blocks. A disk that hangs is left to hang in one thread. Raises TimeoutError then."""
        async with asyncio.timeout(_DISK_LIMIT_S):
            if self._on_disk is not None:
                await asyncio.wait({self._on_disk})
            doing = asyncio.get_running_loop().run_in_executor(None, work)
            self._on_disk = doing
            try:
                return await asyncio.shield(doing)
            finally:
                if doing.done():
                    self._on_disk = None


def _changes(before: PolicySet, after: PolicySet) -> dict[str, list[str]]:
    """The tenants that an edit touched, for the log."""
    old = {policy.tenant: policy for policy in before.policies}
    new = {policy.tenant: policy for policy in after.policies}
    both = ((tenant, old[tenant], new[tenant]) for tenant in new.keys() & old.keys())
    changes = {
        "added": new.keys() - old.keys(),
        # What was not parsed again is the same thing, and comparing thousands would hold the loop.
        "changed": {tenant for tenant, was, now in both if was is not now and was != now},
        "removed": old.keys() - new.keys(),
    }
    return {what: sorted(tenants)[:_MOST_SAID] for what, tenants in changes.items()}
