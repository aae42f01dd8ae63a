"""Key names contain the version of the layout."""

from __future__ import annotations

import re

import pytest

from gateway.redis.keys import LAYOUT, RedisKeys

KEYS = RedisKeys("gkt")


@pytest.mark.parametrize(
    "names",
    [
        list(KEYS.teacher("big")),
        [KEYS.wakeups("ann")],
        [KEYS.outbox("acme"), KEYS.owners("acme"), *KEYS.scope("acme", "tenant")],
        [KEYS.receipt("acme", "req_1")],
        [KEYS.ledger().tenants, KEYS.ledger().engine_minute(0)],
        list(KEYS.keyring()),
        [KEYS.heartbeat("ann")],
        [KEYS.ended_session("1f")],
        list(KEYS.stored_response("acme", "resp_1")),
        list(KEYS.collected("acme", "chat")),
    ],
)
def test_a_key_name_contains_the_version_of_the_layout(names: list[str]) -> None:
    assert {re.search(r":v(\d+):", name)[1] for name in names} == {str(LAYOUT)}  # type: ignore[index]
