"""The export stream with a real broker: each receipt arrives, although broker and workers are killed."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from ruamel.yaml import YAML

from gateway.config.export import KafkaSettings
from gateway.usage.export_message import message_of
from gateway.usage.export_outbox import export_backlog
from gateway.usage.export_stream import RejectedMessage
from gateway.usage.kafka import KafkaProducer
from gateway.usage.store import UsageStore
from tests.kafka_broker import running_kafka
from tests.usage.databases import FOREVER, receipts_of_a_day
from tests.usage.outboxes import Outboxes, open_outboxes, receipts
from tests.usage.test_worker_process import Workers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.kafka_broker import KafkaBroker

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
aiokafka = pytest.importorskip("aiokafka", reason="needs the extra kafka")

BATCHES, SIZE = 12, 100


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running_kafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


async def consumed(broker: KafkaBroker, topic: str) -> list[Any]:
    """Return all messages of a topic."""
    consumer = aiokafka.AIOKafkaConsumer(topic, bootstrap_servers=broker.address, auto_offset_reset="earliest")
    await consumer.start()
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        found: list[Any] = []
        while any([await consumer.position(part) < end for part, end in ends.items()]):
            for messages in (await consumer.getmany(timeout_ms=1_000)).values():
                found += messages
        return found
    finally:
        await consumer.stop()


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_messages_arrive_with_key_time_and_headers(broker: KafkaBroker, compression: str) -> None:
    settings = KafkaSettings.model_validate(
        {"brokers": (broker.address,), "topic": f"t-{compression}", "compression": compression}
    )
    producer = KafkaProducer(settings)
    messages = [message_of(one.to_json()) for one in receipts_of_a_day(300)]
    try:
        while any(await producer.send(messages[:1])):
            await asyncio.sleep(0.2)  # the topic is created with the first message
        assert set(await producer.send(messages)) == {None}
        large = messages[0]._replace(value=b"x" * 2_000_000)
        errors = await producer.send([messages[1], large, messages[2]])
        assert [type(error) for error in errors] == [type(None), RejectedMessage, type(None)]
    finally:
        await producer.close()
    found = await consumed(broker, settings.topic)
    assert {(one.key, one.value, one.timestamp) for one in found} == set(messages)
    assert dict(found[0].headers) == {"content-type": b"application/json", "gkt-schema": b"receipt/1"}


async def test_messages_whose_time_the_topic_rejects_arrive(broker: KafkaBroker) -> None:
    """A gateway's clock may be wrong. By default, Kafka 4 accepts times up to an hour after its own."""
    settings = KafkaSettings.model_validate({"brokers": (broker.address,), "topic": "untimely"})
    producer = KafkaProducer(settings)
    messages = [message_of(one.to_json()) for one in receipts_of_a_day(10)]
    ahead = messages[4]._replace(created_ms=round(time.time() * 1000) + 7_200_000)
    try:
        while any(await producer.send(messages[:1])):
            await asyncio.sleep(0.2)
        assert set(await producer.send([*messages[1:4], ahead, *messages[5:]])) == {None}
    finally:
        await producer.close()
    assert {one.key for one in await consumed(broker, settings.topic)} == {one.key for one in messages}


async def test_a_broker_that_is_away_gives_an_error_for_each_message(tmp_path: Path) -> None:
    settings = KafkaSettings.model_validate({"brokers": ("127.0.0.1:1",), "timeout": "1s"})
    producer = KafkaProducer(settings)
    messages = [message_of(one.to_json()) for one in receipts_of_a_day(3)]
    errors = await producer.send(messages)
    assert len(errors) == 3
    assert all(isinstance(error, aiokafka.errors.KafkaError) for error in errors)
    await producer.close()


class Exporting(Workers):
    """Workers that send to a topic."""

    def __init__(self, folder: Path, redis_url: str, outboxes: Outboxes, broker: KafkaBroker) -> None:
        in_sqlite = outboxes.address.startswith("sqlite:")
        super().__init__(folder, redis_url, outboxes, "sqlite" if in_sqlite else outboxes.address)
        self.topic = "killed-sqlite" if in_sqlite else "killed-postgres"
        yaml = YAML()
        config = yaml.load(self.config)
        config["export"] = {"kafka": {"brokers": [broker.address], "topic": self.topic, "timeout": "2s"}}
        yaml.dump(config, self.config)


@pytest_asyncio.fixture
async def workers(tmp_path: Path, redis_url: str, broker: KafkaBroker, address: str) -> AsyncIterator[Exporting]:
    async with open_outboxes(redis_url, address) as outboxes:
        workers = Exporting(tmp_path, redis_url, outboxes, broker)
        yield workers
        workers.close()


async def test_each_receipt_arrives_although_broker_and_worker_are_killed(
    workers: Exporting, broker: KafkaBroker
) -> None:
    worker, settled = workers.start(), []
    store = UsageStore(workers.outboxes.address, FOREVER)

    async def sent() -> bool:
        if not await store.exists() or not await workers.drained():
            return False
        return (await store.read(export_backlog)).waiting == 0

    for batch in range(BATCHES):
        some = receipts(SIZE)
        await workers.outboxes.settle(*some)
        settled += some
        await asyncio.sleep(0.3)
        if batch in (2, 7):
            broker.kill()
        if batch in (4, 9):
            await asyncio.to_thread(broker.start)
        if batch in (3, 6, 10):
            worker.kill()
            await asyncio.to_thread(worker.wait)
            worker = workers.start()
    try:
        await workers.until(sent, 200.0)
    finally:
        await store.close()
    found = [json.loads(one.value)["id"] for one in await consumed(broker, workers.topic)]
    assert set(found) == {one.id for one in settled}
    await workers.outboxes.check(settled)
    print(f"{len(settled)} receipts, {len(found)} messages", file=sys.stderr)
