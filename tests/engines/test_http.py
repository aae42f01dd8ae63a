from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.http import HttpResponseParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.engines.base import set_origin
from gateway.engines.refusal import ReportedError, read_error, refusal
from gateway.errors import (
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
)
from tests.engines.fake_server import KEY, engine_http, failure, listening, replying, reset, serving, streaming, talking

if TYPE_CHECKING:
    from gateway.engines.http import EngineHttp
    from tests.engines.fake_server import FakeServer, Handler, Talk

HTML = "<html><body>502 Bad Gateway, upstream 10.0.0.7:8080</body></html>"


async def failed_call(handler: Handler, **http_options: Any) -> EngineError:
    async with serving({"/x": handler}) as fake, engine_http(fake.url, **http_options) as http:
        return await failure(http.post("/x", {}), fake.url)


async def failed_talk(talk: Talk, **http_options: Any) -> EngineError:
    async with talking(talk) as url, engine_http(url, **http_options) as http:
        return await failure(http.post("/x", {}), url)


async def failed_stream(handler: Handler, **http_options: Any) -> EngineError:
    async with serving({"/x": handler}) as fake, engine_http(fake.url, **http_options) as http:
        return await failure(events_of(http), fake.url)


async def events_of(http: EngineHttp, path: str = "/x") -> list[bytes]:
    async with aclosing(http.events(path, {})) as groups:
        return [event async for events in groups for event in events]


def says(raw: bytes) -> Talk:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()

    return talk


async def never(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, {"error": {"message": "too long"}}, EngineRejected, "answered 400: too long"),
        (404, {"error": "no such model"}, EngineRejected, "answered 404: no such model"),
        (413, "length limit exceeded", EngineRejected, "answered 413: length limit exceeded"),
        (422, {"error": "`top_p` must be < 1", "error_type": "validation"}, EngineRejected, "422: `top_p` must be < 1"),
        (424, {"error": "out of memory", "error_type": "generation"}, EngineFailed, "answered 424: out of memory"),
        (429, {"error": "overloaded", "error_type": "overloaded"}, EngineOverloaded, "answered 429: overloaded"),
        (500, {"message": "boom", "object": "error"}, EngineFailed, "answered 500: boom"),
        (502, HTML, EngineFailed, "answered 502."),
        (503, {"detail": "loading"}, EngineOverloaded, "answered 503: loading"),
        (504, b"", EngineFailed, "answered 504."),
        (422, {"detail": [{"loc": ["body"], "msg": "bad"}]}, EngineRejected, "answered 422."),
        (500, "two\n  lines\tand more", EngineFailed, "answered 500: two lines and more"),
        (500, b"\xff\xfe", EngineFailed, "answered 500: \ufffd\ufffd"),
        (204, b"", EngineProtocolError, "answered 204."),
        (201, {"choices": []}, EngineProtocolError, "answered 201."),
    ],
)
async def test_each_status_is_an_error_of_its_kind(
    status: int, body: Any, kind: type[EngineError], message: str
) -> None:
    """The status determines the class; the engine's text follows in the message."""
    error = await failed_call(replying(body, status=status))
    assert type(error) is kind
    assert message in error.message
    if isinstance(error, EngineRejected):
        assert error.status_sent == status


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_never_quote_the_engine(status: int) -> None:
    """The text for a rejected key may contain the key."""
    error_body = {"error": {"message": f"Incorrect key: {KEY[:8]}...", "code": f"bad {KEY[:8]}"}}
    error = await failed_call(replying(error_body, status=status))
    assert isinstance(error, EngineRejected)
    assert (
        error.message
        == f"Engine 'the-engine' rejected the gateway's credentials ({status}). Check the model's api_key."
    )
    assert error.reason is None


async def test_error_texts_of_engines_contain_neither_url_nor_key() -> None:
    """An engine may quote its own URL or its key."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": f"POST {request.url} with {request.headers['Authorization']}"}, status=500)

    error = await failed_call(handler)
    assert error.message == "Engine 'the-engine' answered 500: POST (hidden)/x with Bearer (hidden)"


async def test_a_long_explanation_is_cut() -> None:
    """A stack trace does not become an error message."""
    error = await failed_call(replying("x" * 5_000, status=400))
    assert error.message.endswith(": " + "x" * 500)


async def test_a_huge_error_page_does_not_hide_its_status() -> None:
    """The body of an error is read up to a limit."""
    assert isinstance(await failed_call(replying("x" * 500_000, status=503)), EngineOverloaded)


async def test_an_error_that_breaks_off_does_not_hide_its_status() -> None:
    """The body of an error may be incomplete."""
    error = await failed_talk(says(b"HTTP/1.1 503 Busy\r\nContent-Length: 99\r\n\r\nbusy"))
    assert isinstance(error, EngineOverloaded)
    assert error.message.endswith("answered 503: busy")


async def test_an_error_whose_body_hangs_does_not_hide_its_status() -> None:
    """The body of an error is awaited for at most `idle_s`."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 429 Busy\r\nContent-Length: 99\r\n\r\nbusy")
        await reader.read()

    async with asyncio.timeout(5):
        assert isinstance(await failed_talk(talk, idle_s=0.05), EngineOverloaded)


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_in_seconds_is_kept(status: int) -> None:
    error = await failed_call(replying({}, status=status, headers={"Retry-After": "7"}))
    assert error.retry_after_s == 7


async def test_retry_after_as_a_date_is_kept() -> None:
    """HTTP permits a date."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    error = await failed_call(replying({}, status=429, headers={"Retry-After": date}))
    assert error.retry_after_s == pytest.approx(60, abs=5)


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "soon"}])
async def test_overload_without_retry_after_is_tried_again_in_a_second(headers: dict[str, str]) -> None:
    """TGI sends no Retry-After; callers get one."""
    assert (await failed_call(replying({}, status=429, headers=headers))).retry_after_s == 1


def retry_after_s(value: str | None) -> float | None:
    """Return the pause that a reply with this header requests."""
    error = refusal("it", 429, ReportedError(), value)
    assert isinstance(error, EngineOverloaded)
    return error.engine_retry_after_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-3", 0),
        ("1.5", 1.5),
        ("nan", None),
        ("inf", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 0),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
    ],
)
def test_any_retry_after_is_a_time_to_wait_or_none(value: str | None, seconds: float | None) -> None:
    """Never negative, never infinite, never an exception."""
    assert retry_after_s(value) == seconds


DATES = st.builds("{}, {} Oct {} {}:28:00 {}".format, st.text(), *[st.integers()] * 3, st.text())


@settings(deadline=None)
@given(st.text() | DATES)
def test_no_retry_after_raises(value: str) -> None:
    """The header may contain anything."""
    seconds = retry_after_s(value)
    assert seconds is None or 0 <= seconds < float("inf")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "code", "type", "error_type"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["error", "message", "detail", "error_type"]), JSON) | st.binary())
@example(b"[" * 5_000)
def test_any_error_body_is_one_short_line(body: Any) -> None:
    """For a body of any shape."""
    report = read_error(body)
    assert len(report.text) <= 500
    assert report.text == " ".join(report.text.split()) or len(report.text) == 500
    assert report.reason is None or isinstance(report.reason, str)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": "x", "error_type": "generation"}, "generation"),
        ({"error": {"message": "x", "code": "context_length_exceeded", "type": "invalid"}}, "context_length_exceeded"),
        ({"error": {"message": "x", "code": 400, "type": "BadRequestError"}}, "BadRequestError"),
        ({"error": "x"}, None),
    ],
)
async def test_the_engines_error_code_is_kept(body: Any, reason: str | None) -> None:
    """TGI's error_type, else OpenAI's code, else its type. A number is ignored."""
    assert (await failed_call(replying(body, status=400))).reason == reason


VLLM_CONTEXT = (
    "This model's maximum context length is 2048 tokens. However, you requested 100 output tokens and your prompt "
    "contains at least 2001 input tokens, for a total of at least 2101 tokens."
)


@pytest.mark.parametrize(
    ("error", "code", "param"),
    [
        ({"code": "unsupported_value", "param": "messages[1].role"}, "unsupported_value", "messages[1].role"),
        ({"message": VLLM_CONTEXT, "type": "BadRequestError", "code": 400, "param": "input_tokens"},
         "context_length_exceeded", "input_tokens"),
        ({"message": "top_k must be -1", "type": "BadRequestError", "code": 400, "param": "top_k"}, None, "top_k"),
        ({"message": "request (9 tokens) is too large", "type": "exceed_context_size_error", "code": 400},
         "context_length_exceeded", None),
        ({"message": "The input (9 tokens) is longer than the model's context length (8 tokens)."},
         "context_length_exceeded", None),
        ({"code": "a word of the prompt", "param": "a field?"}, None, None),
        ({"code": ["x"], "param": 7}, None, None),
        ({"code": "x" * 65, "param": "y" * 101}, None, None),
    ],
)  # fmt: skip
async def test_the_code_and_the_field_of_a_rejection_are_kept(
    error: dict[str, Any], code: str | None, param: str | None
) -> None:
    """OpenAI's, vLLM's and llama.cpp's. A value that is no name may be text of the prompt."""
    for body in ({"error": error}, {"object": "error", **error}):  # the second is the shape of older vLLM
        failed = await failed_call(replying(body, status=400))
        assert (failed.engine_code, failed.engine_param) == (code, param)
        shared = failed.for_other_requests()
        assert (shared.engine_code, shared.engine_param) == (None, None)


def test_a_hidden_text_is_neither_code_nor_field() -> None:
    report = read_error(
        {"error": {"message": "x", "code": "key_123", "param": "at.host.example"}}, ["key_123", "host.ex"]
    )
    assert (report.code, report.param) == (None, None)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    """The configuration alone determines the address."""
    routes = {"/x": replying({}, status=status, headers={"Location": "/y"}), "/y": replying({"found": True})}
    async with serving(routes) as fake, engine_http(fake.url) as http:
        error = await failure(http.post("/x", {}), fake.url)
        assert fake.paths == ["/x"]
    assert isinstance(error, EngineProtocolError)
    assert str(status) in error.message


@pytest.mark.parametrize("base", ["", "/v1", "/behind/a/proxy", "/behind/a/proxy/v1"])
async def test_native_routes_are_outside_of_v1(base: str) -> None:
    """Some routes of servers are outside of /v1."""
    path = base.removesuffix("/v1") + "/own"
    async with serving({path: replying({"a": 1})}) as fake, engine_http(fake.url + base) as http:
        assert (await http.post("/own", {}, native=True)).body == {"a": 1}


async def test_a_refused_connection_is_unreachable() -> None:
    """No process listens."""
    async with serving({}) as fake:
        url = fake.url
    async with engine_http(url) as http:
        assert isinstance(await failure(http.get("/x"), url), EngineUnreachable)
        assert isinstance(await failure(events_of(http), url), EngineUnreachable)


async def test_an_unknown_host_is_unreachable() -> None:
    """The message does not contain the host name."""
    url = "http://no-such-host.invalid:1"
    async with engine_http(url) as http:
        assert isinstance(await failure(http.get("/x"), url), EngineUnreachable)


async def test_a_connection_that_breaks_before_the_reply_is_unreachable() -> None:
    """A closed connection and a reset one give the same error."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def break_off(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reset(writer)

    assert isinstance(await failed_talk(hang_up), EngineUnreachable)
    assert isinstance(await failed_talk(break_off), EngineUnreachable)


async def test_a_call_lost_on_an_idle_connection_is_retried_on_a_new_one() -> None:
    """The engine may have read it. The retry loop, which counts and charges retries, decides about a repetition."""
    calls = connections = 0
    all_came, hangs_up = asyncio.Event(), False

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls, connections
        connections += 1
        is_new = True
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"{}"):
                calls += 1
                if hangs_up and not is_new:
                    return
                is_new = False
                if calls == 5:
                    all_came.set()
                await all_came.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
                await writer.drain()

    async with listening(talk) as url, engine_http(url) as http:
        await asyncio.gather(*(http.post("/v1", {}) for _ in range(5)))
        calls, hangs_up = 0, True
        error = await failure(http.post("/v1", {}), url)
        assert (type(error), error.may_have_run, error.retryable, calls) == (EngineUnreachable, True, True, 1)
        assert (await http.post("/v1", {})).body == {}
        assert (calls, connections) == (2, 6)


async def test_a_call_that_could_not_be_written_is_sent_once_more() -> None:
    """The connection closes before the call is written, so no engine has read the call."""
    calls = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        with suppress(asyncio.IncompleteReadError, ConnectionResetError):
            while await reader.readuntil(b"{}"):
                calls += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
                await writer.drain()

    async with listening(talk) as url, engine_http(url) as http:
        connect, closing = http._pool._connector.connect, 0

        async def closes(*args: Any, **options: Any) -> Any:
            nonlocal closing
            connection = await connect(*args, **options)
            if closing:
                closing -= 1
                connection.transport.is_closing = lambda: True  # as before the event loop notices the close
            return connection

        http._pool._connector.connect = closes  # type: ignore[method-assign]
        closing = 1
        assert (await http.post("/v1", {})).body == {}
        assert calls == 1
        http._pool._close_idle()
        closing = 2
        assert isinstance(await failure(http.post("/v1", {}), url), EngineUnreachable)
        assert calls == 1


async def test_a_refusal_before_the_body_is_read_keeps_its_status_and_spoils_no_other_call() -> None:
    """The rest of the body is not sent on this connection, where the engine would read it as the next call."""
    connections = 0
    refused = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        if connections == 1:
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            await refused.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()

    async with asyncio.timeout(5), listening(talk) as url, engine_http(url) as http:
        error = await failure(http.post("/x", {"a": "x" * 20_000_000}), url)
        assert isinstance(error, EngineRejected)
        assert error.status_sent == 413
        refused.set()
        assert (await http.post("/x", {})).body == {}


async def test_an_informational_reply_is_not_the_reply() -> None:
    """For example 103 Early Hints."""
    final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    async with talking(says(hints + hints + final)) as url, engine_http(url) as http:
        assert (await http.post("/x", {})).body == {}


@pytest.fixture
def parsed_replies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which aiohttp's parser adds the status of each reply that it parses."""
    statuses: list[int] = []

    class CountingParser(HttpResponseParser):  # type: ignore[misc]
        def feed_data(self, data: bytes) -> Any:
            parsed = super().feed_data(data)
            statuses.extend(message.code for message, _ in parsed[0])
            return parsed

    monkeypatch.setattr("aiohttp.client_proto.HttpResponseParser", CountingParser)
    return statuses


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("hints", [20_000, 80_000])
async def test_informational_replies_are_bounded(parsed_replies: list[int], hints: int, *, streamed: bool) -> None:
    """The work does not grow with their number, and calls to other engines continue."""
    async with (
        talking(says(b"HTTP/1.1 103 \r\n\r\n" * hints)) as url,
        engine_http(url) as http,
        serving({"/x": replying({})}) as other,
        engine_http(other.url) as other_http,
    ):
        error, reply = await asyncio.gather(
            failure(events_of(http) if streamed else http.post("/x", {}), url), other_http.post("/x", {})
        )
    assert isinstance(error, EngineProtocolError)
    assert error.message == "Engine 'the-engine' sent more than 32 informational replies (1xx) to one call."
    assert reply.body == {}
    assert 32 < parsed_replies.count(103) < 1_000


async def test_an_informational_reply_now_and_then_does_not_put_off_the_first_token() -> None:
    """The headers of the reply are due with the first token."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.02)

    async with asyncio.timeout(5), talking(talk) as url, engine_http(url, first_token_s=0.1) as http:
        assert isinstance(await failure(events_of(http), url), EngineTimeout)


@pytest.mark.parametrize("body", [b"{}", b'{"a": "' + b"x" * 900_000 + b'"}'])
async def test_replies_after_a_reply_are_not_parsed(parsed_replies: list[int], body: bytes) -> None:
    """The call gets its reply, whose connection is closed."""
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with talking(says(raw + b"HTTP/1.1 204 \r\n\r\n" * 20_000)) as url, engine_http(url) as http:
        for _ in range(2):
            assert await http.post_raw("/x", {}, max_reply_bytes=1_000_000) == body
    assert parsed_replies.count(200) == 2
    assert parsed_replies.count(204) < 2_000


async def test_small_chunks_of_a_paused_body_arrive_complete() -> None:
    """Reading is paused after 16,384 unread chunks."""
    chunks = 60_000
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;a=b\r\nx\r\n" * chunks + b"0\r\n\r\n"
    async with talking(says(raw)) as url, engine_http(url) as http:
        assert await http.post_raw("/x", {}, max_reply_bytes=1_000_000) == b"x" * chunks


@pytest.mark.parametrize("key", ["a\r\nX-Other: b", "a\nb", "a\0b", "a\x7fb"])
async def test_a_key_with_a_control_character_is_not_sent(key: str) -> None:
    """A line end would inject a header."""
    async with serving({"/x": replying({})}) as fake, engine_http(fake.url, api_key=key) as http:
        error = await failure(http.post("/x", {}), fake.url)
        assert isinstance(error, EngineUnreachable)
        assert fake.requests == []


async def test_a_reply_that_breaks_off_is_unreachable() -> None:
    """The error is the same if the received part is valid JSON."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        reset(writer)

    assert isinstance(await failed_talk(talk), EngineUnreachable)


async def test_a_reply_shorter_than_its_content_length_is_unreachable() -> None:
    """The body has fewer bytes than Content-Length."""
    error = await failed_talk(says(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}"))
    assert isinstance(error, EngineUnreachable)


async def test_a_reply_longer_than_its_content_length_does_not_affect_the_next_call() -> None:
    """Bytes after the end of the body are not the next reply."""
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    async with talking(says(raw + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n7")) as url, engine_http(url) as http:
        assert [(await http.post("/x", {})).body for _ in range(3)] == [{}, {}, {}]


async def test_a_reply_between_two_calls_is_not_that_of_the_next_call() -> None:
    """Its connection is closed."""
    connections = 0
    sent = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n7")
        await writer.drain()
        sent.set()

    async with listening(talk) as url, engine_http(url) as http:
        assert (await http.post("/x", {})).body == {}
        await sent.wait()
        await asyncio.sleep(0.02)
        assert (await http.post("/x", {})).body == {}
        assert connections == 2


async def test_a_reply_that_is_not_http_is_unreachable() -> None:
    """Another service listens at the address."""
    assert isinstance(await failed_talk(says(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")), EngineUnreachable)


@pytest.mark.parametrize("body", [b"", b"OK", b'{"choices": [', b"\xff", b"NaN", HTML])
async def test_a_200_without_json_is_a_protocol_error(body: bytes | str) -> None:
    error = await failed_call(replying(body))
    assert isinstance(error, EngineProtocolError)
    assert error.message == "Engine 'the-engine' sent invalid JSON."


async def test_json_too_deep_to_be_written_again_is_a_protocol_error() -> None:
    """orjson decodes 1024 levels and encodes 254."""
    deepest, deeper = (b"[" * levels + b"]" * levels for levels in (254, 255))
    async with serving({"/x": replying(deepest), "/y": replying(deeper)}) as fake, engine_http(fake.url) as http:
        await http.post("/x", {})
        error = await failure(http.post("/y", {}), fake.url)
    assert isinstance(error, EngineProtocolError)
    assert "more than 254 nested levels" in error.message


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        ({"error": {"message": "boom", "code": 502}}, EngineFailed, None),
        ({"error": {"message": "boom", "code": 429}}, EngineOverloaded, None),
        ({"error": {"message": "boom", "code": 400, "type": "BadRequestError"}}, EngineRejected, "BadRequestError"),
        ({"error": {"message": "boom", "type": "invalid_request_error"}}, EngineRejected, "invalid_request_error"),
        ({"error": {"message": "boom", "type": "overloaded_error"}}, EngineOverloaded, "overloaded_error"),
        ({"error": {"message": "boom", "code": True}}, EngineFailed, None),
        ({"error": {"message": "boom", "code": 42}}, EngineFailed, None),
        ({"error": "boom", "error_type": "generation"}, EngineFailed, "generation"),
        ({"error": "boom", "error_type": "overloaded"}, EngineOverloaded, "overloaded"),
        ({"error": "boom", "error_type": "validation"}, EngineRejected, "validation"),
    ],
)
async def test_an_error_under_status_200_is_an_error(body: Any, kind: type[EngineError], reason: str | None) -> None:
    """OpenRouter and servers behind some proxies send such errors, in different formats."""
    error = await failed_call(replying(body))
    assert type(error) is kind
    how = "rejected the request" if kind is EngineRejected else "answered 200 with an error"
    assert (error.message, error.reason) == (f"Engine 'the-engine' {how}: boom", reason)
    assert error.may_have_run is (kind is EngineFailed)


async def test_an_error_under_status_200_that_blames_the_key_quotes_nothing() -> None:
    """The engine's text may contain the key."""
    error = await failed_call(replying({"error": {"message": f"Incorrect key: {KEY[:8]}", "code": 401}}))
    assert isinstance(error, EngineRejected)
    assert error.message == "Engine 'the-engine' rejected the gateway's credentials (401). Check the model's api_key."
    assert not error.blames_request


async def test_an_error_of_null_is_none() -> None:
    """Some servers send the field `error` in every reply."""
    async with serving({"/x": replying({"error": None})}) as fake, engine_http(fake.url) as http:
        assert (await http.post("/x", {})).body == {"error": None}


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_body_with_invalid_framing_fails_at_once(*, streamed: bool) -> None:
    """aiohttp 3.14.5 does not report this to the reader of the body (data_received in client_proto.py)."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = b"text/event-stream" if streamed else b"application/json"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"no size\r\n")
        await reader.read()

    async with asyncio.timeout(5), talking(talk) as url, engine_http(url) as http:
        error = await failure(events_of(http) if streamed else http.post("/x", {}), url)
    assert isinstance(error, EngineUnreachable)


async def test_a_content_type_may_be_written_in_capitals() -> None:
    """Media types are case-insensitive."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"data: 1\n\n", headers={"Content-Type": "Text/Event-Stream"})

    async with serving({"/x": handler}) as fake, engine_http(fake.url) as http:
        assert await events_of(http) == [b"1"]


async def test_a_reply_over_the_bound_is_a_protocol_error() -> None:
    """The size of a reply is limited."""
    async with (
        serving({"/x": replying({"a": "x" * 92}), "/y": replying({"a": "x" * 93})}) as fake,
        engine_http(fake.url, max_reply_bytes=100) as http,
    ):
        assert (await http.post("/x", {})).body == {"a": "x" * 92}
        error = await failure(http.post("/y", {}), fake.url)
    assert isinstance(error, EngineProtocolError)
    assert "more than 100 bytes" in error.message


async def test_json_instead_of_a_stream_is_a_protocol_error() -> None:
    """The reply of an engine that ignores `stream` is not read as an empty stream."""
    error = await failed_stream(replying({"choices": []}))
    assert isinstance(error, EngineProtocolError)
    assert "with content type application/json instead" in error.message


async def test_an_error_status_of_a_stream_request_keeps_its_kind() -> None:
    """A stream request fails like a JSON request."""
    assert isinstance(await failed_stream(replying({"error": "full"}, status=429)), EngineOverloaded)


async def test_an_event_over_the_bound_is_a_protocol_error() -> None:
    """An event may have a million bytes."""
    assert isinstance(await failed_stream(streaming(b"x" * 1_000_001)), EngineProtocolError)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_connection_that_does_not_come_about_is_unreachable(*, streamed: bool) -> None:
    """`connect_s` covers the whole connection setup, for example TLS with a server that does not answer."""

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(silent) as plain:
        url = plain.replace("http:", "https:")
        async with engine_http(url, connect_s=0.05) as http:
            error = await failure(events_of(http) if streamed else http.post("/x", {}), url)
    assert isinstance(error, EngineUnreachable)
    assert "within 0.05 s" in error.message


async def test_a_call_ends_at_its_total_deadline() -> None:
    """Connected, but without a reply."""
    error = await failed_call(never, total_s=0.05)
    assert isinstance(error, EngineTimeout)
    assert "within 0.05 s" in error.message


async def test_a_stream_ends_at_its_total_deadline() -> None:
    """Although events arrive."""
    error = await failed_stream(streaming(*[{}] * 100, pause_s=0.01), total_s=0.1)
    assert isinstance(error, EngineTimeout)
    assert "within 0.1 s" in error.message


async def test_get_times_out_like_a_first_token() -> None:
    """Replies to GET are small, so the timeout is that of a first token."""
    async with serving({"/x": never}) as fake, engine_http(fake.url, first_token_s=0.05) as http:
        error = await failure(http.get("/x"), fake.url)
    assert isinstance(error, EngineTimeout)
    assert "sent no data for 0.05 s" in error.message


async def test_headers_are_due_with_the_first_token() -> None:
    """A stream without headers."""
    error = await failed_stream(never, first_token_s=0.05)
    assert isinstance(error, EngineTimeout)
    assert "sent no data for 0.05 s" in error.message


async def test_the_first_event_is_due_with_the_first_token() -> None:
    """Headers are no token."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        return await never(request)

    error = await failed_stream(handler, first_token_s=0.05)
    assert isinstance(error, EngineTimeout)
    assert "sent no data for 0.05 s" in error.message


@pytest.mark.parametrize(("deadline", "events"), [("first_token_s", 0), ("idle_s", 1)])
async def test_comments_do_not_put_off_a_deadline(deadline: str, events: int) -> None:
    """TGI sends one every 15 s, whatever its model does."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n" * events)
        while True:
            await response.write(b": ping\n\n")
            await asyncio.sleep(0.01)

    async with asyncio.timeout(5):
        assert isinstance(await failed_stream(handler, **{deadline: 0.1}), EngineTimeout)


async def test_the_pause_between_two_events_is_bounded() -> None:
    """The events before the pause are delivered."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        return await never(request)

    seen = []

    async def read(http: EngineHttp) -> None:
        async with aclosing(http.events("/x", {})) as groups:
            async for events in groups:
                seen.extend(events)

    async with serving({"/x": handler}) as fake, engine_http(fake.url, idle_s=0.05) as http:
        error = await failure(read(http), fake.url)
    assert isinstance(error, EngineTimeout)
    assert "sent no data for 0.05 s" in error.message
    assert seen == [b"1"]


async def test_a_slow_reader_is_not_the_engines_silence() -> None:
    """The idle timeout starts when the reader consumes an event."""
    seen = []
    async with (
        serving({"/x": streaming(b"1", b"2", pause_s=0.3)}) as fake,
        engine_http(fake.url, idle_s=0.6) as http,
        aclosing(http.events("/x", {})) as groups,
    ):
        async for events in groups:
            seen.extend(events)
            await asyncio.sleep(0.8)
    assert seen == [b"1", b"2"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_cancelled_call_closes_its_connection(*, streamed: bool) -> None:
    """The engine sees the disconnect and can stop."""
    began, left = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            if streamed:
                response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
                await response.prepare(request)
                await response.write(b"data: 1\n\n")
            began.set()
            return await never(request)
        finally:
            left.set()

    async with serving({"/x": handler}) as fake, engine_http(fake.url) as http, asyncio.TaskGroup() as group:
        calling = group.create_task(events_of(http) if streamed else http.post("/x", {}))
        await began.wait()
        assert not left.is_set()
        calling.cancel()
        async with asyncio.timeout(5):
            await left.wait()
    assert calling.cancelled()


async def test_a_stream_left_by_its_reader_closes_its_connection() -> None:
    """Closing the iterator ends the call."""
    left = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            return await streaming(*range(1_000), pause_s=0.01)(request)
        finally:
            left.set()

    async with serving({"/x": handler}) as fake, engine_http(fake.url) as http:
        async with aclosing(http.events("/x", {})) as groups:
            assert await anext(groups) == [b"0"]
        async with asyncio.timeout(5):
            await left.wait()


async def test_calls_share_their_connection() -> None:
    """Replies, errors and complete streams return their connection to the pool.

    A loaded machine may take longer to end a stream.
    """
    routes = {
        "/x": streaming(b"1", b"[DONE]", pause_s=0.005),
        "/json": replying({}),
        "/error": replying({"error": "no"}, status=422),
    }
    async with serving(routes) as fake, engine_http(fake.url, end_timeout_s=5.0) as http:
        for _ in range(3):
            await http.post("/json", {})
            await failure(http.post("/error", {}), fake.url)
            async with aclosing(http.events("/x", {})) as groups:
                async for events in groups:
                    if events == [b"[DONE]"]:
                        break
        assert len(fake.requests) == 9
        assert fake.connections == 1


async def test_a_connection_open_after_the_last_event_does_not_delay_the_reader() -> None:
    """[DONE] ends the stream, whatever the connection does."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\ndata: [DONE]\n\n")
        return await never(request)

    async with (
        serving({"/x": handler}) as fake,
        engine_http(fake.url) as http,
        asyncio.timeout(5),
        aclosing(http.events("/x", {})) as groups,
    ):
        assert await anext(groups) == [b"1"]
        assert await anext(groups) == [b"[DONE]"]


async def test_events_that_come_together_are_handed_on_together() -> None:
    """Events in the last packet do not wait for the end of the body. Data after [DONE] is ignored."""
    together = b"".join(b"data: " + event + b"\n\n" for event in (b"1", b"2", b"[DONE]", b"3"))

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(together)
        return response

    async with (
        serving({"/x": handler}) as fake,
        engine_http(fake.url) as http,
        aclosing(http.events("/x", {})) as groups,
    ):
        assert await anext(groups) == [b"1", b"2"]
        assert await anext(groups) == [b"[DONE]"]


async def test_the_key_is_sent_as_a_bearer_token() -> None:
    """Without a key there is no header."""
    async with serving({"/x": replying({})}) as fake:
        for key in (KEY, None):
            async with engine_http(fake.url, api_key=key) as http:
                await http.post("/x", {"a": 1})
        sent = [request.headers.get("Authorization") for request in fake.requests]
    assert sent == [f"Bearer {KEY}", None]
    assert fake.bodies == [{"a": 1}, {"a": 1}]
    assert {request.headers["Content-Type"] for request in fake.requests} == {"application/json"}


async def test_cookies_are_not_kept() -> None:
    """A call has no effect on the next one."""
    async with serving({"/x": replying({}, headers={"Set-Cookie": "a=b"})}) as fake, engine_http(fake.url) as http:
        await http.post("/x", {})
        await http.post("/x", {})
        assert "Cookie" not in fake.requests[1].headers


# The id of a call.


async def sent_ids(http: EngineHttp, fake: FakeServer, calls: int) -> list[str | None]:
    """Return the ids of so many calls, half of them streams."""
    for number in range(calls):
        with suppress(EngineError):
            await (events_of(http) if number % 2 else http.post("/x", {}))
    return [request.headers.get("X-Request-Id") for request in fake.requests]


async def test_each_call_of_a_request_has_its_own_id() -> None:
    """VLLM writes the header to its log, and older versions reject an id that is in use."""
    async with serving({"/x": replying({})}) as fake, engine_http(fake.url) as http:
        set_origin("acme", "req_1")
        assert await sent_ids(http, fake, 3) == ["req_1-1", "req_1-2", "req_1-3"]
        set_origin("acme", "req_2")
        assert (await sent_ids(http, fake, 1))[3:] == ["req_2-1"]


async def test_the_gateways_own_calls_have_no_id() -> None:
    async with serving({"/x": replying({})}) as fake, engine_http(fake.url) as http:
        assert await sent_ids(http, fake, 2) == [None, None]


async def test_the_calls_of_parallel_tasks_of_a_request_have_different_ids() -> None:
    """A warm-up or a probe may be in flight with a call."""
    async with serving({"/x": replying({})}) as fake, engine_http(fake.url) as http:
        set_origin("acme", "req_1")
        await asyncio.gather(*(http.post("/x", {}) for _ in range(5)))
    assert sorted(str(request.headers["X-Request-Id"]) for request in fake.requests) == [
        f"req_1-{number}" for number in range(1, 6)
    ]
