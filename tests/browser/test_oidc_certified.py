"""Login at oidc-provider, a certified OpenID provider: both sides implement the specifications on their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from load_tests.children import free_ports
from tests.browser.conftest import ADMIN_KEY, loaded, opened
from tests.certified_provider import certified_provider
from tests.gateway_process import model, running_gateway

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser, Page

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def log_in(page: Page, name: str) -> None:
    await page.get_by_role("link", name="Log in with corp").click()
    await page.locator("[name=login]").fill(name)
    await page.locator("[name=password]").fill("any")
    await page.locator("[type=submit]").click()
    await page.locator("[type=submit]").click()  # the consent


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_login_and_a_logout_at_a_certified_provider(browser: Browser, redis_url: str, tmp_path: Path) -> None:
    """For browsers, localhost and 127.0.0.1 are different sites."""
    provider_port, port = free_ports(2)
    public_url = f"http://localhost:{port}"
    client = {
        "client_id": "gkt-dashboard",
        "client_secret": "secret-of-dashboard",
        "redirect_uris": [f"{public_url}/login/callback"],
        "post_logout_redirect_uris": [f"{public_url}/login"],
        "grant_types": ["authorization_code"],
    }
    (tmp_path / "provider").mkdir()
    with (
        certified_provider(tmp_path / "provider", provider_port, "k1", clients=(client,)) as provider,
        running_gateway(
            tmp_path / "gateway",
            models=[model("small", "openai", "http://127.0.0.1:9/v1", continuation="trailing")],
            routes=[{"model": "chat", "mode": "student", "student": "small"}],
            redis_url=redis_url,
            identity={"issuers": [{"name": "corp", "issuer": provider.url, "audience": "gkt-gateway"}]},
            admin={
                "port": port,
                "oidc": {
                    "issuer": "corp",
                    "client_id": client["client_id"],
                    "client_secret": "env:OIDC_SECRET",
                    "public_url": public_url,
                    "scopes": ["openid", "profile"],
                    "name_claim": "name",
                    "logout": "provider",
                    "session_secret": "env:SESSION_SECRET",
                    "roles": {"viewer": {"groups": "llm-users", "name": ["vera", "oscar"]}},
                },
            },
            environ={"OIDC_SECRET": str(client["client_secret"]), "SESSION_SECRET": ADMIN_KEY * 2},
        ) as gateway,
    ):
        # The provider's pages load a font from another host, which a test cannot reach.
        async with opened(browser, gateway, forgive="a request to |error: ") as page:
            await page.goto(f"{public_url}/dashboard/configuration")
            await expect(page.get_by_label("Admin key", exact=True)).to_be_hidden()
            await log_in(page, "vera")
            await expect(page).to_have_url(f"{public_url}/dashboard/configuration")
            await expect(page.locator(".person")).to_have_text("Logged in as vera viewer")
            await loaded(page)
            await page.get_by_role("button", name="Log out").click()
            await page.get_by_role("button", name="Yes, sign me out").click()
            await expect(page).to_have_url(f"{public_url}/login")
            await log_in(page, "mallory")
            await expect(page.get_by_role("status")).to_contain_text("it has no role in this gateway")
        assert gateway.wait_for_log("admin_login", method="oidc")["subject"] == "vera"
        assert "mallory" in gateway.wait_for_log("admin_login_failed", reason="no_role")["error"]
