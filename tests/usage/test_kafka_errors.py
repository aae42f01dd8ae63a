"""TLS failures with several possible causes, or without a wrong setting."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gateway.config.export import KafkaSettings
from gateway.usage.export_message import message_of
from gateway.usage.export_stream import SettingError
from gateway.usage.kafka import KafkaProducer
from tests.usage.databases import receipts_of_a_day

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

pytest.importorskip("aiokafka", reason="needs the extra kafka")

_ALERT_PROTOCOL_VERSION = bytes.fromhex("15 0301 0002 02 46")


async def error_of_tls(reply: bytes) -> SettingError:
    """Return the error of a producer whose broker answers the start of TLS with `reply`, and closes the connection."""

    async def answer(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.read(1)
        writer.write(reply)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        settings = KafkaSettings.model_validate({"brokers": (f"127.0.0.1:{port}",), "timeout": "5s", "tls": {}})
        (error,) = await KafkaProducer(settings).send([message_of(receipts_of_a_day(1)[0].to_json())])
    assert isinstance(error, SettingError)
    return error


async def test_a_connection_that_closes_may_be_an_outage() -> None:
    """A proxy without a broker behind it also closes the connection: TLS must not be removed then."""
    error = await error_of_tls(b"")
    assert error.name == "ConnectionResetError"
    assert error.fix.startswith("the brokers, or a proxy in front of them, close the connection during the TLS")


async def test_a_tls_version_that_brokers_do_not_support_is_no_wrong_certificate() -> None:
    error = await error_of_tls(_ALERT_PROTOCOL_VERSION)
    assert error.name == "SSLError"
    assert "TLS 1.2 or 1.3" in error.fix
    assert "certificate" not in error.fix
