"""Callers with tokens, at a running gateway: permissions, receipts, limits, and edits of rules."""

from __future__ import annotations

import gc
import json
import weakref
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest_asyncio
from redis.asyncio import Redis

from gateway.api import keys
from gateway.redis.keys import RedisKeys
from tests.certificates import Authority
from tests.gateway_process import KEY, redis_prefix, sha256
from tests.identity_provider import TokenIssuer, published, token_issuer
from tests.in_process_gateway import ADMIN_HEADERS, CHAT, Engine, World, following, route, student

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from ssl import SSLContext

    import pytest

STAFF = {"id": "staff", "issuer": "corp", "when": {"groups": ["llm-users"]}, "key": "sub", "models": ["chat"]}
ROUTES = [route("chat", "small"), route("chat-2", "small")]


class TokenWorld:
    """A gateway with one issuer and one engine."""

    def __init__(self, world: World, issuer: TokenIssuer, engine: Engine) -> None:
        self.world, self.issuer, self.engine = world, issuer, engine

    def write_policy(self, *identities: dict[str, Any], tenant: str = "acme", **more: Any) -> None:
        known = [{"id": "only", "sha256": sha256(KEY)}] if tenant == "acme" else []
        policy = {"tenant": tenant, "keys": known, "identities": list(identities), "routes": ROUTES, **more}
        self.world._write(f"policies/{tenant}.yaml", policy)

    @property
    def version(self) -> str | None:
        return self.world.parts.public[keys.POLICIES].edition.version

    async def reloaded(self, before: str | None) -> None:
        await self.world.until(lambda: self.version != before)

    def token(self, **claims: Any) -> str:
        return self.issuer.token(**{"groups": ["llm-users"], **claims})

    async def ask(
        self, token: str, model: str = "chat", header: str = "Authorization"
    ) -> tuple[int, dict[str, Any], str]:
        """Return the status of a request, its body and its id."""
        credentials = {header: f"Bearer {token}" if header == "Authorization" else token}
        headers = {**credentials, "Content-Type": "application/json"}
        url = f"{self.world.url}{CHAT}"
        async with self.world._session.post(url, data=World.body(model), headers=headers) as answer:
            return answer.status, await answer.json(), answer.headers["x-request-id"]

    async def get(self, path: str, token: str) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        async with self.world._session.get(f"{self.world.url}{path}", headers=headers) as answer:
            return await answer.json()

    async def raise_budget(self, key_id: str, usd: float) -> tuple[int, dict[str, Any]]:
        url = f"{self.world.admin_url}/budgets/acme/keys/{quote(key_id, safe='')}/raise"
        async with self.world._session.post(url, json={"usd": usd}, headers=ADMIN_HEADERS) as answer:
            return answer.status, await answer.json()

    async def budget(self, key_id: str) -> tuple[int, dict[str, Any]]:
        url = f"{self.world.admin_url}/budgets/acme/keys/{quote(key_id, safe='')}"
        async with self.world._session.get(url, headers=ADMIN_HEADERS) as answer:
            return answer.status, await answer.json()

    async def budgets(self, query: str = "") -> list[str]:
        """Return the key ids of the listed budgets, over all pages."""
        found, after = list[str](), ""
        while after is not None:
            page = await self.world.get(f"/budgets?limit=2&after={quote(after)}{query}", admin=True)
            found += [one["key"] for one in page["budgets"]]
            after = page["next"]
        return found


@asynccontextmanager
async def running(
    folder: Path,
    redis_url: str,
    patch: pytest.MonkeyPatch,
    *identities: dict[str, Any],
    tls: SSLContext | None = None,
    **of_issuer: Any,
) -> AsyncIterator[TokenWorld]:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine().running())
        issuer = await stack.enter_async_context(token_issuer(tls=tls))
        settings = {"issuers": [issuer.settings(**of_issuer)]}
        world = following(folder, redis_url, patch, [student("small", engine)], *ROUTES, identity=settings)
        one = TokenWorld(await stack.enter_async_context(world), issuer, engine)
        before = one.version
        one.write_policy(*identities)
        await one.reloaded(before)
        yield one


@pytest_asyncio.fixture
async def one(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TokenWorld]:
    async with running(tmp_path, redis_url, monkeypatch, STAFF) as world:
        yield world


async def test_a_token_answers_as_a_key_does_and_its_receipt_has_its_key_id(one: TokenWorld) -> None:
    token = one.token()
    status, _, request_id = await one.ask(token)
    assert status == 200
    assert (await one.world.receipt(request_id))["key"] == "staff:ada"
    assert (await one.ask(token, header="x-api-key"))[0] == 200
    assert (await one.world.ask())[0] == 200, "the API key of the tenant still works"
    assert [entry["id"] for entry in (await one.get("/v1/models", token))["data"]] == ["chat"]
    assert (await one.get("/v1/limits", token))["key"]["id"] == "staff:ada"
    assert (await one.ask(token, "chat-2"))[0] == 404, "the rule does not allow this model"


async def test_a_rejected_token_gets_401_with_the_reason_and_no_value(one: TokenWorld) -> None:
    status, body, _ = await one.ask(one.token(groups=["secret-group"]))
    assert status == 401
    assert body["error"]["code"] == "invalid_api_key"
    assert body["error"]["message"].endswith("They compare the claims groups.")
    now = one.issuer.claims()["iat"]
    status, body, _ = await one.ask(one.token(exp=now - 3600))
    assert (status, body["error"]["message"]) == (
        401,
        "The token of issuer 'corp' has expired. Get a new token from the issuer.",
    )
    assert "secret-group" not in json.dumps(one.world.log, default=str)
    (line,) = one.world.lines_of("token_without_caller")
    (rule,) = line["rules"]
    file, _, number = rule.rpartition(":")
    assert file.endswith("policies/acme.yaml")
    assert "id: staff" in (one.world.folder / "policies/acme.yaml").read_text().splitlines()[int(number) - 1]


async def test_two_credentials_in_one_request_are_rejected(one: TokenWorld) -> None:
    headers = {"Authorization": f"Bearer {one.token()}", "x-api-key": KEY, "Content-Type": "application/json"}
    body = {"model": "chat", "max_tokens": 9, "messages": [{"role": "user", "content": "Write."}]}
    async with one.world._session.post(f"{one.world.url}/v1/messages", json=body, headers=headers) as answer:
        assert answer.status == 401


async def test_limits_of_a_rule_count_each_key_id_and_expire(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = {**STAFF, "limits": {"rpm_limit": 1}, "budget": {"max_budget": 5}}
    async with running(tmp_path, redis_url, monkeypatch, limited) as one:
        ada, grace = one.token(sub="ada"), one.token(sub="grace")
        assert [(await one.ask(token))[0] for token in (ada, grace, ada)] == [200, 200, 429]
        again = one.token(sub="ada", jti="another token of the same caller")
        assert (await one.ask(again))[0] == 429
        redis = Redis.from_url(redis_url)
        try:
            names = RedisKeys(redis_prefix(tmp_path)).scope("acme", "key:staff:ada")
            found = [(name, await redis.ttl(name)) for name in names if await redis.exists(name)]
            assert found
            assert all(ttl > 0 for _, ttl in found), "scopes of callers who left disappear"
        finally:
            await redis.aclose()


async def test_budgets_of_tokens_are_shown_and_raised(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget has room for no request until it is raised."""
    each = {**STAFF, "budget": {"max_budget": 0.000001}}
    shared = {"id": "apps", "issuer": "corp", "when": {"azp": "batch"}, "budget": {"max_budget": 7}}
    without = {"id": "guests", "issuer": "corp", "when": {"azp": "guest"}, "key": "sub"}
    async with running(tmp_path, redis_url, monkeypatch, each, shared, without) as one:
        assert await one.budgets() == await one.budgets("&tenant=acme") == ["apps:*"], "callers have no row"
        ada = one.token(sub="ada")
        assert (await one.ask(ada))[0] == 429
        assert (await one.ask(one.token(groups=[], azp="guest")))[0] == 200
        status, budget = await one.budget("staff:ada")
        assert (status, budget["key"], budget["spent_usd"], budget["raise"]) == (200, "staff:ada", 0, None)
        status, budget = await one.raise_budget("staff:ada", 5)
        assert (status, budget["key"], budget["raise"]["usd"]) == (200, "staff:ada", 5)
        assert (await one.ask(ada))[0] == 200
        assert (await one.raise_budget("staff:grace@example.com", 5))[0] == 200, "before the first request, too"
        assert (await one.budget("staff:grace@example.com"))[1]["raise"]["usd"] == 5
        for wrong in ("staf:ada", "staff:a da", "staff:", "staff:*", "apps:ada", "guests:ada", "staff:~x"):
            assert (await one.raise_budget(wrong, 5))[0] == (await one.budget(wrong))[0] == 404, wrong
        shown = await one.world.get("/summary?tenant=acme&key=staff:ada", admin=True)
        assert shown["spent"]["budget"]["of"] == "key"
        (entry, *_) = (await one.world.get("/audit", admin=True))["entries"]
        assert (entry["action"], entry["subject"]) == ("budget.raise", "staff:grace@example.com")
        before = one.version
        one.write_policy(shared, without)
        await one.reloaded(before)
        assert (await one.budget("staff:ada"))[0] == 404, "no rule gives this key id any more"


async def test_an_issuer_with_a_private_ca(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "certs").mkdir()
    authority = Authority(tmp_path / "certs")
    async with running(tmp_path, redis_url, monkeypatch, STAFF, tls=authority.server(), ca="certs/ca.pem") as one:
        assert (await one.ask(one.token()))[0] == 200


async def test_callers_who_left_keep_no_former_policy_in_memory(one: TokenWorld) -> None:
    one.write_policy({**STAFF, "limits": {"rpm_limit": 100}})
    before = one.version
    await one.reloaded(before)
    assert (await one.ask(one.token()))[0] == 200
    (policy,) = one.world.parts.public[keys.POLICIES].policy_set.policies
    former = weakref.ref(policy)
    del policy
    before = one.version
    one.write_policy(STAFF)
    await one.reloaded(before)
    assert (await one.world.ask())[0] == 200

    def is_gone() -> bool:
        gc.collect()
        return former() is None

    await one.world.until(is_gone)


async def test_a_token_of_one_tenant_does_not_reach_another(one: TokenWorld) -> None:
    before = one.version
    one.write_policy({**STAFF, "when": {"groups": ["partners"]}}, tenant="globex")
    await one.reloaded(before)
    _, _, request_id = await one.ask(one.token())
    assert (await one.world.receipt(request_id))["tenant"] == "acme"
    partner = one.token(groups=["partners"])
    assert "error" in await one.get(f"/v1/receipts/{request_id}", partner)
    status, body, _ = await one.ask(one.token(groups=["partners", "llm-users"]))
    assert status == 401
    assert "2 tenants" in body["error"]["message"]
    (line,) = one.world.lines_of("token_without_caller")
    assert line["rules"] == ["policies/acme.yaml:5", "policies/globex.yaml:3"] or len(line["rules"]) == 2


async def test_edits_of_rules_apply_at_once(one: TokenWorld) -> None:
    token = one.token()
    assert (await one.ask(token))[0] == 200
    before = one.version
    one.write_policy({**STAFF, "when": {"groups": ["other"]}})
    await one.reloaded(before)
    assert (await one.ask(token))[0] == 401
    before = one.version
    one.write_policy(STAFF)
    await one.reloaded(before)
    assert (await one.ask(token))[0] == 200


async def test_a_new_key_of_the_issuer_works_at_once_and_a_failing_issuer_is_shown(one: TokenWorld) -> None:
    assert (await one.ask(one.token()))[0] == 200
    issuers = one.world.parts.admin[keys.ISSUERS]
    corp = issuers.named("corp")
    assert corp is not None
    corp._interval_s = 0.0
    one.issuer.keys.append(published("k2"))
    assert (await one.ask(one.token(kid="k2")))[0] == 200
    shown = (await one.world.get("/readyz", admin=True))["issuers"]["corp"]
    assert (shown["up"], shown["keys"], shown["error"]) == (True, 2, None)
    one.issuer.status = 500
    assert (await one.ask(one.token(kid="k3")))[0] == 401
    assert (await one.ask(one.token(kid="k2", sub="grace")))[0] == 200
    shown = (await one.world.get("/readyz", admin=True))["issuers"]["corp"]
    assert (shown["up"], shown["keys"], shown["error"]) == (False, 2, "the reply has status 500")
    assert one.world.metric("gkt_issuer_up", issuer="corp") == 0
    assert one.world.lines_of("issuer_unreachable")
