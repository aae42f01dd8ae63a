"""Login at an identity provider in a real browser. For browsers, the provider is another site than the gateway."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import expect

from load_tests.children import free_ports
from tests.browser.conftest import ADMIN_KEY, accessible, loaded, log_in, opened, shoot
from tests.gateway_process import GatewayProcess, guided, model, running_gateway
from tests.login_provider import CLIENT_ID, CLIENT_SECRET, ROLES, LoginProvider, login_provider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, Page

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.long]

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
_NOWHERE = [model(name, "openai", "http://127.0.0.1:9/v1", continuation="trailing") for name in ("big", "small")]


class SingleSignOn:
    """A gateway with a provider."""

    def __init__(self, gateway: GatewayProcess, provider: LoginProvider) -> None:
        self.gateway, self.provider = gateway, provider

    @asynccontextmanager
    async def opened(self, browser: Browser, path: str = "/login", **more: object) -> AsyncIterator[Page]:
        """Open a page. Requests to the provider are expected."""
        forgive = "|".join([f"a request to http://localhost:{self.provider.port}/", str(more.pop("forgive", "(?!)"))])
        async with opened(browser, self.gateway, path=path, forgive=forgive, **more) as page:
            yield page

    async def log_in(self, page: Page, person: str) -> None:
        await page.get_by_role("link", name="Log in with Corp").click()
        await page.get_by_role("link", name=person).click()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sso(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SingleSignOn]:
    (port,) = free_ports(1)
    async with login_provider("localhost") as provider:
        provider.redirect_uri = f"http://127.0.0.1:{port}/login/callback"
        with running_gateway(
            tmp_path_factory.mktemp("sso"),
            models=_NOWHERE,
            routes=[guided()],
            redis_url=redis_url,
            usage={"run": "host"},
            redis={"prefix": "sso", "timeout": "2s"},
            identity={"issuers": [provider.settings()]},
            admin={
                "port": port,
                "key": "env:PAGES_ADMIN_KEY",
                "oidc": {
                    "issuer": "corp",
                    "title": "Corp",
                    "client_id": CLIENT_ID,
                    "client_secret": "env:OIDC_SECRET",
                    "public_url": f"http://127.0.0.1:{port}",
                    "logout": "provider",
                    "roles": ROLES,
                },
            },
            environ={"PAGES_ADMIN_KEY": ADMIN_KEY, "OIDC_SECRET": CLIENT_SECRET},
            tenants={"acme": {"budget": {"max_budget": 5, "soft_budget": 4}}},
        ) as gateway:
            yield SingleSignOn(gateway, provider)


def made_key(gateway: GatewayProcess, name: str) -> None:
    """Create a key of acme, whose row has buttons."""
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    reply = httpx.post(f"{gateway.admin_url}/keys", json={"tenant": "acme", "id": name}, headers=headers, timeout=60)
    assert reply.status_code == 201, reply.text


async def status(page: Page, path: str, method: str, body: str = "{}") -> tuple[int, str]:
    """Return the status and the error code that a script of the page gets."""
    found = await page.evaluate(
        """async ([path, method, body]) => {
            const reply = await fetch(path, { method, body: method === "GET" ? undefined : body });
            return [reply.status, (await reply.json()).error?.code ?? ""];
        }""",
        [path, method, body],
    )
    return found[0], found[1]


async def test_a_viewer_sees_the_pages_without_the_buttons(browser: Browser, sso: SingleSignOn) -> None:
    made_key(sso.gateway, "of-viewer-test")
    async with sso.opened(browser, "/dashboard/access?tenant=acme", forgive="403") as page:
        await sso.log_in(page, "vera")
        await expect(page).to_have_url(f"{sso.gateway.admin_url}/dashboard/access?tenant=acme")
        await expect(page.locator(".person")).to_contain_text("vera@example.com")
        await expect(page.locator(".person")).to_contain_text("viewer")
        await expect(page.get_by_role("table", name="Keys")).to_contain_text("of-viewer-test")
        await loaded(page)
        main = page.get_by_role("main")
        for name in ("New key", "Rotate", "Revoke", "Raise"):
            await expect(main.get_by_role("button", name=name)).to_have_count(0)
        await expect(main).to_contain_text("Your role viewer cannot change them: that needs the role operator.")
        await expect(page.get_by_role("region", name="Audit trail")).to_contain_text("needs the role admin")
        assert await accessible(page) == []
        await shoot(page, "viewer-access")
        assert await status(page, "/keys", "POST", '{"tenant": "acme", "id": "x"}') == (403, "role_required")
        assert await status(page, "/keys/acme/of-viewer-test", "DELETE") == (403, "role_required")
        assert await status(page, "/guidance/off", "POST", '{"all": true}') == (403, "role_required")
        assert await status(page, "/audit", "GET") == (403, "role_required")
        assert (await status(page, "/usage", "GET"))[0] == 200

        await page.get_by_role("link", name="Playground").click()
        await page.get_by_label("Question").fill("Why is the sky blue?")
        await expect(page.get_by_role("button", name="Ask all three")).to_be_disabled()
        await expect(main).to_contain_text("Questions cost money and need the role operator. Your role is viewer.")
        assert await accessible(page) == []
        await shoot(page, "viewer-playground")


@pytest.mark.long
async def test_an_operator_changes_keys_in_their_own_name(browser: Browser, sso: SingleSignOn) -> None:
    made_key(sso.gateway, "of-operator-test")
    async with sso.opened(browser, "/dashboard/access", forgive="403") as page:
        await sso.log_in(page, "oscar")
        await page.get_by_role("button", name="Revoke acme of-operator-test").click()
        await page.get_by_role("button", name="Revoke key").click()
        row = page.get_by_role("table", name="Keys").get_by_role("row").filter(has_text="of-operator-test")
        await expect(row).to_contain_text("revoked")
        await expect(page.get_by_role("button", name="New key")).to_be_enabled()
        assert await accessible(page) == []
        await shoot(page, "operator-access")
        assert await status(page, "/audit", "GET") == (403, "role_required")
        await page.get_by_role("link", name="Playground").click()
        await expect(page.get_by_role("button", name="Ask all three")).to_be_enabled()
    async with sso.opened(browser, "/dashboard/access") as page:
        await sso.log_in(page, "ada")
        audit = page.get_by_role("table", name="Audit trail").get_by_role("row").filter(has_text="of-operator-test")
        await expect(audit.filter(has_text="key.revoke")).to_contain_text("oscar@example.com (operator)")


@pytest.mark.long
async def test_the_page_of_a_person_without_a_role_says_so(browser: Browser, sso: SingleSignOn) -> None:
    async with sso.opened(browser, "/playground#seed=7") as page:
        assert await accessible(page) == []
        await shoot(page, "login-oidc")
        await sso.log_in(page, "mallory")
        await expect(page.get_by_role("status")).to_contain_text("it has no role in this gateway")
        assert await accessible(page) == []
        await shoot(page, "login-oidc-no-role")
        link = page.get_by_role("link", name="Log in with Corp")
        assert "again=1" in (await link.get_attribute("href") or "")
        await log_in(page)  # the key form is still there
        await expect(page.get_by_label("Seed")).to_have_value("7")
        await expect(page.locator(".person")).to_have_text("Logged in as admin")


@pytest.mark.long
async def test_a_logout_ends_the_session_here_and_at_the_provider(browser: Browser, sso: SingleSignOn) -> None:
    async with sso.opened(browser) as page:
        await sso.log_in(page, "vera")
        await loaded(page)
        async with page.expect_request("**/realms/corp/logout?**"):
            await page.get_by_role("button", name="Log out").click()
        await expect(page).to_have_url(f"{sso.gateway.admin_url}/login")
        await expect(page.get_by_role("link", name="Log in with Corp")).to_be_visible()
        await page.goto("/dashboard")
        await expect(page).to_have_url(f"{sso.gateway.admin_url}/login?why=none&next=%2Fdashboard")


@pytest.mark.long
async def test_pages_with_roles_in_both_color_schemes_and_on_a_phone(browser: Browser, sso: SingleSignOn) -> None:
    for scheme in ("light", "dark"):
        for size, settings in (("wide", {}), ("phone", PHONE)):
            async with sso.opened(browser, "/dashboard/access", color_scheme=scheme, **settings) as page:
                await shoot(page, f"oidc-login-{scheme}-{size}")
                assert await accessible(page) == []
                await sso.log_in(page, "mallory")
                await expect(page.get_by_role("status")).to_contain_text("no role")
                await shoot(page, f"oidc-no-role-{scheme}-{size}")
                assert await accessible(page) == []
                await sso.log_in(page, "vera")
                await expect(page.locator(".person")).to_contain_text("vera@example.com")
                await loaded(page)
                await shoot(page, f"oidc-viewer-access-{scheme}-{size}")
                assert await accessible(page) == []
                await page.get_by_role("link", name="Playground").click()
                await expect(page.get_by_role("button", name="Ask all three")).to_be_disabled()
                await shoot(page, f"oidc-viewer-playground-{scheme}-{size}")
                assert await accessible(page) == []
                width = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert width <= 0
