"""Request bodies for the gateway and for the student. Pure.

Paper, section 2: the student gets the prompt and the guidance, with the user's sampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.guidance.seam import SeamJoin
from gateway.policy.constraints import FIELD_NOT_KNOWN, excluding_fields
from gateway.policy.projections import CUTOFF, PROJECTIONS, SLOT
from gateway.protocol.capabilities.continuation import Prefill
from gateway.protocol.capabilities.reasoning import takes_prefix, without_reasoning
from gateway.protocol.messages import with_text
from gateway.protocol.tags import tags_of_metadata

if TYPE_CHECKING:
    from gateway.edge.link import EdgeGuidance
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Continuation
    from gateway.protocol.capabilities.reasoning import Reasoning

# Fields that guidance depends on, in addition to those that constrain an answer.
_GUIDANCE_FIELDS = ("messages", "max_tokens", "max_completion_tokens", "stop")
UNLISTED = "unlisted_fields"  # replaces fields unknown to the gateway: their names and values stay on the device
_LIMITS = ("max_tokens", "max_completion_tokens")
_CLIENT_FIELDS = frozenset({"model", "stream", "stream_options"})


class EdgeStudentRequest(NamedTuple):
    """A request to the student."""

    body: Json  # the user's body, changed only for guidance
    prefill: Prefill | None = None  # the beginning of the answer to continue; None: no beginning
    written_again: int = 0  # tokens of the guidance that the student regenerates; they count as the teacher's
    limit: int | None = None  # the most tokens it may generate; None: no limit


def guidance_body(body: Json, route: str, *, stream: bool) -> Json:
    """Return the body for the gateway: route, messages, tags, and the fields that decide whether guidance is possible.

    Sampling, unknown fields and the rest of `metadata` stay on the device; `unlisted_fields` tells the gateway that
    there are unknown fields.
    """
    fields = {name: body[name] for name in _GUIDANCE_FIELDS if body.get(name) is not None} | tag_fields(body)
    for one in excluding_fields(body, "chat"):
        if one.reason == FIELD_NOT_KNOWN:
            fields[UNLISTED] = True
        elif one.holder is None:
            fields[one.field] = body[one.field]
        else:
            fields.setdefault(one.holder, {})[one.field] = body[one.holder][one.field]
    return {"model": route, **fields, **({"stream": True} if stream else {})}


def tag_fields(body: Json) -> Json:
    """Return `metadata` with the tags of the user's body; empty without tags."""
    tags = tags_of_metadata(body.get("metadata"))
    return {"metadata": {"tags": list(tags)}} if tags else {}


def can_continue(reasoning: Reasoning, continuation: Continuation | None, body: Json) -> bool:
    """Return whether the student can continue a given beginning of the answer."""
    return continuation is not None and continuation.unsupported(body) is None and takes_prefix(reasoning, body)


def unguided_request(body: Json, most_output_tokens: int | None = None) -> EdgeStudentRequest:
    """Return the student's request without guidance, with the route's token limit if the gateway sent one."""
    if most_output_tokens is None:
        return EdgeStudentRequest(_student_body(body), limit=token_limit(body))
    return EdgeStudentRequest(_limited(_student_body(body), most_output_tokens), limit=most_output_tokens)


def guided_request(
    body: Json, guidance: EdgeGuidance, reasoning: Reasoning, continuation: Continuation | None
) -> EdgeStudentRequest:
    """Return the student's request with guidance.

    In placement prefix the student continues the guidance. If it cannot, its prompt gets the guidance with the
    projection's introduction, as on the gateway.
    """
    limit = guidance.most_output_tokens
    if guidance.placement != "prefix":
        assert guidance.messages is not None, "checked by EdgeGuidance.read"
        limit = limit if limit is not None else token_limit(body)
        return EdgeStudentRequest(_limited({**_student_body(body), "messages": guidance.messages}, limit), limit=limit)
    if limit is None and (user_limit := token_limit(body)) is not None:
        limit = max(0, user_limit - guidance.kept_tokens)
    if continuation is None or not can_continue(reasoning, continuation, body):
        introduction = PROJECTIONS.get(guidance.projection, CUTOFF).introduction
        messages = with_text(body["messages"], after=introduction.replace(SLOT, guidance.text))
        return EdgeStudentRequest(_limited({**_student_body(body), "messages": messages}, limit), limit=limit)
    repeated = guidance.kept_tokens if continuation.writes_again else 0
    request = without_reasoning(reasoning, _student_body(body))
    request = _limited(request, None if limit is None else limit + repeated)
    return EdgeStudentRequest(request, Prefill(guidance.text, continuation), repeated, limit)


def seam_join(guidance: EdgeGuidance, continuation: Continuation, body: Json) -> SeamJoin:
    """Return the join of visible guidance and the student's text; `body` is the user's."""
    return SeamJoin(
        guidance.text,
        pending_space=guidance.pending_space,
        # vLLM and llama.cpp repeat the beginning if `echo` is set, whatever their default.
        echo=body.get("echo") is True or continuation.echo,
        strips_leading_space=continuation.strips_leading_space,
        written_again=continuation.writes_again,
        stop=_stops(body),
    )


def token_limit(body: Json) -> int | None:
    """Return the user's token limit, from either field."""
    return next((body[name] for name in _LIMITS if body.get(name) is not None), None)


def _stops(body: Json) -> tuple[str, ...]:
    stop = body.get("stop")
    return tuple(filter(None, (stop,) if isinstance(stop, str) else stop or ()))


def _student_body(body: Json) -> Json:
    return {name: value for name, value in body.items() if name not in _CLIENT_FIELDS}


def _limited(body: Json, limit: int | None) -> Json:
    """Return the body with a token limit per choice, in the field that the user set."""
    if limit is None:
        return body
    limit //= body.get("n") or 1
    field = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    return {**{name: value for name, value in body.items() if name not in _LIMITS}, field: limit}
