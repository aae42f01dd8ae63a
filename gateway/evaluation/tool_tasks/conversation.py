"""Conversation of an engine about a task: chat completions with tools until the model replies without a call."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import orjson

from gateway.engines.chat import read_usage
from gateway.engines.replies import first_choice, message_text
from gateway.evaluation.record import ToolFacts
from gateway.evaluation.tool_tasks.tasks import KINDS, is_solved, tool_tasks
from gateway.evaluation.tool_tasks.tools import ToolCall, apply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.engines.base import TokenUsage
    from gateway.evaluation.tool_tasks.tools import State, ToolTask
    from gateway.protocol.body import Json

SYSTEM = (
    "You complete tasks with functions. First look up what you need: do not guess ids, values or contents. Call one "
    "function, wait for its result, and go on until the task is done. Then reply: Done."
)
DONE = "Done."
MAX_TURNS = 8
"""Replies of a model in one task, at most. A reference solution needs up to five."""
_EXAMPLE_SEED = 2**31
"""No run has this seed, so no task of a run is its example."""
_MAX_CALLS_PER_TURN = 8


class TaskOutcome:
    """The progress of a task: the state, the facts of its turns, and the engine's counts."""

    def __init__(self, task: ToolTask) -> None:
        self.task = task
        self.state: State = task.state
        self.turns = self.calls = self.errors = self.text_calls = 0
        self.input_tokens = self.output_tokens = self.cached_tokens = 0
        self.seconds = 0.0
        self.text = ""
        self.finish: str | None = None

    @property
    def score(self) -> float:
        return float(is_solved(self.task, self.state))

    @property
    def facts(self) -> ToolFacts:
        return ToolFacts(self.task.kind, self.turns, self.calls, self.errors, self.text_calls)

    def count(self, usage: TokenUsage | None, seconds: float) -> None:
        self.turns += 1
        self.seconds += seconds
        if usage is not None:
            self.input_tokens += usage.input_tokens
            self.output_tokens += usage.output_tokens
            self.cached_tokens += usage.cached_input_tokens


async def converse(
    task: ToolTask, complete: Callable[[Json], Awaitable[Json]], *, max_tokens: int, max_turns: int, shots: int
) -> TaskOutcome:
    """Run a task to its end: a reply without a call, a truncated reply, or the last turn. Raises EngineErrors."""
    tools = KINDS[task.kind].tools
    outcome = TaskOutcome(task)
    messages = [*first_messages(task.kind, shots), {"role": "user", "content": task.request}]
    while outcome.turns < max_turns:
        body = {
            "messages": messages,
            "tools": [tool.schema for tool in tools],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        reply = await complete(body)
        outcome.count(read_usage(reply.get("usage")), reply.get("seconds", 0.0))
        outcome.text, outcome.finish = message_text(reply) or "", first_choice(reply).get("finish_reason")
        calls = _calls(reply)
        if not calls:
            outcome.text_calls += _is_call_as_text(outcome.text, [tool.name for tool in tools])
            break
        messages.append(_assistant(calls, outcome.calls, outcome.text))
        for call in calls:
            result = apply(tools, outcome.state, call)
            messages.append({"role": "tool", "tool_call_id": _id(outcome.calls), "content": result.output})
            outcome.state = result.state
            outcome.calls += 1
            outcome.errors += result.failed
        if outcome.finish == "length":
            break
    return outcome


@cache
def example(kind: str) -> ToolTask:
    """Return the task whose reference solution the models read: of one task per story, the one with most calls."""
    count = len(KINDS) * len(KINDS[kind].stories)
    found = [one for one in tool_tasks(count, _EXAMPLE_SEED) if one.kind == kind]
    return max(found, key=lambda one: len(one.reference))


@cache
def first_messages(kind: str, shots: int) -> tuple[Json, ...]:
    """Return the messages before a task: the system's, and for one shot the reference solution of another task."""
    messages: list[Json] = [{"role": "system", "content": SYSTEM}]
    if shots:
        task = example(kind)
        messages.append({"role": "user", "content": task.request})
        state = task.state
        for number, call in enumerate(task.reference):
            result = apply(KINDS[kind].tools, state, call)
            state = result.state
            messages.append(_assistant([call], number, "", prefix="example"))
            messages.append({"role": "tool", "tool_call_id": _id(number, "example"), "content": result.output})
        messages.append({"role": "assistant", "content": DONE})
    return tuple(messages)


def _calls(reply: Json) -> list[ToolCall]:
    found = (first_choice(reply).get("message") or {}).get("tool_calls") or []
    functions = [one.get("function") or {} for one in found[:_MAX_CALLS_PER_TURN]]
    return [ToolCall(str(one.get("name")), one.get("arguments") or "") for one in functions]


def _assistant(calls: Sequence[ToolCall], first: int, text: str, prefix: str = "call") -> Json:
    """Return the message with calls. Their ids are numbers, so that an equal conversation has equal requests."""
    functions = [{"name": one.name, "arguments": _valid(one.arguments)} for one in calls]
    listed = [
        {"id": _id(number, prefix), "type": "function", "function": one}
        for number, one in enumerate(functions, start=first)
    ]
    return {"role": "assistant", "content": text, "tool_calls": listed}


def _id(number: int, prefix: str = "call") -> str:
    return f"{prefix}_{number}"


def _valid(arguments: str) -> str:
    """Return the arguments, or an empty object in place of invalid JSON, which engines reject in a request."""
    try:
        return arguments if isinstance(orjson.loads(arguments), dict) else "{}"
    except orjson.JSONDecodeError:
        return "{}"


def _is_call_as_text(text: str, names: Sequence[str]) -> bool:
    """Return whether a reply writes a call as text, which the engine did not read as one."""
    named = re.search(r'"name"\s*:\s*"([^"]*)"', text)
    return "function_call>" in text or "tool_call>" in text or (named is not None and named[1] in names)


def shown(kind: str, shots: int) -> Any:
    """Return all that the models read besides the task, for the record of a run."""
    return first_messages(kind, shots), [tool.schema for tool in KINDS[kind].tools]
