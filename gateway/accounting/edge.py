"""The accounts of answers that a device finishes: what it may report, and the receipt of what it did. Pure.

The ledger is added to and never amended. The guidance has its receipt when it was given: the teacher's cost, and as its
baseline the teacher alone up to there. What the device reports is a second one, at no cost, whose baseline is what the
teacher would have cost for the rest. So sums over both are right, whether the device reports or not.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.accounting.max_output import unknown_max_output
from gateway.accounting.receipt import EngineShare, Receipt, Timings
from gateway.accounting.savings import with_savings
from gateway.errors import EdgeClosed, EdgeExpired, InvalidRequest
from gateway.pricing import baseline_usd, quantized

if TYPE_CHECKING:
    from gateway.accounting.max_output import MaxOutputOf
    from gateway.policy.schema import Route
    from gateway.pricing import Price
    from gateway.protocol.edge import EdgeUsage, OfflineUsage

EDGE = "edge"
"""The mode of a receipt of what a device reports."""
GUIDANCE = "guidance"
"""The mode of a receipt of an opening that was given to a device."""
OFFLINE, ALONE = "offline", "device_alone"
"""Why such an answer is unguided: the gateway was out of reach; the device did without what it was given."""

DEVICE = "(edge)"
"""What all devices' models are called in sums. It has brackets, so no engine is called so."""

State = Literal["open", "closed", "never_closed"]

# A device's clock may be ahead of ours.
_AHEAD_S = 300


def student_of(receipt: Receipt) -> EngineShare | None:
    """A receipt's student by the name under which sums have it: what devices call theirs may be anything."""
    student = receipt.student
    if receipt.mode != EDGE or student is None:
        return student
    return msgspec.structs.replace(student, model=DEVICE)


def closing_id(guidance_id: str) -> str:
    """The id of the receipt of what a device reports of that guidance: there is one at most."""
    return f"{guidance_id}-{EDGE}"


def offline_id(answer_id: str) -> str:
    """The same of an answer that a device made alone, by the UUID it chose, as 32 hexadecimal digits."""
    return f"{EDGE}_{answer_id}"


def state_of(guidance: Receipt, *, closed: bool, now: float) -> State:
    """How the account of a guidance stands. What needs no report is closed: there is nothing left to do.

    Args:
        closed: whether there is the receipt of a report.
        now: Unix seconds.
    """
    if closed or guidance.close is None:
        return "closed"
    return "never_closed" if now > guidance.close.by else "open"


def check_report(guidance: Receipt, usage: EdgeUsage, max_output: MaxOutputOf = unknown_max_output) -> None:
    """Hold what a device reports against what it was to do.

    Args:
        max_output: the largest answer of an engine: no answer without a limit saves more than its baseline could write.

    Raises:
        EdgeClosed: the guidance was the whole answer, or came to nothing.
        InvalidRequest: it says to have written more than it was asked for, or more than is possible.
    """
    if guidance.close is None:
        raise EdgeClosed("There is nothing to report of this guidance: no answer was to be finished.", param="receipt")
    most = guidance.close.most_output_tokens
    if most is not None and usage.output_tokens > most:
        raise InvalidRequest(
            f"'output_tokens': {usage.output_tokens} are more than were asked for. At most {most} were left of the "
            "caller's limit.",
            param="output_tokens",
        )
    if most is None:
        _check_possible(usage, guidance.baseline_model, max_output)


def _check_possible(usage: EdgeUsage, baseline_model: str, max_output: MaxOutputOf) -> None:
    most = max_output(baseline_model).tokens
    if usage.output_tokens > most:
        raise InvalidRequest(
            f"'output_tokens': {usage.output_tokens} are more than one answer can have. At most {most} are accepted.",
            param="output_tokens",
        )


def closing(guidance: Receipt, usage: EdgeUsage, price: Price | None) -> Receipt:
    """The receipt of what a device did with a guidance.

    It belongs to the moment of its guidance: sums of a time hold both. Its baseline has the prompt only where the
    guidance's has not, since no teacher read it; and less the opening where the device did without, which that has.

    Args:
        price: the baseline model's; None: the configuration knows it no longer.
    """
    read = usage.input_tokens if guidance.teacher is None else 0
    given = guidance.guidance
    unused = given.kept_tokens if given is not None and given.placement == "prefix" and not usage.guided else 0
    return _receipt(
        closing_id(guidance.id),
        guidance.created,
        (guidance.tenant, guidance.key, guidance.route),
        usage,
        baseline=(guidance.baseline_model, _baseline(price, read, max(0, usage.output_tokens - unused))),
        unguided=None if usage.guided else guidance.unguided or ALONE,
        stream=guidance.stream,
        edge_of=guidance.id,
    )


def offline(
    tenant: str,
    key: str,
    route: Route,
    report: OfflineUsage,
    price: Price,
    now: float,
    within_s: float,
    max_output: MaxOutputOf = unknown_max_output,
) -> Receipt:
    """The receipt of an answer that a device made alone: the teacher would have read the prompt, and written it all.

    It belongs to the moment at which the answer ended, as the device says.

    Args:
        now: Unix seconds.
        within_s: for how long after that it may be reported.

    Raises:
        EdgeExpired: it ended too long ago.
        InvalidRequest: it has not ended yet, or is longer than the baseline model could write.
    """
    usage, ended = report.usage, now if report.usage.at is None else report.usage.at
    _check_possible(usage, route.baseline, max_output)
    if ended > now + _AHEAD_S:
        raise InvalidRequest("'at' lies ahead: expected Unix seconds, of when the answer ended.", param="at")
    if ended < now - within_s:
        raise EdgeExpired(
            f"'at': the answer ended more than {within_s:g} s ago, and is accounted for no more.", param="at"
        )
    return _receipt(
        offline_id(report.id),
        int(min(ended, now)),
        (tenant, key, report.model),
        usage,
        baseline=(route.baseline, _baseline(price, usage.input_tokens, usage.output_tokens)),
        unguided=OFFLINE,
        stream=False,
        edge_of=None,
    )


def _baseline(price: Price | None, read: int, written: int) -> Decimal:
    return Decimal(0) if price is None else quantized(baseline_usd(price, read, written))


def _receipt(
    receipt_id: str,
    created: int,
    whose: tuple[str, str, str],
    usage: EdgeUsage,
    *,
    baseline: tuple[str, Decimal],
    unguided: str | None,
    stream: bool,
    edge_of: str | None,
) -> Receipt:
    tenant, key, route = whose
    model, alone_usd = baseline
    receipt = Receipt(
        id=receipt_id,
        created=created,
        tenant=tenant,
        key=key,
        route=route,
        mode=EDGE,
        stream=stream,
        status="ok",
        finish_reason=usage.finish_reason,
        unguided=unguided,
        teacher=None,
        student=EngineShare(usage.student, usage.input_tokens, usage.output_tokens, Decimal(0)),
        guidance=None,
        batch=None,
        cost_usd=Decimal(0),
        baseline_model=model,
        baseline_usd=alone_usd,
        baseline_estimated=True,
        savings_usd=Decimal(0),
        timings=Timings(total_ms=usage.total_ms or 0.0, first_token_ms=usage.first_token_ms),
        baseline_basis="estimate",
        baseline_error_usd=alone_usd,  # nobody here saw the words
        edge_of=edge_of,
    )
    return with_savings(receipt)
