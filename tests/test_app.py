"""The composition root's own small parts."""

from __future__ import annotations

from gateway.app import _when_role_changes
from gateway.policy.book import PolicyBook
from gateway.policy.policies import Edition, Policies
from gateway.policy.schema import TenantPolicy

EMBEDS = {"model": "e", "mode": "embeddings", "student": "small"}
CHATS = {"model": "c", "mode": "teacher", "teacher": "big"}
EDITION = Edition("1", 1, 0.0)


def book(*routes: dict[str, str]) -> PolicyBook:
    return PolicyBook.of([TenantPolicy.model_validate({"tenant": "acme", "routes": routes})])


def test_an_engine_is_probed_anew_when_an_edit_changes_what_it_is_for() -> None:
    """That edit alone: not when others do."""
    policies = Policies(book(EMBEDS, CHATS))
    changed = _when_role_changes(["big", "small"], policies)

    def told(*routes: dict[str, str]) -> list[str]:
        policies.put(book(*routes), EDITION)
        names = [name for name, event in changed.items() if event.is_set()]
        for event in changed.values():
            event.clear()
        return names

    assert told(CHATS, EMBEDS) == []
    assert told(CHATS, EMBEDS, {"model": "s", "mode": "student", "student": "small"}) == ["small"]
    assert told(CHATS) == []
    assert told(CHATS, EMBEDS) == ["small"]
