"""The engine of each turn of a chat with tools, where a policy says `tools: switch`: the teacher or the student. Pure.

A loop of tools begins with a message of the user. Each of its later turns follows results of tools. The signals of a
turn are its place in the loop, its new results, and the probability of the student's first token. Within a loop the
engine of the previous turn stays, unless the probability crosses the threshold by a margin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from gateway.policy.tool_plan import RESULTS, offers_tools, scope_of
from gateway.protocol.chat import ChatRequest
from gateway.protocol.messages import text_of
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.policy.guidance_rule import GuidanceRule
    from gateway.policy.route_rules import SwitchRule
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest

TurnEngine: TypeAlias = Literal["teacher", "student"]
FIRST_TURN, TOOL_ERROR, STUDENT_UNSURE, TOO_LONG = (
    "switch_first_turn", "switch_tool_error", "switch_unsure", "switch_too_long",
)  # fmt: skip
"""Reasons for the teacher, as in `unguided` of a receipt."""
STUDENT_CONFIDENT, NO_PROBABILITY = "switch_confident", "switch_no_probability"
"""Reasons for the student."""
_ID_CHARS = 200  # of a result's text, enough to tell turns apart whose calls have the same id


class TurnSignals(Record, frozen=True):
    """The signals in the messages of one turn.

    Attributes:
        first: the turn begins a loop: no result of a tool follows the last reply.
        failed: one of the results after the last reply is an error.
        follows_teacher: by the messages, the previous turn of the loop was the teacher's.
        turn, previous: identify this turn and the previous one in the memory of a process; None: a first turn.
    """

    first: bool
    failed: bool = False
    follows_teacher: bool = False
    turn: int | None = None
    previous: int | None = None


class TurnChoice(NamedTuple):
    """The engine of a turn, and the reason."""

    engine: TurnEngine
    reason: str


def signals_of(rule: GuidanceRule, request: CompletionRequest) -> TurnSignals | None:
    """Return the signals of a request; None: its engine is not chosen by turns."""
    if rule.tools != "switch" or not offers_tools(request) or not isinstance(request, ChatRequest):
        return None
    if request.messages[-1]["role"] == "assistant":  # the caller begins the answer
        return None
    return read_signals(request.messages)


def read_signals(messages: Sequence[Json]) -> TurnSignals:
    """Return the signals in the messages of a turn."""
    reply = _last_reply(messages)
    if not _follows_results(messages, reply):
        return TurnSignals(first=True)
    before = messages[:reply]
    earlier = _last_reply(before)
    begins = not _follows_results(before, earlier)
    return TurnSignals(
        first=False,
        failed=_has_failed(messages, reply),
        follows_teacher=begins or _has_failed(before, earlier),
        turn=_identify(messages),
        previous=None if begins else _identify(before),
    )


def choose_at_once(signals: TurnSignals) -> TurnChoice | None:
    """Return the choice that needs no probability; None: the student's first token decides."""
    if signals.first:
        return TurnChoice("teacher", FIRST_TURN)
    return TurnChoice("teacher", TOOL_ERROR) if signals.failed else None


def choose_by_probability(rule: SwitchRule, previous: TurnEngine, probability: float | None) -> TurnChoice:
    """Return the choice by the probability of the student's first token; None: the student's engine reports none."""
    if probability is None:
        return TurnChoice("student", NO_PROBABILITY)
    if probability < threshold(rule, previous):
        return TurnChoice("teacher", STUDENT_UNSURE)
    return TurnChoice("student", STUDENT_CONFIDENT)


def threshold(rule: SwitchRule, previous: TurnEngine) -> float:
    """Return the probability from which the student writes the turn."""
    return rule.min_probability + (rule.margin if previous == "teacher" else -rule.margin)


def _last_reply(messages: Sequence[Json]) -> int:
    """Return the index of the last message of the assistant; -1 without one."""
    return next((at for at in range(len(messages) - 1, -1, -1) if messages[at]["role"] == "assistant"), -1)


def _follows_results(messages: Sequence[Json], reply: int) -> bool:
    # Clients add reminders behind the results of tools, as messages of the user.
    return reply >= 0 and any(message["role"] in RESULTS for message in messages[reply + 1 :])


def _has_failed(messages: Sequence[Json], reply: int) -> bool:
    """Return whether a result after the last reply is an error."""
    scope = scope_of(messages)
    return scope.renewed and scope.read > reply


def _identify(messages: Sequence[Json]) -> int:
    """Return a hash of the number of messages and the last result, whose call most clients give an id of its own."""
    result = next(message for message in reversed(messages) if message["role"] in RESULTS)
    text = text_of(result.get("content")) or ""
    return hash((len(messages), str(result.get("tool_call_id")), text[:_ID_CHARS]))
