"""The gateway's reply to a device: the guidance and its use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from gateway.edge.errors import GatewayAway

if TYPE_CHECKING:
    from gateway.protocol.body import Json


@dataclass(frozen=True, slots=True)
class EdgeGuidance:
    """Validated guidance.

    Attributes:
        receipt: id of the gateway's receipt, which the device closes; None: unknown.
        text: the beginning of the answer, shown and continued; empty without guidance.
        pending_space: whitespace after `text` in the teacher's output.
        placement: "prefix": the answer begins with the guidance. Otherwise it is in `messages` and not shown.
        projection: the teacher's projection, whose introduction is used if the student cannot continue the guidance.
        kept_tokens: number of the teacher's tokens in `text`.
        finish_reason: why the answer ended, if `text` is the whole answer; else None.
        messages: messages for the student instead of the caller's; None: the caller's.
        unguided: the reason for no guidance; else None.
        most_output_tokens: the most output tokens that the device may report; None: no limit.
    """

    receipt: str | None
    text: str
    pending_space: str = ""
    placement: str = "prefix"
    projection: str = "cutoff"
    kept_tokens: int = 0
    finish_reason: str | None = None
    messages: list[Json] | None = None
    unguided: str | None = None
    most_output_tokens: int | None = None

    @classmethod
    def read(cls, reply: Any) -> Self:
        """Decode the gateway's JSON. Raises GatewayAway (gateway_garbled) if it is invalid."""
        try:
            fields, closing = reply["guidance"], reply["close"]
            guidance = cls(
                receipt=_is(reply["receipt"], str),
                text=_is(fields["text"], str),
                pending_space=_is((fields.get("seam") or {}).get("owed") or "", str),
                placement=_is(fields["placement"], str | None) or "prefix",
                projection=_is(fields["projection"], str | None) or "cutoff",
                kept_tokens=_is(fields["kept_tokens"], int),
                finish_reason=_is(fields["finish_reason"], str | None),
                messages=_is(reply["messages"], list | None),
                unguided=_is(reply["unguided"], str | None),
                most_output_tokens=_is(closing["most_output_tokens"], int | None),
            )
        except (KeyError, TypeError, AttributeError):
            raise GatewayAway("gateway_garbled", "The gateway's reply contains no guidance.") from None
        is_whole = guidance.finish_reason is not None
        if guidance.placement != "prefix" and guidance.unguided is None and guidance.messages is None and not is_whole:
            raise GatewayAway("gateway_garbled", "The gateway's reply has guidance for the prompt, but no messages.")
        return guidance


def _is(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError
    return value
