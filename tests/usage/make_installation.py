"""Make an installation of the previous version: `python make_installation.py FOLDER`, run with that version's code.

FOLDER has `plan.json` and `receipts.jsonl`. Receipts go through Redis into sums and the archive, as a gateway of that
version does it. `sums.msgpack` then holds the sums that it shows: granularity, start, dimensions and row of each.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from itertools import islice
from pathlib import Path

import msgspec
from gateway.archive.archive import Archive
from gateway.archive.feed import ArchiveFeed
from gateway.archive_address import address_of
from gateway.ledger.receipt import Receipt
from gateway.ledger.redis_ledger import RedisLedger, Settlement
from gateway.metrics import Metrics
from gateway.redis_client import RedisClient
from gateway.redis_keys import RedisKeys
from gateway.rollups.janitor import Janitor
from gateway.rollups.roller import Roller
from gateway.rollups.rollups import SECONDS, Retention, Rollups, periods

sys.path.append(str(Path(__file__).parent))  # the other packages of tests are the new version's
from row_facts import facts

_KEPT = Retention(6 * 3600.0, 14 * 86_400.0, 400 * 86_400.0)
_AT_ONCE = 2_000


async def main(folder: Path) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    client = RedisClient(plan["redis"], timeout_s=60, metrics=Metrics())
    keys = RedisKeys(plan["prefix"])
    ledger = RedisLedger(client.commands, keys, "old", 3600, 60)
    rollups = Rollups(client.commands, keys, _KEPT)
    roller = Roller(client, client.commands, keys, rollups, "old")
    janitor = Janitor(client, client.commands, keys, roller.state, most=200_000, archived=True, retention=_KEPT)
    archive = Archive(address_of(plan["archive"], folder / "data"))
    feed = ArchiveFeed(client.commands, keys)
    with (folder / "receipts.jsonl").open("rb") as lines:
        receipts = [Receipt.from_json(line) for line in lines]
    waiting, unseen = receipts[-plan["unarchived"] :], plan["unseen"]
    rest = iter(receipts[: -plan["unarchived"]])
    while some := list(islice(rest, _AT_ONCE)):
        await _settle(ledger, some)
        while await roller.roll():
            pass
        while (taken := await feed.take(1_000)).entries:
            await archive.write(taken.entries)
            await feed.told(taken.entries)
        await janitor.tidy()
    await _settle(ledger, waiting[:-unseen])
    while await roller.roll():
        pass
    await _settle(ledger, waiting[-unseen:])
    while await archive.delete_before(time.time() - plan["keep_s"]):
        pass
    await _write_sums(rollups, folder / "sums.msgpack")
    await archive.close()
    await client.close()


async def _settle(ledger: RedisLedger, receipts: list[Receipt]) -> None:
    await ledger.exchange([], [Settlement(one, None) for one in receipts])


async def _write_sums(rollups: Rollups, file: Path) -> None:
    now = time.time()
    with file.open("wb") as out:
        for granularity in SECONDS:
            every = list(periods(granularity, now - 30 * 86_400, now + 60))
            found = [(one, tuple(where), row) for one, where, row in await rollups.rows(every)]
            totals = [(one, ("",) * 6, row) for one, row in await rollups.totals(every) if row.requests]
            encode = msgspec.msgpack.encode
            for one, where, row in (*found, *totals):
                raw = encode((one.granularity, one.start, where, facts(row)))
                out.write(len(raw).to_bytes(4, "big") + raw)


asyncio.run(main(Path(sys.argv[1])))
