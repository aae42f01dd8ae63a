"""The part of a chat with tools that a plan depends on: where the current task begins, and its last failed call. Pure.

Both depend on no later message, so that later turns of a task find the plan in the guidance cache.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import orjson

from gateway.protocol.chat import ChatRequest
from gateway.protocol.messages import RULES, TOOL_FAILED, text_of
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.policy.guidance_rule import GuidanceRule
    from gateway.protocol.body import Json
    from gateway.protocol.requests import AnyRequest

RESULTS = frozenset({"tool", "function"})
"""Roles of messages with results of tools."""
# Usual beginnings of a failure: "Error: no such file", "ValueError: ...", "Error executing tool find: ...".
_FAILURE = re.compile(
    r"[\w.]{0,80}(?:error|exception)(?:[ \t]*(?:[:\[(\n]|$)| (?:calling|executing|invoking|running) )"
    rf"|traceback \(most recent call last\)|{re.escape(TOOL_FAILED)}",
    re.IGNORECASE,
)
_BEGINNING_CHARS = 200  # a search in a longer text would block the event loop
_ERROR_KEYS = ("error", "is_error", "isError")
# Reading more results in one step would block the event loop. Earlier ones then count as successful.
_MAX_RESULTS = 1_000
_MAX_SEARCHED_CHARS = 500_000  # of JSON objects
_MAX_DECODED_CHARS = 64_000


class ToolPlanScope(Record, frozen=True):
    """The messages of a chat that a plan depends on.

    Attributes:
        begin: the number of messages up to the one that begins the task, which gets the plan.
        read: the number of messages that the teacher reads: up to the last failed call of the task, else `begin`.
    """

    begin: int
    read: int

    @property
    def renewed(self) -> bool:
        """Return whether a failed call replaces the first plan of the task."""
        return self.read > self.begin


def is_planned(rule: GuidanceRule, request: AnyRequest) -> bool:
    """Return whether the guidance of a request is a plan: the policy says so, and the request offers tools."""
    return rule.tools == "plan" and offers_tools(request)


def offers_tools(request: AnyRequest) -> bool:
    """Return whether a request is a chat that offers tools."""
    return isinstance(request, ChatRequest) and bool(request.body.get("tools") or request.body.get("functions"))


def scope_of(messages: Sequence[Json]) -> ToolPlanScope:
    """Return the scope of the plan for the next turn.

    A user message begins a task, unless it follows results of tools: clients add images and reminders there. A chat
    without such a message begins after its first system messages.
    """
    begin = next((end for end in range(len(messages), 0, -1) if _begins_task(messages, end - 1)), None)
    if begin is None:
        begin = next((at for at, message in enumerate(messages) if message["role"] not in RULES), len(messages))
    return ToolPlanScope(begin, _end_of_failure(messages, begin) or begin)


def is_failure(text: str) -> bool:
    """Return whether a tool's result is an error: it begins like one, or is a JSON object with an error at its top."""
    if _FAILURE.match(text[:_BEGINNING_CHARS].lstrip()):
        return True
    if not _may_be_failed_object(text):
        return False
    try:
        result = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return any(result.get(key) not in (None, False, "", 0, [], {}) for key in _ERROR_KEYS)


def _begins_task(messages: Sequence[Json], at: int) -> bool:
    if messages[at]["role"] != "user":
        return False
    while at and messages[at - 1]["role"] in RULES:
        at -= 1
    return not at or messages[at - 1]["role"] not in RESULTS


def _end_of_failure(messages: Sequence[Json], begin: int) -> int | None:
    """Return the number of messages up to the results of the last turn with a failed call; None: no call failed."""
    end, results, searched, decoded = None, 0, 0, 0
    for at in range(len(messages) - 1, begin - 1, -1):
        message = messages[at]
        if message["role"] not in RESULTS:
            end = None
            continue
        results += 1
        if results > _MAX_RESULTS:
            break
        end = end or at + 1
        text = text_of(message.get("content")) or ""
        if _is_object(text):
            searched += len(text)
            if searched > _MAX_SEARCHED_CHARS:
                continue
            if _may_be_failed_object(text):
                decoded += len(text)
                if decoded > _MAX_DECODED_CHARS:
                    continue
        if is_failure(text):
            return end
    return None


def _is_object(text: str) -> bool:
    return text[:_BEGINNING_CHARS].lstrip()[:1] == "{"


def _may_be_failed_object(text: str) -> bool:
    return _is_object(text) and any(f'"{key}"' in text for key in _ERROR_KEYS)
