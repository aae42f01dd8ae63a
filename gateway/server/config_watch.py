"""Watch config.yaml for the supervisor, and check each edit before any process uses it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.config.edits import EditDebounce
from gateway.config.yaml_source import read_bytes
from gateway.policy.book import PolicyFileCache, load_all
from gateway.policy.config_files import config_signature, digest_of, policy_signature, read_config
from gateway.policy.reload import ReloadInterval

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.edits import Signature
    from gateway.config.settings import Settings
    from gateway.policy.config_files import ConfigReading

_RETRY_S = 30.0


class ConfigWatch:
    """The config.yaml of a gateway, and the version that its workers use.

    Attributes:
        settings: the settings in use.
        digest: a hash of the file in use.
    """

    def __init__(self, config: Path) -> None:
        """Load config.yaml and its policies. Raises ConfigError with every issue of both."""
        self._config, self._pace = config, ReloadInterval()
        self.digest = digest_of(read_bytes(config))
        self.settings, _, _ = load_all(config)
        self._debounce = EditDebounce(self._pace.latest_s)
        self._cache = PolicyFileCache()
        self._refused_policies: Path | None = None
        self._retry_at: float | None = None

    def accept(self, edit: ConfigReading, settings: Settings) -> None:
        """Record that the workers use an edit."""
        self.digest, self.settings = edit.digest, settings
        self._refused_policies, self._retry_at = None, None

    def refuse(self, edit: ConfigReading, *, retries: bool) -> None:
        """Record that an edit is not used. A change of its policies, which name its models, makes it worth a try.

        `retries`: read it again after a while, because the reason may go away by itself.
        """
        self._refused_policies = edit.policies or self.settings.policies
        self._retry_at = asyncio.get_running_loop().time() + _RETRY_S if retries else None

    async def next(self, now: asyncio.Event) -> ConfigReading:
        """Wait for a complete edit, and read it. The event `now` reads the files at once, changed or not."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.poll_every_s):
                    await now.wait()
            is_due = now.is_set() or self._is_retried()
            now.clear()
            seen = await asyncio.to_thread(self._signature)
            if not self._debounce.is_complete(seen, asyncio.get_running_loop().time()) and not is_due:
                continue
            self._debounce.mark_read(seen)
            return await asyncio.to_thread(read_config, self._config, self.settings, self.digest, self._cache)

    def _is_retried(self) -> bool:
        return self._retry_at is not None and asyncio.get_running_loop().time() >= self._retry_at

    def _signature(self) -> Signature:
        """Return a signature of the files whose change may be an edit of config.yaml, or make a refused one valid."""
        signature = config_signature(self._config)
        if self._refused_policies is None:
            return signature
        return (*signature, *policy_signature(self._refused_policies, self._cache))
