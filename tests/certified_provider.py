"""A certified OpenID Connect provider (oidc-provider for Node.js) in a process of its own."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
from base64 import urlsafe_b64encode
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx

from tests.clients.environments import HERE, node_modules
from tests.identity_provider import AUDIENCE, signing_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVICE = {
    "client_id": "service",
    "client_secret": "secret-of-service",
    "grant_types": ["client_credentials"],
    "response_types": [],
    "redirect_uris": [],
}
WEB = {
    "client_id": "web",
    "client_secret": "secret-of-web",
    "redirect_uris": ["http://127.0.0.1:9/callback"],
    "grant_types": ["authorization_code"],
}


@dataclass
class ProviderProcess:
    """A running provider. `url` is its issuer."""

    url: str

    def service_token(self) -> str:
        """Return an access token of the client `service` (client credentials)."""
        form = {"grant_type": "client_credentials", "scope": "llm"}
        reply = httpx.post(f"{self.url}/token", data=form, auth=("service", "secret-of-service"), timeout=30)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["access_token"])

    def log_in(self, account: str, client: dict[str, Any] = WEB) -> dict[str, Any]:
        """Return the tokens of a person: authorization code flow with PKCE, through the provider's own pages."""
        verifier, redirect = secrets.token_urlsafe(48), client["redirect_uris"][0]
        challenge = urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "client_id": client["client_id"],
            "response_type": "code",
            "scope": "openid profile llm",
            "redirect_uri": redirect,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        with httpx.Client(timeout=30) as browser:
            code = self._code(browser, httpx.URL(f"{self.url}/auth", params=query), account, redirect)
            form = {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": redirect,
                "code_verifier": verifier,
            }
            reply = browser.post(f"{self.url}/token", data=form, auth=(client["client_id"], client["client_secret"]))
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    @staticmethod
    def _code(browser: httpx.Client, url: httpx.URL, account: str, redirect: str) -> str:
        """Log in and consent on the pages that follow, and return the code of the redirect."""
        reply = browser.get(url)
        for _ in range(12):
            location = reply.headers.get("location")
            if location is None:
                prompt = re.search(r'name="prompt" value="(\w+)"', reply.text)
                action = re.search(r'action="([^"]+)"', reply.text)
                assert prompt is not None, reply.text
                assert action is not None, reply.text
                form = {"prompt": prompt[1], "login": account, "password": "any"}
                reply = browser.post(urljoin(str(reply.url), action[1]), data=form)
            elif location.startswith(redirect):
                return parse_qs(urlsplit(location).query)["code"][0]
            else:
                reply = browser.get(urljoin(str(reply.url), location))
        raise AssertionError(f"no redirect to the client: {reply.text}")


@contextmanager
def certified_provider(
    folder: Path, port: int, *kids: str, clients: tuple[dict[str, Any], ...] = (SERVICE, WEB)
) -> Iterator[ProviderProcess]:
    """Run a provider with these signing keys; the first one signs. Skips the test without Node.js."""
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(node_modules("oidc_provider"))
        shutil.copy(HERE / "oidc_provider" / "provider.mjs", folder)
    url = f"http://127.0.0.1:{port}"
    jwks = {"keys": [{**signing_key(kid).as_dict(private=True), "kid": kid, "use": "sig"} for kid in kids]}
    options = {"url": url, "port": port, "jwks": jwks, "clients": clients, "audience": AUDIENCE}
    process = subprocess.Popen(
        ["node", folder / "provider.mjs", json.dumps(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line == "listening\n", line + process.stderr.read()
        yield ProviderProcess(url)
    finally:
        process.terminate()
        process.communicate(timeout=30)
