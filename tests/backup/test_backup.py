"""`gkt-gateway backup` and `gkt-gateway restore`, from one real Redis and usage database to others."""

from __future__ import annotations

import asyncio
import gzip
import io
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from gateway.accounting.token_budgets import TokenBudgets
from gateway.keys.token import digest_of
from tests.backup.deployment import Deployment
from tests.canaries.search import Canaries
from tests.postgres import new_database
from tests.usage.outboxes import receipts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a backup.gkt"


def back_up(deployment: Deployment, file: Path, *more: str) -> str:
    done = deployment.run("backup", file, *more)
    assert done.returncode == 0, done
    return done.stdout


def restored(deployment: Deployment, file: Path, *more: str) -> str:
    done = deployment.run("restore", file, *more)
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("to", ["sqlite", "postgres"])
def test_a_restore_into_an_empty_redis_has_keys_budgets_and_sums(
    deployment: Deployment, tmp_path: Path, empty_redis_url: str, file: Path, to: str, request: pytest.FixtureRequest
) -> None:
    """Restore under another prefix, to a usage database of the same or another kind."""
    asyncio.run(deployment.trade())
    before = asyncio.run(deployment.standing())
    output = back_up(deployment, file)
    for line in (
        "API keys                     2",
        "receipts waiting in Redis  ",
        "receipts                     39",
        "other rows                   11",
    ):
        assert line in output
    usage = "sqlite" if to == "sqlite" else new_database(request.getfixturevalue("postgres"))
    empty_deployment = Deployment(tmp_path / "empty_deployment", empty_redis_url, usage)
    assert "Restored. Start the gateways." in restored(empty_deployment, file)
    after = asyncio.run(empty_deployment.standing())
    assert after == before
    assert after.keys == {"ci": "active", "old": "revoked"}
    assert after.money == [(Decimal("0.25"), Decimal("0.125"))] * 2
    assert after.unreadable == 1
    # Waiting receipts are written in both deployments.
    caught_up = asyncio.run(empty_deployment.standing(caught_up=True))
    assert caught_up == asyncio.run(deployment.standing(caught_up=True))
    assert (after.requests, caught_up.requests) == (38, 45)


def test_budgets_of_tokens_are_listed_after_a_restore(
    deployment: Deployment, empty_deployment: Deployment, file: Path
) -> None:
    until_s = int(time.time()) + 86_400

    async def keep() -> None:
        async with deployment.parts() as here:
            await TokenBudgets(here.client, deployment.keys).keep("acme", "staff:ada", until_s)

    async def listed() -> dict[str, list[str]]:
        async with empty_deployment.parts() as here:
            return await TokenBudgets(here.client, empty_deployment.keys).listed(["acme"])

    asyncio.run(deployment.trade())
    asyncio.run(keep())
    back_up(deployment, file)
    restored(empty_deployment, file)
    assert asyncio.run(listed()) == {"acme": ["staff:ada"]}


def test_receipts_after_a_restore_count_once(deployment: Deployment, empty_deployment: Deployment, file: Path) -> None:
    asyncio.run(deployment.trade())
    back_up(deployment, file)
    restored(empty_deployment, file)
    asyncio.run(empty_deployment.standing(caught_up=True))
    more = receipts(4)
    asyncio.run(empty_deployment.settle(*more))
    asyncio.run(deployment.settle(*more))
    there, here = (asyncio.run(one.standing(caught_up=True)) for one in (deployment, empty_deployment))
    assert (here.sums, here.stored) == (there.sums, there.stored)


def test_a_request_in_flight_is_settled_as_abandoned(
    deployment: Deployment, empty_deployment: Deployment, file: Path
) -> None:
    """The request counts like one of a process that died at the time of the backup: its reservation is charged."""
    asyncio.run(deployment.trade())
    back_up(deployment, file)
    restored(empty_deployment, file)
    (one,) = asyncio.run(empty_deployment.under_way())
    asyncio.run(empty_deployment.abandon(one))
    assert asyncio.run(empty_deployment.standing()).money == [(Decimal("0.375"), Decimal(0))] * 2
    assert asyncio.run(empty_deployment.under_way()) == []


def test_a_request_that_has_ended_since_is_settled_as_abandoned_too(
    deployment: Deployment, empty_deployment: Deployment, file: Path
) -> None:
    """The restore deletes the receipt together with the budgets that it was charged to. Other deployments stay."""

    async def end(of: Deployment) -> None:
        (one,) = await of.under_way()
        async with of.parts() as here:
            await here.budgets_fixture.settle(one, "0.0625")

    asyncio.run(deployment.trade())
    back_up(deployment, file)
    asyncio.run(end(deployment))
    restored(empty_deployment, file)
    other_deployment = Deployment(file.parent / "beside", deployment.url)
    asyncio.run(other_deployment.settle(*receipts(2)))
    others = asyncio.run(other_deployment.names())
    restored(deployment, file, "--overwrite")
    assert asyncio.run(other_deployment.names()) == others
    for of in (deployment, empty_deployment):
        (one,) = asyncio.run(of.under_way())
        asyncio.run(of.abandon(one))
    there, here = (asyncio.run(of.standing(caught_up=True)) for of in (empty_deployment, deployment))
    assert here.money == there.money == [(Decimal("0.375"), Decimal(0))] * 2
    assert here.stored == there.stored
    costs = ({day: row.cost_pico for day, row in one.by_day.items()} for one in (here, there))
    assert next(costs) == next(costs)


def test_an_empty_outbox_continues_with_larger_ids(
    deployment: Deployment, empty_deployment: Deployment, file: Path
) -> None:
    """New entries need larger ids, also with a slow clock in the new Redis."""

    async def emptied() -> bytes:
        async with deployment.parts() as here:
            far = f"{int(time.time() * 1000) + 3_600_000}-7"
            await here.redis.xadd(deployment.keys.outbox("acme"), {"receipt": receipts(1)[0].to_json()}, id=far)
            await deployment.work()
            return far.encode()

    async def facts(of: Deployment) -> dict[str, Any]:
        async with Redis.from_url(of.url) as redis:
            info = await redis.xinfo_stream(of.keys.outbox("acme"))
        return {name: info[name] for name in ("length", "last-generated-id", "entries-added", "max-deleted-entry-id")}

    asyncio.run(deployment.settle(*receipts(3)))
    last = asyncio.run(emptied())
    back_up(deployment, file)
    restored(empty_deployment, file)
    assert asyncio.run(facts(empty_deployment)) == asyncio.run(facts(deployment))
    assert asyncio.run(facts(empty_deployment))["last-generated-id"] == last
    asyncio.run(empty_deployment.settle(*receipts(2)))
    assert asyncio.run(empty_deployment.standing(caught_up=True)).sums != {}


@pytest.mark.timeout(300)
async def test_a_backup_of_running_gateways_is_consistent(
    deployment: Deployment, empty_deployment: Deployment, file: Path
) -> None:
    """Receipts are settled and written during the backup. After the restore, each counts once."""
    stop = asyncio.Event()

    async def trading() -> int:
        count = 0
        while not stop.is_set():
            await deployment.settle(*receipts(20), *receipts(3, "globex"))
            count += 23
            if count % 4:
                await deployment.work()
        return count

    work = asyncio.ensure_future(trading())  # noqa: TID251
    await asyncio.sleep(1)
    await asyncio.to_thread(back_up, deployment, file)
    await asyncio.sleep(1)
    stop.set()
    count = await work
    await asyncio.to_thread(restored, empty_deployment, file)
    there = await empty_deployment.standing(caught_up=True)
    assert 0 < len(there.stored) < count
    assert there.requests == len(there.stored) == len(set(there.stored))


def test_a_backup_contains_no_secrets_and_no_text_of_callers(deployment: Deployment, file: Path) -> None:
    """A backup has hashes of keys, and no guidance, which Redis stores for a while."""
    canaries = Canaries()

    async def hide() -> None:
        async with Redis.from_url(deployment.url) as redis:
            board = deployment.keys.teacher("big")
            await redis.hset(board.cache, "work", canaries["guidance"])
            await redis.hset(board.tickets, "t", canaries["ticket"])

    canaries.texts["key"] = asyncio.run(deployment.trade())
    canaries.texts["admin key"] = "an-admin-key-for-tests"
    asyncio.run(hide())
    output = back_up(deployment, file)
    raw = file.read_bytes()
    header, _, packed = raw.partition(b"\n")
    held = gzip.GzipFile(fileobj=io.BytesIO(packed[:-32])).read()
    canaries.search("backup", *(text.decode("latin-1") for text in (header, packed, held)), output)
    assert canaries.found == []
    assert digest_of(canaries["key"]).encode() in held, "it holds something"


def test_a_backup_is_private_to_its_owner_without_temporary_files(deployment: Deployment, file: Path) -> None:
    asyncio.run(deployment.settle(*receipts(1)))
    back_up(deployment, file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [one for one in file.parent.iterdir() if one.is_file()] == [file]


def test_an_existing_file_is_kept_without_force(deployment: Deployment, file: Path) -> None:
    file.write_text("mine")
    done = deployment.run("backup", file)
    assert (done.returncode, f"{file} already exists" in done.stderr) == (1, True)
    assert file.read_text() == "mine"
    back_up(deployment, file, "--overwrite")
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_backup_that_fails_leaves_no_file(deployment: Deployment, file: Path) -> None:
    deployment.config.write_text(deployment.config.read_text().replace(deployment.url, "unix:///nowhere/redis.sock"))
    assert deployment.run("backup", file).returncode == 1
    assert [one for one in file.parent.iterdir() if one.is_file()] == []
    done = deployment.run("backup", file.parent / "nowhere" / "b.gkt")
    assert done.returncode == 1


def test_existing_data_is_not_overwritten_without_force(
    deployment: Deployment, empty_deployment: Deployment, file: Path
) -> None:
    asyncio.run(deployment.trade())
    back_up(deployment, file)
    asyncio.run(empty_deployment.trade())
    there, names = asyncio.run(empty_deployment.standing()), asyncio.run(empty_deployment.names())
    done = empty_deployment.run("restore", file)
    assert (done.returncode, "There is data already" in done.stderr) == (1, True)
    assert "API keys                     2" in done.stderr
    assert (asyncio.run(empty_deployment.standing()), asyncio.run(empty_deployment.names())) == (there, names)
    restored(empty_deployment, file, "--overwrite")
    after, expected = asyncio.run(empty_deployment.standing()), asyncio.run(deployment.standing())
    assert (after.keys, after.money) == (expected.keys, expected.money)
    assert after.stored == sorted({*expected.stored, *there.stored}), "receipts are never deleted"
    assert after.requests == len(after.stored)


def test_a_usage_database_that_was_not_lost_is_left_alone(
    deployment: Deployment, empty_deployment: Deployment, file: Path
) -> None:
    asyncio.run(deployment.trade())
    back_up(deployment, file)
    restored(empty_deployment, file, "--only", "redis")
    after, expected = asyncio.run(empty_deployment.standing()), asyncio.run(deployment.standing())
    assert (after.keys, after.money) == (expected.keys, expected.money)
    assert (after.stored, after.sums) == ([], {})
    assert "not included" in back_up(deployment, file, "--overwrite", "--without-usage")
    restored(empty_deployment, file, "--overwrite")
    assert asyncio.run(empty_deployment.standing()).stored == []


def test_a_lost_usage_database_is_restored_while_gateways_run(
    deployment: Deployment, empty_deployment: Deployment, file: Path
) -> None:
    async def live() -> None:
        async with Redis.from_url(empty_deployment.url) as redis:
            await redis.set(empty_deployment.keys.heartbeat("ann"), b"")

    asyncio.run(deployment.trade())
    back_up(deployment, file)
    asyncio.run(live())
    names = asyncio.run(empty_deployment.names())
    restored(empty_deployment, file, "--only", "usage")
    assert asyncio.run(empty_deployment.names()) == names
    after, expected = asyncio.run(empty_deployment.standing()), asyncio.run(deployment.standing())
    assert (after.stored, after.unreadable, after.sums) == (expected.stored, expected.unreadable, expected.sums)
    assert (after.keys, after.tables) == ({}, expected.tables)
    back_up(deployment, file, "--overwrite", "--without-usage")
    assert "has no receipts" in empty_deployment.run("restore", file, "--only", "usage").stderr


def test_temporary_keys_of_gateways_do_not_block_a_restore(
    deployment: Deployment, empty_deployment: Deployment, file: Path
) -> None:
    async def leave() -> None:
        async with Redis.from_url(empty_deployment.url) as redis:
            ledger = empty_deployment.keys.ledger()
            await redis.set(ledger.trimmer, b"ann")
            await redis.hset(empty_deployment.keys.scope("acme", "tenant")[0], "r1", 1)

    asyncio.run(deployment.trade())
    back_up(deployment, file)
    asyncio.run(leave())
    restored(empty_deployment, file)
    assert asyncio.run(empty_deployment.standing()) == asyncio.run(deployment.standing())


def test_a_dry_run_changes_nothing(deployment: Deployment, empty_deployment: Deployment, file: Path) -> None:
    asyncio.run(deployment.trade())
    back_up(deployment, file)
    output = restored(empty_deployment, file, "--dry-run")
    assert "Nothing was changed" in output
    assert "budgets                      2" in output
    assert asyncio.run(empty_deployment.names()) == set()
    assert not empty_deployment.data.exists(), "no database was created either"
    asyncio.run(empty_deployment.settle(*receipts(1)))
    assert empty_deployment.run("restore", file, "--dry-run").returncode == 1, "as without"
    assert empty_deployment.run("restore", file).returncode == 1
    assert not empty_deployment.data.exists()


def test_a_dry_run_lists_deletions(deployment: Deployment, empty_deployment: Deployment, file: Path) -> None:
    asyncio.run(deployment.trade())
    back_up(deployment, file)
    before = asyncio.run(deployment.standing())
    _, _, output = restored(deployment, file, "--dry-run", "--overwrite").partition("The backup can be restored.")
    assert "delete from Redis:\n  API keys                     2\n  budgets                      2\n" in output
    assert "The usage database would keep 38 receipts." in output
    assert asyncio.run(deployment.standing()) == before
    assert "would first delete" not in restored(empty_deployment, file, "--dry-run", "--overwrite")


@pytest.mark.parametrize(("only", "other"), [("redis", "  receipts   "), ("usage", "API keys")])
def test_what_is_not_restored_is_not_listed(
    deployment: Deployment, empty_deployment: Deployment, file: Path, only: str, other: str
) -> None:
    asyncio.run(deployment.trade())
    back_up(deployment, file)
    assert other in restored(empty_deployment, file, "--dry-run")
    assert other not in restored(empty_deployment, file, "--dry-run", "--only", only)


def test_the_redis_without_backup_is_not_recommended(deployment: Deployment, file: Path) -> None:
    deployment.config.write_text(deployment.config.read_text().replace(deployment.url, "unix:///nowhere/redis.sock"))
    done = deployment.run("backup", file)
    assert ("does not answer" in done.stderr, "embedded" in done.stderr) == (True, False)


def test_no_restore_while_gateways_run(deployment: Deployment, empty_deployment: Deployment, file: Path) -> None:
    async def beat(*, lives: bool) -> None:
        async with Redis.from_url(empty_deployment.url) as redis:
            names = (empty_deployment.keys.heartbeat("ann"), empty_deployment.keys.ledger().worker(1))
            await (redis.mset(dict.fromkeys(names, b"")) if lives else redis.delete(*names))

    asyncio.run(deployment.trade())
    back_up(deployment, file)
    asyncio.run(beat(lives=True))
    done = empty_deployment.run("restore", file, "--overwrite")
    assert (done.returncode, "2 processes (gateways, usage workers) use this Redis" in done.stderr) == (1, True)
    asyncio.run(beat(lives=False))
    restored(empty_deployment, file)


def test_a_damaged_file_is_refused_by_name_and_nothing_is_written(
    deployment: Deployment, empty_deployment: Deployment, file: Path
) -> None:
    asyncio.run(deployment.trade())
    back_up(deployment, file)
    raw = file.read_bytes()
    start = raw.index(b"\n") + 1
    harmed = {
        "a byte": raw[: start + 40] + bytes([raw[start + 40] ^ 1]) + raw[start + 41 :],
        "the checksum": raw[:-1] + bytes([raw[-1] ^ 1]),
        "cut": raw[:-200],
        "its first line alone": raw[:start],
        "more at the end": raw + b"x",
    }
    for how, what in harmed.items():
        file.write_bytes(what)
        done = empty_deployment.run("restore", file, "--overwrite")
        assert (done.returncode, f"{file} is damaged" in done.stderr) == (1, True), how
    assert asyncio.run(empty_deployment.names()) == set()
    for text in (b"", b"{}\n", b"\x00\xff" * 100, b'{"gkt_backup": "x", "gateway": 1}\n', b"[1]\n"):
        file.write_bytes(text)
        assert "is not a backup" in empty_deployment.run("restore", file).stderr
    file.unlink()
    assert "cannot be read" in empty_deployment.run("restore", file).stderr


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        (b'"gkt_backup":3', b'"gkt_backup":4', "was created by a newer gateway"),
        (b'"gkt_backup":3', b'"gkt_backup":2', "in format 2; this one reads 3. Restore it with that version."),
        (b'"ledger":1', b'"ledger":2', "its layout of the ledger is 2, and this gateway supports 1"),
        (b'"keyring":1', b'"keyring":1,"more":1', "its layout of the more is 1, and this gateway supports 0"),
        (b'"tenant":2', b'"tenant":1', "Restore it with that version"),
    ],
)
def test_a_file_of_another_version_is_refused_by_name(
    deployment: Deployment, empty_deployment: Deployment, file: Path, ours: bytes, theirs: bytes, says: str
) -> None:
    asyncio.run(deployment.settle(*receipts(1)))
    back_up(deployment, file)
    raw = file.read_bytes()
    assert raw.count(ours) == 1
    file.write_bytes(raw.replace(ours, theirs))
    done = empty_deployment.run("restore", file)
    assert (done.returncode, str(file) in done.stderr, says in done.stderr) == (1, True, True), done.stderr
    assert asyncio.run(empty_deployment.names()) == set()
