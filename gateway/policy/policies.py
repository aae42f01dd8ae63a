"""The policies that hold now."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.policy.book import PolicyBook


class Policies:
    """Holds the book that new requests go by. A request takes it once and keeps it to its end.

    Attributes:
        book: what holds now.
    """

    def __init__(self, book: PolicyBook) -> None:
        self.book = book

    def tenants(self) -> list[str]:
        """The names of all tenants."""
        return [policy.tenant for policy in self.book.policies]
