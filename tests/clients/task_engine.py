"""An engine that plays scripts of tool calls, for agents that run a task in several turns.

The engine replies as vLLM 0.20 with a tool parser does. It rejects requests that OpenAI's API rejects.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from tests.fake_texts import words
from tests.fakes import begin_events, chunk, event, reply, says

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fakes import Handler


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool in a script."""

    name: str
    arguments: dict[str, Any]

    def as_dict(self, number: int) -> dict[str, Any]:
        """Return the call as a message has it. The id is the same in each attempt of a request."""
        function = {"name": self.name, "arguments": orjson.dumps(self.arguments).decode()}
        return {"id": f"chatcmpl-tool-{number:032x}", "type": "function", "function": function}


@dataclass(frozen=True)
class Turn:
    """A reply in a script: text, tool calls, or both.

    The first `refused` attempts of the client get 429. The first `broken` attempts get a stream without an end.
    """

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    refused: int = 0
    broken: int = 0

    @property
    def finish(self) -> str:
        return "tool_calls" if self.calls else "stop"

    def deltas(self, number: int) -> list[dict[str, Any]]:
        """Return the deltas of a stream: one per word, and the arguments of a call in pieces."""
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning": word} for word in words(self.reasoning)]
        deltas += [{"content": word} for word in words(self.text)]
        for index, call in enumerate(self.calls):
            whole = call.as_dict(number + index)
            text = whole["function"]["arguments"]
            deltas.append({"tool_calls": [{"index": index, **whole, "function": {"name": call.name, "arguments": ""}}]})
            for start in range(0, len(text), 7):
                piece = {"arguments": text[start : start + 7]}
                deltas.append({"tool_calls": [{"index": index, "function": piece}]})
        return deltas

    def message(self, number: int) -> dict[str, Any]:
        calls = [call.as_dict(number + index) for index, call in enumerate(self.calls)]
        return {"role": "assistant", "content": self.text or None, "tool_calls": calls} | (
            {"reasoning": self.reasoning} if self.reasoning else {}
        )


TaskScript = tuple["Turn | Callable[[dict[str, Any]], Turn]", ...]
"""The turns of a task. A function gets the request's body, for a turn that depends on it."""


class TaskEngine:
    """Plays the script of the task that a user message contains. Other requests get a short answer.

    The number of the turn is the number of assistant messages after that user message: a repeated request gets the
    same turn again.
    """

    def __init__(self) -> None:
        self.scripts: dict[str, TaskScript] = {}
        self.word_pause_s: dict[str, float] = {}
        self.rejections: list[str] = []
        self._request_ids: defaultdict[tuple[str, int], list[str]] = defaultdict(list)

    def handler(self) -> Handler:
        async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            objection = objection_to(body)
            if objection is not None:
                self.rejections.append(objection)
                error = {"message": objection, "type": "BadRequestError", "param": None, "code": 400}
                return web.json_response({"error": error}, status=400)
            found = self._find(body)
            if found is None:
                return await says("Fine.")(request, body)
            task, number = found
            script = self.scripts[task]
            step = script[number] if number < len(script) else Turn("The script has ended.")
            turn = step if isinstance(step, Turn) else step(body)
            attempt = self._attempt(found, request.headers.get("X-Request-Id", "").rpartition("-")[0])
            if attempt <= turn.refused:
                error = {"message": "The queue is full.", "type": "TooManyRequestsError", "code": 429}
                return web.json_response({"error": error}, status=429, headers={"Retry-After": "1"})
            pause_s = self.word_pause_s.get(task, 0)
            return await _send(request, body, turn, number, pause_s=pause_s, ends=attempt > turn.broken)

        return behave

    def _attempt(self, turn: tuple[str, int], request_id: str) -> int:
        """Return the number of the client's attempt. The gateway may call the engine several times for one."""
        ids = self._request_ids[turn]
        if request_id not in ids:
            ids.append(request_id)
        return 1 + ids.index(request_id)

    def _find(self, body: dict[str, Any]) -> tuple[str, int] | None:
        """Return the task and the number of the turn."""
        messages = body["messages"]
        for index in range(len(messages) - 1, -1, -1):
            if messages[index]["role"] != "user":
                continue
            text = text_of(messages[index])
            for task in self.scripts:
                if task in text:
                    return task, sum(message["role"] == "assistant" for message in messages[index:])
        return None


async def _send(
    request: web.Request, body: dict[str, Any], turn: Turn, number: int, *, pause_s: float, ends: bool
) -> web.StreamResponse:
    first_id = 1 + 100 * number
    usage = {"prompt_tokens": 10 * len(body["messages"]), "completion_tokens": len(turn.deltas(first_id))}
    usage["total_tokens"] = sum(usage.values())
    if not body.get("stream"):
        whole = reply("", turn.finish, usage)
        whole["choices"][0]["message"] = turn.message(first_id)
        return web.json_response(whole)
    response = await begin_events(request)
    for delta in turn.deltas(first_id):
        await response.write(event(chunk(delta)))
        if pause_s:
            await asyncio.sleep(pause_s)
    if not ends:
        return response
    await response.write(event(chunk({}, turn.finish)))
    if (body.get("stream_options") or {}).get("include_usage"):
        await response.write(event({**chunk({}), "choices": [], "usage": usage}))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def text_of(message: dict[str, Any]) -> str:
    """Return the text of a message, of all its parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content)
    return content or ""


_FIELDS = frozenset({
    "chat_template_kwargs", "frequency_penalty", "logprobs", "max_completion_tokens", "max_tokens", "messages",
    "metadata", "model", "n", "parallel_tool_calls", "presence_penalty", "prompt_cache_key", "reasoning_effort",
    "response_format", "safety_identifier", "seed", "service_tier", "stop", "store", "stream", "stream_options",
    "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity",
})  # fmt: skip
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


def objection_to(body: dict[str, Any]) -> str | None:
    """Return the reason for which OpenAI's API rejects a chat completion request, or None."""
    unknown = sorted(body.keys() - _FIELDS)
    if unknown:
        return f"Unrecognized request arguments supplied: {', '.join(unknown)}"
    return _objection_to_tools(body) or _objection_to_messages(body["messages"])


def _objection_to_tools(body: dict[str, Any]) -> str | None:
    names: set[str] = set()
    for index, tool in enumerate(body.get("tools") or []):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict) or not function.get("name"):
            return f"Invalid 'tools[{index}]': {orjson.dumps(tool).decode()[:200]}"
        if function["name"] in names:
            return f"Tool names must be unique: {function['name']}"
        names.add(function["name"])
        if not isinstance(function.get("parameters", {}), dict):
            return f"Invalid type for 'tools[{index}].function.parameters'"
    choice = body.get("tool_choice")
    if choice is not None and not names:
        return "'tool_choice' is only allowed when 'tools' are specified"
    if isinstance(choice, dict) and choice["function"]["name"] not in names:
        return f"Tool choice '{choice['function']['name']}' not found in 'tools'"
    return None


def _objection_to_messages(messages: list[dict[str, Any]]) -> str | None:
    pending: list[str] = []
    for index, message in enumerate(messages):
        role = message.get("role")
        if role not in _ROLES:
            return f"Invalid value for 'messages[{index}].role': {role}"
        if role == "tool":
            if message.get("tool_call_id") not in pending:
                return f"'messages[{index}]' must be a response to a preceding message with 'tool_calls'"
            pending.remove(message["tool_call_id"])
            continue
        if pending:
            return f"'tool_calls' without a response before 'messages[{index}]': {', '.join(pending)}"
        calls = message.get("tool_calls")
        if calls is not None:
            if not calls or not all(call["type"] == "function" and _is_json(call["function"]) for call in calls):
                return f"Invalid 'messages[{index}].tool_calls'"
            pending = [call["id"] for call in calls]
        elif message.get("content") in (None, []):
            return f"Invalid value for 'messages[{index}].content': expected a string or parts"
    return f"'tool_calls' without a response: {', '.join(pending)}" if pending else None


def _is_json(function: dict[str, Any]) -> bool:
    """Return whether the arguments are a JSON object. Chat templates of vLLM decode them."""
    try:
        return isinstance(orjson.loads(function["arguments"]), dict)
    except orjson.JSONDecodeError:
        return False
