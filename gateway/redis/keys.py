"""Every Redis key and channel the gateway uses.

Keys that one script touches share a hash tag, so that they live in one slot of a Redis Cluster. `prefix` separates
deployments that share a Redis. The `v` and its number say which layout a process speaks: a later layout uses new
names, so that two versions can stand side by side. docs/upgrading.md says when a number must be raised.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

BOARD = 4
"""The layout of teachers' boards, and of what processes wake each other with. Each ticket says it as well."""
TENANT = 2
"""That of what is counted for each tenant: limits, budgets, requests under way, and the outbox."""
RECEIPT = 1
LEDGER = 1
KEYRING = 1
HEARTBEAT = 1
SESSION = 1


@dataclass(frozen=True, slots=True)
class TeacherKeys:
    """The keys of one teacher's board, as the script wants them. Times are microseconds of Redis TIME."""

    queue: str  # sorted set without scores: the waiting tickets, by tenant, then by arrival
    tickets: str  # hash: ticket id -> one line with its state
    ends: str  # sorted set: ticket id by when it ends by itself
    permits: str  # set: ids of the tickets whose calls are in flight
    flights: str  # hash: work -> the ticket that leads
    followers: str  # sorted set without scores: tickets that wait for another's guidance, by work, then by arrival
    passes: str  # sorted set: tenant that waits by its pass, the place in the order of fair shares
    idle: str  # sorted set: tenant that does not wait by its pass, where that is ahead of the last permit's
    owners: str  # sorted set: process id by when it was last heard of
    state: str  # hash: counters, rates, times
    cache: str  # hash: work -> guidance
    cache_ends: str  # sorted set: work by when its guidance is forgotten
    settled: str  # set: ids of the processes that told all they hold since the board began or one came back
    boards: str  # hash: layout of a board of this teacher -> when it was last used, its processes, its calls in flight

    def as_list(self) -> list[str]:
        return [getattr(self, part.name) for part in fields(self)]


@dataclass(frozen=True, slots=True)
class KeyringKeys:
    """The callers' keys, as the scripts want them. Times are microseconds of Redis TIME."""

    terms: str  # hash: SHA-256 of a whole key -> what it may do
    dates: str  # hash: the same -> one line with its name, since when it is and until when
    names: str  # hash: tenant/id -> SHA-256
    changes: str  # sorted set: SHA-256 by the version in which it last changed
    heads: str  # hash: version -> a word that only this history has there; of the last versions
    state: str  # hash: the version and its word
    ends: str  # sorted set: SHA-256 by when the key ends or ended
    used: str  # sorted set: SHA-256 by when the key was last seen in use
    audit: str  # stream: what operators did; here, so that no key changes without an entry

    def as_list(self) -> list[str]:
        return [getattr(self, part.name) for part in fields(self)]


@dataclass(frozen=True, slots=True)
class LedgerKeys:
    """Keys of all tenants together: for usage workers, the uptime of engines and comparisons of answers.

    Of those that the previous version used, only the keys that processes of both versions need are here.
    `usage-db migrate` deletes the others (usage/previous_sums.py).
    """

    tenants: str  # set: tenants that ever had a receipt
    leaving: str  # sorted set: tenants that were quiet for long, by when they left `tenants`
    trimmer: str  # the process that bounds outboxes now; gone when it does not renew it
    written: str  # hash: result -> how many receipts the usage workers wrote with it
    # Of the previous version:
    lease: str  # the process that adds receipts up; gone when it does not renew it
    archived: str  # hash: tenant -> the entry of its outbox up to which all are written
    cursors: str  # hash: tenant -> the last entry of its outbox that is added up
    counted: str  # hash: tenant -> number of entries of its outbox that ever came before its cursor
    holds: str  # hash: tenant -> the entry up to which its outbox may be trimmed, until `held_until` of `state`
    state: str  # hash: among others `held_until`, in Unix seconds, and `building` while sums are made anew
    base: str

    def worker(self, number: int) -> str:
        """The state of the usage worker with this number, as JSON; gone when the worker does not renew it."""
        return f"{self.base}worker:{number}"

    def up(self, engine: str, day: int) -> str:
        """Bitmap: the minutes of the day that begins at that Unix second in which the engine was up."""
        return f"{self.base}up:{day}:{engine}"

    def seen_up(self, engine: str, day: int) -> str:
        """Bitmap: those in which anybody looked."""
        return f"{self.base}looked:{day}:{engine}"

    def quality(self, day: int) -> str:
        """Hash: tenant/comparison/length/route -> sums of the comparisons of that day."""
        return f"{self.base}quality:{day}"

    def quality_spent(self, day: int) -> str:
        """Hash: tenant/route -> picodollars that comparisons cost on that day, or may come to."""
        return f"{self.base}quality_spent:{day}"

    def rates(self, day: int) -> str:
        """Hash: engine that is paid by the hour -> USD for an hour of it, on that day."""
        return f"{self.base}rates:{day}"


@dataclass(frozen=True, slots=True)
class RedisKeys:
    """Attributes:
    board: the layout of boards that this process speaks.
    """

    prefix: str
    board: int = BOARD

    def teacher(self, name: str) -> TeacherKeys:
        teacher = f"{{{self.prefix}:teacher:{name}}}:"
        # By `boards` the layouts know of each other: its name and its shape are those of every version.
        names = [part.name for part in fields(TeacherKeys) if part.name != "boards"]
        return TeacherKeys(**{one: f"{teacher}v{self.board}:{one}" for one in names}, boards=teacher + "boards")

    def wakeups(self, owner: str) -> str:
        """The channel on which a process hears that its tickets were granted by another one's script."""
        return f"{self.prefix}:v{self.board}:wakeups:{owner}"

    def heartbeat(self, owner: str) -> str:
        """There for as long as the process is: it is written anew several times per lease."""
        return f"{self.prefix}:v{HEARTBEAT}:alive:{owner}"

    def intents(self, tenant: str, owner: str) -> str:
        """Hash: request id -> when it was admitted, and its intent; of one tenant's requests that one process works on.

        The time is a slot of a tenth of a second.
        """
        return f"{self.tenant_base(tenant)}intents:{owner}"

    def owners(self, tenant: str) -> str:
        """Sorted set: process id by when it last admitted a request of the tenant, microseconds of Redis TIME."""
        return f"{self.tenant_base(tenant)}owners"

    def scope(self, tenant: str, scope: str) -> tuple[str, str, str]:
        """Of a tenant, or of one of its keys: what was used in the last minute, what runs in parallel, and its money.

        Three hashes. The last has a fourth beside it where the budget is a rolling one.
        """
        base = f"{self.tenant_base(tenant)}{scope}:"
        return base + "window", base + "parallel", base + "budget"

    def receipt(self, tenant: str, receipt_id: str) -> str:
        return f"{self.tenant_base(tenant, RECEIPT)}receipt:{receipt_id}"

    def outbox(self, tenant: str) -> str:
        """Stream: a tenant's receipts as they are settled, until a usage worker has written them.

        Fields of an entry: `receipt`, and `instead` where it replaces an abandoned one; or `comparison`. All are JSON.
        """
        return f"{self.tenant_base(tenant)}outbox"

    def offline(self, tenant: str) -> str:
        """How many answers the tenant's devices reported that they made alone, in an hour or less; gone after that."""
        return f"{self.tenant_base(tenant)}offline"

    def ledger(self) -> LedgerKeys:
        base = self.ledger_base
        names = [part.name for part in fields(LedgerKeys) if part.name != "base"]
        return LedgerKeys(**{name: base + name for name in names}, base=base)

    def ended_session(self, session_id: str) -> str:
        """A session of the dashboard that ended at logout; gone when none of its cookies could be valid any more."""
        return f"{self.prefix}:v{SESSION}:ended_session:{session_id}"

    def keyring(self) -> KeyringKeys:
        return KeyringKeys(*(self.keyring_base + part.name for part in fields(KeyringKeys)))

    @property
    def keyring_base(self) -> str:
        """How the name of each of the callers' keys' keys begins."""
        return f"{{{self.prefix}:admin}}:v{KEYRING}:"

    @property
    def ledger_base(self) -> str:
        """The beginning of the name of each of `ledger`'s keys."""
        return f"{{{self.prefix}:ledger}}:v{LEDGER}:"

    def tenant_base(self, tenant: str, layout: int = TENANT) -> str:
        """How the name of each of a tenant's keys begins."""
        return f"{{{self.prefix}:tenant:{tenant}}}:v{layout}:"
