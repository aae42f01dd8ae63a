"""The policies that hold now."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.policy.book import PolicySet

_MOST_FORMER = 10_000


@dataclass(frozen=True, slots=True)
class PolicyEdition:
    """What the policies folder held when a book was made of it.

    Attributes:
        version: a hash over its files; None for a book that no folder holds.
        loaded_at: Unix seconds.
    """

    version: str | None
    files: int
    loaded_at: float


class Policies:
    """Holds the book that new requests go by. A request takes it once and keeps it to its end.

    Attributes:
        book: what holds now.
        edition: where that comes from.
        mistakes: why the folder, as it is now, does not hold; empty when it does.
    """

    def __init__(self, book: PolicySet, edition: PolicyEdition | None = None) -> None:
        self.book = book
        self.edition = edition or PolicyEdition(None, 0, time.time())
        self.mistakes: tuple[str, ...] = ()
        self._former: dict[str, None] = {}
        self._heard: list[Callable[[PolicySet], object]] = []

    def put(self, book: PolicySet, edition: PolicyEdition) -> None:
        """From now on this book holds."""
        gone = {policy.tenant for policy in self.book.policies} - {policy.tenant for policy in book.policies}
        self.book, self.edition, self.mistakes = book, edition, ()
        self._former.update(dict.fromkeys(sorted(gone)))
        while len(self._former) > _MOST_FORMER:
            del self._former[next(iter(self._former))]
        for hear in self._heard:
            hear(book)

    def note_mistakes(self, mistakes: Sequence[str]) -> None:
        """Why the folder cannot be used as it is, or that it can: what holds goes on holding either way."""
        self.mistakes = tuple(mistakes)

    def on_change(self, hear: Callable[[PolicySet], object]) -> None:
        """Call `hear` with each book that comes to hold. It must neither wait nor raise."""
        self._heard.append(hear)

    def tenants(self) -> list[str]:
        """The names of all tenants, and of those that held before: their last requests are still to be settled."""
        return list(dict.fromkeys((*(policy.tenant for policy in self.book.policies), *self._former)))
