"""The names of Redis keys decide whether a backup contains them."""

from __future__ import annotations

import pytest

from gateway.backup.records import KeyLocation, KeyLocator
from gateway.redis.keys import RedisKeys

KEYS = RedisKeys("gkt")
LEDGER = KEYS.ledger()


@pytest.mark.parametrize(
    ("key", "location"),
    [
        (KEYS.keyring().terms, KeyLocation("keys", "", "terms")),
        (KEYS.keyring().audit, KeyLocation("keys", "", "audit")),
        (KEYS.guidance_off().off, KeyLocation("keys", "", "guidance_off")),
        (KEYS.scope("acme", "tenant")[2], KeyLocation("tenants", "acme", "tenant:budget")),
        (KEYS.scope("acme", "key:ci")[2] + ":2592000", KeyLocation("tenants", "acme", "key:ci:budget:2592000")),
        (KEYS.scope("acme", "label:team=a b}:")[2], KeyLocation("tenants", "acme", "label:team=a b}::budget")),
        (KEYS.outbox("acme"), KeyLocation("tenants", "acme", "outbox")),
        (KEYS.intents("acme", "ann"), KeyLocation("tenants", "acme", "intents:ann")),
        (KEYS.owners("acme"), KeyLocation("tenants", "acme", "owners")),
        (KEYS.token_budgets("acme"), KeyLocation("tenants", "acme", "token_budgets")),
        (LEDGER.tenants, KeyLocation("sums", "", "tenants")),
        (LEDGER.leaving, KeyLocation("sums", "", "leaving")),
        (LEDGER.up("big", 86_400), KeyLocation("sums", "", "up:86400:big")),
        (LEDGER.quality_spent(86_400), KeyLocation("sums", "", "quality_spent:86400")),
    ],
)
def test_persistent_keys_are_found_and_restored_under_any_prefix(key: str, location: KeyLocation) -> None:
    found = KeyLocator(KEYS).find(key)
    assert found is not None
    assert (found.location, found.kept) == (location, True)
    assert KeyLocator(KEYS).key(location) == key
    assert KeyLocator(RedisKeys("other*")).key(location) == key.replace("{gkt:", "{other*:")


@pytest.mark.parametrize(
    "key",
    [
        KEYS.scope("acme", "tenant")[0],
        KEYS.scope("acme", "tenant")[1],
        KEYS.guidance_off().version,
        KEYS.guidance_off().window("acme", "chat", "f00d"),
        LEDGER.trimmer,
        LEDGER.written,
        LEDGER.worker(1),
        f"{LEDGER.base}latest",
        f"{LEDGER.base}counted",
    ],
)
def test_temporary_keys_are_deleted_by_a_restore_and_in_no_backup(key: str) -> None:
    found = KeyLocator(KEYS).find(key)
    assert found is not None
    assert not found.kept


@pytest.mark.parametrize(
    "key",
    [
        KEYS.receipt("acme", "req_1"),
        KEYS.collected("acme", "chat").requests,
        KEYS.stored_response("acme", "resp_1").response,
        KEYS.teacher("big").cache,
        KEYS.teacher("big").boards,
        KEYS.heartbeat("ann"),
        RedisKeys("gkt2").outbox("acme"),
        RedisKeys("my:gkt").ledger().tenants,
        KEYS.outbox("acme").replace(":v2:", ":v1:"),
    ],
)
def test_foreign_keys_are_unchanged(key: str) -> None:
    assert KeyLocator(KEYS).find(key) is None


def test_a_heartbeat_is_known_for_one() -> None:
    assert KeyLocator(KEYS).is_heartbeat(KEYS.heartbeat("ann"))
    assert not KeyLocator(KEYS).is_heartbeat(RedisKeys("gkt2").heartbeat("ann"))
