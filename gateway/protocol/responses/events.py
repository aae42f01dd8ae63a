"""Write replies and streams of the Responses API from chat completions. Sans-io."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import orjson

from gateway.errors import EngineOverloaded, EngineRejected, QueueFull, RateLimited, RequestError
from gateway.protocol.content_run import ContentRun
from gateway.protocol.messages import function_of, reasoning_of, text_of, tool_calls_of
from gateway.protocol.responses.custom_input import decode_custom_input
from gateway.protocol.responses.open_items import EventLog, OpenCall, OpenItem, OpenMessage, OpenReasoning
from gateway.protocol.responses.output import (
    INDEX_DIGITS,
    NO_ARGUMENTS,
    call_item,
    incomplete_reason,
    logprobs_of,
    message_item,
    reasoning_item,
    refusal_part,
    text_part,
    usage_object,
)
from gateway.protocol.responses.request import echo

if TYPE_CHECKING:
    from gateway.errors import GatewayError
    from gateway.protocol.body import Json
    from gateway.protocol.content_run import ChunkGroup
    from gateway.protocol.responses.output import ItemStatus
    from gateway.protocol.responses.request import ResponsesRequest

_CALL_PREFIXES = {"function": "fc", "custom": "ctc", "tool_search": "tsc"}


class ResponseWriter:
    """Writes the reply to one request, as JSON or as events.

    `response` is the response object. It is final after `reply`, and in a stream after the chunk with the usage.
    """

    def __init__(self, request: ResponsesRequest, request_id: str, created: int, *, stored: bool = False) -> None:
        self._request = request
        self._suffix = request_id.removeprefix("req_")
        self._echo = echo(request, stored=stored)
        self._encoded_echo = b""  # its fields, as JSON; set with the first event
        self._state: Json = {
            "id": f"resp_{self._suffix}",
            "object": "response",
            "created_at": created,
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": request.known.model,
            "output": [],
            "service_tier": "default",
            "usage": None,
        }
        self._log = EventLog()
        self._items: list[OpenItem] = []
        self._current: OpenItem | None = None  # the message or reasoning item that is being written
        self._calls: dict[int, OpenCall] = {}  # the last one of each number
        self._finish_reason: str | None = None
        self._wants_logprobs = request.wants_logprobs
        self._logprobs: list[Any] = []  # of tokens whose text has not arrived

    @property
    def response(self) -> Json:
        """The response object."""
        return {**self._state, **self._echo}

    def mark_unstored(self) -> None:
        """Set `store` to false, because the response could not be stored."""
        self._echo["store"] = False
        if self._encoded_echo:
            self._encoded_echo = _encoded_fields(self._echo)

    def reply(self, completion: Json) -> Json:
        """Convert a complete reply."""
        choice = completion["choices"][0]
        self._finish_reason = choice.get("finish_reason")
        incomplete = incomplete_reason(self._finish_reason) is not None
        self._state["output"] = self._whole_output(choice, "incomplete" if incomplete else "completed")
        self._read_head(completion)
        self._complete(completion.get("usage"))
        return self.response

    def events(self, group: ChunkGroup) -> bytes:
        """Convert chunks to server-sent events. Texts that arrived together are one event."""
        texts: list[str] = []
        for part in group:
            if isinstance(part, ContentRun):
                if not self._encoded_echo:
                    self._start(part.template.chunk)
                texts += part.contents
                continue
            if not self._encoded_echo:
                self._start(part)
            if not (choices := part["choices"]):
                self._write_texts(texts)
                self._read_usage(part)
                continue
            choice = choices[0]
            delta = choice["delta"]
            content = delta.get("content")
            only_text = content and isinstance(content, str) and len(delta) == 1
            if only_text and not choice.get("logprobs") and not choice.get("finish_reason"):
                texts.append(content)
                continue
            self._write_texts(texts)
            self._write_delta(choice, delta)
        self._write_texts(texts)
        return self._log.take()

    def end(self) -> bytes:
        """Return the last events of a complete stream."""
        if self._state["status"] == "in_progress":  # the stream had no usage
            self._end_items()
            self._complete(None)
        self._add_response(f"response.{self._state['status']}")
        return self._log.take()

    def failed(self, error: GatewayError) -> bytes:
        """Return the last events of a stream that an error ended."""
        if not self._encoded_echo:
            self._start({})
        self._state["output"] = [item.final or item.item("incomplete") for item in self._items]
        self._state |= {
            "status": "failed",
            "completed_at": None,
            "incomplete_details": None,
            "error": {"code": _error_code(error), "message": error.message},
        }
        self._add_response("response.failed")
        return self._log.take()

    def _start(self, chunk: Json) -> None:
        self._encoded_echo = _encoded_fields(self._echo)
        self._read_head(chunk)
        self._add_response("response.created")
        self._add_response("response.in_progress")

    def _add_response(self, kind: str) -> None:
        state = orjson.dumps(self._state)[:-1]
        before = b'event: %b\ndata: {"type":"%b","sequence_number":' % (kind.encode(), kind.encode())
        self._log.add_large(before, b',"response":', state, b",", self._encoded_echo)

    def _read_head(self, chunk: Json) -> None:
        for name in ("model", "service_tier"):
            if (value := chunk.get(name)) is not None:
                self._state[name] = value

    def _read_usage(self, chunk: Json) -> None:
        """Read the chunk without choices, the last one: the usage and the receipt's facts."""
        if (usage := chunk.get("usage")) is None:
            return
        self._read_head(chunk)
        self._end_items()
        if (facts := chunk.get("gkt")) is not None:
            self._state["gkt"] = facts
        self._complete(usage)

    def _complete(self, usage: Json | None) -> None:
        state = self._state
        if (reason := incomplete_reason(self._finish_reason)) is not None:
            state["status"], state["incomplete_details"] = "incomplete", {"reason": reason}
        else:
            state["status"], state["completed_at"] = "completed", max(int(time.time()), state["created_at"])
        if usage is not None:
            state["usage"] = usage_object(usage)

    def _write_texts(self, texts: list[str]) -> None:
        if texts:
            self._write_text(texts[0] if len(texts) == 1 else "".join(texts))
            texts.clear()

    def _write_text(self, text: str) -> None:
        logprobs, self._logprobs = self._logprobs, []
        self._message().add_text(text, logprobs)

    def _write_delta(self, choice: Json, delta: Json) -> None:
        reasoning, calls = reasoning_of(delta), tool_calls_of(delta)
        if reasoning:
            self._reasoning().add_text(reasoning)
        if self._wants_logprobs:
            self._logprobs += logprobs_of(choice)
        content = text_of(delta.get("content")) or ""
        if not content and (reasoning or calls):
            self._logprobs = []  # of tokens of the reasoning or the call: an item for them has no place for these
        if content or (self._logprobs and isinstance(self._current, OpenMessage)):
            self._write_text(content)
        if (refusal := delta.get("refusal")) and isinstance(refusal, str):
            self._message().add_refusal(refusal)
        for call in calls:
            self._write_call(call)
        if (finish_reason := choice.get("finish_reason")) is not None:
            self._finish_reason = finish_reason
            self._end_items()

    def _write_call(self, call: Json) -> None:
        number, (name, arguments) = call.get("index"), function_of(call)
        index, call_id = number if isinstance(number, int) else 0, _id_of(call)
        item = self._calls.get(index)
        if item is None or _is_other(call_id, name, item):
            item = self._calls[index] = self._open_call(call_id, name)
        if arguments and item.final is None:
            item.add(arguments)

    def _open_call(self, call_id: str, name: str) -> OpenCall:
        tool = self._request.toolbox.called(name)
        item_id, index = self._next_item(_CALL_PREFIXES[tool.kind])
        item = OpenCall(self._log, item_id, index, call_id or self._item_id("call", index), tool)
        self._items.append(item)
        return item

    def _message(self) -> OpenMessage:
        """Return the message that is being written."""
        current = self._current
        if not isinstance(current, OpenMessage):
            current = OpenMessage(self._log, *self._next_item("msg"))
            self._add_item(current)
        return current

    def _reasoning(self) -> OpenReasoning:
        """Return the reasoning item that is being written."""
        current = self._current
        if not isinstance(current, OpenReasoning):
            request = self._request
            current = OpenReasoning(
                self._log,
                *self._next_item("rs"),
                as_summary=request.wants_summary,
                encoded=request.wants_encoded_reasoning,
            )
            self._add_item(current)
        return current

    def _next_item(self, prefix: str) -> tuple[str, int]:
        """End the item before the next one, and return the next one's id and index."""
        self._end_current()
        for call in self._calls.values():
            call.done_if_complete()
        index = len(self._items)
        return self._item_id(prefix, index), index

    def _add_item(self, item: OpenItem) -> None:
        self._items.append(item)
        self._current = item

    def _end_current(self) -> None:
        if self._current is not None:
            self._current.done("completed")
            self._current = None

    def _end_items(self) -> None:
        """End all items. A complete answer without output gets an empty message."""
        incomplete = incomplete_reason(self._finish_reason) is not None
        if not self._items and not incomplete:
            self._message()
        for item in self._items:
            item.done("incomplete" if incomplete else "completed")
        self._current = None
        self._state["output"] = [item.final for item in self._items]

    def _item_id(self, prefix: str, index: int) -> str:
        return f"{prefix}_{self._suffix}{index:0{INDEX_DIGITS}x}"

    def _whole_output(self, choice: Json, status: ItemStatus) -> list[Json]:
        """Return the items of a complete reply. `status` is the last item's."""
        message, request = choice["message"], self._request
        output: list[Json] = []
        if reasoning := reasoning_of(message):
            item = reasoning_item(
                self._item_id("rs", 0),
                reasoning,
                "completed",
                as_summary=request.wants_summary,
                encoded=request.wants_encoded_reasoning,
            )
            output.append(item)
        parts: list[Json] = []
        if text := text_of(message.get("content")):
            parts.append(text_part(text, logprobs_of(choice) if self._wants_logprobs else []))
        if (refusal := message.get("refusal")) and isinstance(refusal, str):
            parts.append(refusal_part(refusal))
        calls = tool_calls_of(message)
        if parts or not (output or calls or status == "incomplete"):
            output.append(message_item(self._item_id("msg", len(output)), parts, "completed"))
        for call in calls:
            (name, value), index = function_of(call), len(output)
            tool = request.toolbox.called(name)
            if tool.kind == "custom":
                value = decode_custom_input(value)
            elif not value and not (status == "incomplete" and call is calls[-1]):
                value = NO_ARGUMENTS
            item_id = self._item_id(_CALL_PREFIXES[tool.kind], index)
            output.append(call_item(item_id, _id_of(call) or self._item_id("call", index), tool, value, "completed"))
        if output:
            output[-1]["status"] = status
        return output


def _id_of(call: Json) -> str:
    """Return the id of a call; an empty one if the engine gave none."""
    call_id = call.get("id")
    return call_id if isinstance(call_id, str) else ""


def _is_other(call_id: str, name: str, item: OpenCall) -> bool:
    """Return whether a part of a call begins another one. Some engines number all calls 0."""
    return bool(name) and call_id not in ("", item.call_id)


def _encoded_fields(fields: Json) -> bytes:
    """Return fields as the end of a JSON object."""
    return orjson.dumps(fields)[1:]


def _error_code(error: GatewayError) -> str:
    """Return the code of OpenAI's list that is nearest to an error."""
    if isinstance(error, RateLimited | QueueFull | EngineOverloaded):
        return "rate_limit_exceeded"
    if isinstance(error, RequestError) or (isinstance(error, EngineRejected) and error.blames_request):
        return "invalid_prompt"
    return "server_error"
