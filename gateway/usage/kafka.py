"""A producer for brokers with Kafka's protocol, through aiokafka. Importing this module does not import aiokafka."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gateway.errors import StartupError
from gateway.usage.export_stream import RejectedMessage
from gateway.usage.kafka_errors import connect_errors, explained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.config.export import KafkaSettings, KafkaTls
    from gateway.usage.export_message import ExportMessage

_HEADERS = [("content-type", b"application/json"), ("gkt-schema", b"receipt/1")]
_MAX_BYTES = 1_000_000
"""Largest message. Brokers accept about 1 MiB by default; a receipt has a few kB."""
_STOP_S = 5.0


class KafkaProducer:
    """Send messages to a topic, confirmed by all in-sync replicas. Raises StartupError without aiokafka."""

    def __init__(self, settings: KafkaSettings) -> None:
        if find_spec("aiokafka") is None:
            raise StartupError(
                "export.kafka needs the extra `kafka`: pip install 'gkt-gateway[kafka]', or remove export.kafka from "
                "config.yaml."
            )
        self._settings = settings
        self._options = _options(settings)
        self._producer: Any = None

    async def send(self, messages: Sequence[ExportMessage]) -> list[BaseException | None]:
        """See `Producer.send`. After an error the next call connects again."""
        if not messages:
            return []
        with connect_errors() as connecting:
            try:
                async with asyncio.timeout(3 * self._settings.timeout_s):
                    errors = await self._send(messages)
            except Exception as error:  # noqa: BLE001 - returned
                errors = [error] * len(messages)
        if any(error is not None and not isinstance(error, RejectedMessage) for error in errors):
            await self.close()
        return [None if error is None else explained(error, connecting.last) for error in errors]

    async def _send(self, messages: Sequence[ExportMessage]) -> list[BaseException | None]:
        from aiokafka.errors import InvalidTimestampError

        errors = await self._deliver(messages)
        # A topic may limit the distance of timestamps from its clock. One such message fails its whole batch.
        untimely = [index for index, error in enumerate(errors) if isinstance(error, InvalidTimestampError)]
        if untimely:
            again = await self._deliver([messages[index] for index in untimely], timed=False)
            for index, error in zip(untimely, again, strict=True):
                errors[index] = error
        return errors

    async def _deliver(self, messages: Sequence[ExportMessage], *, timed: bool = True) -> list[BaseException | None]:
        """Send messages with their own timestamps or, unless `timed`, with the current time."""
        from aiokafka.errors import KafkaError

        producer, topic = await self._started(), self._settings.topic
        deliveries: list[asyncio.Future[Any] | BaseException] = []
        for key, value, created_ms in messages:
            try:
                at_ms = created_ms if timed else None
                deliveries.append(await producer.send(topic, value, key, timestamp_ms=at_ms, headers=_HEADERS))
            except KafkaError as error:
                deliveries.append(error)
                if not _is_too_large(error):
                    # Without metadata or space, the others would wait for the timeout one after another.
                    deliveries += [error] * (len(messages) - len(deliveries))
                    break
        if waiting := [one for one in deliveries if isinstance(one, asyncio.Future)]:
            await asyncio.wait(waiting)
        errors = [one.exception() if isinstance(one, asyncio.Future) else one for one in deliveries]
        return [RejectedMessage() if error is not None and _is_too_large(error) else error for error in errors]

    async def _started(self) -> Any:
        if self._producer is None:
            from aiokafka import AIOKafkaProducer

            producer = AIOKafkaProducer(**self._options)
            try:
                await producer.start()
            except BaseException:
                with suppress(Exception):
                    await producer.stop()
                raise
            self._producer = producer
        return self._producer

    async def close(self) -> None:
        """Close the connections. Messages without a confirmation are sent again later."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(Exception):
                async with asyncio.timeout(_STOP_S):
                    await producer.stop()


def _is_too_large(error: BaseException) -> bool:
    from aiokafka.errors import MessageSizeTooLargeError

    return isinstance(error, MessageSizeTooLargeError)


def _options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the arguments of AIOKafkaProducer."""
    options: dict[str, Any] = {
        "bootstrap_servers": list(settings.brokers),
        "client_id": "gkt-gateway",
        "acks": "all",
        "compression_type": None if settings.compression == "none" else settings.compression,
        "request_timeout_ms": int(settings.timeout_s * 1000),
        "max_request_size": _MAX_BYTES,
        "linger_ms": 5,
    }
    protocol = "PLAINTEXT" if settings.tls is None else "SSL"
    if settings.tls is not None:
        options["ssl_context"] = _ssl_context(settings.tls)
    if (sasl := settings.sasl) is not None:
        protocol = f"SASL_{protocol}"
        options |= {"sasl_mechanism": sasl.mechanism, "sasl_plain_username": sasl.username}
        options["sasl_plain_password"] = sasl.password.get_secret_value()
    return options | {"security_protocol": protocol}


def _ssl_context(tls: KafkaTls) -> ssl.SSLContext:
    """Return the context of connections. Raises StartupError for files that are no certificates or keys."""

    def passphrase() -> str:
        if tls.key_passphrase is None:  # OpenSSL would ask for it on the terminal
            raise StartupError(
                f"export.kafka.tls: {tls.key or tls.certificate} is protected by a passphrase: set key_passphrase, or "
                "use a key without one."
            )
        return tls.key_passphrase.get_secret_value()

    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key, passphrase)
    except (OSError, ValueError) as error:
        raise StartupError(
            f"export.kafka.tls cannot be used ({type(error).__name__}): ca, certificate and key must be PEM files, the "
            "key must belong to the certificate, and key_passphrase must be that of the key."
        ) from None
    return context
