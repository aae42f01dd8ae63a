"""Login of operators at an identity provider, over HTTP with a real provider and real signatures."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from aiohttp import web
from pydantic import SecretStr
from structlog.testing import capture_logs

from gateway.admin.bodies import actor_of
from gateway.admin.login_state import LOGIN_LIMIT_S, LoginStates, page_or_first
from gateway.admin.login_throttle import LoginThrottle
from gateway.admin.oidc import OIDC, LoginError, OidcProvider
from gateway.admin.oidc_login import LOGIN_STATES
from gateway.admin.roles import Role
from gateway.admin.routes import PAGE_ROUTES
from gateway.admin.session import Sessions
from gateway.config.admin_oidc import OidcSettings
from gateway.config.identity import IdentitySettings
from gateway.keys.identity.issuers import Issuers
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.certificates import Authority
from tests.identity_provider import published, signed, signing_key
from tests.kit.admin_listener import HERE, KEY, Clock, admin_listener
from tests.login_provider import CLIENT_ID, CLIENT_SECRET, ROLES, LoginProvider, login_provider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from ssl import SSLContext

    from aiohttp.test_utils import TestClient

PUBLIC = "http://127.0.0.1:8081"


async def answer(request: web.Request) -> web.Response:
    return web.json_response({"actor": actor_of(request)})


@dataclass
class Listener:
    """A running listener with the login, and the browser of one person."""

    client: TestClient[web.Request, web.Application]
    provider: LoginProvider
    clock: Clock
    issuers: Issuers
    login: OidcProvider

    def use_issuer(self, url: str) -> None:
        """Put another URL of the issuer into effect, as an edit of config.yaml does."""
        one = {**self.provider.settings(), "issuer": url}
        self.issuers.use(IdentitySettings.model_validate({"issuers": [one]}))

    async def start(self, page: str = "/dashboard", **query: str) -> str:
        """Return the URL to which the start of a login redirects."""
        path = f"/login/oidc?{urlencode({'next': page, **query})}"
        async with self.client.get(path, allow_redirects=False) as reply:
            assert reply.status == 303, await reply.text()
            return reply.headers["Location"]

    async def finish(self, callback: str) -> tuple[str, str]:
        """Return the reason and the page to which a callback leads."""
        path = callback.removeprefix(PUBLIC)
        async with self.client.get(path, allow_redirects=False) as reply:
            assert reply.status == 303, await reply.text()
            target = urlsplit(reply.headers["Location"])
            assert (target.netloc, target.path) == ("", "/login")
            query = parse_qs(target.query)
            return query["why"][0], query["next"][0]

    async def log_in(self, person: str, page: str = "/dashboard") -> tuple[str, str]:
        return await self.finish(self.provider.approve(await self.start(page), person))

    async def session(self) -> dict[str, Any]:
        async with self.client.get("/session") as reply:
            session: dict[str, Any] = await reply.json()
            return session

    async def ask(self, method: str = "GET", **headers: str) -> tuple[int, dict[str, Any]]:
        """Send a request that needs a role: GET that of a viewer, POST that of an operator."""
        async with self.client.request(method, "/data", headers={**HERE, **headers}) as reply:
            return reply.status, await reply.json()


@asynccontextmanager
async def listener(
    key: str | None = KEY,
    *,
    attempts: LoginThrottle | None = None,
    max_calls: int = 16,
    max_per_address: int = 8,
    tls: SSLContext | None = None,
    ca: Path | None = None,
    **settings: Any,
) -> AsyncIterator[Listener]:
    clock, tasks, metrics = Clock(), BackgroundTasks(), Metrics()
    admin_key = None if key is None else SecretStr(key)
    async with login_provider(tls=tls) as provider, AsyncExitStack() as stack:
        chosen = {
            "issuer": "corp",
            "client_id": CLIENT_ID,
            "client_secret": SecretStr(CLIENT_SECRET),
            "public_url": PUBLIC,
            "roles": ROLES,
            "session_secret": SecretStr("s" * 32),
        }
        oidc = OidcSettings.model_validate(chosen | settings)
        identity = IdentitySettings.model_validate({"issuers": [provider.settings(ca=ca)]})
        issuers = Issuers(tasks, metrics)
        issuers.use(identity)
        login = OidcProvider(oidc, issuers, max_calls, max_per_address)
        sessions = Sessions(admin_key, clock, oidc=oidc, issuer_url=login.issuer_url)
        for close in (issuers.close, tasks.close):
            stack.push_async_callback(close)
        routes = {Role.VIEWER: [web.get("/data", answer)], Role.OPERATOR: [web.post("/data", change)]}
        parts = {OIDC: login, LOGIN_STATES: LoginStates(admin_key, oidc, clock, login.issuer_url)}
        async with admin_listener(
            sessions, PAGE_ROUTES, by_role=routes, oidc=login, attempts=attempts, parts=parts
        ) as client:
            yield Listener(client, provider, clock, issuers, login)


async def change(request: web.Request) -> web.Response:
    return web.json_response({"actor": actor_of(request)})


@pytest.mark.parametrize(
    ("person", "name", "role"),
    [
        ("vera", "vera@example.com", "viewer"),
        ("oscar", "oscar@example.com", "operator"),
        ("ada", "ada@example.com", "admin"),  # the highest role of several
    ],
)
@pytest.mark.parametrize("key", [KEY, None])
async def test_a_login_starts_a_session_of_the_person(person: str, name: str, role: str, key: str | None) -> None:
    async with listener(key) as here:
        assert await here.log_in(person, "/dashboard/spend?range=7d") == ("done", "/dashboard/spend?range=7d")
        session = await here.session()
        assert (session["active"], session["who"], session["role"]) == (True, name, role)
        assert session["key_set"] is (key is not None)
        assert session["oidc"] == {"name": "corp", "url": f"{PUBLIC}/login/oidc"}
        assert await here.ask() == (200, {"actor": f"{name} ({role})"})
        assert (await here.ask("POST"))[0] == (403 if role == "viewer" else 200)


async def test_the_authorization_request_has_pkce_state_nonce_and_the_configured_address() -> None:
    async with listener(scopes=("openid", "groups")) as here:
        # Neither of these headers decides where the provider sends the code.
        headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
        async with here.client.get("/login/oidc", headers=headers, allow_redirects=False) as reply:
            url = urlsplit(reply.headers["Location"])
            cookie = reply.headers["Set-Cookie"]
        query = {name: value for name, (value,) in parse_qs(url.query).items()}
        assert f"{url.scheme}://{url.netloc}{url.path}" == f"{here.provider.url}/authorize"
        assert query.keys() == {
            "response_type", "client_id", "redirect_uri", "scope", "state", "nonce", "code_challenge",
            "code_challenge_method",
        }  # fmt: skip
        assert query["redirect_uri"] == f"{PUBLIC}/login/callback"
        assert (query["scope"], query["code_challenge_method"]) == ("openid groups", "S256")
        assert len({query["state"], query["nonce"], query["code_challenge"]}) == 3
        assert {"HttpOnly", "SameSite=Lax", "Path=/login/callback", "Max-Age=600"} <= set(cookie.split("; "))
        assert not any(query[one] in cookie for one in ("state", "nonce", "code_challenge"))
        again = await here.start(again="1")
        assert parse_qs(urlsplit(again).query)["prompt"] == ["login"]
        assert parse_qs(urlsplit(again).query)["state"] != [query["state"]]


async def test_the_session_cookie_is_strict_and_needs_https_if_the_public_url_does() -> None:
    for url, is_secure in ((PUBLIC, False), ("https://gkt.example.com", True)):
        async with listener(public_url=url) as here:
            async with here.client.get("/login/oidc", allow_redirects=False) as reply:
                started = reply.headers["Set-Cookie"]
                callback = urlsplit(here.provider.approve(reply.headers["Location"], "vera"))
            assert ("Secure" in started.split("; ")) is is_secure
            assert f"{callback.scheme}://{callback.netloc}" == url
            path, cookie = f"{callback.path}?{callback.query}", {"Cookie": started.partition(";")[0]}
            async with here.client.get(path, headers=cookie, allow_redirects=False) as reply:
                cookies = reply.headers.getall("Set-Cookie")
            (session,) = [one.split("; ") for one in cookies if one.startswith("gkt_session_")]
            assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(session)
            assert ("Secure" in session) is is_secure
            assert any(one.startswith("gkt_login_") and "Max-Age=0" in one for one in cookies)


async def test_a_callback_without_the_browsers_login_is_rejected() -> None:
    """Another site could otherwise log a browser in as another person."""
    async with listener() as here, listener() as other:
        callback = here.provider.approve(await here.start(), "ada")
        state = parse_qs(urlsplit(callback).query)["state"][0]
        for wrong in (
            callback.replace(state, state[:-1] + ("A" if state[-1] != "A" else "B")),
            callback.replace(f"state={state}", ""),
            callback.replace(f"state={state}", "state="),
            f"{PUBLIC}/login/callback",
        ):
            assert await here.finish(wrong) == ("expired", "/dashboard"), wrong
        here.client.session.cookie_jar.clear()
        assert await here.finish(callback) == ("expired", "/dashboard")
        await other.start()
        assert await other.finish(callback) == ("expired", "/dashboard")
        assert here.provider.token_calls == other.provider.token_calls == []
        assert (await here.session())["active"] is False


async def test_a_callback_of_another_site_does_not_end_the_login() -> None:
    async with listener() as here:
        callback = here.provider.approve(await here.start(), "ada")
        assert await here.finish(f"{PUBLIC}/login/callback?code=x&state=y") == ("expired", "/dashboard")
        assert await here.finish(callback) == ("done", "/dashboard")


async def test_a_login_expires() -> None:
    async with listener() as here:
        callback = here.provider.approve(await here.start(), "ada")
        here.clock.now += LOGIN_LIMIT_S
        assert (await here.finish(callback))[0] == "expired"
        assert here.provider.token_calls == []


async def test_a_callback_is_accepted_once() -> None:
    """The browser has deleted the cookie. With a copy of the cookie, the provider rejects the code."""
    async with listener() as here:
        url = await here.start()
        jar = here.client.session.cookie_jar
        (cookie,) = [one for one in jar if one.key.startswith("gkt_login_")]
        callback = here.provider.approve(url, "ada")
        assert (await here.finish(callback))[0] == "done"
        assert (await here.finish(callback))[0] == "expired"
        assert len(here.provider.token_calls) == 1
        jar.clear()
        copy = {"Cookie": f"{cookie.key}={cookie.value}"}
        async with here.client.get(callback.removeprefix(PUBLIC), headers=copy, allow_redirects=False) as reply:
            assert "why=invalid" in reply.headers["Location"]
        assert (await here.session())["active"] is False


async def test_a_second_code_of_one_login_and_a_foreign_code_are_rejected_by_the_provider() -> None:
    """PKCE binds a code to the login that requested it."""
    async with listener() as here:
        theirs = here.provider.approve(await here.start(), "ada")
        mine = here.provider.approve(await here.start(), "vera")
        injected = {**{name: values[0] for name, values in parse_qs(urlsplit(mine).query).items()}}
        injected["code"] = parse_qs(urlsplit(theirs).query)["code"][0]
        with capture_logs() as lines:
            assert (await here.finish(f"{PUBLIC}/login/callback?{urlencode(injected)}"))[0] == "invalid"
        assert "invalid_grant" in str(lines)
        assert (await here.session())["active"] is False


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"nonce": "another"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"nonce": 7}, "nonce"),
        ({"aud": "another-client"}, "audience"),
        ({"aud": [CLIENT_ID, "another-client"]}, "azp"),
        ({"azp": "another-client"}, "azp"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"exp": 1}, "expired"),
        ({"sub": None}, "sub"),
        ({"sub": "a\nb"}, "sub"),
        ({"sub": "s" * 256}, "sub"),
    ],
)
async def test_an_id_token_with_wrong_claims_is_rejected(claims: dict[str, Any], reason: str) -> None:
    async with listener() as here:
        here.provider.id_claims = claims
        with capture_logs() as lines:
            assert (await here.log_in("ada"))[0] == "invalid"
        (line,) = [one for one in lines if one["event"] == "admin_login_failed"]
        assert reason in line["error"]
        assert (await here.session())["active"] is False


async def test_an_id_token_with_a_foreign_signature_is_rejected() -> None:
    async with listener() as here:
        here.provider.keys = [published("k1")]
        here.provider.kid = "k2"
        assert (await here.log_in("ada"))[0] == "invalid"


@pytest.mark.parametrize("issuer", ["https://evil.example", "", None])
async def test_a_callback_of_another_issuer_is_rejected_before_its_code_is_sent(issuer: str | None) -> None:
    """Otherwise a code could reach the wrong provider (mix-up attack, RFC 9207)."""
    async with listener() as here:
        callback = here.provider.approve(await here.start(), "ada")
        query = {name: values[0] for name, values in parse_qs(urlsplit(callback).query).items() if name != "iss"}
        if issuer is not None:
            query["iss"] = issuer
        assert (await here.finish(f"{PUBLIC}/login/callback?{urlencode(query)}"))[0] == "invalid"
        assert here.provider.token_calls == []


async def test_a_provider_that_sends_no_issuer_is_accepted_if_it_does_not_promise_one() -> None:
    async with listener() as here:
        del here.provider.discovery["authorization_response_iss_parameter_supported"]
        callback = here.provider.approve(await here.start(), "ada")
        assert (await here.finish(callback.partition("&iss=")[0]))[0] == "done"


async def test_a_parameter_that_is_sent_twice_is_rejected() -> None:
    async with listener() as here:
        callback = here.provider.approve(await here.start(), "ada")
        assert (await here.finish(callback + "&code=another"))[0] == "invalid"
        assert here.provider.token_calls == []


@pytest.mark.parametrize(("error", "logged"), [("access_denied", "access_denied"), ("<b>text</b>", "another text")])
async def test_an_error_of_the_provider_is_shown_and_logged_without_unknown_text(error: str, logged: str) -> None:
    async with listener() as here:
        state = parse_qs(urlsplit(await here.start()).query)["state"][0]
        query = urlencode(
            {"state": state, "error": error, "error_description": "<b>text</b>", "iss": here.provider.url}
        )
        with capture_logs() as lines:
            assert (await here.finish(f"{PUBLIC}/login/callback?{query}"))[0] == "refused"
        assert logged in str(lines)
        assert "<b>" not in str(lines)


async def test_a_person_without_a_role_is_rejected_and_logged() -> None:
    async with listener() as here:
        with capture_logs() as lines:
            assert (await here.log_in("mallory"))[0] == "no_role"
        (line,) = [one for one in lines if one["event"] == "admin_login_failed"]
        assert (line["reason"], "sub-mallory" in line["error"]) == ("no_role", True)
        assert (await here.session())["active"] is False


async def test_an_unverified_email_address_is_no_name() -> None:
    """Mallory has the unverified address of Ada."""
    async with listener(roles={"viewer": {"groups": "staff"}}) as here:
        assert (await here.log_in("mallory"))[0] == "done"
        assert (await here.session())["who"] == "sub-mallory"


def token_of(provider: LoginProvider, claims: dict[str, Any]) -> str:
    """Return a token with these claims, of which None is one."""
    header = {"alg": "RS256", "kid": "k1", "typ": "JWT"}
    return signed(header, provider.claims() | claims, signing_key("k1"))


@pytest.mark.parametrize("verified", [False, None, "false", 0])
async def test_an_unverified_email_address_gives_no_role(verified: object) -> None:
    """Mallory could otherwise take the role of Ada with her address, at a provider where persons edit theirs."""
    async with listener(roles={"admin": {"email": "ada@example.com"}}) as here:
        assert (await here.log_in("ada"))[0] == "done"
        assert (await here.session())["role"] == "admin"
        here.client.session.cookie_jar.clear()
        assert (await here.log_in("mallory"))[0] == "no_role"
        claims = {"aud": CLIENT_ID, "sub": "sub-mallory", "email": "ada@example.com"}
        for value, status in ((verified, 403), (True, 200), ("true", 200)):
            token = token_of(here.provider, claims | {"email_verified": value})
            assert (await here.ask("GET", Authorization=f"Bearer {token}"))[0] == status, value


async def test_another_claim_may_have_the_name() -> None:
    async with listener(name_claim="preferred_username") as here:
        here.provider.id_claims = {"preferred_username": "Vera V."}
        await here.log_in("vera")
        assert (await here.session())["who"] == "Vera V."
        here.provider.id_claims = {"preferred_username": "two\nlines"}
        await here.log_in("vera")
        assert (await here.session())["who"] == "sub-vera"


async def test_claims_outside_the_id_token_come_from_the_userinfo_endpoint() -> None:
    for userinfo, why in ((False, "no_role"), (True, "done")):
        async with listener(userinfo=userinfo) as here:
            here.provider.hidden = ("groups",)
            assert (await here.log_in("vera"))[0] == why
    async with listener(userinfo=True) as here:
        here.provider.hidden, here.provider.userinfo = ("groups",), {"sub": "sub-ada"}
        assert (await here.log_in("vera"))[0] == "invalid"
        here.provider.userinfo = {"aud": "x", "email": "eve@example.com", "sub": "sub-vera"}
        assert (await here.log_in("vera"))[0] == "done"
        assert (await here.session())["who"] == "vera@example.com"


@pytest.mark.parametrize("methods", [None, ["client_secret_basic"], ["client_secret_post"], ["private_key_jwt"]])
async def test_the_client_authenticates_as_the_provider_expects(methods: list[str] | None) -> None:
    async with listener() as here:
        if methods is not None:
            here.provider.discovery["token_endpoint_auth_methods_supported"] = methods
        assert (await here.log_in("vera"))[0] == "done"
        (form,) = here.provider.token_calls
        assert ("client_secret" in form) is (methods == ["client_secret_post"])


async def test_a_wrong_client_secret_is_logged_and_not_shown() -> None:
    async with listener(client_secret=SecretStr("wrong-secret")) as here:
        with capture_logs() as lines:
            assert (await here.log_in("vera"))[0] == "invalid"
        assert "status 401 and error invalid_client" in str(lines)
        assert "wrong-secret" not in str(lines)


@pytest.mark.parametrize(
    "reply", [(200, b"{}"), (200, b"<html>"), (200, b'{"id_token": 7}'), (500, b""), (302, b""), (200, b"x" * 600_000)]
)
async def test_a_reply_that_is_none_is_rejected(reply: tuple[int, bytes]) -> None:
    async with listener() as here:
        here.provider.token_reply = reply
        assert (await here.log_in("vera"))[0] in {"invalid", "unreachable"}
        assert (await here.session())["active"] is False


async def test_without_the_provider_a_login_states_so_and_the_key_still_works() -> None:
    async with listener() as here:
        here.provider.status = 503
        with capture_logs() as lines:
            async with here.client.get("/login/oidc?next=/playground", allow_redirects=False) as reply:
                assert reply.headers["Location"] == "/login?why=unreachable&next=%2Fplayground"
        assert [one["reason"] for one in lines if one["event"] == "admin_login_failed"] == ["unreachable"]
        async with here.client.post("/session", json={"key": KEY}, headers=HERE) as reply:
            assert reply.status == 200
        assert (await here.ask("POST"))[0] == 200


async def test_a_provider_with_a_private_ca_needs_its_file(tmp_path: Path) -> None:
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    async with listener(tls=ours.server(), ca=ours.ca, userinfo=True) as here:
        assert (await here.log_in("vera"))[0] == "done"
    for ca in (None, other.ca):
        async with listener(tls=ours.server(), ca=ca) as here:
            with capture_logs() as lines:
                async with here.client.get("/login/oidc", allow_redirects=False) as reply:
                    assert "why=unreachable" in reply.headers["Location"]
            assert "set `ca` of the issuer" in str(lines)
            assert here.provider.reads == []


async def test_failed_logins_are_delayed_and_bounded_without_locking_out_persons() -> None:
    attempts = LoginThrottle(pause_s=30.0, max_waiting=8, max_per_address=2)
    async with listener(attempts=attempts) as here, asyncio.TaskGroup() as group:
        callback = f"{PUBLIC}/login/callback?state=wrong&code=wrong"
        slow = [group.create_task(here.finish(callback)) for _ in range(2)]
        while attempts.waiting < 2:
            await asyncio.sleep(0)
        with capture_logs() as lines:
            assert (await here.finish(callback))[0] == "busy"
        assert "admin_login_failed" not in [line["event"] for line in lines]
        assert (await here.log_in("vera"))[0] == "done"
        for task in slow:
            task.cancel()


@pytest.mark.parametrize("limits", [{"max_calls": 0}, {"max_per_address": 0}])
async def test_calls_to_the_provider_are_bounded(limits: dict[str, int]) -> None:
    async with listener(**limits) as here, here.client.get("/login/oidc", allow_redirects=False) as reply:
        assert "why=busy" in reply.headers["Location"]


async def test_one_address_does_not_use_up_the_logins_of_others() -> None:
    async with listener(max_calls=4, max_per_address=2) as here, AsyncExitStack() as held:
        for address in ("192.0.2.1", "192.0.2.1"):
            held.enter_context(here.login.call(address))
        with pytest.raises(LoginError, match="2 of this address"):
            held.enter_context(here.login.call("192.0.2.1"))
        assert (await here.log_in("vera"))[0] == "done"


async def test_a_busy_gateway_does_not_use_up_the_login() -> None:
    async with listener(max_per_address=1) as here:
        callback = here.provider.approve(await here.start(), "vera")
        with here.login.call("127.0.0.1"):
            assert await here.finish(callback) == ("busy", "/dashboard")
        assert here.provider.token_calls == []
        assert await here.finish(callback) == ("done", "/dashboard")


async def test_another_issuer_ends_sessions_and_logins() -> None:
    """The new issuer has not confirmed the person."""
    async with listener() as here:
        url = here.provider.url
        await here.log_in("ada")
        pending = here.provider.approve(await here.start(), "ada")
        here.use_issuer("http://127.0.0.1:9/realms/other")
        assert (await here.session())["active"] is False
        assert (await here.ask())[0] == 401
        calls = len(here.provider.token_calls)
        assert (await here.finish(pending))[0] == "expired"
        assert len(here.provider.token_calls) == calls
        here.use_issuer(url)
        assert (await here.ask())[0] == 200


PAGES = ["/dashboard", "/playground#seed=7", "/dashboard/requests/req_1?range=7d&since=2026-11-01T00:00:00Z#a=b"]
OTHERS = [
    "//evil.example/",
    "/\\evil.example",
    "https://evil.example/",
    "javascript:alert(1)",
    "/dashboard/..//evil.example",
    "/dashboard/%2e%2e/x",
    "/dashboard\r\nX: y",
    "/login",
    "/session",
    "/static/base.css",
    "/dashboardx",
    "/dashboard?" + "x" * 1000,
    "",
]


def test_only_pages_of_the_dashboard_follow_a_login() -> None:
    assert [page_or_first(one) for one in PAGES] == PAGES
    assert {page_or_first(one) for one in OTHERS} == {"/dashboard"}


async def test_a_login_leads_to_no_other_site() -> None:
    async with listener() as here:
        for page in OTHERS[:4]:
            assert await here.log_in("vera", page) == ("done", "/dashboard")


async def test_a_changed_login_cookie_is_rejected() -> None:
    async with listener() as here:
        callback = here.provider.approve(await here.start(), "vera")
        jar = here.client.session.cookie_jar
        (cookie,) = [one for one in jar if one.key.startswith("gkt_login_")]
        jar.clear()
        text, _, mac = cookie.value.rpartition(".")
        for changed in (f"{text}A.{mac}", f"{text}.{'A' * len(mac)}", text, f".{mac}", "\u00e9.\u00e9", ""):
            headers = {"Cookie": f"{cookie.key}={changed}"}
            path = callback.removeprefix(PUBLIC)
            async with here.client.get(path, headers=headers, allow_redirects=False) as reply:
                assert "why=expired" in reply.headers["Location"]
        assert here.provider.token_calls == []


async def test_a_logout_ends_the_session_here_and_at_the_provider_if_configured() -> None:
    for logout, status in (("local", 204), ("provider", 200)):
        async with listener(logout=logout) as here:
            await here.log_in("vera")
            async with here.client.delete("/session", headers=HERE) as reply:
                assert reply.status == status
                if logout == "provider":
                    url = urlsplit((await reply.json())["logout_url"])
                    assert url.path == "/realms/corp/logout"
                    assert parse_qs(url.query) == {
                        "client_id": [CLIENT_ID],
                        "post_logout_redirect_uri": [f"{PUBLIC}/login"],
                    }
            assert (await here.session())["active"] is False


async def test_a_logout_is_local_without_an_endpoint_and_for_the_key() -> None:
    async with listener(logout="provider") as here:
        async with here.client.post("/session", json={"key": KEY}, headers=HERE) as reply:
            assert reply.status == 200
        async with here.client.delete("/session", headers=HERE) as reply:
            assert reply.status == 204
    async with listener(logout="provider") as here:
        del here.provider.discovery["end_session_endpoint"]
        await here.log_in("vera")
        async with here.client.delete("/session", headers=HERE) as reply:
            assert reply.status == 204


async def test_a_token_for_the_client_has_the_same_roles() -> None:
    async with listener() as here:
        token = here.provider.token(aud=CLIENT_ID, email="oscar@example.com", groups=["gkt-operators"])
        bearer = {"Authorization": f"Bearer {token}", "x-gkt-actor": "somebody"}
        assert await here.ask("POST", **bearer) == (200, {"actor": "oscar@example.com (operator)"})
        viewer = here.provider.token(aud=CLIENT_ID, groups="gkt-viewers")
        assert (await here.ask("GET", Authorization=f"Bearer {viewer}"))[1] == {"actor": "ada (viewer)"}
        status, body = await here.ask("POST", Authorization=f"Bearer {viewer}")
        assert (status, body["error"]["code"]) == (403, "role_required")
        nobody = here.provider.token(aud=CLIENT_ID, groups=["staff"])
        status, body = await here.ask("GET", Authorization=f"Bearer {nobody}")
        assert (status, body["error"]["code"]) == (403, "role_required")
        wrong_tokens = here.provider.token(groups=["gkt-admins"]), token[:-4] + "AAAA", "a.b.c"
        with capture_logs() as logs:
            for wrong in wrong_tokens:
                status, body = await here.ask("GET", Authorization=f"Bearer {wrong}")
                assert (status, body["error"]["code"]) == (401, "invalid_api_key")
                assert wrong not in str(body)
        rejected = [line["reason"] for line in logs if line["event"] == "admin_token_rejected"]
        assert rejected[:2] == ["audience", "signature"]
        assert not any(wrong in str(logs) for wrong in wrong_tokens)


@pytest.mark.parametrize(
    ("header", "claims"),
    [({"typ": "at+jwt"}, {}), ({"typ": "application/AT+JWT"}, {}), ({}, {"typ": "Bearer"}), ({}, {"typ": "DPoP"})],
)
async def test_an_access_token_for_the_client_is_no_id_token(header: dict[str, Any], claims: dict[str, Any]) -> None:
    async with listener() as here:
        token = here.provider.token(header=header, aud=CLIENT_ID, groups=["gkt-admins"], **claims)
        status, body = await here.ask("GET", Authorization=f"Bearer {token}")
        assert status == 401
        assert "access token" in body["error"]["message"]
        id_token = here.provider.token(aud=CLIENT_ID, groups=["gkt-admins"], **({"typ": "ID"} if claims else {}))
        assert (await here.ask("GET", Authorization=f"Bearer {id_token}"))[0] == 200


async def test_without_a_session_the_api_asks_for_a_login() -> None:
    async with listener(key=None) as here:
        async with here.client.get("/data") as reply:
            assert reply.status == 401
        async with here.client.get("/dashboard", allow_redirects=False) as reply:
            assert reply.headers["Location"] == "/login?why=none&next=%2Fdashboard"
        async with here.client.post("/session", json={"key": ""}, headers=HERE) as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (403, "admin_key_unset")
