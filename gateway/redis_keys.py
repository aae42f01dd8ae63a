"""Every Redis key and channel the gateway uses.

Keys that one script touches share a hash tag, so that they live in one slot of a Redis Cluster. `prefix` separates
deployments that share a Redis. The `v1` says which layout of tickets and scripts a process speaks: a later layout uses
new names, so that two versions can stand side by side.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TeacherKeys:
    """The keys of one teacher's batches, in the order in which the script wants them."""

    queue: str  # sorted set: ticket id by arrival, microseconds of Redis TIME
    tickets: str  # hash: ticket id -> what the decision needs, or the grant once it is granted
    permits: str  # sorted set: ticket id by the end of its lease, microseconds of Redis TIME
    batches: str  # counter: the last batch id
    owners: str  # sorted set: process id by when it last exchanged, microseconds of Redis TIME

    def as_list(self) -> list[str]:
        return [self.queue, self.tickets, self.permits, self.batches, self.owners]


@dataclass(frozen=True, slots=True)
class RedisKeys:
    prefix: str

    def teacher(self, name: str) -> TeacherKeys:
        base = f"{{{self.prefix}:teacher:{name}}}:v1:"
        return TeacherKeys(*(base + part for part in ("queue", "tickets", "permits", "batches", "owners")))

    def wakeups(self, owner: str) -> str:
        """The channel on which a process hears that its tickets were granted by another one's script."""
        return f"{self.prefix}:v1:wakeups:{owner}"

    def receipt(self, tenant: str, receipt_id: str) -> str:
        return f"{self.prefix}:v1:receipt:{tenant}:{receipt_id}"
