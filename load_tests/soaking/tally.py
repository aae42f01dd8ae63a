"""Record the result of each request on the caller's side, and which receipts are required."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Leaving: TypeAlias = Literal["", "midway", "heard", "hasty"]
Reported: TypeAlias = Literal["", "taken", "unsure"]
_MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of request.

    Attributes:
        weight: how often it is made, relative to the others.
        route: what is sent as `model`.
        who: tenant and key.
        leaves: when its caller hangs up: `midway`, at the first bytes of the answer; `heard`, before any, but when the
            engine has the call; `hasty`, at any time from the start on; else never.
        needless: whether it is wrong in a way for which there is no receipt.
        ordinary: whether its engine answers at once and without fault, so that what it takes is the gateway's time.
        reports: whether it is a device's, which finishes the answer itself and says so.
    """

    name: str
    weight: int
    route: str
    path: str = "/v1/chat/completions"
    who: tuple[str, str] = ("acme", "main")
    stream: bool = False
    tools: bool = False
    leaves: Leaving = ""
    needless: bool = False
    ordinary: bool = False
    reports: bool = False


_WITHOUT_RECEIPT = {"rate_limit_exceeded", "insufficient_quota", "invalid_api_key", "overloaded"}
_EITHER = "store_unavailable"
"""The code of a request that needs Redis while Redis is away. It has a receipt only where Redis may have reserved."""


@dataclass(slots=True)
class RequestResult:
    """One request.

    Attributes:
        request_id: None before the head of a reply came.
        status: of the reply; 0 likewise.
        heard: whether an engine has it, as far as is known.
        ended: the reply came to its end.
        broken: what went wrong between the gateway and its caller; that must not be.
        reported: whether the device's report was taken; `unsure` where every reply was that it cannot be kept now.
        not_taken: how many tries to report were refused, the one that was too many with them.
    """

    kind: Kind
    request_id: str | None = None
    status: int = 0
    code: str | None = None
    heard: bool = False
    ended: bool = False
    broken: str = ""
    reported: Reported = ""
    not_taken: int = 0

    @property
    def refused(self) -> bool:
        """Return whether the reply says that there is no receipt: the request is wrong, over a limit or without a slot.

        No gateway of the soak is stopped while callers wait, so `overloaded` is never an answer that was cut.
        """
        return self.kind.needless or self.code in _WITHOUT_RECEIPT


@dataclass(slots=True)
class Tally:
    """All of them.

    Attributes:
        kept: ids for which there must be a receipt, and
        refused: those for which there must be none; each 12 bytes, since there may be millions.
        either: those for which there may be one.
        left_heard, left_unheard: callers who hung up and never knew their id: of the first each has a receipt, of the
            others, who are counted by key, each may have one.
        reported, unsure: ids of guidance of which there must be a report, or may be one.
        not_taken: refused tries to report, of all devices.
        statuses: replies, by kind and status.
    """

    sent: int = 0
    replies: int = 0
    left: int = 0
    left_heard: int = 0
    left_unheard: Counter[str] = field(default_factory=Counter)
    kept: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)
    either: set[bytes] = field(default_factory=set)
    reported: set[bytes] = field(default_factory=set)
    unsure: set[bytes] = field(default_factory=set)
    not_taken: int = 0
    ids_twice: int = 0
    broken: int = 0
    shown: list[str] = field(default_factory=list)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)

    def note(self, visit: RequestResult) -> None:
        """Count a request that is over."""
        self.not_taken += visit.not_taken
        if visit.broken:
            self.broken += 1
            if len(self.shown) < _MOST_SHOWN:
                self.shown.append(f"{visit.kind.name}: {visit.broken}")
        elif visit.ended:
            self.replies += 1
            self.statuses[visit.kind.name, visit.status] += 1
        else:
            self.left += 1
            if visit.request_id is None:
                self.left_heard += visit.heard
                self.left_unheard[visit.kind.who[1]] += not visit.heard
        if visit.request_id is not None:
            known = short_id(visit.request_id)
            self.ids_twice += any(known in held for held in (self.kept, self.refused, self.either))
            (self.refused if visit.refused else self.either if visit.code == _EITHER else self.kept).add(known)
            if visit.reported:
                (self.reported if visit.reported == "taken" else self.unsure).add(known)


def short_id(request_id: str) -> bytes:
    """The random part of a request's id."""
    return bytes.fromhex(request_id.removeprefix("req_"))
