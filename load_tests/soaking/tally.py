"""Record the result of each request on the caller's side, and which receipts are required."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Leaving: TypeAlias = Literal["", "midway", "received", "hasty"]
Reported: TypeAlias = Literal["", "taken", "unsure"]
_MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request.

    Attributes:
        weight: relative frequency.
        route: the value of `model`.
        who: tenant and key.
        leaves: when its caller disconnects. `midway`: at the first bytes of the answer. `received`: before any bytes,
            when the engine has the call. `hasty`: at any time. Empty: never.
        needless: whether the request is invalid in a way without a receipt.
        ordinary: whether its engine answers at once and without faults, so that the duration is the gateway's.
        reports: whether a device finishes the answer and reports it.
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
"""Error code of a request during an outage of Redis. It has a receipt only if Redis may have reserved money."""


@dataclass(slots=True)
class RequestResult:
    """The result of a request.

    Attributes:
        request_id: None before the head of a reply.
        status: of the reply; 0 before its head.
        received: whether an engine received the call, as far as is known.
        ended: whether the reply is complete.
        broken: a failure between the gateway and its caller, which must not happen.
        reported: whether the device's report was accepted; `unsure` if every reply was a temporary failure.
        not_taken: number of rejected reports, including the deliberate duplicate.
    """

    kind: Kind
    request_id: str | None = None
    status: int = 0
    code: str | None = None
    received: bool = False
    ended: bool = False
    broken: str = ""
    reported: Reported = ""
    not_taken: int = 0

    @property
    def refused(self) -> bool:
        """Return whether the reply excludes a receipt: the request is invalid, over a limit, or without a slot.

        No gateway of the soak test is stopped while callers wait, so `overloaded` is never an interrupted answer.
        """
        return self.kind.needless or self.code in _WITHOUT_RECEIPT


@dataclass(slots=True)
class Tally:
    """Results of all requests.

    Attributes:
        kept: ids with a required receipt. Ids have 12 bytes each, since there may be millions.
        refused: ids that must not have a receipt.
        either: ids with an optional receipt.
        left_received: disconnects without an id during an engine call. Each has a receipt.
        left_unreceived: other disconnects without an id, by key. Each may have a receipt.
        reported, unsure: ids of guidance whose report is required, or optional.
        not_taken: rejected reports of all devices.
        statuses: replies, by kind and status.
    """

    sent: int = 0
    replies: int = 0
    left: int = 0
    left_received: int = 0
    left_unreceived: Counter[str] = field(default_factory=Counter)
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

    def note(self, result: RequestResult) -> None:
        """Count a finished request."""
        self.not_taken += result.not_taken
        if result.broken:
            self.broken += 1
            if len(self.shown) < _MOST_SHOWN:
                self.shown.append(f"{result.kind.name}: {result.broken}")
        elif result.ended:
            self.replies += 1
            self.statuses[result.kind.name, result.status] += 1
        else:
            self.left += 1
            if result.request_id is None:
                self.left_received += result.received
                self.left_unreceived[result.kind.who[1]] += not result.received
        if result.request_id is not None:
            known = short_id(result.request_id)
            self.ids_twice += any(known in held for held in (self.kept, self.refused, self.either))
            (self.refused if result.refused else self.either if result.code == _EITHER else self.kept).add(known)
            if result.reported:
                (self.reported if result.reported == "taken" else self.unsure).add(known)


def short_id(request_id: str) -> bytes:
    """Return the random part of a request id."""
    return bytes.fromhex(request_id.removeprefix("req_"))
