"""Tokens of issuers find their tenant, key id and permissions by the rules of the policies."""

from __future__ import annotations

import gc
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from gateway.config.identity import IdentitySettings
from gateway.errors import NotAuthenticated
from gateway.keys.callers import Callers
from gateway.keys.held import Keyring
from gateway.keys.identity.issuers import Issuers
from gateway.keys.identity.token import TokenRejected
from gateway.keys.token import digest_of
from gateway.keys.token_callers import TokenCallers
from gateway.policy.book import PolicySet
from gateway.policy.identity_checks import with_places
from gateway.policy.policies import Policies, PolicyEdition
from gateway.policy.schema import TenantPolicy
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.identity_provider import TokenIssuer, token_issuer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

STAFF = {"id": "staff", "issuer": "corp", "when": {"groups": "llm-users"}, "key": "sub", "models": ["chat"]}


class Unused:
    """A follower that records the used keys."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def record_use(self, sha256: str) -> None:
        self.seen.append(sha256)


def policy(tenant: str, *rules: dict[str, Any], keys: Sequence[dict[str, Any]] = ()) -> TenantPolicy:
    routes = [{"model": "chat", "mode": "student", "student": "s"}]
    fields = {"tenant": tenant, "identities": list(rules), "keys": list(keys), "routes": routes}
    places = [f"{tenant}.yaml:{3 + index}" for index in range(len(rules))]
    return with_places(TenantPolicy.model_validate(fields), places)


class World:
    def __init__(self, issuer: TokenIssuer, issuers: Issuers, metrics: Metrics, policies: Policies) -> None:
        self.issuer, self.issuers, self.metrics, self.policies = issuer, issuers, metrics, policies
        self.follower = Unused()
        tokens = TokenCallers(policies, issuers)
        self.callers = Callers(policies, Keyring(), self.follower, tokens)  # type: ignore[arg-type]

    def put(self, *policies: TenantPolicy) -> None:
        self.policies.put(PolicySet.of(policies), PolicyEdition("2", 1, 0.0))

    async def rejected(self, token: str, reason: str) -> str:
        with pytest.raises(TokenRejected) as caught:
            await self.callers.authenticate(token)
        assert caught.value.reason == reason
        return caught.value.message

    def count(self, result: str) -> float | None:
        labels = {"issuer": "corp", "result": result}
        return self.metrics.registry.get_sample_value("gkt_identity_tokens_total", labels)


@asynccontextmanager
async def world(*policies: TenantPolicy, issuers: bool = True) -> AsyncIterator[World]:
    tasks, metrics = BackgroundTasks(), Metrics()
    found = Issuers(tasks, metrics)
    async with token_issuer() as issuer:
        try:
            settings = {"issuers": [issuer.settings()] if issuers else []}
            found.use(IdentitySettings.model_validate(settings))
            yield World(issuer, found, metrics, Policies(PolicySet.of(policies)))
        finally:
            await tasks.close()
            await found.close()


async def test_a_token_has_its_tenant_key_id_permissions_and_claims() -> None:
    async with world(policy("acme", STAFF), policy("globex")) as one:
        caller = await one.callers.authenticate(one.issuer.token(groups=["llm-users"]))
        assert (caller.policy.tenant, caller.key.id, caller.key.models) == ("acme", "staff:ada", ("chat",))
        assert caller.claims["groups"] == ["llm-users"]
        assert one.follower.seen == [], "the uses of API keys are recorded, not those of tokens"


async def test_a_verified_token_is_known_and_keeps_its_caller() -> None:
    async with world(policy("acme", STAFF)) as one:
        token = one.issuer.token(groups=["llm-users"])
        assert one.callers.known(token) is None
        caller = await one.callers.authenticate(token)
        assert one.callers.known(token) is caller is await one.callers.authenticate(token)
        assert one.count("verified") == 1


async def test_an_edit_of_the_policies_applies_to_known_tokens() -> None:
    async with world(policy("acme", STAFF)) as one:
        token = one.issuer.token(groups=["llm-users"])
        await one.callers.authenticate(token)
        one.put(policy("globex", STAFF))
        assert (await one.callers.authenticate(token)).policy.tenant == "globex"
        one.put(policy("acme"))
        await one.rejected(token, "no_rule")


async def test_an_idle_token_keeps_no_former_policies_in_memory() -> None:
    async with world() as one:
        one.put(policy("acme", STAFF))
        await one.callers.authenticate(one.issuer.token(groups=["llm-users"]))
        former = weakref.ref(one.policies.policy_set.policies[0])
        one.put(policy("acme"))
        gc.collect()
        assert former() is None


async def test_the_first_rule_of_a_tenant_applies() -> None:
    admins = {"id": "admins", "issuer": "corp", "when": {"roles": "admin"}}
    async with world(policy("acme", admins, STAFF)) as one:
        both = await one.callers.authenticate(one.issuer.token(roles=["admin"], groups=["llm-users"]))
        staff = await one.callers.authenticate(one.issuer.token(roles=["x"], groups=["llm-users"]))
        assert (both.key.id, staff.key.id) == ("admins:*", "staff:ada")


async def test_a_token_of_two_tenants_is_rejected_and_both_rules_are_logged() -> None:
    other = {"id": "web", "issuer": "corp", "when": {"azp": "web"}}
    async with world(policy("acme", STAFF), policy("globex", other)) as one:
        token = one.issuer.token(groups=["llm-users"], azp="web")
        with structlog.testing.capture_logs() as log:
            message = await one.rejected(token, "several_tenants")
            await one.rejected(token, "several_tenants")
        assert "acme" not in message
        found = [entry for entry in log if entry["event"] == "token_without_caller"]
        assert [entry["rules"] for entry in found] == [["acme.yaml:3", "globex.yaml:3"]], "logged once for each token"
        assert one.count("several_tenants") == 2


async def test_a_token_without_a_rule_is_rejected_with_the_names_of_the_compared_claims() -> None:
    async with world(policy("acme", STAFF, {**STAFF, "id": "cli", "when": {"azp": "cli"}})) as one:
        with structlog.testing.capture_logs() as log:
            message = await one.rejected(one.issuer.token(groups=["secret-group"], azp="web"), "no_rule")
        (entry,) = [entry for entry in log if entry["event"] == "token_without_caller"]
        assert (entry["claims"], entry["rules"]) == (["azp", "groups"], ["acme.yaml:3", "acme.yaml:4"])
        assert "secret-group" not in str(log)
        assert message == (
            "The token of issuer 'corp' is valid, but no rule of this gateway's policies matches it. "
            "They compare the claims azp, groups."
        )
        assert one.count("no_rule") == 1


async def test_a_token_needs_the_claim_of_its_key_id() -> None:
    async with world(policy("acme", {**STAFF, "key": "employee"})) as one:
        message = await one.rejected(one.issuer.token(groups=["llm-users"], employee=["x"]), "no_key_claim")
        assert "employee" in message


async def test_an_api_key_with_the_form_of_a_token_stays_a_key() -> None:
    keys = [{"id": "odd", "sha256": digest_of("my.old.key")}]
    async with world(policy("acme", STAFF, keys=keys)) as one:
        caller = one.callers.known("my.old.key")
        assert caller is not None
        assert (caller.key.id, dict(caller.claims)) == ("odd", {})
        assert one.issuer.reads == []


@pytest.mark.parametrize("token", ["gk-unknown", "a.b", "a.b.c.d", "a..c", "a.b.c="])
async def test_what_is_no_token_is_an_unknown_key(token: str) -> None:
    async with world(policy("acme", STAFF)) as one:
        with pytest.raises(NotAuthenticated, match="Unknown API key"):
            one.callers.known(token)


async def test_without_issuers_a_token_is_an_unknown_key() -> None:
    async with world(policy("acme"), issuers=False) as one:
        with pytest.raises(NotAuthenticated, match="Unknown API key"):
            await one.callers.authenticate(one.issuer.token(groups=["llm-users"]))
        assert one.issuer.reads == []


async def test_a_removed_key_of_the_issuer_ends_its_tokens() -> None:
    async with world(policy("acme", STAFF)) as one:
        token = one.issuer.token(groups=["llm-users"])
        await one.callers.authenticate(token)
        one.issuer.keys = [{**one.issuer.keys[0], "kid": "k9"}]
        issuer = one.issuers.named("corp")
        assert issuer is not None
        await issuer.refresh()
        assert one.callers.known(token) is None
        await one.rejected(token, "unknown_key")
