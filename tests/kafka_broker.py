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

_POM = Path(__file__).parent / "kafka" / "pom.xml"
_JARS = Path.home() / ".cache" / "gkt-gateway" / "kafka-4.1.0"
_FETCH_S, _START_S = 300, 120


class KafkaBroker:
    """A broker. `kill` ends it with SIGKILL, `start` starts it again with its data."""

    def __init__(self, folder: Path) -> None:
        self.port, controller = _free_port(), _free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._log = folder / "kafka.log"
        self._properties = folder / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        properties = {
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
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        cluster = urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        arguments = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._properties)]
        done = subprocess.run(_java(*arguments), capture_output=True, text=True, timeout=_START_S, check=False)
        assert done.returncode == 0, done.stderr + done.stdout

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
def running_kafka(folder: Path) -> Iterator[KafkaBroker]:
    """Start a broker, yield it and kill it. The test is skipped without Java and Maven."""
    if shutil.which("java") is None or (shutil.which("mvn") is None and not _JARS.exists()):
        pytest.skip("Apache Kafka needs Java and Maven")
    if not _JARS.exists():
        partial = _JARS.with_name(f"{_JARS.name}-{secrets.token_hex(4)}")
        copy = ["mvn", "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies", f"-DoutputDirectory={partial}"]
        subprocess.run(copy, check=True, timeout=_FETCH_S, stdin=subprocess.DEVNULL)
        partial.rename(_JARS)
    broker = KafkaBroker(folder)
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
