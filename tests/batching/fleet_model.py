"""The fleet's queue as the pure rule sees it: what `tickets.lua` must do, on a clock that stands still."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.batching.window import Grant, Limits, News, Waiting, decide

LONG_S = 1000.0
NOW = 0.0


@dataclass
class FleetModel:
    """Every process's tickets and permits. Waits and deadlines are 0 or `LONG_S`, so that real time plays no part."""

    owners: dict[str, str] = field(default_factory=dict)
    waiting: list[Waiting] = field(default_factory=list)
    permits: set[str] = field(default_factory=set)
    granted: dict[str, Grant] = field(default_factory=dict)
    batches: int = 0

    def exchange(self, owner: str, news: News, limits: Limits) -> tuple[dict[str, dict[str, Grant]], float | None]:
        """Every owner's grants, and when to look again."""
        grants: dict[str, dict[str, Grant]] = {}
        for ticket_id in news.gone:
            self._forget(ticket_id)
            self.permits.discard(ticket_id)
        for ticket in news.held:
            self._forget(ticket.id)
            self.permits.add(ticket.id)
        known = {one.id for one in self.waiting}
        for ticket in news.arrived:
            if ticket.id in self.granted:
                grants.setdefault(owner, {})[ticket.id] = self.granted[ticket.id]
            elif ticket.id not in known:
                self.owners[ticket.id] = owner
                self.waiting.append(Waiting(ticket.id, ticket.prompt_tokens, ticket.max_wait_s, ticket.deadline_s))
        self.waiting = [one for one in self.waiting if one.deadline > NOW]
        opened, look = decide(self.waiting, len(self.permits), limits, NOW)
        for batch in opened:
            self.batches += 1
            for one in batch:
                self.permits.add(one.id)
                self.granted[one.id] = Grant(f"b{self.batches}", len(batch))
                grants.setdefault(self.owners[one.id], {})[one.id] = self.granted[one.id]
        taken = {one.id for batch in opened for one in batch}
        self.waiting = [one for one in self.waiting if one.id not in taken]
        return grants, look

    def _forget(self, ticket_id: str) -> None:
        self.waiting = [one for one in self.waiting if one.id != ticket_id]
        self.granted.pop(ticket_id, None)
