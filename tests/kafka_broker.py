"""Apache Kafka for tests: one node on the loopback address, from its published jars. Maven fetches them once."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import time
from base64 import urlsafe_b64encode
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.certificates import Authority

_POM = Path(__file__).parent / "kafka" / "pom.xml"
_JARS = Path.home() / ".cache" / "gkt-gateway" / "kafka-4.1.0"
_FETCH_S, _START_S = 300, 120


USER, PASSWORD = "gkt", "a-broker-password"
_JAAS = "org.apache.kafka.common.security"


class KafkaBroker:
    """A broker. `kill` ends it with SIGKILL, `start` starts it again with its data.

    With an authority, the broker has two more listeners with TLS: `mutual` requires a client certificate, `login` the
    user USER with PASSWORD.
    """

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        self.port, controller = _free_port(), _free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.mutual, self.login = (f"localhost:{_free_port()}" for _ in range(2))
        self._log = folder / "kafka.log"
        self._properties = folder / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        properties: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": folder / "data",
            "num.partitions": 3,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
        }
        if authority is not None:
            properties |= self._secured(properties, authority)
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        cluster = urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        arguments = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._properties)]
        arguments += ["-S", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"]
        done = subprocess.run(_java(*arguments), capture_output=True, text=True, timeout=_START_S, check=False)
        assert done.returncode == 0, done.stderr + done.stdout

    def _secured(self, plain: dict[str, object], authority: Authority) -> dict[str, object]:
        """Return the properties of the listeners with TLS."""
        more = f"MUTUAL://{self.mutual},LOGIN://{self.login}"
        protocols = f"{plain['listener.security.protocol.map']},MUTUAL:SSL,LOGIN:SASL_SSL"
        return {
            "listeners": f"{plain['listeners']},{more}",
            "advertised.listeners": f"{plain['advertised.listeners']},{more}",
            "listener.security.protocol.map": protocols,
            "inter.broker.listener.name": "PLAINTEXT",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": authority.issue("broker", address="127.0.0.2"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": authority.ca,
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.login.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            "listener.name.login.scram-sha-512.sasl.jaas.config": f"{_JAAS}.scram.ScramLoginModule required;",
            "listener.name.login.plain.sasl.jaas.config": (
                f'{_JAAS}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
            ),
        }

    def start(self) -> None:
        """Start the broker, and wait until it accepts connections."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                _java("kafka.Kafka", str(self._properties)), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self._process.poll() is None, self._log.read_text()[-3_000:]
                assert time.monotonic() < deadline, self._log.read_text()[-3_000:]
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        """End the broker with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def running_kafka(folder: Path, authority: Authority | None = None) -> Iterator[KafkaBroker]:
    """Start a broker, yield it and kill it. The test is skipped without Java and Maven."""
    if shutil.which("java") is None or (shutil.which("mvn") is None and not _JARS.exists()):
        pytest.skip("Apache Kafka needs Java and Maven")
    if not _JARS.exists():
        partial = _JARS.with_name(f"{_JARS.name}-{secrets.token_hex(4)}")
        copy = ["mvn", "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies", f"-DoutputDirectory={partial}"]
        subprocess.run(copy, check=True, timeout=_FETCH_S, stdin=subprocess.DEVNULL)
        try:
            partial.rename(_JARS)
        except OSError:  # another worker of pytest has fetched them meanwhile
            if not _JARS.exists():
                raise
            shutil.rmtree(partial)
    broker = KafkaBroker(folder, authority)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


def _java(*arguments: str) -> list[str]:
    return ["java", "-Xmx256m", "-cp", f"{_JARS}/*", *arguments]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
