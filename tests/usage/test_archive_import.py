"""Receipts are moved out of the archive of an earlier version, each once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec
import pytest
import pytest_asyncio

from gateway.usage.archive_import import ArchiveImport
from gateway.usage.queries import UsageQueries
from tests.accounting.receipt_builders import candidate, closed, guided, intent
from tests.usage.outboxes import Outboxes, open_outboxes, receipts
from tests.usage.previous_version import add_to_archive, make_archive, put_aside

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest_asyncio.fixture
async def outboxes(redis_url: str, address: str) -> AsyncIterator[Outboxes]:
    async with open_outboxes(redis_url, address) as one:
        yield one


@pytest.mark.parametrize("same", [True, False], ids=["same", "beside"])
async def test_the_archive_of_an_earlier_version_is_moved(outboxes: Outboxes, tmp_path: Path, same: bool) -> None:
    """The earlier version still writes to the archive. The archive is a separate database or the same one."""
    address = outboxes.address if same else f"sqlite:///{tmp_path}/gkt-archive.db"
    old, both, late = receipts(50), receipts(20), receipts(5)
    one = intent(created=int(time.time()))
    true = msgspec.structs.replace(closed(guided()), id=one.id, tenant=one.tenant, created=one.created)
    await outboxes.ledger.exchange([candidate(one)], [])
    deleted = await outboxes.abandon(one)
    await asyncio.to_thread(make_archive, address, [*old, *both, deleted])
    await asyncio.to_thread(put_aside, address, "acme", b'{"id": "newer"}')
    await outboxes.settle(*both)
    moving = ArchiveImport(address)
    try:
        worker = await outboxes.worker(imports=[moving])

        # A row that changes after it was read is not deleted, and is read again.
        read = moving.read(1_000)
        assert len(read) == 72
        await outboxes.store.write(read)
        await asyncio.to_thread(add_to_archive, address, [true])
        moving.delete_read()
        while await worker.round() == 0:
            pass
        await outboxes.check([*old, *both, true])

        await asyncio.to_thread(add_to_archive, address, [*late, *old[:3]])
        outboxes.later_s += 10
        while await worker.round() == 0:
            pass
        await outboxes.check([*old, *both, true, *late])
        assert await outboxes.store.read(UsageQueries.count_unreadable) == 1
        assert moving.read(10) == []
    finally:
        moving.close()


async def test_an_import_reads_receipts_by_time_and_then_starts_again(tmp_path: Path) -> None:
    """The import reads remaining rows, and rows with an earlier time that were inserted since."""
    address = f"sqlite:///{tmp_path}/gkt-archive.db"
    settled = [msgspec.structs.replace(one, created=one.created + index) for index, one in enumerate(receipts(5))]
    await asyncio.to_thread(make_archive, address, settled[4:0:-1])
    moving = ArchiveImport(address)
    try:
        assert [msgspec.json.decode(one.raw)["id"] for one in moving.read(2)] == [settled[1].id, settled[2].id]
        # These rows are not deleted, because the database failed.
        assert len(moving.read(2)) == 2
        moving.delete_read()
        await asyncio.to_thread(add_to_archive, address, settled[:1])
        assert [msgspec.json.decode(one.raw)["id"] for one in moving.read(9)] == [one.id for one in settled[:3]]
        moving.delete_read()
        assert moving.read(9) == []
    finally:
        moving.close()


async def test_an_import_makes_no_file(tmp_path: Path) -> None:
    moving = ArchiveImport(f"sqlite:///{tmp_path}/gkt-archive.db")
    assert moving.read(10) == []
    moving.close()
    assert list(tmp_path.iterdir()) == []
