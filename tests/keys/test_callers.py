"""Callers are authenticated by keys in policy files and in Redis while the keys are valid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.errors import NotAuthenticated
from gateway.keys.callers import Callers
from gateway.keys.held import HeldKey, Keyring, KeyTerms
from gateway.keys.identity.issuers import Issuers
from gateway.keys.token import digest_of
from gateway.keys.token_callers import TokenCallers
from gateway.policy.book import PolicySet
from gateway.policy.policies import Policies
from gateway.policy.schema import KeyEntry, Route, TenantPolicy
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from typing import Any

NOW = 1_800_000_000.0
ROUTES = (Route(model="chat", mode="student", student="s"),)


class Seen:
    """A follower that records the used keys."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def record_use(self, sha256: str) -> None:
        self.seen.append(sha256)


def held(token: str, tenant: str = "acme", **more: Any) -> HeldKey:
    dates: dict[str, Any] = {"created_s": NOW - 9, "expires_s": None, "revoked_s": None} | more
    return HeldKey(digest_of(token), tenant, "made", **({"terms": KeyTerms("gk-abc", "a"), "replaces": None,
                                                         "replaced": False} | dates))  # fmt: skip


def callers(*made: HeldKey, expires: float | None = None) -> tuple[Callers, Seen]:
    """Return callers of tenant acme with a key `gk-file` in its file, of globex without one, and of keys in Redis."""
    file_key = KeyEntry(id="file", sha256=digest_of("gk-file"), expires=expires)
    policies = [
        TenantPolicy(tenant="acme", keys=(file_key,), routes=ROUTES),
        TenantPolicy(tenant="globex", routes=ROUTES),
    ]
    ring, seen = Keyring(lambda: 0.0), Seen()
    ring.mark_read(NOW)
    ring.update(made)
    held_policies = Policies(PolicySet.of(policies))
    tokens = TokenCallers(held_policies, Issuers(BackgroundTasks(), Metrics()))
    return Callers(held_policies, ring, seen, tokens), seen  # type: ignore[arg-type]


def test_keys_of_files_and_of_redis_are_found_alike_and_seen() -> None:
    found, seen = callers(held("gk-made", "globex", terms=KeyTerms("gk-mad", "a", models=("chat",))))
    of_file, of_redis = found.known("gk-file"), found.known("gk-made")
    assert (of_file.policy.tenant, of_file.key.id) == ("acme", "file")
    assert (of_redis.policy.tenant, of_redis.key.id, of_redis.key.models) == ("globex", "made", ("chat",))
    assert seen.seen == [digest_of("gk-file"), digest_of("gk-made")]


@pytest.mark.parametrize(
    "token", ["gk-mad", "gk-made2", "GK-MADE", digest_of("gk-made"), "gk-mad\x00e", "\udcff", "gk-" * 9999]
)
def test_a_part_of_a_key_or_its_hash_is_no_key(token: str) -> None:
    """Keys with a common prefix are different keys, because the lookup uses the hash of the whole key."""
    twin = held("gk-made" + "x" * 40, "globex")
    found, seen = callers(held("gk-made"), twin)
    with pytest.raises(NotAuthenticated, match="Unknown API key"):
        found.known(token)
    assert found.known("gk-made" + "x" * 40).policy.tenant == "globex"
    assert found.known("gk-made").policy.tenant == "acme"
    assert len(seen.seen) == 2


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (held("gk-made", expires_s=NOW), "This API key expired on 2027-01-15 08:00:00 UTC"),
        (held("gk-made", revoked_s=NOW - 1), "This API key was revoked"),
        (held("gk-made", revoked_s=NOW - 1, expires_s=NOW - 5), "This API key was revoked"),
        (held("gk-made", expires_s=NOW, replaced=True), "was rotated, and its grace period is over"),
        (held("gk-made", "gone"), "no longer served by this gateway"),
        (held("gk-made", terms=KeyTerms("gk-mad", "a", limits={"per_fortnight": 1})), "cannot read the permissions"),
    ],
)
def test_an_invalid_key_is_rejected_with_the_reason_and_not_quoted(made: HeldKey, words: str) -> None:
    found, seen = callers(made)
    with pytest.raises(NotAuthenticated, match=words) as caught:
        found.known("gk-made")
    assert "gk-made" not in caught.value.message
    assert seen.seen == []


def test_a_key_holds_to_the_moment_before_its_end() -> None:
    found, _ = callers(held("gk-made", expires_s=NOW + 0.001), expires=NOW + 0.001)
    assert found.known("gk-made").key.expires == found.known("gk-file").key.expires == NOW + 0.001
    found, _ = callers(held("gk-made", expires_s=NOW + 60, replaced=True))
    assert found.known("gk-made").key.id == "made"


def test_a_key_of_a_file_expires_too() -> None:
    found, _ = callers(expires=NOW)
    with pytest.raises(NotAuthenticated, match="expired on 2027-01-15"):
        found.known("gk-file")


def test_a_key_in_both_places_is_that_of_the_file() -> None:
    found, _ = callers(held("gk-file", "globex", revoked_s=NOW - 1))
    assert found.known("gk-file").policy.tenant == "acme"
