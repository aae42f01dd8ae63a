"""Key names contain their layout version, and the upgrade page states the same numbers."""

from __future__ import annotations

import re

import pytest

from gateway.redis import keys as redis_keys
from gateway.redis.keys import RedisKeys

KEYS = RedisKeys("gkt")


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        ([name for name in KEYS.teacher("big") if not name.endswith("}:boards")], redis_keys.BOARD),
        ([KEYS.wakeups("ann")], redis_keys.BOARD),
        ([KEYS.outbox("acme"), KEYS.owners("acme"), *KEYS.scope("acme", "tenant")], redis_keys.TENANT),
        ([KEYS.receipt("acme", "req_1")], redis_keys.RECEIPT),
        ([KEYS.ledger().tenants, KEYS.ledger().engine_minute(0)], redis_keys.LEDGER),
        (list(KEYS.keyring()), redis_keys.KEYRING),
        ([KEYS.heartbeat("ann")], redis_keys.HEARTBEAT),
        ([KEYS.ended_session("1f")], redis_keys.SESSION),
        (list(KEYS.stored_response("acme", "resp_1")), redis_keys.STORED_RESPONSE),
        (list(KEYS.collected("acme", "chat")), redis_keys.COLLECTED),
    ],
)
def test_a_key_name_contains_its_layout_version(names: list[str], layout: int) -> None:
    assert {re.search(r":v(\d+):", name)[1] for name in names} == {str(layout)}  # type: ignore[index]


def test_the_key_that_all_layouts_share_has_none_in_its_name() -> None:
    """Processes of other versions find it by this name, which never changes."""
    assert KEYS.teacher("big").boards == RedisKeys("gkt", 99).teacher("big").boards == "{gkt:teacher:big}:boards"
