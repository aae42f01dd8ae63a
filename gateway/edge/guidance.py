"""What the gateway answers to a device: the guidance, and how it is to be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from gateway.edge.errors import GatewayAway

if TYPE_CHECKING:
    from gateway.protocol.body import Json


@dataclass(frozen=True, slots=True)
class EdgeGuidance:
    """One guidance, checked.

    Attributes:
        receipt: its account at the gateway, which the device closes; None: nobody knows its id.
        text: how the answer begins, as it is shown and continued; empty where it goes unguided.
        owed: the blanks that followed it in what the teacher wrote.
        placement: "prefix": the answer begins with it. Else it stands in `messages`, and is not shown.
        projection: how the teacher was asked, for the words that put it to a student who cannot go on with it.
        kept_tokens: the teacher's tokens in `text`.
        finish_reason: where `text` is the whole answer, why it ended; else None.
        messages: what the student is given, if it is asked, in the place of the caller's messages; None: those.
        unguided: why there is no guidance; else None.
        most_output_tokens: how many tokens the device may report; None: no limit was asked for.
    """

    receipt: str | None
    text: str
    owed: str = ""
    placement: str = "prefix"
    projection: str = "cutoff"
    kept_tokens: int = 0
    finish_reason: str | None = None
    messages: list[Json] | None = None
    unguided: str | None = None
    most_output_tokens: int | None = None

    @classmethod
    def read(cls, reply: Any) -> Self:
        """Out of the gateway's JSON. Raises GatewayAway (gateway_garbled) where it is something else."""
        try:
            told, closing = reply["guidance"], reply["close"]
            found = cls(
                receipt=_is(reply["receipt"], str),
                text=_is(told["text"], str),
                owed=_is((told.get("seam") or {}).get("owed") or "", str),
                placement=_is(told["placement"], str | None) or "prefix",
                projection=_is(told["projection"], str | None) or "cutoff",
                kept_tokens=_is(told["kept_tokens"], int),
                finish_reason=_is(told["finish_reason"], str | None),
                messages=_is(reply["messages"], list | None),
                unguided=_is(reply["unguided"], str | None),
                most_output_tokens=_is(closing["most_output_tokens"], int | None),
            )
        except (KeyError, TypeError, AttributeError):
            raise GatewayAway("gateway_garbled", "What the gateway sent is no guidance.") from None
        is_whole = found.finish_reason is not None
        if found.placement != "prefix" and found.unguided is None and found.messages is None and not is_whole:
            raise GatewayAway("gateway_garbled", "The gateway sent guidance that is to be placed, and not where.")
        return found


def _is(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError
    return value
