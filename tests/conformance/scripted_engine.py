"""An engine that gives a scripted answer in the format of chat completions, as vLLM or OpenAI writes it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import web

from tests.fakes import FakeEngine, begin_events, event

if TYPE_CHECKING:
    from collections.abc import Iterator

Failure = Literal["refused", "crowded", "broken", "error event", "cut"]
_STATUS = {"refused": 400, "crowded": 429, "broken": 500, "error event": 500, "cut": 500}


@dataclass(frozen=True)
class Call:
    """A tool call. The pieces of its arguments arrive one by one."""

    name: str
    pieces: tuple[str, ...]

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True)
class Script:
    """An answer. Each piece of text is a chunk of a stream.

    Attributes:
        reasoning_field: vLLM 0.12 and later writes `reasoning`; vLLM before it and others `reasoning_content`.
        usage: fields besides the two counts; None: the engine reports no usage.
        stop_text: vLLM's `stop_reason`, the stop text that was found.
        failure: how the call fails; a stream fails after its pieces.
        dialect: OpenAI's chunks have null fields, vLLM's have an empty first text.
        in_parts: whether text is a list of content parts, as Mistral's reasoning models write it.
        chunking: of tool calls. Some engines send a whole call in one chunk, or pieces of several calls.
    """

    text: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()
    refusal: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    finish: str = ""
    logprobs: bool = False
    reasoning_field: Literal["reasoning", "reasoning_content"] = "reasoning_content"
    usage: dict[str, Any] | None = field(default_factory=dict)
    stop_text: str | None = None
    failure: Failure | None = None
    dialect: Literal["vllm", "openai"] = "vllm"
    in_parts: bool = False
    chunking: Literal["pieces", "whole", "interleaved"] = "pieces"

    @property
    def finish_reason(self) -> str:
        return self.finish or ("tool_calls" if self.calls else "stop")

    @property
    def written(self) -> int:
        """The number of generated tokens, of at most four characters. The gateway estimates an implausible count."""
        pieces = [*self.text, *self.reasoning, *self.refusal]
        for call in self.calls:
            pieces += [call.name, *call.pieces]
        return max(1, sum(len(piece) // 4 + 1 for piece in pieces))

    def message(self) -> dict[str, Any]:
        """Return the message of a JSON reply."""
        message: dict[str, Any] = {"role": "assistant", "content": self._content(*self.text) if self.text else None}
        if self.reasoning:
            message[self.reasoning_field] = "".join(self.reasoning)
        if self.refusal:
            message["refusal"] = "".join(self.refusal)
        if self.calls:
            message["tool_calls"] = [
                {"id": call_id(index), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for index, call in enumerate(self.calls)
            ]
        return message

    def _content(self, *pieces: str) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": piece} for piece in pieces] if self.in_parts else "".join(pieces)

    def deltas(self) -> Iterator[dict[str, Any]]:
        """Return the deltas of a stream."""
        if self.dialect == "vllm":
            yield {"role": "assistant", "content": ""}
        else:
            yield {"role": "assistant", "content": None, "refusal": None}
        yield from ({self.reasoning_field: piece} for piece in self.reasoning)
        yield from ({"content": self._content(piece)} for piece in self.text)
        yield from ({"refusal": piece} for piece in self.refusal)
        yield from self._call_deltas()

    def _call_deltas(self) -> Iterator[dict[str, Any]]:
        begins, pieces = [], []
        for index, call in enumerate(self.calls):
            arguments = call.arguments if self.chunking == "whole" else ""
            function = {"name": call.name, "arguments": arguments}
            begins.append({"index": index, "id": call_id(index), "type": "function", "function": function})
            pieces.append([{"index": index, "function": {"arguments": piece}} for piece in call.pieces])
        if self.chunking == "whole":
            yield from ({"tool_calls": [begin]} for begin in begins)
        elif self.chunking == "interleaved":
            yield {"tool_calls": begins}
            for together in itertools.zip_longest(*pieces):
                yield {"tool_calls": [piece for piece in together if piece is not None]}
        else:
            for begin, rest in zip(begins, pieces, strict=True):
                yield from ({"tool_calls": [part]} for part in (begin, *rest))


def call_id(index: int) -> str:
    return f"call_scripted_{index}"


def _logprobs(pieces: tuple[str, ...]) -> dict[str, Any]:
    entries = []
    for piece in pieces:
        entry = {"token": piece, "logprob": -0.25, "bytes": list(piece.encode())}
        entries.append({**entry, "top_logprobs": [entry, {"token": "other", "logprob": -3.0, "bytes": None}]})
    return {"content": entries, "refusal": None}


def _calling(body: dict[str, Any]) -> Script:
    """Return a script that calls the first tool of a request, unless the request has the result of a call."""
    if body.get("tools") and body["messages"][-1]["role"] != "tool":
        return Script(calls=(Call(body["tools"][0]["function"]["name"], ('{"location": ', '"Bergen"}')),))
    return Script(("Hello", " there", "."))


class ScriptedEngine(FakeEngine):
    """An engine whose next answers follow `script`."""

    def __init__(self) -> None:
        super().__init__(self._play)
        self.script = Script(("Hello.",))
        self.calls_tools = False

    async def _play(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        script = _calling(body) if self.calls_tools else self.script
        if script.failure in ("refused", "crowded", "broken") or (script.failure and not body.get("stream")):
            error = {"message": "the scripted failure", "type": "error", "param": None, "code": None}
            return web.json_response({"error": error}, status=_STATUS[script.failure])
        scored = script.logprobs and bool(body.get("logprobs"))
        usage = {"prompt_tokens": 10, "completion_tokens": script.written, "total_tokens": 10 + script.written}
        usage |= script.usage or {}
        head = {"id": "scripted-1", "created": 1, "model": "scripted"}
        end = {"finish_reason": script.finish_reason, "stop_reason": script.stop_text}
        if not body.get("stream"):
            odds = {"logprobs": _logprobs(script.text) if scored else None}
            choice = {"index": 0, "message": script.message(), **odds, **end}
            reply = {**head, "object": "chat.completion", "choices": [choice]}
            return web.json_response(reply if script.usage is None else {**reply, "usage": usage})
        response = await begin_events(request)
        head["object"] = "chat.completion.chunk"
        parts: list[bytes] = []
        for delta in script.deltas():
            odds = {"logprobs": _logprobs((delta["content"],)) if scored and delta.get("content") else None}
            parts.append(event({**head, "choices": [{"index": 0, "delta": delta, **odds, "finish_reason": None}]}))
        if script.failure == "error event":
            parts.append(event({"error": {"message": "the scripted failure", "type": "error", "code": 500}}))
        elif script.failure is None:
            parts.append(event({**head, "choices": [{"index": 0, "delta": {}, "logprobs": None, **end}]}))
            if script.usage is not None:
                parts.append(event({**head, "choices": [], "usage": usage}))
            parts.append(b"data: [DONE]\n\n")
        # A few writes for each answer, so that chunks arrive alone and in groups.
        for start in (0, 1, 2):
            await response.write(b"".join(parts[start : start + 1 if start < 2 else None]))
        return response
