"""Slots of logins are bounded in all and for each client address."""

from __future__ import annotations

import pytest

from gateway.admin.login_throttle import AddressSlots


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),  # one client may have a whole network of 64 bits
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "unix", False),
    ],
)
def test_each_client_has_slots_of_its_own(one: str, other: str, is_same: bool) -> None:
    slots = AddressSlots(2, 1)
    with slots.hold(one):
        assert slots.is_full(one)
        assert slots.is_full(other) is is_same
    assert not slots.is_full(one)
    assert slots.held == 0


def test_all_clients_together_are_bounded() -> None:
    slots = AddressSlots(1, 1)
    with slots.hold("192.0.2.1"):
        assert slots.is_full("192.0.2.2")
