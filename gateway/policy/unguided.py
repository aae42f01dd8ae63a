"""Reasons in the request itself against guidance on a guided route. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.policy.constraints import CALLER_PREFILL, MIN_TOKENS, TOKEN_LIMIT, excluding_fields, placements
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from gateway.capabilities.continuation import Known
    from gateway.policy.constraints import API, ExcludingField
    from gateway.policy.schema import Route
    from gateway.protocol.requests import CompletionRequest


class GuidanceEligibility(NamedTuple):
    """The result of the check whether a request can be guided.

    Attributes:
        unguided: the reason against guidance; None: no reason.
        constrained: whether a field constrains the answer, so that the teacher's text cannot be the whole answer.
    """

    unguided: str | None
    constrained: bool


def judge_request(
    route: Route, request: CompletionRequest, continuation: Known, max_tokens: int | None
) -> GuidanceEligibility:
    """Return whether the request can be guided on this route.

    Args:
        continuation: how the student continues an answer. A student that cannot gets guidance in its prompt.
        max_tokens: the limit on the answer: the caller's, else the route's.
    """
    allowed = placements(request.body, _api(request), route.guidance.allow_fields)
    prefix = route.guidance.placement == "prefix"
    reason = allowed.prefix if prefix else allowed.context
    if reason is None and not isinstance(request, TextRequest):
        if request.messages[-1]["role"] == "assistant":
            reason = CALLER_PREFILL
        elif prefix and continuation == "not_probed":
            reason = "student_not_probed"
    if reason is None and max_tokens is not None and max_tokens < MIN_TOKENS:
        reason = TOKEN_LIMIT
    return GuidanceEligibility(reason, allowed.prefix is not None)


def fields_against(route: Route, request: CompletionRequest) -> list[ExcludingField]:
    """Return the request's fields that exclude guidance with this route's placement."""
    found = excluding_fields(request.body, _api(request), route.guidance.allow_fields)
    return [one for one in found if route.guidance.placement == "prefix" or one.placement == "none"]


def _api(request: CompletionRequest) -> API:
    return "completions" if isinstance(request, TextRequest) else "chat"
