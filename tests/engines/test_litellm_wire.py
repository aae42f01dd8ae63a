from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import httpx._transports.default
import pytest

from gateway.engines.http import EngineDeadlines
from gateway.engines.litellm_wire import AsyncWire, EnginePool, ForeignHost, ReplyTooLarge, SyncWire, tls_context
from tests.engines.fake_server import replying, serving

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator


@asynccontextmanager
async def pool_of(api_base: str | None, **options: Any) -> AsyncIterator[tuple[EnginePool, httpx.AsyncClient]]:
    """Yield a pool, and a client like LiteLLM's: it follows redirects and stores cookies."""
    pool = EnginePool(api_base, EngineDeadlines(), **options)
    async with httpx.AsyncClient(transport=AsyncWire(), follow_redirects=True) as client:
        yield pool, client
    await pool.close()


async def test_a_call_stays_at_the_engines_address() -> None:
    """Another port counts as another host."""
    async with serving({}) as there, serving({}) as elsewhere, pool_of(there.url) as (pool, client):
        with pool.call() as call:
            await client.post(there.url + "/v1/x")
            with pytest.raises(ForeignHost):
                await client.post(elsewhere.url + "/v1/x")
        assert isinstance(call.broke, ForeignHost)
        assert (len(there.requests), len(elsewhere.requests)) == (1, 0)


def test_a_pool_reads_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of config.yaml creates pools while requests run. Reading takes tens of milliseconds."""
    contexts: list[object] = []
    create = httpx._transports.default.create_ssl_context

    def noting(verify: object = True, **options: Any) -> ssl.SSLContext:
        contexts.append(verify)
        return create(verify=verify, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(httpx._transports.default, "create_ssl_context", noting)
    for _ in range(2):
        EnginePool(None, EngineDeadlines())
    assert contexts == [tls_context()] * 2


async def test_without_a_base_url_calls_to_any_host_are_allowed() -> None:
    async with serving({}) as there, pool_of(None) as (pool, client):
        with pool.call() as call:
            await client.post(there.url)
        assert (call.sent, call.status) == (True, 404)


async def test_requests_outside_of_an_engine_call_are_blocked() -> None:
    async with serving({}) as there, pool_of(there.url) as (_, client):
        with pytest.raises(ForeignHost):
            await client.get(there.url)
        assert there.requests == []


async def test_no_blocking_call_is_made_on_the_event_loop() -> None:
    """A thread may make one, since some providers fetch a token there, but only to the engine's address."""
    async with serving({"/token": replying({})}) as there, pool_of(there.url) as (pool, _):
        wire = SyncWire()
        with httpx.Client(transport=wire) as client, pool.call():
            with pytest.raises(ForeignHost):
                client.get(there.url + "/token")  # noqa: ASYNC212
            assert there.requests == []
            assert (await asyncio.to_thread(client.get, there.url + "/token")).status_code == 200
            with pytest.raises(ForeignHost):
                await asyncio.to_thread(client.get, "http://127.0.0.1:1/token")
        wire._transport.close()


async def test_redirects_are_not_followed_and_cookies_not_kept() -> None:
    headers = {"Location": "/other", "Set-Cookie": "a=b"}
    async with (
        serving({"/": replying({}, status=302, headers=headers)}) as there,
        pool_of(there.url) as (pool, client),
    ):
        with pool.call() as call:
            response = await client.get(there.url + "/")
        assert (call.status, response.status_code, there.paths) == (302, 302, ["/"])
        assert not client.cookies


async def test_a_reply_has_a_bound() -> None:
    async with (
        serving({"/": replying("x" * 5000)}) as there,
        pool_of(there.url, max_reply_bytes=1000) as (pool, client),
    ):
        with pool.call() as call, pytest.raises(ReplyTooLarge):
            await client.get(there.url + "/")
        assert isinstance(call.broke, ReplyTooLarge)


@pytest.mark.parametrize(("status", "kept"), [(400, b'"words"'), (401, b""), (403, b""), (307, b"")])
async def test_error_texts_are_kept_unless_they_may_contain_the_key(status: int, kept: bytes) -> None:
    async with serving({"/": replying(b'"words"', status=status)}) as there, pool_of(there.url) as (pool, client):
        with pool.call() as call:
            await client.get(there.url + "/")
        assert call.error_body == kept


@pytest.mark.parametrize(
    ("body", "ended"),
    [
        (b'{"finishReason": "STOP"}', True),
        (b'{"stop_reason":"end_turn"}', True),
        (b'{"stop_reason":null}', False),
        (b'{"text":"\\"finishReason\\":\\"STOP\\""}', False),
    ],
)
async def test_a_reason_for_ending_is_seen_and_not_one_in_a_text(body: bytes, ended: bool) -> None:
    async with serving({"/": replying(body)}) as there, pool_of(there.url) as (pool, client):
        with pool.call() as call:
            await client.get(there.url + "/")
        assert call.ended is ended


async def test_headers_are_read_again_for_each_call() -> None:
    """Trace headers are read for each call. LiteLLM's own requests between calls have none."""
    headers: list[dict[str, str] | None] = [{"traceparent": "one"}, {"traceparent": "two"}, None]
    async with serving({}) as there, pool_of(there.url, outgoing=lambda: headers.pop(0)) as (pool, client):
        for _ in range(3):
            with pool.call():
                await client.post(there.url)
        assert [request.headers.get("traceparent") for request in there.requests] == ["one", "two", None]
