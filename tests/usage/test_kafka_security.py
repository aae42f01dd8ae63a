"""The export stream with TLS and a login, on a real broker. A wrong setting is named with its fix."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import pytest_asyncio
from ruamel.yaml import YAML

from gateway.config.export import KafkaSettings
from gateway.usage.export_message import message_of
from gateway.usage.export_outbox import export_backlog
from gateway.usage.export_stream import SettingError
from gateway.usage.kafka import KafkaProducer
from gateway.usage.store import UsageStore
from tests.certificates import Authority
from tests.kafka_broker import PASSWORD, USER, KafkaBroker, running_kafka
from tests.usage.databases import FOREVER, receipts_of_a_day
from tests.usage.outboxes import open_outboxes, receipts
from tests.usage.test_kafka import consumed
from tests.usage.test_worker_process import Workers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
pytest.importorskip("aiokafka", reason="needs the extra kafka")

PASSPHRASE = "a-key-passphrase"


class Secured(NamedTuple):
    """A broker with TLS, files of certificates, and secrets."""

    broker: KafkaBroker
    ca: Path
    other_ca: Path
    client: Path
    protected: Path  # like `client`, with a passphrase
    stranger: Path  # signed by the other authority

    def settings(self, **kafka: Any) -> KafkaSettings:
        return KafkaSettings.model_validate({"brokers": (self.broker.address,), "timeout": "5s"} | kafka)

    def mutual(self, **tls: Any) -> KafkaSettings:
        return self.settings(brokers=(self.broker.mutual,), tls={"ca": self.ca} | tls)

    def login(self, mechanism: str = "SCRAM-SHA-512", password: str = PASSWORD, **kafka: Any) -> KafkaSettings:
        sasl = {"mechanism": mechanism, "username": USER, "password": password}
        return self.settings(**{"brokers": (self.broker.login,), "tls": {"ca": self.ca}, "sasl": sasl} | kafka)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("kafka")
    authority, other = Authority(folder), Authority(folder, "other-ca")
    client, protected = authority.issue("client"), authority.issue("protected", passphrase=PASSPHRASE)
    with running_kafka(folder, authority) as broker:
        yield Secured(broker, authority.ca, other.ca, client, protected, other.issue("stranger"))


async def sent(settings: KafkaSettings) -> list[BaseException | None]:
    """Send messages once, after the topic exists. Return the errors."""
    producer = KafkaProducer(settings)
    messages = [message_of(one.to_json()) for one in receipts_of_a_day(20)]
    try:
        for _ in range(20):  # the topic is created with the first message
            errors = await producer.send(messages)
            if not any(errors) or any(isinstance(error, SettingError) for error in errors):
                break
        return errors
    finally:
        await producer.close()


@pytest.mark.parametrize("name", ["client", "protected"])
async def test_messages_arrive_with_a_client_certificate(secured: Secured, name: str) -> None:
    """The key of the certificate may have a passphrase."""
    passphrase = {"key_passphrase": PASSPHRASE} if name == "protected" else {}
    settings = secured.mutual(certificate=getattr(secured, name), **passphrase)
    settings = settings.model_copy(update={"topic": f"mutual-{name}"})
    assert set(await sent(settings)) == {None}
    assert len(await consumed(secured.broker, settings.topic)) == 20


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN"])
async def test_messages_arrive_with_a_login(secured: Secured, mechanism: str) -> None:
    settings = secured.login(mechanism, topic=f"login-{mechanism}")
    assert set(await sent(settings)) == {None}
    assert len(await consumed(secured.broker, settings.topic)) == 20


async def test_a_wrong_setting_is_named_with_its_fix(secured: Secured) -> None:
    strange = {"ca": secured.ca, "certificate": secured.client}
    wrong = {
        "password": secured.login(password="wrong"),
        "plain password": secured.login("PLAIN", password="wrong"),
        "mechanism": secured.login("SCRAM-SHA-256"),
        "ca": secured.login(tls={"ca": secured.other_ca}),
        "host": secured.login(brokers=(secured.broker.login.replace("localhost", "127.0.0.1"),)),
        "tls on a plain listener": secured.login(brokers=(secured.broker.address,)),
        "no tls": secured.settings(brokers=(secured.broker.mutual,)),
        "no certificate": secured.mutual(),
        "certificate": secured.mutual(certificate=secured.stranger),
        "login at a listener without": secured.login(brokers=(secured.broker.mutual,), tls=strange),
    }
    fixes = {}
    for name, settings in wrong.items():
        errors = await sent(settings)
        assert len(errors) == 20
        (fixes[name],) = {error.fix if isinstance(error, SettingError) else str(error) for error in errors}
    login = "the brokers reject the login: correct username and password under export.kafka.sasl"
    certificate = "set certificate and key under export.kafka.tls to a certificate that the brokers trust"
    expected = {
        "password": login,
        "plain password": login,
        "mechanism": "do not offer export.kafka.sasl.mechanism",
        "ca": "is not trusted (unable to get local issuer certificate): set export.kafka.tls.ca to the PEM file",
        "host": "is for another host",
        "tls on a plain listener": "name a listener with TLS under export.kafka.brokers, or remove export.kafka.tls",
        "no tls": "the brokers expect TLS: set export.kafka.tls",
        "no certificate": certificate,
        "certificate": certificate,
        "login at a listener without": "the brokers expect no login: remove export.kafka.sasl",
    }
    assert {name: fix for name, fix in fixes.items() if expected[name] not in fix} == {}
    assert not [fix for fix in fixes.values() if PASSWORD in fix]


class SecuredWorkers(Workers):
    """Workers that send to the listener with a login. `configure` writes their settings."""

    def configure(self, secured: Secured, topic: str, ca: Path, password: str) -> None:
        secret = self.config.with_name("password")
        secret.write_text(password)
        yaml = YAML()
        config = yaml.load(self.config)
        sasl = {"username": USER, "password": f"file:{secret}"}
        kafka = {"brokers": [secured.broker.login], "topic": topic, "timeout": "2s", "sasl": sasl}
        config["export"] = {"kafka": kafka | {"tls": {"ca": str(ca)}}}
        yaml.dump(config, self.config)


@pytest_asyncio.fixture
async def workers(tmp_path: Path, redis_url: str) -> AsyncIterator[SecuredWorkers]:
    async with open_outboxes(redis_url, f"sqlite:///{tmp_path / 'usage.db'}") as outboxes:
        workers = SecuredWorkers(tmp_path, redis_url, outboxes)
        yield workers
        workers.close()


@pytest.mark.parametrize("wrong", ["password", "ca"])
async def test_a_wrong_setting_does_not_delay_the_database(
    secured: Secured, workers: SecuredWorkers, wrong: str
) -> None:
    """The worker names the setting, and writes receipts. With the corrected setting it sends them."""
    ca, password = (secured.ca, "wrong") if wrong == "password" else (secured.other_ca, PASSWORD)
    workers.configure(secured, topic := f"worker-{wrong}", ca, password)
    worker = workers.start()

    async def has_failed() -> bool:
        export = (await workers.state()).export
        return export is not None and export.fix is not None

    await workers.outboxes.settle(*(settled := receipts(30)))
    await workers.until(has_failed)
    await workers.outboxes.settle(*(more := receipts(30)))
    await workers.until(workers.drained)
    await workers.outboxes.check([*settled, *more])
    export = (await workers.state()).export
    assert export is not None
    assert f"export.kafka.{'sasl' if wrong == 'password' else 'tls.ca'}" in str(export.fix)
    failed = [one for one in map(json.loads, workers.log.read_text().splitlines()) if one["event"] == "export_failed"]
    assert [one["fix"] for one in failed] == [export.fix]
    assert PASSWORD not in workers.log.read_text()

    assert await workers.terminate(worker) == 0
    workers.configure(secured, topic, secured.ca, PASSWORD)
    workers.start()
    store = UsageStore(workers.outboxes.address, FOREVER)

    async def all_sent() -> bool:
        return (await store.read(export_backlog)).waiting == 0

    try:
        await workers.until(all_sent, 120.0)
    finally:
        await store.close()
    found = {json.loads(one.value)["id"] for one in await consumed(secured.broker, topic)}
    assert found == {one.id for one in (*settled, *more)}
