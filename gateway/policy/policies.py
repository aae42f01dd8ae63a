"""The policies in effect."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.policy.book import PolicySet

_MAX_FORMER = 10_000


@dataclass(frozen=True, slots=True)
class PolicyEdition:
    """Version of the policies folder from which a policy set was loaded.

    Attributes:
        version: a hash over its files; None for a set without a folder.
        loaded_at: Unix seconds.
    """

    version: str | None
    files: int
    loaded_at: float


class Policies:
    """Hold the policy set for new requests. A request reads it once and uses it until its end.

    Attributes:
        policy_set: the policies in effect.
        edition: the version of the folder that they come from.
        issues: issues of the current folder, which therefore was not loaded; empty if there are none.
    """

    def __init__(self, policy_set: PolicySet, edition: PolicyEdition | None = None) -> None:
        self.policy_set = policy_set
        self.edition = edition or PolicyEdition(None, 0, time.time())
        self.issues: tuple[str, ...] = ()
        self._former: dict[str, None] = {}
        self._listeners: list[Callable[[PolicySet], object]] = []

    def put(self, policy_set: PolicySet, edition: PolicyEdition) -> None:
        """Put a policy set into effect."""
        removed = {policy.tenant for policy in self.policy_set.policies} - {
            policy.tenant for policy in policy_set.policies
        }
        self.policy_set, self.edition, self.issues = policy_set, edition, ()
        self._former.update(dict.fromkeys(sorted(removed)))
        while len(self._former) > _MAX_FORMER:
            del self._former[next(iter(self._former))]
        for listener in self._listeners:
            listener(policy_set)

    def note_issues(self, issues: Sequence[str]) -> None:
        """Set the issues of the current folder; the policies in effect stay."""
        self.issues = tuple(issues)

    def on_change(self, listener: Callable[[PolicySet], object]) -> None:
        """Call `listener` with each new policy set. It must neither block nor raise."""
        self._listeners.append(listener)

    def tenants(self) -> list[str]:
        """Return all tenants, removed ones included: their last requests may not be settled yet."""
        return list(dict.fromkeys((*(policy.tenant for policy in self.policy_set.policies), *self._former)))
