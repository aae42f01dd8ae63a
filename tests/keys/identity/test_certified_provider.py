"""Tokens of a certified OpenID Connect provider identify callers: services, and persons who logged in."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from gateway.config.identity import IdentitySettings
from gateway.keys.identity.issuers import Issuers
from gateway.keys.identity.token import TokenRejected
from gateway.keys.token_callers import caller_of
from gateway.policy.book import Caller, PolicySet
from gateway.policy.schema import TenantPolicy
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.certified_provider import certified_provider
from tests.identity_provider import AUDIENCE

if TYPE_CHECKING:
    from pathlib import Path

RULES = [
    {"id": "services", "issuer": "corp", "when": {"client_id": "service", "scope": "llm"}},
    {"id": "staff", "issuer": "corp", "when": {"groups": "llm-users"}, "key": "sub"},
]
POLICY = {
    "tenant": "acme",
    "identities": RULES,
    "routes": [{"model": "chat", "mode": "student", "student": "s"}],
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_tokens_of_services_and_persons_identify_callers_also_after_a_rotation(tmp_path: Path) -> None:
    policy_set, port = PolicySet.of([TenantPolicy.model_validate(POLICY)]), free_port()
    tasks = BackgroundTasks()
    issuers = Issuers(tasks, Metrics(), unknown_key_interval_s=0.0)

    async def key_of(token: str) -> str:
        verified = await issuers.verify(token)
        caller = caller_of(policy_set, "corp", verified.claims)
        assert isinstance(caller, Caller)
        return caller.key.id

    try:
        with certified_provider(tmp_path, port, "k1") as provider:
            one = {"name": "corp", "issuer": provider.url, "audience": AUDIENCE}
            issuers.use(IdentitySettings.model_validate({"issuers": [one]}))
            service = await asyncio.to_thread(provider.service_token)
            assert await key_of(service) == "services:*"
            person = await asyncio.to_thread(provider.log_in, "ada")
            assert await key_of(person["access_token"]) == "staff:ada"
            verified = await issuers.verify_for(person["id_token"], issuer="corp", aud={"value": "web"})
            assert verified.claims["sub"] == "ada"
            with pytest.raises(TokenRejected, match="for another audience"):
                await issuers.verify(person["id_token"])
            assert await issuers.named("corp").endpoint("token_endpoint") == f"{provider.url}/token"  # type: ignore[union-attr]
        with certified_provider(tmp_path, port, "k2") as provider:
            assert await key_of(service) == "services:*", "the key was not read again yet"
            assert await key_of(await asyncio.to_thread(provider.service_token)) == "services:*"
            with pytest.raises(TokenRejected, match="a key that the issuer does not publish"):
                await issuers.verify(service)
    finally:
        await tasks.close()
        await issuers.close()
