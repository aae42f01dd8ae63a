"""Accounting for answers that a device finishes: check its report, and build the receipt of the report. Pure.

Receipts are never changed. A guidance request gets its receipt at once: the teacher's cost, and the teacher alone up to
that point as its baseline. A report gets a second receipt at no cost. Its baseline is the rest of the answer.
So sums are correct whether or not the device reports.

Nobody verifies a report. It counts as savings only within the daily bound of a key that the policy marks as a device.
"""

from __future__ import annotations

from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.accounting.receipt import EngineShare, Receipt, Timings, with_savings
from gateway.accounting.savings import report_class
from gateway.accounting.worst_case import unknown_max_output
from gateway.errors import EdgeClosed, EdgeExpired, InvalidRequest
from gateway.pricing import charge_usd
from gateway.protocol.tags import tags_of_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.accounting.worst_case import MaxOutputOf
    from gateway.policy.schema import Route
    from gateway.pricing import Price
    from gateway.protocol.edge import OfflineBody, UsageBody

EDGE = "edge"
"""The mode of a device report's receipt."""
GUIDANCE = "guidance"
"""The mode of the receipt of guidance for a device."""
OFFLINE, ALONE = "offline", "device_alone"
"""Reasons for unguided reports: the gateway was unreachable, or the device did not use the guidance."""

DEVICE = "(edge)"
"""The name of all devices' models in sums. No engine name contains parentheses."""

State = Literal["open", "closed", "never_closed"]

# Tolerance for a device's clock that is ahead.
_CLOCK_TOLERANCE_S = 300


def student_of(receipt: Receipt) -> EngineShare | None:
    """Return the student's share under the name used in sums. Devices choose the names of their models freely."""
    student = receipt.student
    if receipt.mode != EDGE or student is None:
        return student
    return msgspec.structs.replace(student, model=DEVICE)


def closing_id(guidance_id: str) -> str:
    """Return the id of the report's receipt for a guidance request. There is at most one report."""
    return f"{guidance_id}-{EDGE}"


def state_of(guidance: Receipt, *, closed: bool, now: float) -> State:
    """Return the report state of a guidance request at `now` (Unix seconds). One that needs no report is closed."""
    if closed or guidance.close is None:
        return "closed"
    return "never_closed" if now > guidance.close.by else "open"


def check_report(guidance: Receipt, usage: UsageBody, max_output: MaxOutputOf = unknown_max_output) -> None:
    """Check a device's report against the terms of its guidance.

    Raises:
        EdgeClosed: the guidance was the whole answer, or there was none.
        InvalidRequest: the report exceeds the caller's limit or, without a limit, the largest possible answer.
    """
    if guidance.close is None:
        raise EdgeClosed("This guidance needs no report: there is no answer to finish.", param="receipt")
    limit = guidance.close.most_output_tokens
    if limit is not None and usage.output_tokens > limit:
        raise InvalidRequest(
            f"'output_tokens': {usage.output_tokens} exceeds the rest of the caller's limit, {limit} tokens. Report "
            "only the tokens that the device wrote.",
            param="output_tokens",
        )
    if limit is None:
        _check_possible(usage, guidance.baseline_model, max_output)


def _check_possible(usage: UsageBody, baseline_model: str, max_output: MaxOutputOf) -> None:
    limit = max_output(baseline_model).tokens
    if usage.output_tokens > limit:
        raise InvalidRequest(
            f"'output_tokens': {usage.output_tokens} exceeds the largest possible answer, {limit} tokens.",
            param="output_tokens",
        )


def closing_receipt(guidance: Receipt, usage: UsageBody, price: Price | None) -> Receipt:
    """Return the receipt of a device's report on guidance.

    It has the creation time of the guidance, so that sums over a time range include both. Its baseline includes the
    prompt only where no teacher read it. Guidance that the device did not use is subtracted from its output.
    `price` is None where the baseline model is no longer configured.
    """
    read = usage.input_tokens if guidance.teacher is None else 0
    facts = guidance.guidance
    unused = facts.kept_tokens if facts is not None and facts.placement == "prefix" and not usage.guided else 0
    return _receipt(
        (closing_id(guidance.id), guidance.created, guidance.tenant, guidance.key, guidance.route),
        usage,
        guidance.baseline_model,
        Decimal(0) if price is None else charge_usd(price, read, max(0, usage.output_tokens - unused)),
        unguided=None if usage.guided else guidance.unguided or ALONE,
        stream=guidance.stream,
        edge_of=guidance.id,
        tags=guidance.tags,
        labels=guidance.labels,
    )


def offline_receipt(
    tenant: str,
    key: str,
    route: Route,
    report: OfflineBody,
    price: Price,
    now: float,
    within_s: float,
    max_output: MaxOutputOf = unknown_max_output,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> Receipt:
    """Return the receipt of an answer that a device made alone. Its baseline is the whole prompt and answer.

    Its creation time is the time that the device reports as the end of the answer.

    Args:
        now: Unix seconds.
        within_s: seconds after that end within which the device may report.

    Raises:
        EdgeExpired: the answer ended too long ago.
        InvalidRequest: the answer ends in the future, or is longer than the baseline model can write.
    """
    ended = now if report.at is None else report.at
    _check_possible(report, route.baseline, max_output)
    if ended > now + _CLOCK_TOLERANCE_S:
        raise InvalidRequest("'at' is in the future: expected the Unix time at which the answer ended.", param="at")
    if ended < now - within_s:
        raise EdgeExpired(
            f"'at': the answer ended more than {within_s:g} s ago. Reports are accepted until then.", param="at"
        )
    # The device chooses the report's id, a UUID.
    origin = f"{EDGE}_{report.id.hex}", int(min(ended, now)), tenant, key, route.model
    alone_usd = charge_usd(price, report.input_tokens, report.output_tokens)
    tags = tags_of_metadata(report.metadata)
    return _receipt(origin, report, route.baseline, alone_usd, unguided=OFFLINE, tags=tags, labels=labels)


def _receipt(
    origin: tuple[str, int, str, str, str],
    usage: UsageBody,
    baseline_model: str,
    alone_usd: Decimal,
    *,
    unguided: str | None,
    stream: bool = False,
    edge_of: str | None = None,
    tags: tuple[str, ...] = (),
    labels: Mapping[str, str] = MappingProxyType({}),
) -> Receipt:
    """Return a receipt with this id, creation time, tenant, key and route.

    The gateway does not know the text of an answer that ended at its limit, so such an answer saves nothing.
    """
    at_limit = usage.finish_reason == "length"
    receipt = Receipt(
        *origin,
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
        baseline_model=baseline_model,
        baseline_usd=alone_usd,
        baseline_estimated=True,
        savings_usd=Decimal(0),
        timings=Timings(total_ms=usage.total_ms or 0.0, first_token_ms=usage.first_token_ms),
        baseline_basis="estimate",
        baseline_error_usd=alone_usd,  # the gateway did not see the text
        edge_of=edge_of,
        savings_class=report_class(unguided),
        stored_tags=tags or msgspec.UNSET,
        stored_labels=dict(labels) or msgspec.UNSET,
        stored_length_rule="at_limit" if at_limit else msgspec.UNSET,
    )
    return uncounted(receipt) if at_limit else with_savings(receipt)


def uncounted(report: Receipt) -> Receipt:
    """Return the receipt of a report that saves nothing: nobody has verified its tokens, so it has no baseline."""
    return with_savings(msgspec.structs.replace(report, baseline_usd=Decimal(0), baseline_error_usd=Decimal(0)))
