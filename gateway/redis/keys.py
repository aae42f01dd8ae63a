"""The names of all Redis keys and channels of the gateway.

Keys of one script call share a hash tag, so that they are in one slot of a Redis Cluster. `prefix` separates
deployments that share a Redis. The number after `v` is the version of the layout.

A policy may divide a very large tenant into slices, for several nodes of a cluster. The name of a slice
takes the place of the tenant's name in the keys of limits, budgets, requests under way, receipts and outboxes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

LAYOUT = 1
"""Version of the names and formats of all keys. Increase it with each change of a format."""

OUTCOMES = "(outcomes)"
"""The name, in place of a tenant, of the outbox for all tenants' outcomes."""
_SLICE = "#"


def slice_name(tenant: str, number: int) -> str:
    """Return the name of a slice. Slice 0 has the name of the tenant. No tenant has a `#` in its name."""
    return f"{tenant}{_SLICE}{number}" if number else tenant


def slice_names(tenant: str, slices: int) -> list[str]:
    """Return the names of all slices of a tenant."""
    return [slice_name(tenant, number) for number in range(slices)]


class TeacherKeys(NamedTuple):
    """The keys of one teacher's queue, in the order of the script's KEYS. Times are microseconds of Redis TIME."""

    queue: str  # sorted set without scores: the waiting tickets, by tenant, then by arrival
    tickets: str  # hash: ticket id -> one line with its state
    ends: str  # sorted set: ticket id by its expiry
    permits: str  # set: ids of the tickets whose calls are in flight
    flights: str  # hash: dedupe key -> the leading ticket
    followers: str  # sorted set without scores: tickets that share another's guidance, by dedupe key, then by arrival
    passes: str  # sorted set: waiting tenant by its pass, its position in the order of fair shares
    idle: str  # sorted set: tenant that does not wait by its pass, where that is ahead of the last permit's
    owners: str  # sorted set: process id by its last contact
    state: str  # hash: counters, rates, times
    cache: str  # hash: dedupe key -> guidance
    cache_ends: str  # sorted set: dedupe key by the expiry of its guidance
    settled: str  # set: ids of the processes that reported all their tickets since the queue began or one returned


class KeyringKeys(NamedTuple):
    """The keys for API keys, in the order of the scripts' KEYS. Times are microseconds of Redis TIME."""

    terms: str  # hash: SHA-256 of a whole key -> its terms
    dates: str  # hash: SHA-256 of a whole key -> one line with its name, its start and its end
    names: str  # hash: tenant/id -> SHA-256
    changes: str  # sorted set: SHA-256 by the version of its last change
    heads: str  # hash: version -> a random word of this history, for the last versions
    state: str  # hash: the version and its word
    ends: str  # sorted set: SHA-256 by the end of the key
    used: str  # sorted set: SHA-256 by the last use of the key
    audit: str  # stream: the actions of operators; kept here so that each change of a key has an entry


class GuidanceOffKeys(NamedTuple):
    """The keys for switched-off guidance, in the order of the scripts' KEYS. A scope is `*`, a tenant, or tenant/route.

    They are next to the keys of `KeyringKeys`, because each change has an entry in its audit trail.
    """

    off: str  # hash: scope -> the time since which its guidance is off, in microseconds of Redis TIME, a bar, and JSON
    restored: str  # hash: scope -> the time at which its guidance was last switched on; expires
    version: str  # a random word that each change replaces
    audit: str
    base: str

    def window(self, tenant: str, route: str, settings: str) -> str:
        """Return the key of the comparisons that may switch a route off. It expires. `settings` is a hash of them."""
        return f"{self.base}guidance_window:{settings}:{tenant}/{route}"


class StoredResponseKeys(NamedTuple):
    """The keys for one stored response of a tenant, in the order of the scripts' KEYS."""

    response: str  # the response and its conversation; expires
    ends: str  # sorted set: id|counted size of each response of the tenant by its expiry, in Unix milliseconds
    total: str  # the sum of the counted sizes


class CollectedKeys(NamedTuple):
    """The keys for the collected requests of one route, in the order of the script's KEYS. All expire together."""

    state: str  # hash: `since` and `ends` in Unix milliseconds, `bytes`, `threshold`, and counts of requests
    order: str  # sorted set: request id by its random priority
    requests: str  # hash: request id -> the request as JSON
    routes: str  # sorted set of the tenant: route by the end of its sample, in Unix milliseconds


class LedgerKeys(NamedTuple):
    """Keys shared by all tenants: for usage workers, the uptime of engines, and comparisons of answers."""

    tenants: str  # set: tenants with receipts, and their slices
    leaving: str  # sorted set: inactive tenants, by the time at which they left `tenants`
    trimmer: str  # the process that trims outboxes; expires when it does not renew it
    written: str  # hash: result -> number of receipts that usage workers wrote with it
    lost_of: str  # hash in a cluster: tenant -> the part of its lost receipts that `written` contains
    base: str

    def spend_check(self, hour: int) -> str:
        """Return the key that exists while and after a process checks the spend of an hour. `hour`: its start in Unix
        seconds."""
        return f"{self.base}spend_check:{hour}"

    def spend_reported(self, tenant: str) -> str:
        """Return the key that exists for a day after the unusual spend of a tenant was reported."""
        return f"{self.base}spend_reported:{tenant}"

    def worker(self, number: int) -> str:
        """Return the key of a usage worker's state as JSON. It expires when the worker does not renew it."""
        return f"{self.base}worker:{number}"

    def engine_minute(self, minute: int) -> str:
        """Return the key of a hash: `up:` or `seen:` and an engine -> USD per hour. `minute`: since the Unix epoch."""
        return f"{self.base}engine_minute:{minute}"

    def quality_spent(self, day: int) -> str:
        """Return the key of a hash: tenant/route -> picodollars that comparisons spent or reserved on that day."""
        return f"{self.base}quality_spent:{day}"

    def answer_lengths(self, period: int) -> str:
        """Return the key of a hash: sums of lengths of answers, by number and scope. It expires. `period`: its start in
        Unix seconds."""
        return f"{self.base}answer_lengths:{period}"

    def rejections(self) -> str:
        """Return the start of the keys of `rejections_of`. The script selects the period by the clock of Redis."""
        return f"{self.base}rejections"

    def rejections_of(self, seconds: int, start: int) -> str:
        """Return the key of a hash: status, error and tenant -> number of rejected requests of an hour or a day."""
        return f"{self.rejections()}:{seconds}:{start}"


class RedisKeys(NamedTuple):
    """The names of all keys."""

    prefix: str  # of the deployment

    def escaped(self) -> RedisKeys:
        """Return the names for patterns of SCAN, which match the prefix literally."""
        return self._replace(prefix=re.sub(r"([\\*?\[\]^-])", r"\\\1", self.prefix))

    def teacher(self, name: str) -> TeacherKeys:
        teacher = f"{{{self.prefix}:teacher:{name}}}:"
        return TeacherKeys(**{one: f"{teacher}v{LAYOUT}:{one}" for one in TeacherKeys._fields})

    def wakeups(self, process_id: str) -> str:
        """Return the channel on which a process is notified of tickets that another process's script granted."""
        return f"{self.prefix}:v{LAYOUT}:wakeups:{process_id}"

    def heartbeat(self, process_id: str) -> str:
        """Return the key of a process's heartbeat. The process renews it several times per lease."""
        return f"{self.prefix}:v{LAYOUT}:alive:{process_id}"

    def intents(self, tenant: str, process_id: str) -> str:
        """Return the key of a hash of one tenant's requests in one process: request id -> its time slot and intent."""
        return f"{self.tenant_base(tenant)}intents:{process_id}"

    def owners(self, tenant: str) -> str:
        """Return the key of a sorted set: process id by its last admission, in microseconds of Redis TIME."""
        return f"{self.tenant_base(tenant)}owners"

    def scope(self, tenant: str, scope: str) -> tuple[str, str, str]:
        """Return the keys of three hashes of a scope: the last minute, parallel requests, and the budget.

        A rolling budget has a fourth hash. Its name is the third key, a colon, and the period in seconds.
        """
        base = f"{self.tenant_base(tenant)}{scope}:"
        return base + "window", base + "parallel", base + "budget"

    def budget_of(self, key: str) -> tuple[str, str] | None:
        """Return the tenant or slice and the scope of a budget, given its key; None for another key."""
        before, after = map(re.escape, self.tenant_base("\0").split("\0"))
        match = re.fullmatch(f"{before}(.+?){after}(.+):budget", key, re.DOTALL)
        return None if match is None else (match[1], match[2])

    def event_sent(self, tenant: str, scope: str, kind: str) -> str:
        """Return the key that exists after an event of a budget with slices was sent. It expires with the period."""
        return f"{self.tenant_base(tenant)}{scope}:sent:{kind}"

    def label_values(self, tenant: str, label: str, trusted: bool, month: str) -> str:
        """Return the key of a sorted set: the values of a label in a month, from claims or chosen by callers."""
        return f"{self.tenant_base(tenant)}label_values:{label}:{'claim' if trusted else 'caller'}:{month}"

    def receipt(self, tenant: str, receipt_id: str) -> str:
        return f"{self.tenant_base(tenant)}receipt:{receipt_id}"

    def stored_response(self, tenant: str, response_id: str) -> StoredResponseKeys:
        base = self.tenant_base(tenant) + "stored_response"
        return StoredResponseKeys(f"{base}:{response_id}", f"{base}s:ends", f"{base}s:total")

    def collected(self, tenant: str, route: str) -> CollectedKeys:
        base = self.tenant_base(tenant) + "collected"
        state, order, requests = (f"{base}:{name}:{route}" for name in ("state", "order", "requests"))
        return CollectedKeys(state, order, requests, f"{base}_routes")

    def outbox(self, tenant: str) -> str:
        """Return the key of a stream: a tenant's settled receipts, until a usage worker has written them.

        An entry has the field `receipt`, and `instead` where it replaces an abandoned one. An entry of the outbox of
        comparisons has the field `comparison`, and one of the outbox of outcomes `outcome`. All values are JSON.
        """
        return f"{self.tenant_base(tenant)}outbox"

    def lost(self, tenant: str) -> str:
        """Return the key of a hash in a cluster: the number of receipts of the tenant that were deleted before a
        usage worker read them."""
        return f"{self.tenant_base(tenant)}lost"

    def feedback(self, tenant: str, receipt_id: str) -> str:
        """Return the key of the score of a request. It shares a hash tag with the outbox of outcomes."""
        return f"{self.tenant_base(OUTCOMES)}score:{tenant}:{receipt_id}"

    def offline(self, tenant: str) -> str:
        """Return the key of a counter: offline answers that the tenant's devices reported within an hour."""
        return f"{self.tenant_base(tenant)}offline"

    def device_savings(self, tenant: str, key_id: str) -> str:
        """Return the key of a hash: the day since the epoch, and picodollars that the reports of an API key saved."""
        return f"{self.tenant_base(tenant)}device_savings:{key_id}"

    def ledger(self) -> LedgerKeys:
        base = self.ledger_base
        names = [name for name in LedgerKeys._fields if name != "base"]
        return LedgerKeys(**{name: base + name for name in names}, base=base)

    def ended_session(self, session_id: str) -> str:
        """Return the key of a dashboard session that was logged out. It expires with the session's cookies."""
        return f"{self.prefix}:v{LAYOUT}:ended_session:{session_id}"

    def keyring(self) -> KeyringKeys:
        return KeyringKeys(*(self.keyring_base + name for name in KeyringKeys._fields))

    def guidance_off(self) -> GuidanceOffKeys:
        base = self.keyring_base
        off, restored, version = (f"{base}guidance_{name}" for name in ("off", "restored", "version"))
        return GuidanceOffKeys(off, restored, version, self.keyring().audit, base)

    @property
    def keyring_base(self) -> str:
        """Return the common prefix of the keys in `KeyringKeys` and `GuidanceOffKeys`."""
        return f"{{{self.prefix}:admin}}:v{LAYOUT}:"

    @property
    def ledger_base(self) -> str:
        """Return the common prefix of the keys in `LedgerKeys`."""
        return f"{{{self.prefix}:ledger}}:v{LAYOUT}:"

    def tenant_base(self, tenant: str) -> str:
        """Return the common prefix of the keys of a tenant, or of one of its slices."""
        return f"{{{self.prefix}:tenant:{tenant}}}:v{LAYOUT}:"
