"""Section `export` of config.yaml: where receipts are sent, besides the usage database."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from gateway.config.scalars import Duration, InvalidValue, Secret, duration_between, file_path, text_pattern
from gateway.config.yaml_source import StrictModel

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}", re.ASCII)
_BROKER = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):([0-9]{1,5})", re.ASCII)
_MAX_PORT = 65_535


def _broker(value: str) -> str:
    match = _BROKER.fullmatch(value)
    if match is None or not 0 < int(match[2]) <= _MAX_PORT:
        raise InvalidValue("must be HOST:PORT, like kafka-1:9092")
    return value


def _topic(value: str) -> str:
    if not _TOPIC.fullmatch(value) or value in {".", ".."}:
        raise InvalidValue("must be 1 to 249 letters, digits or any of . _ -")
    return value


_Broker: TypeAlias = Annotated[str, AfterValidator(_broker), text_pattern(_BROKER.pattern)]
_File: TypeAlias = Annotated[Path, BeforeValidator(file_path)]


class KafkaTls(StrictModel):
    """TLS of the connections to the brokers."""

    ca: _File | None = None
    """Certificates that sign those of the brokers, as PEM. None: those of the system."""
    certificate: _File | None = None
    """Certificate of the gateway, as PEM. None: the brokers ask for none."""
    key: _File | None = None
    """Private key of the certificate, as PEM. None: `certificate` contains it."""
    key_passphrase: Secret | None = None
    """Passphrase of the key, as a reference: env:NAME or file:/path. None: the key has none."""

    @field_validator("key")
    @classmethod
    def _has_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if key is not None and info.data.get("certificate", key) is None:
            raise InvalidValue("has no certificate: set certificate, too")
        return key


class KafkaSasl(StrictModel):
    """Login at the brokers."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """SASL mechanism. PLAIN needs `tls`."""
    username: Annotated[str, Field(min_length=1, max_length=255)]
    """User."""
    password: Secret
    """Password, as a reference: env:NAME or file:/path."""


class KafkaSettings(StrictModel):
    """Brokers and topic. Receipts are sent from the usage database, each at least once."""

    brokers: Annotated[tuple[_Broker, ...], Field(min_length=1, max_length=32)]
    """Brokers for the first connection, as HOST:PORT. They name the others."""
    topic: Annotated[str, AfterValidator(_topic), text_pattern(_TOPIC.pattern)] = "gkt-receipts"
    """Topic. Create it before, unless the brokers create topics."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "gzip"
    """Compression of batches."""
    tls: KafkaTls | None = None
    """TLS of the connections. None: no TLS."""
    sasl: KafkaSasl | None = None
    """Login at the brokers. None: none."""
    timeout_s: Annotated[Duration, duration_between("1s", "1m")] = Field(10.0, alias="timeout")
    """Timeout of one request to a broker, and of the delivery of a batch."""

    @field_validator("sasl")
    @classmethod
    def _no_plain_password(cls, sasl: KafkaSasl | None, info: ValidationInfo) -> KafkaSasl | None:
        if sasl is not None and sasl.mechanism == "PLAIN" and info.data.get("tls") is None:
            raise InvalidValue("PLAIN sends the password unencrypted: set tls, or use SCRAM-SHA-512")
        return sasl


class ExportSettings(StrictModel):
    """Streams of receipts to other systems. The usage worker sends them."""

    kafka: KafkaSettings | None = None
    """Brokers with Kafka's protocol. Needs the extra `kafka`. None: no export."""
