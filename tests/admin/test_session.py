"""Sessions of operators' browsers: created with the admin key, ended by time, by logout and by a new key."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, make_mocked_request
from pydantic import SecretStr
from structlog.testing import capture_logs

from gateway.admin.cookies import CookieSigner
from gateway.admin.login_throttle import LoginThrottle
from gateway.admin.roles import Operator, Role
from gateway.admin.routes import PAGE_ROUTES
from gateway.admin.session import IDLE_S, LONGEST_S, Sessions
from gateway.config.admin_oidc import OidcSettings, RoleRules
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.telemetry.metrics import Metrics
from tests.kit.admin_listener import HERE, KEY, Clock, admin_listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def answer(request: web.Request) -> web.Response:
    return web.json_response({"did": request.method})


@asynccontextmanager
async def listener(
    clock: Clock,
    key: str | None = KEY,
    attempts: LoginThrottle | None = None,
    redis: RedisClient | None = None,
    redis_keys: RedisKeys | None = None,
) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    """Run the pages, the session routes, and one route that requires the key."""
    sessions = Sessions(None if key is None else SecretStr(key), clock, redis, redis_keys)
    closed = [web.get("/secret", answer), web.post("/secret", answer)]
    async with admin_listener(sessions, PAGE_ROUTES, closed, attempts=attempts) as client:
        yield client


async def log_in(client: TestClient[web.Request, web.Application]) -> str:
    """Return the whole cookie header."""
    async with client.post("/session", json={"key": KEY}, headers=HERE) as reply:
        assert reply.status == 200
        assert (await reply.json())["active"] is True
        return reply.headers["Set-Cookie"]


async def status(client: TestClient[web.Request, web.Application], method: str = "GET", **headers: str) -> int:
    async with client.request(method, "/secret", headers=headers) as reply:
        return reply.status


async def test_login_with_the_admin_key_sets_an_http_only_same_site_cookie() -> None:
    async with listener(Clock()) as client:
        assert await status(client) == 401
        cookie = await log_in(client)
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert "Secure" not in cookie
        assert KEY not in cookie
        assert await status(client) == 200
        async with client.get("/session") as reply:
            assert await reply.json() == {
                "object": "session",
                "active": True,
                "who": "admin",
                "role": "admin",
                "until": "2027-01-15T10:00:00Z",
                "key_set": True,
                "oidc": None,
            }


@pytest.mark.parametrize("protocol", ["https", "HTTPS", "https, http"])  # of two proxies, the one in front first
async def test_under_https_the_cookie_is_for_https_only(protocol: str) -> None:
    async with (
        listener(Clock()) as client,
        client.post("/session", json={"key": KEY}, headers={**HERE, "X-Forwarded-Proto": protocol}) as reply,
    ):
        assert "Secure" in reply.headers["Set-Cookie"].split("; ")


@pytest.mark.parametrize("shown", ["", "gk-dev", KEY + "x", KEY[:-1], "\udcff"])
async def test_a_wrong_key_is_refused_and_logged_without_it(shown: str) -> None:
    async with listener(Clock()) as client:
        with capture_logs() as lines:
            async with client.post("/session", json={"key": shown}, headers=HERE) as reply:
                body = await reply.json()
                assert reply.status in {400, 401}
                assert "Set-Cookie" not in reply.headers
        assert not shown or shown not in str(body)
        if reply.status == 401:
            assert [line["event"] for line in lines] == ["admin_login_failed"]
            assert not shown or shown not in str(lines)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"key": 1}', b'{"key": "k-of-mine", "x": 1}', b'{"keys": "k"}'])
async def test_a_body_that_is_no_login_is_refused_without_quoting_it(body: bytes) -> None:
    async with listener(Clock()) as client, client.post("/session", data=body, headers=HERE) as reply:
        error = (await reply.json())["error"]
        assert (reply.status, error["param"]) == (400, "key")
        assert "k-of-mine" not in str(error)


async def test_an_idle_session_expires() -> None:
    clock = Clock()
    async with listener(clock) as client:
        await log_in(client)
        clock.now += IDLE_S
        async with client.get("/secret") as reply:
            assert reply.status == 401
            assert "session has ended" in (await reply.json())["error"]["message"]


async def test_activity_extends_a_session_up_to_its_maximum() -> None:
    clock = Clock()
    async with listener(clock) as client:
        await log_in(client)
        began = clock.now
        while clock.now + IDLE_S / 2 < began + LONGEST_S:
            clock.now += IDLE_S / 2
            assert await status(client) == 200
        clock.now = began + LONGEST_S - 1
        assert await status(client) == 200
        clock.now = began + LONGEST_S
        assert await status(client) == 401


async def test_a_cookie_is_not_renewed_with_every_request() -> None:
    clock = Clock()
    async with listener(clock) as client:
        await log_in(client)
        async with client.get("/secret") as reply:
            assert "Set-Cookie" not in reply.headers
        clock.now += 61
        async with client.get("/secret") as reply:
            assert "Set-Cookie" in reply.headers


ALICE = Operator("alice@example.com", Role.VIEWER, is_person=True)


def cookie_of(sessions: Sessions, operator: Operator = ALICE) -> str:
    response = web.Response()
    session = sessions.begin(operator, "sub-1")
    sessions.set_cookie(make_mocked_request("GET", "/"), response, session)
    return response.cookies[sessions.cookie].value


def operator_of(sessions: Sessions, cookie: str, name: str | None = None) -> Operator | None:
    request = make_mocked_request("GET", "/", headers={"Cookie": f"{name or sessions.cookie}={cookie}"})
    session = asyncio.run(sessions.of(request))
    return None if session is None else session.operator


def holds(sessions: Sessions, cookie: str, name: str | None = None) -> bool:
    return operator_of(sessions, cookie, name) is not None


def test_every_replica_with_the_key_takes_the_cookie_and_none_with_another() -> None:
    clock = Clock()
    mine, replica, other = (Sessions(SecretStr(key), clock) for key in (KEY, KEY, KEY + "2"))
    cookie = cookie_of(mine)
    assert holds(replica, cookie)
    assert not holds(other, cookie)
    assert other.cookie != mine.cookie
    assert not holds(Sessions(None, clock), cookie)


def oidc(secret: str | None = "s" * 32, group: str = "gkt") -> OidcSettings:
    return OidcSettings(
        issuer="corp",
        client_id="gkt",
        public_url="https://gkt.example.com",
        roles=RoleRules(viewer={"groups": (group,)}),
        session_secret=None if secret is None else SecretStr(secret),
    )


def test_a_new_key_and_session_secret_and_other_rules_for_roles_each_end_all_sessions() -> None:
    clock, key, other = Clock(), SecretStr(KEY), SecretStr(KEY + "2")
    settings = [(key, oidc()), (other, oidc()), (key, oidc("t" * 32)), (key, oidc(None)), (None, oidc()), (key, None),
                (key, oidc(group="others"))]  # fmt: skip
    all_sessions = [Sessions(key, clock, oidc=one) for key, one in settings]
    cookie = cookie_of(all_sessions[0])
    assert [holds(one, cookie, one.cookie) for one in all_sessions] == [True] + [False] * 6
    assert len({one.cookie for one in all_sessions}) == len(all_sessions)
    assert holds(Sessions(key, clock, oidc=oidc()), cookie)


def test_a_session_secret_is_sufficient_and_is_no_admin_key() -> None:
    sessions = Sessions(None, Clock(), oidc=oidc())
    assert operator_of(sessions, cookie_of(sessions)) == ALICE
    assert not sessions.key_set
    assert not sessions.is_key("s" * 32)


def test_a_session_has_the_name_and_the_role_of_its_login() -> None:
    sessions = Sessions(SecretStr(KEY), Clock())
    for role in Role:
        operator = ALICE._replace(role=role)
        assert operator_of(sessions, cookie_of(sessions, operator)) == operator


def test_a_cookie_is_small_even_with_the_longest_names() -> None:
    sessions = Sessions(SecretStr(KEY), Clock())
    longest = Operator("\U0001f600" * 128, Role.ADMIN, is_person=True)
    response = web.Response()
    sessions.set_cookie(make_mocked_request("GET", "/"), response, sessions.begin(longest, "\U0001f600" * 255))
    cookie = response.cookies[sessions.cookie].value
    assert len(cookie) < 3_000
    assert operator_of(sessions, cookie) == longest


def session_signer(purpose: str = "session") -> CookieSigner:
    """Return a signer with the key of the gateway."""
    return CookieSigner(f"{purpose} {sha256(b'').hexdigest()}", SecretStr(KEY), None)


def test_a_cookie_that_was_changed_holds_no_more() -> None:
    """Another time, id, name or role, a part of another cookie, and another signature."""
    sessions, signer = Sessions(SecretStr(KEY), Clock()), session_signer()
    cookie = cookie_of(sessions)
    text, _, mac = cookie.rpartition(".")
    content = signer.verify(cookie)
    assert content[4] == Role.VIEWER
    changes = {0: content[0] + 3600, 1: content[1] + 30, 2: "0" * 32, 3: "bob@example.com", 4: 3, 5: "sub-2"}
    others = [signer.sign([*content[:at], value, *content[at + 1 :]]) for at, value in changes.items()]
    changed = [f"{other.rpartition('.')[0]}.{mac}" for other in others]
    changed += [f"{text}=.{mac}", f"{text}.{'A' * len(mac)}", f"{text}.{mac[:-1]}", f"{text}.{mac}A", f"{text}."]
    changed += [text, f".{mac}", ".", "", "\u00e9.\u00e9", f"{'A' * 5000}.{mac}"]
    assert all(holds(sessions, one) for one in (cookie, *others))
    assert [one for one in changed if holds(sessions, one)] == []


def test_a_signed_cookie_of_another_form_or_purpose_is_no_session() -> None:
    sessions, signer, other = Sessions(SecretStr(KEY), Clock()), session_signer(), session_signer("login")
    good = [int(Clock.now), int(Clock.now), "0" * 32, "alice", 3, None]
    assert holds(sessions, signer.sign(good))
    assert not holds(sessions, other.sign(good))
    for content in (None, "", [], {}, [*good[:4], 4, None], good[:2]):
        assert not holds(sessions, signer.sign(content)), content
    assert signer.verify("\udcff.\udcff") is None, "bytes of a header that are no UTF-8"


async def test_changes_in_a_session_require_the_origin_of_this_listener() -> None:
    async with listener(Clock()) as client:
        await log_in(client)
        here = f"http://{client.host}:{client.port}"
        assert await status(client, "POST", **HERE) == 200
        assert await status(client, "POST", Origin=here) == 200
        for headers in (
            {},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "cross-site", "Origin": here},
            {"Sec-Fetch-Site": "none"},
            {"Origin": f"http://{client.host}:1"},
            {"Origin": "null"},
            {"Origin": "https://evil.example"},
        ):
            assert await status(client, "POST", **headers) == 403, headers
        assert await status(client, "POST", Authorization=f"Bearer {KEY}") == 200


async def test_no_other_site_logs_a_browser_in_or_out() -> None:
    async with listener(Clock()) as client:
        evil = {"Sec-Fetch-Site": "cross-site"}
        async with client.post("/session", json={"key": KEY}, headers=evil) as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (403, "cross_origin")
        await log_in(client)
        async with client.delete("/session", headers=evil) as reply:
            assert reply.status == 403
        async with client.delete("/session", headers=HERE) as reply:
            assert reply.status == 204
        assert await status(client) == 401


async def test_a_copy_of_a_cookie_ends_with_its_session_in_every_process_and_no_other_session_does(
    redis_url: str,
) -> None:
    """A copy that was renewed before the logout ends too.

    While Redis is away the reply is a 503 that states the reason.
    """
    clock, redis_keys = Clock(), RedisKeys(f"test-{secrets.token_hex(4)}")
    here, there = (RedisClient(redis_url, timeout_s=2.0, metrics=Metrics()) for _ in range(2))
    async with (
        listener(clock, redis=here, redis_keys=redis_keys) as client,
        listener(clock, redis=there, redis_keys=redis_keys) as replica,
    ):
        name, _, rest = (await log_in(client)).partition("=")
        first = rest.partition(";")[0]
        clock.now += 61
        async with client.get("/secret") as reply:
            renewed = reply.cookies[name].value
        other = (await log_in(client)).partition("=")[2].partition(";")[0]
        copies = [f"{name}={value}" for value in (first, renewed, other)]
        client.session.cookie_jar.clear()

        async def of_each(process: TestClient[web.Request, web.Application]) -> list[int]:
            replies = []
            for copy in copies:
                replies.append(await status(process, Cookie=copy))
                process.session.cookie_jar.clear()  # a renewed cookie would replace the next copy
            return replies

        assert await of_each(replica) == [200, 200, 200]
        async with client.delete("/session", headers={**HERE, "Cookie": copies[1]}) as reply:
            assert reply.status == 204
        assert [await of_each(process) for process in (client, replica)] == [[401, 401, 200]] * 2
        here.up = False
        async with client.delete("/session", headers={**HERE, "Cookie": copies[2]}) as reply:
            assert reply.status == 503
            assert "Redis is unavailable" in (await reply.json())["error"]["message"]
            assert reply.cookies[name].value == ""
        assert [await of_each(process) for process in (client, replica)] == [[401, 401, 401], [401, 401, 200]]
    await here.close()
    await there.close()


async def test_a_bearer_key_that_is_wrong_is_not_mended_by_a_session() -> None:
    async with listener(Clock()) as client:
        await log_in(client)
        assert await status(client, Authorization="Bearer nothing") == 401


async def test_basic_authentication_of_a_proxy_does_not_hide_the_session() -> None:
    """A browser sends the password with every request and a proxy forwards it. It is no key of this listener."""
    async with listener(Clock()) as client:
        await log_in(client)
        assert await status(client, Authorization="Basic b3BzOnNlY3JldA==") == 200
        assert await status(client, "POST", Authorization="Basic b3BzOnNlY3JldA==") == 403
        assert await status(client, "POST", Authorization="Basic b3BzOnNlY3JldA==", **HERE) == 200


async def test_login_attempts_are_limited_without_locking_out_the_right_key() -> None:
    attempts = LoginThrottle(pause_s=30.0, max_waiting=8, max_per_address=2)
    async with listener(Clock(), attempts=attempts) as client:

        async def guess(key: str) -> int:
            async with client.post("/session", json={"key": key}, headers=HERE) as reply:
                return reply.status

        async with asyncio.TaskGroup() as group:
            slow = [group.create_task(guess(f"wrong-{number}")) for number in range(2)]
            while attempts.waiting < 2:
                await asyncio.sleep(0)
            assert await guess("another") == 429
            assert await guess(KEY) == 200
            for task in slow:
                task.cancel()


async def test_without_an_admin_key_login_is_disabled_and_reported() -> None:
    async with listener(Clock(), key=None) as client:
        async with client.get("/session") as reply:
            assert (await reply.json())["key_set"] is False
        async with client.post("/session", json={"key": ""}, headers=HERE) as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (403, "admin_key_unset")


async def test_pages_have_a_strict_content_policy_and_are_not_cached() -> None:
    async with listener(Clock()) as client:
        await log_in(client)
        async with client.get("/", allow_redirects=False) as reply:
            assert (reply.status, reply.headers["Location"]) == (302, "/dashboard")
        pages = ("/dashboard", "/dashboard/requests/req_1", "/login", "/playground")
        for path in (*pages, "/static/base.css", "/static/vendor/uplot.js"):
            async with client.get(path) as reply:
                assert reply.status == 200, path
                policy = reply.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert "http" not in policy
                assert reply.headers["X-Content-Type-Options"] == "nosniff"
                assert reply.headers["Referrer-Policy"] == "no-referrer"
                tag = reply.headers["ETag"]
            async with client.get(path, headers={"If-None-Match": tag}) as reply:
                assert (reply.status, await reply.read()) == (304, b"")
            async with client.get(path, headers={"If-None-Match": '"other"'}) as reply:
                assert reply.status == 200


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/requests/req_1", "/playground"])
async def test_a_page_without_a_session_redirects_to_the_login_page(path: str) -> None:
    """A browser with a cached page is redirected too, after the logout."""
    async with listener(Clock()) as client:
        await log_in(client)
        async with client.get(path) as reply:
            cached = {"If-None-Match": reply.headers["ETag"]}
        async with client.delete("/session", headers=HERE) as reply:
            assert reply.status == 204
        async with client.get(f"{path}?range=7d&by=key", headers=cached, allow_redirects=False) as reply:
            assert (reply.status, await reply.read()) == (302, b"")
            assert reply.headers["Location"] == f"/login?why=none&next={quote(path, safe='')}%3Frange%3D7d%26by%3Dkey"
            assert reply.headers["Cache-Control"] == "no-store"
            assert "ETag" not in reply.headers


async def test_without_an_admin_key_a_page_redirects_to_the_login_page_with_the_reason() -> None:
    async with listener(Clock(), key=None) as client, client.get("/dashboard", allow_redirects=False) as reply:
        assert (reply.status, reply.headers["Location"]) == (302, "/login?why=unset&next=%2Fdashboard")


@pytest.mark.parametrize("path", ["nothing.js", "../auth.py", "%2e%2e/auth.py", "vendor/../../auth.py", "/etc/passwd"])
async def test_no_file_but_those_of_the_pages_is_given(path: str) -> None:
    async with listener(Clock()) as client, client.get(f"/static/{path}") as reply:
        assert reply.status == 404


async def test_clients_without_gzip_get_the_same_bytes() -> None:
    async with listener(Clock()) as client:
        async with client.get("/static/base.css", headers={"Accept-Encoding": "gzip"}) as reply:
            assert reply.headers["Content-Encoding"] == "gzip"
            packed = await reply.read()
        async with client.get("/static/base.css", headers={"Accept-Encoding": "identity"}) as reply:
            assert "Content-Encoding" not in reply.headers
            assert await reply.read() == packed
