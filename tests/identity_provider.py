"""A small OpenID Connect issuer on this machine: discovery, keys that rotate, and tokens with real signatures."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry, serialize_compact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from ssl import SSLContext

    from joserfc.jwk import Key

AUDIENCE = "gkt-gateway"
# Creating an RSA key takes a tenth of a second, so all issuers of a process share these.
_MADE: dict[tuple[str, str], Key] = {}
_KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}


def signing_key(kid: str, algorithm: str = "RS256") -> Key:
    """Return a private key for an algorithm; one of each id for the whole run."""
    if (kid, algorithm) not in _MADE:
        kind = _KINDS[algorithm[:2]]
        if kind == "RSA":
            key: Key = RSAKey.generate_key(2048)
        else:
            key = ECKey.generate_key(_CURVES[algorithm]) if kind == "EC" else OKPKey.generate_key("Ed25519")
        _MADE[kid, algorithm] = key
    return _MADE[kid, algorithm]


def published(kid: str | None, algorithm: str = "RS256", **more: Any) -> dict[str, Any]:
    """Return the public part of a key as a JWKS has it."""
    named = {} if kid is None else {"kid": kid}
    return {**signing_key(kid or "", algorithm).as_dict(private=False), "use": "sig", **named, **more}


def signed(
    header: dict[str, Any], payload: dict[str, Any] | bytes | str, key: Any, algorithm: str | None = None
) -> str:
    """Return a compact token. The header may have any members."""
    raw = payload if isinstance(payload, bytes | str) else orjson.dumps(payload)
    lax = JWSRegistry(algorithms=[algorithm or header["alg"]], strict_check_header=False)
    return serialize_compact(header, raw, key, registry=lax)


@dataclass
class TokenIssuer:
    """A running issuer. Change `keys`, `discovery`, `status` or `body` to change its replies.

    Attributes:
        url: the value of `iss`.
        keys: the keys of the JWKS document, as published.
        discovery: members of the discovery document that replace the default ones.
        status: the status of all replies.
        body: the JWKS document as text; None: the `keys`.
        compress: whether the keys are compressed although the gateway does not ask for it.
        reads: the paths requested so far.
    """

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=lambda: [published("k1")])
    discovery: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    body: bytes | None = None
    compress: bool = False
    reads: list[str] = field(default_factory=list)

    def claims(self, **more: Any) -> dict[str, Any]:
        """Return the claims of a valid token. None removes a claim."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 600, **more}
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self, kid: str = "k1", algorithm: str = "RS256", header: dict[str, Any] | None = None, **more: Any
    ) -> str:
        """Return a token with these claims, signed by the key of that id."""
        return signed(
            {"alg": algorithm, "kid": kid, "typ": "JWT", **(header or {})},
            self.claims(**more),
            signing_key(kid, algorithm),
        )

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return the entry of `identity.issuers` in config.yaml."""
        return {"name": "corp", "issuer": self.url, "audience": AUDIENCE, **more}

    async def _discovery(self, request: web.Request) -> web.Response:
        self.reads.append(request.path)
        document = {"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.discovery}
        return web.json_response(document, status=self.status)

    async def _keys(self, request: web.Request) -> web.Response:
        self.reads.append(request.path)
        if self.body is not None:
            return web.Response(body=self.body, status=self.status)
        response = web.json_response({"keys": self.keys}, status=self.status)
        if self.compress:
            response.enable_compression(web.ContentCoding.gzip)
        return response

    @property
    def key_reads(self) -> int:
        """Return how often the keys were read."""
        return sum(path.endswith("/keys") for path in self.reads)


@asynccontextmanager
async def token_issuer(
    path: str = "/realms/corp", port: int = 0, tls: SSLContext | None = None
) -> AsyncIterator[TokenIssuer]:
    """Run an issuer on this machine, below a path."""
    issuer, app = TokenIssuer(), web.Application()
    app.router.add_get(f"{path}/.well-known/openid-configuration", issuer._discovery)
    app.router.add_get(f"{path}/keys", issuer._keys)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
        await site.start()
        issuer.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{runner.addresses[0][1]}{path}"
        yield issuer
    finally:
        await runner.cleanup()
