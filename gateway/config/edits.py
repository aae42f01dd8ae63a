"""The results of edits of config.yaml and of the policies, and the completion of an edit. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

Signature = tuple[object, ...]
"""Names, inodes, times and sizes of files; it changes when a file does."""


class EditResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of the last edit of config.yaml, or of the policies.

    Attributes:
        at: Unix seconds.
        settings: names of the changed settings and models of config.yaml.
        issues: why the edit is not used.
    """

    at: float
    result: Literal["applied", "refused"]
    settings: tuple[str, ...] = ()
    issues: tuple[str, ...] = ()


class EditDebounce:
    """Decide when an edit is complete: when two polls return the same signature.

    Files that change all the time are read after `latest_s`, so that no edit waits forever.
    """

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
