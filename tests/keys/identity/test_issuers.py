"""Tokens are verified with the keys of their issuer alone, and forged ones are rejected with the reason."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import math
import re
import time
from base64 import urlsafe_b64encode
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from joserfc.jwk import ECKey

from gateway.config.identity import IdentitySettings
from gateway.keys.identity.issuers import Issuers
from gateway.keys.identity.token import MAX_TOKEN_CHARS, TokenRejected
from gateway.keys.token import digest_of
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.certificates import Authority
from tests.identity_provider import TokenIssuer, published, signed, signing_key, token_issuer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from ssl import SSLContext

    from gateway.keys.identity.issuers import VerifiedToken


class Clock:
    """The time in Unix seconds, which a test may move."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class World:
    """Issuers of a process, with one issuer that runs."""

    def __init__(self, issuer: TokenIssuer, issuers: Issuers, metrics: Metrics, clock: Clock) -> None:
        self.issuer, self.issuers, self.metrics, self.clock = issuer, issuers, metrics, clock

    def use(self, *settings: dict[str, Any]) -> None:
        self.issuers.use(IdentitySettings.model_validate({"issuers": settings}))

    async def refresh(self) -> None:
        one = self.issuers.named("corp")
        assert one is not None
        await one.refresh()

    async def verify(self, **more: Any) -> VerifiedToken:
        return await self.issuers.verify(self.issuer.token(**more))

    async def rejected(self, token: str, reason: str) -> str:
        """Return the message of the rejection of a token for this reason."""
        with pytest.raises(TokenRejected) as caught:
            await self.issuers.verify(token)
        assert caught.value.reason == reason, caught.value.message
        assert caught.value.status == 401
        label = caught.value.issuer or "(unknown)"
        assert self.metrics.registry.get_sample_value("gkt_identity_tokens_total", {"issuer": label, "result": reason})
        return caught.value.message

    def up(self, name: str = "corp") -> float | None:
        return self.metrics.registry.get_sample_value("gkt_issuer_up", {"issuer": name})


@asynccontextmanager
async def world(interval_s: float = 0.0, tls: SSLContext | None = None, **settings: Any) -> AsyncIterator[World]:
    tasks, metrics, clock = BackgroundTasks(), Metrics(), Clock()
    issuers = Issuers(tasks, metrics, clock, interval_s)
    async with token_issuer(tls=tls) as issuer:
        try:
            one = World(issuer, issuers, metrics, clock)
            one.use(issuer.settings(**settings))
            yield one
        finally:
            await tasks.close()
            await issuers.close()


def part(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def unsigned(header: object, claims: object) -> str:
    return f"{part(header)}.{part(claims)}.AAAA"


async def test_a_token_is_verified_and_has_its_claims() -> None:
    async with world() as one:
        found = await one.verify(groups=["llm-users"], azp="web")
        assert (found.issuer.name, found.claims["sub"], found.claims["groups"]) == ("corp", "ada", ["llm-users"])
        assert one.issuer.reads == ["/realms/corp/.well-known/openid-configuration", "/realms/corp/keys"]
        assert one.up() == 1


@pytest.mark.parametrize(
    ("verified", "kept"),
    [({}, True), ({"email_verified": True}, True), ({"email_verified": "true"}, True)]
    + [({"email_verified": value}, False) for value in (False, "false", 0, [])],
)
async def test_an_address_that_is_not_verified_is_no_claim(verified: dict[str, Any], kept: bool) -> None:
    async with world() as one:
        found = await one.verify(email="ada@example.com", **verified)
        assert ("email" in found.claims) is kept
        assert found.claims["sub"] == "ada"


@pytest.mark.parametrize(
    "algorithm", ["RS256", "RS384", "RS512", "PS256", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]
)
async def test_each_algorithm_verifies_with_its_kind_of_key(algorithm: str) -> None:
    async with world(algorithms=[algorithm]) as one:
        one.issuer.keys = [published("k1", algorithm)]
        with pytest.warns() if algorithm == "EdDSA" else _quiet():
            token = one.issuer.token(algorithm=algorithm)
        assert (await one.issuers.verify(token)).claims["sub"] == "ada"
        head, _, signature = token.rpartition(".")
        changed = ("B" if signature[0] == "A" else "A") + signature[1:]
        await one.rejected(f"{head}.{changed}", "signature")


class _quiet:  # noqa: N801  a context manager like `pytest.warns`
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


async def test_the_audience_may_be_one_of_several() -> None:
    async with world(audience=["api", "gkt-gateway"]) as one:
        assert (await one.verify(aud=["account", "api"])).claims["aud"] == ["account", "api"]


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"aud": "other"}, "audience"),
        ({"aud": None}, "audience"),
        ({"aud": []}, "audience"),
        ({"aud": ["gkt", "gkt-gateway-2", 7]}, "audience"),
        ({"aud": {"gkt-gateway": 1}}, "audience"),
        ({"exp": None}, "claim"),
        ({"exp": "2100000000"}, "claim"),
        ({"exp": True}, "claim"),
        ({"exp": 1}, "expired"),
        ({"nbf": "soon"}, "claim"),
        ({"iat": [0]}, "claim"),
        ({"sub": 7}, "claim"),
        ({"iss": "https://login.example.com"}, "unknown_issuer"),
        ({"iss": None}, "unknown_issuer"),
        ({"iss": ["x"]}, "unknown_issuer"),
    ],
)
async def test_a_token_with_wrong_claims_is_rejected(claims: dict[str, Any], reason: str) -> None:
    async with world() as one:
        token = signed({"alg": "RS256", "kid": "k1"}, json.dumps(one.issuer.claims(**claims)), signing_key("k1"))
        await one.rejected(token, reason)


async def test_an_issuer_differs_by_a_final_slash() -> None:
    async with world() as one:
        await one.rejected(one.issuer.token(iss=one.issuer.url + "/"), "unknown_issuer")


async def test_times_have_the_skew_and_no_more() -> None:
    async with world() as one:
        now = int(one.clock())
        assert await one.verify(exp=now - 50)
        assert await one.verify(nbf=now + 50, iat=now + 50)
        await one.rejected(one.issuer.token(exp=now - 61), "expired")
        await one.rejected(one.issuer.token(nbf=now + 90), "claim")
        await one.rejected(one.issuer.token(iat=now + 90), "claim")


async def test_a_cached_token_expires_too() -> None:
    async with world() as one:
        token = one.issuer.token()
        found = await one.issuers.verify(token)
        assert one.issuers.cached(digest_of(token)) is found is await one.issuers.verify(token)
        one.clock.ahead_s = 600 + 61
        assert one.issuers.cached(digest_of(token)) is None
        await one.rejected(token, "expired")


async def test_the_cache_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token that was used least recently leaves first."""
    monkeypatch.setattr("gateway.keys.identity.issuers.MAX_CACHED", 3)
    async with world() as one:
        tokens = [one.issuer.token(sub=name) for name in "abcd"]
        for token in tokens[:3]:
            await one.issuers.verify(token)
        await one.issuers.verify(tokens[0])
        await one.issuers.verify(tokens[3])
        assert [one.issuers.cached(digest_of(token)) is not None for token in tokens] == [True, False, True, True]
        monkeypatch.setattr("gateway.keys.identity.issuers.MAX_CACHED_CHARS", len(tokens[3]) + 1)
        large = one.issuer.token(sub="e" * 9)
        await one.issuers.verify(large)
        assert one.issuers.cached(digest_of(large)) is None, "it alone exceeds the limit"
        await one.issuers.verify(tokens[3])
        assert one.issuers._cached_chars == len(tokens[3])


async def test_tokens_with_a_common_beginning_are_different_tokens() -> None:
    """The cache compares whole tokens: a changed signature after the same header and claims is rejected."""
    async with world() as one:
        token = one.issuer.token(sub="x" * 200)
        await one.issuers.verify(token)
        head, _, signature = token.rpartition(".")
        for forged in (f"{head}.{'A' * len(signature)}", token[:-1] + ("A" if token[-1] != "A" else "Q"), f"{token}AA"):
            with pytest.raises(TokenRejected):
                await one.issuers.verify(forged)


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("form", ["PEM", "DER", "n"])
async def test_the_public_key_is_no_secret_of_an_hmac(digest: str, form: str) -> None:
    async with world() as one:
        key = signing_key("k1")
        secrets = {"PEM": key.as_pem(private=False), "DER": key.as_der(private=False)}
        head = f"{part({'alg': digest.replace('sha', 'HS'), 'kid': 'k1'})}.{part(one.issuer.claims())}"
        secret = secrets.get(form) or str(key.dict_value["n"]).encode()
        token = f"{head}.{part(hmac.digest(secret, head.encode(), digest))}"
        assert "RS256" in await one.rejected(token, "algorithm")


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", "RS1", "RSA-OAEP", "rs256"])
@pytest.mark.parametrize("signature", ["", "AAAA"])
async def test_a_token_without_a_signature_is_rejected(algorithm: str, signature: str) -> None:
    async with world() as one:
        token = f"{part({'alg': algorithm, 'kid': 'k1'})}.{part(one.issuer.claims())}.{signature}"
        await one.rejected(token, "algorithm")


async def test_a_key_verifies_only_algorithms_of_its_kind_and_its_alg() -> None:
    async with world(algorithms=["RS256", "RS512", "PS256", "ES256"]) as one:
        one.issuer.keys = [published("k1", alg="RS256"), published("e", "ES256")]
        assert await one.verify()
        await one.rejected(one.issuer.token(algorithm="RS512"), "unknown_key")
        forged = signed({"alg": "PS256", "kid": "k1"}, one.issuer.claims(), signing_key("k1"))
        await one.rejected(forged, "unknown_key")
        confused = signed({"alg": "RS256", "kid": "e"}, one.issuer.claims(), signing_key("k1"))
        await one.rejected(confused, "unknown_key")


async def test_of_keys_with_one_id_that_of_the_algorithm_verifies() -> None:
    """RFC 7517, section 4.5: keys of different types may have the same id."""
    algorithms = ["RS256", "ES256", "ES384", "EdDSA"]
    async with world(algorithms=algorithms) as one:
        one.issuer.keys = [published("k1", algorithm) for algorithm in algorithms[:3]]
        for algorithm in algorithms[:3]:
            assert await one.verify(algorithm=algorithm)
        with pytest.warns():
            await one.rejected(one.issuer.token(algorithm="EdDSA"), "unknown_key")


@pytest.mark.parametrize("kid", ["../../../../dev/null", "' UNION SELECT 'key' -- ", "k1\x00", "k2", "", "x" * 9000])
async def test_an_injected_key_id_finds_no_key(kid: str) -> None:
    async with world() as one:
        token = signed({"alg": "RS256", "kid": kid}, one.issuer.claims(), signing_key("k1"))
        message = await one.rejected(token, "unknown_key")
        assert not kid or kid not in message


@pytest.mark.parametrize("member", ["jku", "x5u", "jwk", "x5c"])
async def test_keys_that_a_token_brings_are_not_used(member: str) -> None:
    """The attacker's issuer publishes a key of the same id, and the token refers to it in its header."""
    async with world() as one, token_issuer("/evil") as evil:
        evil.keys = [published("k1", "ES256")]
        values = {
            "jku": f"{evil.url}/keys",
            "x5u": f"{evil.url}/keys",
            "jwk": published("k1", "ES256"),
            "x5c": ["MIIB"],
        }
        token = one.issuer.token(algorithm="ES256", header={member: values[member]})
        await one.rejected(token, "unknown_key")
        assert evil.reads == []
        assert await one.verify(header={member: values[member]}), "the issuer's own signature counts"


@pytest.mark.parametrize("typ", ["logout+jwt", "", "JWE"])
async def test_a_token_of_another_type_is_rejected(typ: str) -> None:
    async with world() as one:
        await one.rejected(one.issuer.token(header={"typ": typ}), "header")


async def test_an_access_token_by_its_type_is_accepted() -> None:
    async with world() as one:
        assert await one.verify(header={"typ": "at+JWT"})


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        ([1], {}),
        (["alg"], {}),
        ("alg", {}),
        ({}, {}),
        ({"alg": ["RS256"]}, {}),
        ({"alg": "RS256", "kid": 1}, {}),
        ({"alg": "RS256", "typ": 1}, {}),
        ({"alg": "RS256", "crit": ["exp"], "exp": 1}, {}),
        ({"alg": "RS256", "crit": 1}, {}),
        ({"alg": "RS256", "crit": []}, {}),
        ({"alg": "RS256", "crit": ["alg"]}, {}),
        ({"alg": "RS256", "kid": "a", "crit": ["kid"]}, {}),
        ({"alg": "RS256", "crit": ["b64"], "b64": True}, {}),
        ({"alg": "RS256", "b64": True}, {}),
        ({"alg": "RS256", "b64": False}, {}),
        ({"alg": "RS256"}, "text"),
        ({"alg": "RS256"}, b'{"exp":NaN}'),
        ({"alg": "RS256"}, b'{"exp":' + b"9" * 5000 + b"}"),
        ({"alg": "RS256"}, b'{"a":' * 1500 + b"1" + b"}" * 1500),
        ({"alg": "RS256"}, b'{"sub":"\xff"}'),
        ({"alg": "RS256"}, b'{"sub":"\\ud800"}'),
        (b"[" * 6000, {}),
    ],
    ids=itertools.count(),
)
async def test_a_malformed_token_is_rejected_before_any_key_is_read(header: object, claims: object) -> None:
    async with world() as one:
        await one.rejected(unsigned(header, claims), "malformed")
        assert one.issuer.reads == []


@pytest.mark.parametrize("token", ["a.b", "a.b.c.d", "....", "a.b.c=", "é.b.c", "eyJ.eyJ.eyJ"])
async def test_what_is_not_three_base64url_parts_is_malformed(token: str) -> None:
    async with world() as one:
        await one.rejected(token, "malformed")


async def test_a_signature_that_is_not_canonical_base64_is_rejected() -> None:
    async with world() as one:
        token = one.issuer.token()
        await one.issuers.verify(token)
        changed = {"A": "B", "Q": "R", "g": "h", "w": "x"}[token[-1]]
        await one.rejected(token[:-1] + changed, "signature")


async def test_a_token_that_is_too_long_is_rejected() -> None:
    async with world() as one:
        await one.rejected(one.issuer.token(sub="x" * MAX_TOKEN_CHARS), "too_long")
        await one.rejected("a" * MAX_TOKEN_CHARS + ".b.c", "too_long")


async def test_a_token_of_one_issuer_with_the_key_of_another_is_rejected() -> None:
    async with world() as one, token_issuer("/other") as other:
        other.keys = [published("k2")]
        one.use(one.issuer.settings(), other.settings(name="other"))
        assert (await one.issuers.verify(other.token("k2"))).issuer.name == "other"
        forged = signed({"alg": "RS256", "kid": "k2"}, one.issuer.claims(), signing_key("k2"))
        await one.rejected(forged, "unknown_key")
        forged = signed({"alg": "RS256", "kid": "k1"}, one.issuer.claims(), signing_key("k2"))
        await one.rejected(forged, "signature")


async def test_a_new_key_works_within_one_reading_and_a_removed_one_no_longer() -> None:
    async with world() as one:
        old = one.issuer.token()
        assert await one.issuers.verify(old)
        one.issuer.keys = [published("k2"), published("k1")]
        assert await one.verify(kid="k2")
        assert one.issuer.key_reads == 2
        assert await one.issuers.verify(old), "its key is still published"
        one.issuer.keys = [published("k2")]
        await one.refresh()
        assert one.issuers.cached(digest_of(old)) is None
        await one.rejected(old, "unknown_key")
        assert await one.verify(kid="k2")


async def test_a_key_that_was_replaced_under_its_id_is_removed() -> None:
    async with world() as one:
        old = one.issuer.token()
        await one.issuers.verify(old)
        one.issuer.keys = [published("k2") | {"kid": "k1"}]
        await one.refresh()
        await one.rejected(old, "signature")


async def test_random_key_ids_cause_one_reading_in_an_interval() -> None:
    async with world(interval_s=3600.0) as one:
        await one.verify()
        before = one.issuer.key_reads
        tokens = [signed({"alg": "RS256", "kid": f"r{n}"}, one.issuer.claims(), signing_key("k1")) for n in range(50)]
        found = await asyncio.gather(*map(one.issuers.verify, tokens), return_exceptions=True)
        assert {type(error) for error in found} == {TokenRejected}
        assert one.issuer.key_reads == before
        assert await one.verify(sub="grace")


async def test_concurrent_unknown_keys_share_one_reading() -> None:
    async with world() as one:
        await one.verify()
        before = one.issuer.key_reads
        one.issuer.keys.append(published("k2"))
        tokens = [one.issuer.token("k2", sub=f"s{n}") for n in range(20)]
        assert len(await asyncio.gather(*map(one.issuers.verify, tokens))) == 20
        assert one.issuer.key_reads == before + 1


async def test_an_issuer_with_a_private_ca_needs_its_file(tmp_path: Path) -> None:
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    async with world(tls=ours.server(), ca=ours.ca) as one:
        assert (await one.verify()).claims["sub"] == "ada"
    for ca in (None, other.ca):
        async with world(tls=ours.server(), ca=ca) as one:
            await one.rejected(one.issuer.token(), "no_keys")
            issuer = one.issuers.named("corp")
            assert issuer is not None
            assert "unable to get local issuer certificate" in str(issuer.state.error)
            assert "set `ca` of the issuer" in str(issuer.state.error)
            assert one.issuer.reads == []


async def test_a_certificate_for_another_host_is_rejected(tmp_path: Path) -> None:
    ours = Authority(tmp_path)
    async with world(tls=ours.server("127.0.0.2"), ca=ours.ca) as one:
        await one.rejected(one.issuer.token(), "no_keys")
        issuer = one.issuers.named("corp")
        assert issuer is not None
        assert "mismatch" in str(issuer.state.error)


async def test_a_renewed_ca_file_applies_without_a_restart(tmp_path: Path) -> None:
    file, old, new = tmp_path / "trusted.pem", Authority(tmp_path, "old"), Authority(tmp_path, "new")
    file.write_bytes(old.ca.read_bytes())
    async with world(tls=new.server(), ca=file) as one:
        await one.rejected(one.issuer.token(), "no_keys")
        file.write_bytes(new.ca.read_bytes())
        assert await one.verify()
        for content in ("", None):
            file.write_text(content) if content is not None else file.unlink()
            await one.refresh()
            issuer = one.issuers.named("corp")
            assert issuer is not None
            assert "the file of the issuer's `ca` cannot be used" in str(issuer.state.error)
            assert await one.verify(jti=str(content)), "the last keys stay in use"


async def test_a_compressed_document_is_not_decompressed() -> None:
    """A small document could otherwise fill the memory."""
    async with world() as one:
        one.issuer.compress = True
        await one.rejected(one.issuer.token(), "no_keys")
        one.issuer.compress = False
        assert await one.verify()


async def test_the_last_keys_stay_in_use_while_the_issuer_fails() -> None:
    async with world() as one:
        await one.verify()
        one.issuer.status = 503
        await one.refresh()
        assert one.up() == 0
        assert await one.verify(sub="grace")
        await one.rejected(one.issuer.token("k2"), "no_keys")
        issuer = one.issuers.named("corp")
        assert issuer is not None
        assert issuer.state.error == "the reply has status 503"
        one.issuer.status = 200
        await one.refresh()
        assert (one.up(), issuer.state.error) == (1, None)


async def test_an_unexpected_error_does_not_end_the_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as one:
        await one.verify()
        with monkeypatch.context() as patch:
            patch.setattr("gateway.keys.identity.issuer._parse_keys", lambda _: 1 / 0)
            await one.refresh()
        assert one.up() == 0
        assert await one.verify(sub="grace")
        await one.refresh()
        assert one.up() == 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"discovery": {"issuer": "https://login.example.com"}}, "another issuer than config.yaml"),
        ({"discovery": {"jwks_uri": "http://login.example.com/keys"}}, "no https URL in jwks_uri"),
        ({"discovery": {"jwks_uri": "file:///etc/passwd"}}, "no https URL in jwks_uri"),
        ({"discovery": {"jwks_uri": None}}, "no https URL in jwks_uri"),
        ({"status": 302}, "status 302"),
        ({"body": b"{"}, "the keys are not usable"),
        ({"body": b'{"keys": []}'}, "the list is empty"),
        ({"body": b'{"keys": {}}'}, "no list of keys"),
        ({"body": b"[]"}, "not a JSON object"),
        ({"body": b" " * 600_000}, "more than 512000 bytes"),
        ({"keys": [{"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "k1"}]}, "a secret key is published"),
        ({"keys": [signing_key("k1").as_dict(private=True)]}, "a secret key is published"),
        ({"keys": [published("k1") | {"use": "enc"}]}, "not for signatures"),
        ({"keys": [published("k1") | {"key_ops": ["encrypt"], "use": "enc"}]}, "not for signatures"),
        ({"keys": [published("k1", key_ops=["sign"])]}, "not for signatures"),
        ({"keys": [published("k1", alg="RSA-OAEP")]}, "not supported"),
        ({"keys": [{"kty": "RSA", "n": part(b"\x80" + bytes(126) + b"\x01"), "e": "AQAB"}]}, "at least 2048 bits"),
        ({"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "k1"}]}, "keys\\[0\\]"),
        ({"keys": [ECKey.generate_key("secp256k1").as_dict(private=False)]}, "not supported"),
        ({"keys": [{"kty": ["RSA"]}]}, "the key is invalid"),
        ({"keys": ["text"]}, "the key is invalid"),
    ],
)
async def test_unusable_documents_are_reported(change: dict[str, Any], error: str) -> None:
    async with world() as one:
        for name, value in change.items():
            setattr(one.issuer, name, value)
        await one.rejected(one.issuer.token(), "no_keys")
        issuer = one.issuers.named("corp")
        assert issuer is not None
        assert issuer.state.error is not None
        assert pytest.approx(0) == one.up()
        assert re.search(error, issuer.state.error), issuer.state.error


async def test_one_bad_key_does_not_hide_the_others() -> None:
    async with world() as one:
        unknown = {"kty": "EC", "crv": "brainpoolP256r1", "x": "AA", "y": "AA", "kid": "b"}
        one.issuer.keys = [{"kty": "oct", "k": "AA"}, {"kid": "no"}, unknown, published("k1", x5u="no URL")]
        assert await one.verify()


async def test_a_token_without_a_key_id_needs_an_issuer_with_a_single_key() -> None:
    """OpenID Connect Core 1.0, section 10.1: with several keys, tokens name theirs."""
    async with world() as one:
        assert await one.issuers.verify(signed({"alg": "RS256"}, one.issuer.claims(), signing_key("k1")))
        one.issuer.keys = [published("e", "ES256")]
        await one.refresh()
        await one.rejected(signed({"alg": "RS256"}, one.issuer.claims(sub="a"), signing_key("k1")), "unknown_key")
        one.issuer.keys = [published("k1"), published("k2")]
        await one.refresh()
        await one.rejected(signed({"alg": "RS256"}, one.issuer.claims(sub="b"), signing_key("k1")), "unknown_key")


async def test_an_unreachable_issuer_does_not_affect_another() -> None:
    async with world() as one:
        one.use(one.issuer.settings(), {"name": "gone", "issuer": "http://127.0.0.1:9/", "audience": "x"})
        gone = one.issuers.named("gone")
        assert gone is not None
        await gone.refresh()
        assert one.up("gone") == 0
        assert await one.verify()


async def test_an_edit_keeps_the_keys_of_unchanged_issuers() -> None:
    async with world() as one:
        token = one.issuer.token()
        await one.issuers.verify(token)
        kept = one.issuers.named("corp")
        one.use(one.issuer.settings(), {"name": "new", "issuer": "http://127.0.0.1:9/", "audience": "x"})
        assert one.issuers.named("corp") is kept
        assert one.issuers.cached(digest_of(token)) is not None
        one.use(one.issuer.settings(audience="other"))
        assert one.issuers.cached(digest_of(token)) is None
        await one.rejected(token, "audience")
        one.use()
        assert not one.issuers
        await one.rejected(token, "unknown_issuer")


async def test_a_removed_issuer_is_neither_up_nor_down_although_its_keys_arrive_later() -> None:
    async with world() as one:
        await one.verify()
        removed = one.issuers.named("corp")
        assert removed is not None
        reading = asyncio.get_running_loop().create_task(removed.refresh())
        await asyncio.sleep(0)  # the reading has begun
        one.use()
        await reading
        up = one.up()
        assert up is not None
        assert math.isnan(up)


async def test_keys_may_have_a_url_of_their_own() -> None:
    async with world() as one:
        one.issuer.discovery = {"issuer": "https://other.example"}
        one.use(one.issuer.settings(jwks_url=f"{one.issuer.url}/keys"))
        assert await one.verify()
        assert "/realms/corp/.well-known/openid-configuration" not in one.issuer.reads


async def test_a_token_is_verified_for_another_audience_and_is_then_no_caller() -> None:
    async with world() as one:
        token = one.issuer.token(aud="admin-pages")
        found = await one.issuers.verify_for(token, issuer="corp", aud={"value": "admin-pages"})
        assert found.claims["aud"] == "admin-pages"
        await one.rejected(token, "audience")
        with pytest.raises(TokenRejected, match="is not one of"):
            await one.issuers.verify_for(token, issuer="other", aud={"value": "admin-pages"})


async def test_endpoints_come_from_the_discovery_document() -> None:
    async with world() as one:
        one.issuer.discovery = {"token_endpoint": f"{one.issuer.url}/token"}
        issuer = one.issuers.named("corp")
        assert issuer is not None
        assert await issuer.endpoint("token_endpoint") == f"{one.issuer.url}/token"


async def test_endpoints_are_read_again_after_the_keys_whose_url_is_configured() -> None:
    async with world() as one:
        one.use(one.issuer.settings(jwks_url=f"{one.issuer.url}/keys"))
        issuer = one.issuers.named("corp")
        assert issuer is not None
        for name in ("old", "new"):
            one.issuer.discovery = {"token_endpoint": f"{one.issuer.url}/{name}"}
            await one.refresh()
            assert await issuer.endpoint("token_endpoint") == f"{one.issuer.url}/{name}"
