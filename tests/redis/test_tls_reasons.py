"""Errors of TLS name the reason and the fix. The test server only has TLS, so no Redis is needed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from gateway.errors import StartupError
from gateway.redis.client import RedisClient
from gateway.telemetry.metrics import Metrics
from tests.certificates import Authority

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def server(tls: ssl.SSLContext | None) -> AsyncIterator[str]:
    """Run a server that replies only to the handshake. Yield its address."""

    async def reject(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR no Redis\r\n")
        writer.close()

    async with await asyncio.start_server(reject, "127.0.0.1", 0, ssl=tls) as listening:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def refusal(address: str, **options: object) -> str:
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in options.items())
    client = RedisClient(f"rediss://{address}/0?{query}", timeout_s=5, metrics=Metrics())
    try:
        with pytest.raises(StartupError) as refused:
            await client.require()
    finally:
        await client.close()
    return refused.value.message


async def test_a_certificate_of_another_authority_leads_to_its_file(tmp_path: Path) -> None:
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    async with server(ours.server()) as address:
        message = await refusal(address, ssl_ca_certs=other.ca)
    assert "(TLS: unable to get local issuer certificate; check ssl_ca_certs in redis.url)" in message


async def test_a_certificate_for_another_host_is_no_matter_of_the_authority(tmp_path: Path) -> None:
    ours = Authority(tmp_path)
    async with server(ours.server("127.0.0.2")) as address:
        message = await refusal(address, ssl_ca_certs=ours.ca)
    assert "certificate is not valid for '127.0.0.1'; redis.url needs a host that the certificate names)" in message


async def test_a_port_without_tls_is_named(tmp_path: Path) -> None:
    ours = Authority(tmp_path)
    async with server(None) as address:
        message = await refusal(address, ssl_ca_certs=ours.ca)
    assert "this port has no TLS: correct the port, or write redis instead of rediss in redis.url" in message


async def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    ours = Authority(tmp_path)
    async with server(ours.server()) as address:
        assert "no such file: check the paths" in await refusal(address, ssl_ca_certs=tmp_path / "missing.pem")
        (tmp_path / "text").write_text("no certificate")
        message = await refusal(address, ssl_ca_certs=tmp_path / "text")
        assert "the file ssl_ca_certs in redis.url has no certificate" in message
        message = await refusal(address, ssl_ca_certs=ours.ca, ssl_certfile=tmp_path / "text")
        assert "check ssl_certfile and ssl_keyfile" in message
