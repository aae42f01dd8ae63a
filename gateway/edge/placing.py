"""What leaves the device, and what the student is sent. Pure.

Paper, section 2: the student gets the prompt and the guidance, under the user's own sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.capabilities.continuation import Prefill
from gateway.capabilities.reasoning import takes_prefix, without_reasoning
from gateway.guidance.seam import SeamJoin
from gateway.policy.constraints import FIELD_NOT_KNOWN, excluding_fields
from gateway.policy.projections import CUTOFF, PROJECTIONS, SLOT
from gateway.protocol.messages import with_text

if TYPE_CHECKING:
    from gateway.capabilities.continuation import Continuation
    from gateway.capabilities.reasoning import Reasoning
    from gateway.edge.guidance import EdgeGuidance
    from gateway.protocol.body import Json

# What guidance depends on beside the fields that constrain an answer.
_TOLD = ("messages", "max_tokens", "max_completion_tokens", "stop")
UNLISTED = "unlisted_fields"
"""Stands for the fields that the gateway does not know: their names and values stay on the device."""
_LIMITS = ("max_tokens", "max_completion_tokens")
_OWN = frozenset({"model", "stream", "stream_options"})


@dataclass(frozen=True, slots=True)
class EdgeStudentRequest:
    """What the student is asked.

    Attributes:
        body: the user's, changed only where guidance changes it.
        prefill: the answer that it goes on with; None: it begins it.
        written_again: the guidance's tokens that it writes itself; they are the teacher's in the account.
        limit: how many tokens it may write; None: no limit was asked for.
    """

    body: Json
    prefill: Prefill | None = None
    written_again: int = 0
    limit: int | None = None


def told(body: Json, route: str, *, stream: bool) -> Json:
    """Return what the gateway is sent: the route, the text, and the fields that decide whether guidance can help.

    Sampling and fields that the gateway does not know stay here; that there are unknown ones is said.
    """
    kept = {name: body[name] for name in _TOLD if body.get(name) is not None}
    for one in excluding_fields(body, "chat"):
        if one.reason == FIELD_NOT_KNOWN:
            kept[UNLISTED] = True
        elif one.holder is None:
            kept[one.field] = body[one.field]
        else:
            kept.setdefault(one.holder, {})[one.field] = body[one.holder][one.field]
    return {"model": route, **kept, **({"stream": True} if stream else {})}


def goes_on(reasoning: Reasoning, how: Continuation | None, body: Json) -> bool:
    """Whether the student can begin its answer to this with words that it is given."""
    return how is not None and how.unsupported(body) is None and takes_prefix(reasoning, body)


def alone(body: Json, most_output_tokens: int | None = None) -> EdgeStudentRequest:
    """The student's question without guidance; with a limit of the route's, where the gateway has told one."""
    if most_output_tokens is None:
        return EdgeStudentRequest(_of_student(body), limit=asked_limit(body))
    return EdgeStudentRequest(_limited(_of_student(body), most_output_tokens), limit=most_output_tokens)


def guided(body: Json, guidance: EdgeGuidance, reasoning: Reasoning, how: Continuation | None) -> EdgeStudentRequest:
    """The student's question with guidance.

    In placement prefix the student goes on with it; who cannot gets it in the prompt, introduced as the gateway does.
    """
    limit = guidance.most_output_tokens
    if guidance.placement != "prefix":
        assert guidance.messages is not None, "as read"
        limit = limit if limit is not None else asked_limit(body)
        return EdgeStudentRequest(_limited({**_of_student(body), "messages": guidance.messages}, limit), limit=limit)
    if limit is None and (asked := asked_limit(body)) is not None:
        limit = max(0, asked - guidance.kept_tokens)
    if how is None or not goes_on(reasoning, how, body):
        introduction = PROJECTIONS.get(guidance.projection, CUTOFF).introduction
        messages = with_text(body["messages"], after=introduction.replace(SLOT, guidance.text))
        return EdgeStudentRequest(_limited({**_of_student(body), "messages": messages}, limit), limit=limit)
    again = guidance.kept_tokens if how.writes_again else 0
    placed = without_reasoning(reasoning, _of_student(body))
    placed = _limited(placed, None if limit is None else limit + again)
    return EdgeStudentRequest(placed, Prefill(guidance.text, how), again, limit)


def joint(guidance: EdgeGuidance, how: Continuation, body: Json) -> SeamJoin:
    """Joins guidance that the user sees to what the student says; `body` is the user's."""
    return SeamJoin(
        guidance.text,
        pending_space=guidance.owed,
        # vLLM and llama.cpp repeat the opening when they are asked to, whatever they do by themselves.
        echo=body.get("echo") is True or how.echo,
        strips_leading_space=how.strips_leading_space,
        written_again=how.writes_again,
        stop=_stops(body),
    )


def asked_limit(body: Json) -> int | None:
    """The user's limit on tokens, in whichever field it stands."""
    return next((body[name] for name in _LIMITS if body.get(name) is not None), None)


def _stops(body: Json) -> tuple[str, ...]:
    """The user's stop texts, one by one."""
    stop = body.get("stop")
    return tuple(filter(None, (stop,) if isinstance(stop, str) else stop or ()))


def _of_student(body: Json) -> Json:
    return {name: value for name, value in body.items() if name not in _OWN}


def _limited(body: Json, limit: int | None) -> Json:
    """The body with another limit, for all its answers, in the field in which the user speaks of it."""
    if limit is None:
        return body
    limit //= body.get("n") or 1
    field = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    return {**{name: value for name, value in body.items() if name not in _LIMITS}, field: limit}
