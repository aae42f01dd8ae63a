"""Each receipt in the usage database reaches the broker at least once, whatever fails."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from gateway.config.export import KafkaSettings
from gateway.errors import StartupError
from gateway.redis.keys import RedisKeys
from gateway.usage import kafka
from gateway.usage.export_message import SCHEMA_VERSION, message_of, message_schema
from gateway.usage.export_outbox import add_exports, export_backlog, pending_exports, replayable
from gateway.usage.export_stream import ExportLease, ExportStream, RejectedMessage, SettingError
from gateway.usage.state import ExportState, WorkerStateReader
from gateway.usage.store import UsageStore
from gateway.usage.tables import DAY_S
from tests.accounting.receipt_builders import closed, guided
from tests.certificates import Authority
from tests.usage.databases import DAY, FOREVER, NOW, entries, entry, receipt, receipts_of_a_day
from tests.usage.outboxes import open_outboxes, receipts
from tests.usage.test_database import pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gateway.usage.export_message import ExportMessage

SCHEMA = Path(__file__).parents[2] / "docs" / "schema" / "receipt-export.json"
FIELDS_OF_VERSION_1 = {
    *("schema_version", "revision", "id", "created", "tenant", "key", "route", "mode", "stream", "status"),
    *("finish_reason", "unguided", "teacher", "student", "guidance", "batch", "cost_usd", "baseline_model"),
    *("baseline_usd", "baseline_estimated", "savings_usd", "timings"),
}


class FakeBroker:
    """A broker and its producer, with faults by name.

    `ok`; `away`: nothing arrives; `partial`: some messages arrive; `unconfirmed`: all arrive, and the confirmation is
    lost; `large`: the first message is rejected.
    """

    def __init__(self, *faults: str) -> None:
        self.faults = list(faults)
        self.received: list[dict[str, Any]] = []
        self.largest = 0
        self.closed = False

    async def send(self, messages: Sequence[ExportMessage]) -> list[BaseException | None]:
        self.largest = max(self.largest, len(messages))
        fault = self.faults.pop(0) if self.faults and messages else "ok"
        errors: list[BaseException | None] = []
        for place, message in enumerate(messages):
            error: BaseException | None = None
            if fault == "away" or (fault == "partial" and place % 3 == 1):
                error = TimeoutError()
            elif fault == "large" and place == 0:
                error = RejectedMessage()
            else:
                self.received.append(json.loads(message.value))
            errors.append(TimeoutError() if fault == "unconfirmed" else error)
        return errors

    async def close(self) -> None:
        self.closed = True

    def ids(self) -> set[str]:
        return {one["id"] for one in self.received}


class World:
    def __init__(self, redis: Redis, address: str) -> None:
        self.redis, self.address = redis, address
        self.keys = RedisKeys(f"t{random.randbytes(6).hex()}").ledger()
        self.store = UsageStore(address, FOREVER, exports=True)
        self.now = float(NOW)

    def stream(self, broker: FakeBroker, process_id: str = "ann") -> ExportStream:
        lease = ExportLease(self.redis, self.keys, process_id)
        return ExportStream(self.store, broker, lease, batch=7, clock=lambda: self.now)

    async def waiting(self) -> int:
        return (await self.store.read(export_backlog)).waiting

    async def send_all(self, stream: ExportStream) -> None:
        for _ in range(500):
            await stream.round()
            if not await self.waiting():
                return
        pytest.fail("receipts wait after 500 rounds")


@pytest_asyncio.fixture
async def world(redis_url: str, address: str) -> AsyncIterator[World]:
    async with Redis.from_url(redis_url) as redis:
        world = World(redis, address)
        yield world
        await world.store.close()


@pytest.mark.parametrize("seed", range(3))
async def test_each_receipt_arrives_despite_faults(world: World, seed: int) -> None:
    dice = random.Random(seed)
    broker = FakeBroker(*dice.choices(["ok", "away", "partial", "unconfirmed"], k=30))
    stream, written = world.stream(broker), receipts_of_a_day(120, seed)
    with capture_logs():
        for start in range(0, 120, 30):
            await world.store.write(entries(written[start : start + 30]))
            await stream.round()
        await world.send_all(stream)
    assert broker.ids() == {one.id for one in written}
    assert broker.largest <= 7
    assert stream.counts["sent"] == 120
    assert stream.counts["failed"] > 0


async def test_an_unwritten_receipt_is_not_sent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction that writes a receipt also writes its key. A known receipt is not sent again."""
    broker, written = FakeBroker(), receipts_of_a_day(5)
    with monkeypatch.context() as patch:
        patch.setattr("gateway.usage.database.add_sums", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await world.store.write(entries(written))
    await world.store.write(entries(written[:2]))
    await world.send_all(stream := world.stream(broker))
    await world.store.write(entries(written[:2]))
    await stream.round()
    assert len(broker.received) == 2


async def test_the_true_receipt_is_sent_with_a_higher_revision(world: World) -> None:
    """The abandoned receipt may be on its way when it is replaced."""
    gone, true = pair()
    await world.store.write([entry(gone)])

    class Slow(FakeBroker):
        async def send(self, messages: Sequence[ExportMessage]) -> list[BaseException | None]:
            if not self.received:
                await world.store.write([entry(true)])
            return await super().send(messages)

    broker = Slow()
    await world.send_all(world.stream(broker))
    assert [(one["id"], one["revision"], one["status"]) for one in broker.received] == [
        (true.id, 1, "abandoned"),
        (true.id, 2, "ok"),
    ]


async def test_a_failing_broker_delays_nothing_else(world: World) -> None:
    """The pause grows, the failure is logged once, and receipts are written."""
    broker = FakeBroker(*["away"] * 6)
    stream = world.stream(broker)
    pauses = []
    with capture_logs() as logs:
        for seed in range(6):
            assert (await world.store.write(entries(receipts_of_a_day(3, seed)))).inserted == 3
            pauses.append(await stream.round())
        assert stream.state is not None
        assert stream.state.error == "TimeoutError"
        await world.send_all(stream)
        world.now += 10
        await stream.round()
    assert pauses == sorted(pauses)
    assert 20 < pauses[-1] <= 30
    assert [one["event"] for one in logs] == ["export_failed", "export_resumed"]
    assert stream.state == ExportState()
    assert len(broker.ids()) == 18


async def test_a_message_that_no_broker_accepts_is_counted_and_logged(world: World) -> None:
    broker, written = FakeBroker("large"), receipts_of_a_day(5)
    await world.store.write(entries(written))
    stream = world.stream(broker)
    with capture_logs() as logs:
        await world.send_all(stream)
    (lost,) = {one.id for one in written} - broker.ids()
    assert [(one["event"], one["first"]) for one in logs] == [("export_rejected", lost)]
    assert (stream.counts["sent"], stream.counts["rejected"]) == (4, 1)


async def test_one_process_sends_at_a_time(world: World) -> None:
    first, second = FakeBroker(), FakeBroker()
    one, other = world.stream(first, "ann"), world.stream(second, "bob")
    await world.store.write(entries(receipts_of_a_day(40)))
    await one.round()
    assert await other.round() == 5.0
    assert (len(first.received), second.received, other.state) == (7, [], None)
    await one._close()
    assert first.closed
    await world.send_all(other)
    assert len(first.ids() | second.ids()) == 40
    assert len(second.received) == 33


async def test_a_process_that_lost_its_lease_deletes_only_what_it_sent(world: World) -> None:
    """Another process has sent the batch meanwhile, and more receipts were written."""
    written, more = receipts_of_a_day(10), receipts_of_a_day(10, 99)
    await world.store.write(entries(written))
    other = world.stream(after := FakeBroker(), "bob")

    class Paused(FakeBroker):
        async def send(self, messages: Sequence[ExportMessage]) -> list[BaseException | None]:
            await world.redis.delete(world.keys.exporter)
            await world.send_all(other)
            await world.store.write(entries(more))
            return await super().send(messages)

    await world.stream(Paused(), "ann").round()
    await world.send_all(other)
    assert after.ids() == {one.id for one in (*written, *more)}


async def test_an_expired_receipt_is_dropped(world: World) -> None:
    await world.store.write(entries(receipts_of_a_day(4)))
    await world.store.change(lambda connection: connection.execute(text("DELETE FROM usage_receipts")))
    stream = world.stream(broker := FakeBroker())
    await world.send_all(stream)
    assert (broker.received, stream.counts["expired"]) == ([], 4)
    await world.store.write(entries([receipt(NOW - 9 * DAY_S)]))
    await world.store.delete_receipts(NOW - 2 * DAY_S)
    assert await world.waiting() == 0


async def test_receipts_of_a_day_are_sent_again(world: World) -> None:
    written = [receipt(NOW - DAY_S * (place % 2)) for place in range(20)]
    await world.store.write(entries(written))
    await world.send_all(world.stream(broker := FakeBroker()))
    broker.received.clear()
    again = await world.store.read(replayable, DAY - 1, None)
    assert await world.store.read(replayable, DAY - 1, again[3][0]) == again[4:]
    await world.store.change(add_exports, again, NOW)
    await world.send_all(world.stream(broker))
    assert broker.ids() == {one.id for one in written if one.created < DAY * DAY_S}


async def test_without_an_export_the_outbox_stays_empty(address: str) -> None:
    store = UsageStore(address, FOREVER)
    await store.write(entries(receipts_of_a_day(3)))
    assert await store.read(pending_exports, 10) == []
    assert await store.read(export_backlog) == (0, None)
    await store.close()


async def test_a_database_that_fails_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, pauses = world.stream(broker := FakeBroker()), []
    await world.store.write(entries(receipts_of_a_day(3)))
    read, failing = world.store.read, [True, True, False, False]

    async def fail(*arguments: Any) -> Any:
        if failing and failing.pop(0):
            raise OperationalError("SELECT", {}, Exception("away"))
        return await read(*arguments)

    class Enough(BaseException):
        pass

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 3:
            raise Enough

    monkeypatch.setattr(world.store, "read", fail)
    monkeypatch.setattr("gateway.usage.export_stream.asyncio.sleep", sleep)
    with capture_logs() as logs, pytest.raises(Enough):
        await stream.run()
    assert [one["event"] for one in logs] == ["export_failed", "export_resumed"]
    assert len(broker.received) == 3
    assert broker.closed


async def test_the_worker_publishes_the_state(redis_url: str, address: str) -> None:
    async with open_outboxes(redis_url, address) as outboxes:
        store = UsageStore(address, FOREVER, exports=True)
        outboxes.stores.append(store)
        lease = ExportLease(outboxes.redis, outboxes.keys.ledger(), "ann")
        stream = ExportStream(store, FakeBroker("away"), lease)
        worker = await outboxes.worker(store=store, exports=stream)
        board = WorkerStateReader(outboxes.redis, outboxes.keys.ledger(), outboxes.metrics, "here")
        value = outboxes.metrics.registry.get_sample_value
        await outboxes.settle(*receipts(5))
        await worker.round()
        with capture_logs():
            await stream.round()
        await worker.publish_once()
        state = (await board.read()).export
        assert state is not None
        assert (state.waiting, state.error) == (5, "TimeoutError")
        assert (value("gkt_export_up"), value("gkt_export_waiting")) == (0, 5)
        stream._backlog_at = 0.0
        with capture_logs():
            await stream.round()
        await worker.publish_once()
        await worker.publish_once()
        await board.read()
        assert (value("gkt_export_up"), value("gkt_export_waiting"), value("gkt_export_lag_seconds")) == (1, 0, 0)
        results = {name: value("gkt_export_receipts", {"result": name}) for name in ("sent", "failed", "rejected")}
        assert results == {"sent": 5, "failed": 5, "rejected": 0}


def test_messages_match_their_published_schema() -> None:
    """Update the file: python -m tests.usage.export_schema > docs/schema/receipt-export.json"""
    assert json.loads(SCHEMA.read_text("utf-8")) == message_schema()
    validator = Draft202012Validator(message_schema())
    gone, true = pair()
    for one in (gone, true, closed(guided()), *receipts_of_a_day(200)):
        message = message_of(one.to_json())
        body = json.loads(message.value)
        assert list(validator.iter_errors(body)) == []
        assert body.items() >= json.loads(json.dumps(one.as_dict())).items()
        assert message.key.decode() == f"{one.tenant}/{one.id}"
        assert message.created_ms == one.created * 1000
        assert isinstance(body["cost_usd"], str)


def test_fields_of_a_schema_version_stay() -> None:
    """Consumers rely on them. Removing or renaming one needs a new version and a new topic."""
    schema = message_schema()
    assert SCHEMA_VERSION == 1
    assert set(schema["required"]) >= FIELDS_OF_VERSION_1
    assert schema.get("additionalProperties", True) is True
    money = [schema["properties"][name] for name in ("cost_usd", "baseline_usd", "savings_usd")]
    assert money == [{"type": "string", "format": "decimal"}] * 3


def test_kafka_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "find_spec", lambda _: None)
    with pytest.raises(StartupError, match="needs the extra `kafka`: pip install"):
        kafka.KafkaProducer(KafkaSettings(brokers=("a:1",)))


def test_files_that_are_no_certificates_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "find_spec", lambda _: True)
    settings = KafkaSettings.model_validate({"brokers": ("a:1",), "tls": {"ca": tmp_path / "none.pem"}})
    with pytest.raises(StartupError, match=r"export\.kafka\.tls cannot be used \(FileNotFoundError\)"):
        kafka.KafkaProducer(settings)


def test_a_protected_key_needs_its_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL would ask for it on the terminal."""
    monkeypatch.setattr(kafka, "find_spec", lambda _: True)
    protected = Authority(tmp_path).issue("client", passphrase="a-key-passphrase")

    def produce(**tls: Any) -> kafka.KafkaProducer:
        settings = {"brokers": ("a:1",), "tls": {"certificate": protected} | tls}
        return kafka.KafkaProducer(KafkaSettings.model_validate(settings))

    with pytest.raises(StartupError, match=r"client\.pem is protected by a passphrase: set key_passphrase") as missing:
        produce()
    assert "export.kafka.tls" in str(missing.value)
    with pytest.raises(StartupError, match="key_passphrase must be that of the key") as wrong:
        produce(key_passphrase="another-passphrase")
    assert "another-passphrase" not in str(wrong.value)
    assert produce(key_passphrase="a-key-passphrase")._options["security_protocol"] == "SSL"


async def test_a_setting_that_the_broker_rejects_is_logged_with_its_fix(world: World) -> None:
    """A second failure with another fix is logged, too."""

    class Refusing(FakeBroker):
        async def send(self, messages: Sequence[ExportMessage]) -> list[BaseException | None]:
            name, fix = self.faults.pop(0).split(":")
            return [SettingError(name, fix)] * len(messages)

    await world.store.write(entries(receipts_of_a_day(3)))
    stream = world.stream(Refusing("Login:set password", "Login:set password", "Trust:set ca"))
    with capture_logs() as logs:
        for _ in range(3):
            await stream.round()
    assert [(one["error"], one["fix"]) for one in logs] == [("Login", "set password"), ("Trust", "set ca")]
    assert stream.state == ExportState(3, 0.0, "Trust", "set ca")
    stream._producer = FakeBroker()
    world.now += 10
    with capture_logs() as logs:
        await world.send_all(stream)
        world.now += 10
        await stream.round()
    assert [one["event"] for one in logs] == ["export_resumed"]
    assert stream.state == ExportState()
