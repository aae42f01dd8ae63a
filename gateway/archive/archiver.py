"""Brings receipts from the tenants' outboxes into the archive.

One process at a time works. A lease only spares the others the work: of two that believe to be alone each takes other
entries, and what is brought twice is kept once.

Order is what makes it safe: an entry is taken, written, committed, and only then told of. Who dies before leaves it
pending, and it is taken anew. While the archive is away entries wait in Redis (`receipts.max_buffered`).
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import RedisError

from gateway.archive.database import ArchiveError
from gateway.archive.feed import Behind
from gateway.archive.state import HEAR_EVERY_S, ArchiveState
from gateway.errors import StartupError

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from gateway.archive.archive import Archive
    from gateway.archive.database import Entry
    from gateway.archive.feed import ArchiveFeed, Taken
    from gateway.archive.state import ArchiveBoard
    from gateway.metrics import Metrics
    from gateway.redis_client import RedisClient
    from gateway.redis_keys import LedgerKeys

log = structlog.get_logger()

_EVERY_S = 0.5
_REST_TIMES = 3
_MOST_AT_ONCE = 1_000
_LEASE_MS = 15_000
_FIRST_REST_S = 0.5
_LONGEST_REST_S = 5.0
_LOOK_EVERY_S = 10.0
_CLAIM_EVERY_S = 60.0
_DELETE_EVERY_S = 600.0
_FINISH_S = 3.0


class Lease:
    """Who archives: `owner`, for as long as it says so."""

    def __init__(self, redis: Redis, keys: LedgerKeys, owner: str) -> None:
        self._redis = redis
        self._key = keys.archiver
        self.owner = owner

    async def held(self) -> bool:
        """Take it, or hold it for longer: whether it is this process's. Raises RedisError and OSError."""
        if await self._redis.set(self._key, self.owner, nx=True, px=_LEASE_MS):
            return True
        if not await self._is_ours():
            return False
        return bool(await self._redis.set(self._key, self.owner, xx=True, px=_LEASE_MS))

    async def leave(self) -> None:
        """Let another process go on at once."""
        try:
            if await self._is_ours():
                await self._redis.delete(self._key)
        except (RedisError, OSError):
            pass  # it ends by itself

    async def _is_ours(self) -> bool:
        held: Any = await self._redis.get(self._key)
        return held is not None and held.decode() == self.owner


class Archiver:
    """Args:
    keep_s: how long receipts stay; None: for ever.
    """

    def __init__(
        self,
        client: RedisClient,
        feed: ArchiveFeed,
        archive: Archive,
        lease: Lease,
        board: ArchiveBoard,
        *,
        keep_s: float | None,
        metrics: Metrics,
    ) -> None:
        self._client = client
        self._feed = feed
        self._archive = archive
        self._lease = lease
        self._board = board
        self._keep_s = keep_s
        self._metrics = metrics
        self._leads = False
        self._held: list[Entry] = []  # taken, and not written yet
        self._behind = Behind()
        self._error: str | None = None
        self._rest_s = 0.0
        self._unwell = False  # Redis did not do its part, and it was said
        self._due = dict.fromkeys(("claim", "look", "tell", "delete"), 0.0)

    async def run(self) -> None:
        """Archive what comes, for ever. Whatever fails, the loop lives on."""
        while True:
            await self._client.wait_up()
            rest_s = _EVERY_S
            try:
                rest_s = await self._turn()
                self._unwell = False
            except Exception as error:
                self._client.failed(error)
                if not self._unwell:
                    unexpected = not isinstance(error, RedisError | OSError)
                    log.warning("archive_interrupted", error=type(error).__name__, exc_info=unexpected)
                self._unwell = True
                rest_s = HEAR_EVERY_S
            await asyncio.sleep(rest_s)

    async def finish(self) -> None:
        """Archive what is left, before a process ends; not for long. What stays is another one's, or the next one's."""
        try:
            async with asyncio.timeout(_FINISH_S):
                while self._client.up and self._error is None:
                    taken = await self._feed.take(_MOST_AT_ONCE)
                    if not taken.entries:
                        return
                    await self._write(taken.entries)
        except (RedisError, TimeoutError, *ArchiveError, StartupError) as error:
            log.warning("archive_unfinished", error=type(error).__name__)

    async def behind(self) -> Behind:
        """What waits to be archived. Raises RedisError and OSError."""
        return await self._feed.behind()

    async def _turn(self) -> float:
        """One round: how long to rest after it."""
        leads = await self._lease.held()
        if leads and not self._leads:
            log.info("archiving", archive=self._archive.where)
            self._held, self._due = [], dict.fromkeys(self._due, 0.0)
        self._leads = leads
        if not leads:
            self._held = []
            await self._board.hear()
            return HEAR_EVERY_S
        began = _now()
        more = await self._work()
        took_s = _now() - began
        await self._tell()
        if self._error is not None:
            return self._rest_s * random.uniform(0.8, 1.0)  # noqa: S311  not all at the same moment
        # With ten thousand tenants a look takes its time.
        return 0.0 if more else max(_EVERY_S, took_s * _REST_TIMES)

    async def _work(self) -> bool:
        """Take some and write them: whether there is more to do at once."""
        more = bool(self._held)
        if not self._held:
            taken = await self._next()
            self._held, more = taken.entries, taken.more
            if taken.gone:
                self._metrics.archive_missed.inc(taken.gone)
                log.error("receipts_not_archived", count=taken.gone, why="trimmed before they were archived")
        try:
            if self._held:
                await self._write(self._held)
                self._held = []
            elif self._error is not None or self._board.state.up is None:
                await self._archive.open()
            if self._keep_s is not None and self._is_due("delete", _DELETE_EVERY_S):
                more = await self._delete(self._keep_s) or more
        except (*ArchiveError, StartupError) as error:
            self._failed(error)
            return False
        if self._error is not None:
            log.info("archive_back", archive=self._archive.where)
        self._error, self._rest_s = None, 0.0
        if not more:
            self._behind = Behind()
        return more

    async def _next(self) -> Taken:
        # Those of who worked before are nobody's any more; later on, those of one that was cut off.
        if self._due["claim"] == 0.0 or self._is_due("claim", _CLAIM_EVERY_S):
            taken = await self._feed.claim(0.0 if self._due["claim"] == 0.0 else _CLAIM_EVERY_S, _MOST_AT_ONCE)
            if not taken.more:
                self._due["claim"] = _now() + _CLAIM_EVERY_S
            if taken.entries:
                return taken
        return await self._feed.take(_MOST_AT_ONCE)

    async def _write(self, entries: list[Entry]) -> None:
        aside = await self._archive.write(entries)
        if aside:
            log.error("receipts_unreadable", count=aside, table="unreadable")
        await self._feed.told(entries)
        self._metrics.archived.inc(len(entries))

    async def _delete(self, keep_s: float) -> bool:
        deleted = await self._archive.delete_before(time.time() - keep_s)
        if deleted:
            self._metrics.archive_deleted.inc(deleted)
            self._due["delete"] = 0.0  # a little at a time, what comes in between
        return bool(deleted)

    def _failed(self, error: BaseException) -> None:
        if self._error is None:
            # What the database says may quote what it was told; the word is enough to find out.
            told = error.message if isinstance(error, StartupError) else None
            log.error("archive_away", archive=self._archive.where, error=_word(error), why=told)
            self._due["look"] = self._due["tell"] = 0.0
        self._error = _word(error)
        self._rest_s = min(_LONGEST_REST_S, max(_FIRST_REST_S, 2 * self._rest_s))

    async def _tell(self) -> None:
        if not self._is_due("tell", HEAR_EVERY_S):
            return
        idle = self._error is None and not self._held and self._behind == Behind()
        if self._is_due("look", _LOOK_EVERY_S if idle else HEAR_EVERY_S):
            self._behind = await self._feed.behind()
        up = self._error is None
        await self._board.tell(
            ArchiveState(up, round(self._behind.lag_s, 3), self._behind.waiting, self._error, self._lease.owner)
        )

    def _is_due(self, what: str, every_s: float) -> bool:
        if _now() < self._due[what]:
            return False
        self._due[what] = _now() + every_s
        return True


def _now() -> float:
    return asyncio.get_running_loop().time()


def _word(error: BaseException) -> str:
    """What is wrong in a word: the driver's, where it has one."""
    inner = getattr(error, "orig", None)
    return type(inner if inner is not None else error).__name__
