"""Items of stored responses: those that a request's input refers to, and the pages of input items."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from gateway.errors import InvalidRequest
from gateway.protocol.responses.items import MAX_ID_CHARS, is_reference, unknown_item
from gateway.protocol.responses.output import INDEX_DIGITS
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.protocol.body import Json
    from gateway.protocol.responses.request import ResponsesRequest

MAX_PAGE, _DEFAULT_PAGE = 100, 20
_MAX_READ_BYTES = 16_000_000  # of stored responses for one request
_MAX_DIGITS = 4  # of `limit`
_PREFIXES = {"message": "msg", "function_call": "fc", "reasoning": "rs", "custom_tool_call": "ctc"}


class ItemPage(Record, frozen=True):
    """The query of a page of input items."""

    limit: int = _DEFAULT_PAGE
    newest_first: bool = True
    after: str | None = None


def read_page(query: Mapping[str, str]) -> ItemPage:
    """Return the page of a query string. Raises InvalidRequest with the parameter."""
    limit, order = query.get("limit", str(_DEFAULT_PAGE)), query.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= _MAX_DIGITS and 1 <= int(limit) <= MAX_PAGE):
        raise InvalidRequest(f"'limit' must be a number from 1 to {MAX_PAGE}.", param="limit")
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' must be asc or desc.", param="order")
    return ItemPage(int(limit), order == "desc", query.get("after"))


class StoredInput:
    """Completes the input of a request with stored responses, which the caller reads one after another.

    The first is the previous response, if the request has one. References are resolved from the last one on: the
    response with that item usually has all earlier ones in its conversation. Raises InvalidRequest for two references
    to one item.
    """

    def __init__(self, request: ResponsesRequest) -> None:
        self._request = request
        self._previous = request.previous_response_id is not None  # the previous response is still to be added
        self._history: list[Json] = []
        self._size = request.size_bytes
        self._read_bytes = 0
        self._references = [item.get("id") for item in request.items if is_reference(item)]
        _check_unique(self._references)
        self._found: dict[str, Json] = {}

    @property
    def missing(self) -> object:
        """Return the id of an item that no response had so far; None if there is no such item."""
        return next((one for one in reversed(self._references) if not self._has(one)), None)

    def add(self, raw: bytes) -> ResponsesRequest | None:
        """Add a stored response: its JSON, a line feed, and its input items as JSON.

        Return the request with its complete input; None if it needs another response. Raises InvalidRequest, NotFound.
        """
        self._read_bytes += len(raw)
        if self._read_bytes > _MAX_READ_BYTES:
            raise too_many_responses()
        missing, conversation = self.missing, _conversation(raw)
        self._found |= {item["id"]: item for item in conversation if isinstance(item.get("id"), str)}
        if self._previous:
            self._previous, self._history = False, conversation
            self._size += len(raw)
        elif not self._has(missing):
            raise unknown_item(missing)
        return self._complete() if self.missing is None else None

    def _complete(self) -> ResponsesRequest:
        items, size = [*self._history], self._size
        for item in self._request.items:
            if is_reference(item):
                items.append(self._found[item["id"]])
                size += len(orjson.dumps(items[-1]))
            else:
                items.append(item)
        return self._request.with_items(items, size)

    def _has(self, item_id: object) -> bool:
        return isinstance(item_id, str) and item_id in self._found


def too_many_responses() -> InvalidRequest:
    """Return the error for input that refers to more stored responses than the gateway reads for a request."""
    return InvalidRequest("The input refers to too many stored responses. Send the items.", param="input")


def response_of_item(item_id: object) -> str:
    """Return the id of the response that has an output item, which the item's id contains; else an invalid id."""
    suffix = item_id.partition("_")[2] if isinstance(item_id, str) else ""
    return f"resp_{suffix[:-INDEX_DIGITS]}"


def _check_unique(references: list[object]) -> None:
    """Reject a second reference to an item, as OpenAI does. Otherwise a small request could become a huge chat."""
    seen: set[str] = set()
    for item_id in references:
        if isinstance(item_id, str):
            if item_id in seen:
                shown = item_id[:MAX_ID_CHARS]
                text = f"Duplicate item found with id {shown}. Remove duplicate items from your input and try again."
                raise InvalidRequest(text, param="input")
            seen.add(item_id)


def _conversation(raw: bytes) -> list[Json]:
    """Return the conversation after a stored response: its input items, and its output."""
    response, _, items = raw.partition(b"\n")
    return [*orjson.loads(items), *orjson.loads(response)["output"]]


def item_list(items: bytes, response_id: str, page: ItemPage) -> bytes:
    """Return a page of a stored response's input items as OpenAI's list. Raises InvalidRequest."""
    stored: list[Json] = orjson.loads(items)
    suffix = response_id.partition("_")[2]
    ids = _page_ids(stored, suffix)
    order = list(range(len(stored)))
    if page.newest_first:
        order.reverse()
    if page.after is not None:
        if page.after not in ids:
            raise InvalidRequest(
                "'after': there is no such item. Use an item's id of the previous page.", param="after"
            )
        order = order[order.index(ids.index(page.after)) + 1 :]
    shown = [_listed(stored[index], ids[index]) for index in order[: page.limit]]
    return orjson.dumps(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(order) > page.limit,
        }
    )


def _page_ids(stored: list[Json], suffix: str) -> list[str]:
    """Return an id for each item: its own, unless it has none or an earlier item has the same."""
    ids: list[str] = []
    seen: set[str] = set()
    for index, item in enumerate(stored):
        own = item.get("id")
        ids.append(own if own and isinstance(own, str) and own not in seen else f"{_prefix(item)}_{suffix}_{index}")
        seen.add(ids[-1])
    return ids


def _kind(item: Json) -> str:
    kind: str = item.get("type") or "message"
    return kind


def _prefix(item: Json) -> str:
    return _PREFIXES.get(_kind(item), "item")


def _listed(item: Json, item_id: str) -> Json:
    """Return an item with the fields that OpenAI always sends."""
    kind = _kind(item)
    listed = {**item, "id": item_id, "type": kind}
    if kind != "reasoning":
        listed.setdefault("status", "completed")
    if kind == "message" and isinstance(text := item.get("content"), str):
        part: Json = {"type": "input_text", "text": text}
        if item.get("role") == "assistant":
            part = {"type": "output_text", "text": text, "annotations": []}
        listed["content"] = [part]
    return listed
