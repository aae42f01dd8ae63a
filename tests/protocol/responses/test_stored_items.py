"""Pages of a stored conversation, and input that refers to stored responses."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest, NotFound
from gateway.protocol.chat import MAX_MESSAGES
from gateway.protocol.responses.events import ResponseWriter
from gateway.protocol.responses.request import ResponsesRequest, parse_responses
from gateway.protocol.responses.stored_items import ItemPage, StoredInput, item_list, read_page, response_of_item

ITEMS: list[dict[str, Any]] = [
    {"role": "user", "content": "one"},
    {"type": "reasoning", "id": "rs_1", "summary": []},
    {"type": "message", "role": "assistant", "content": "two", "id": "msg_1", "status": "incomplete"},
    {"type": "function_call_output", "call_id": "call_1", "output": "three"},
    {"role": "user", "content": [{"type": "input_text", "text": "four"}]},
]


def listed(page: ItemPage, items: list[dict[str, Any]] = ITEMS) -> dict[str, Any]:
    decoded: dict[str, Any] = orjson.loads(item_list(orjson.dumps(items), "resp_7f", page))
    return decoded


def ids(page: ItemPage) -> list[str]:
    return [item["id"] for item in listed(page)["data"]]


def test_items_have_the_fields_that_openai_sends() -> None:
    one, reasoning, two, three, four = listed(ItemPage(newest_first=False))["data"]
    text = {"type": "input_text", "text": "one"}
    assert one == {"id": "msg_7f_0", "type": "message", "role": "user", "content": [text], "status": "completed"}
    assert reasoning == ITEMS[1]
    assert two["content"] == [{"type": "output_text", "text": "two", "annotations": []}]
    assert two["status"] == "incomplete"
    assert three == ITEMS[3] | {"id": "item_7f_3", "status": "completed"}
    assert four["content"] == ITEMS[4]["content"]


def test_pages_cover_all_items_once() -> None:
    everything = ids(ItemPage(newest_first=False))
    assert ids(ItemPage()) == everything[::-1]
    for newest_first in (False, True):
        seen: list[str] = []
        after = None
        while True:
            page = listed(ItemPage(2, newest_first, after))
            seen += [item["id"] for item in page["data"]]
            after = page["last_id"]
            if not page["has_more"]:
                break
        assert seen == everything[:: -1 if newest_first else 1]


@pytest.mark.parametrize("item_id", ["msg_1", 7])
def test_pages_of_items_with_the_same_id_end(item_id: object) -> None:
    """A client chooses the ids of its own items. Pages of an id that is not unique would never end."""
    items = [{"role": "user", "content": str(number), "id": item_id} for number in range(5)]
    seen: list[str] = []
    after = None
    for _ in items:
        page = listed(ItemPage(1, newest_first=False, after=after), items)
        seen += [item["content"][0]["text"] for item in page["data"]]
        after = page["last_id"]
    assert seen == ["0", "1", "2", "3", "4"]
    assert not page["has_more"]


def test_the_page_after_the_last_item_is_empty() -> None:
    page = listed(ItemPage(after="msg_7f_0"))
    assert page == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_a_page_is_read_from_the_query() -> None:
    assert read_page({}) == ItemPage(20, newest_first=True, after=None)
    assert read_page({"limit": "100", "order": "asc", "after": "x"}) == ItemPage(100, newest_first=False, after="x")


@pytest.mark.parametrize("limit", ["0", "101", "-1", "", "1e1", "\u0661", "1" * 5000, "00019999", "0001" + "9" * 5000])
def test_a_limit_out_of_range_is_rejected(limit: str) -> None:
    with pytest.raises(InvalidRequest, match="from 1 to 100"):
        read_page({"limit": limit})


def stored(output: list[dict[str, Any]], items: list[dict[str, Any]]) -> bytes:
    return orjson.dumps({"id": "resp_x", "output": output}) + b"\n" + orjson.dumps(items)


def parsed(**fields: Any) -> ResponsesRequest:
    return parse_responses(orjson.dumps({"model": "chat"} | fields))


def message(item_id: str, text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "id": item_id, "role": "assistant", "content": content}


def texts(request: ResponsesRequest | None) -> list[str]:
    assert request is not None
    return [each["content"] for each in request.chat().messages]


def test_a_follow_up_continues_after_the_output() -> None:
    request = parsed(input="three", previous_response_id="resp_1")
    assert request.needs_stored
    raw = stored([message("msg_1", "two")], [{"role": "user", "content": "one"}])
    complete = StoredInput(request).add(raw)
    assert texts(complete) == ["one", "two", "three"]
    assert complete is not None
    assert not complete.needs_stored
    assert len(complete.items) == 3
    assert complete.chat().size_bytes == request.size_bytes + len(raw)


def test_an_error_names_the_items_position_in_the_requests_own_input() -> None:
    request = parsed(input=[{"role": "user", "content": "x"}, {"role": "robot"}], previous_response_id="resp_1")
    with pytest.raises(InvalidRequest) as error:
        StoredInput(request).add(stored([message("msg_1", "two")], [{"role": "user", "content": "one"}]))
    assert error.value.param == "input[1].role"


def test_references_are_resolved_from_the_last_response_and_those_before_it() -> None:
    references = [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_2"}]
    request = parsed(input=[{"role": "user", "content": "one"}, *references, {"role": "user", "content": "two"}])
    assert request.needs_stored
    stored_input = StoredInput(request)
    assert stored_input.missing == "msg_2"
    assert stored_input.add(stored([message("msg_2", "later")], [])) is None
    assert stored_input.missing == "msg_1"
    assert texts(stored_input.add(stored([message("msg_1", "earlier")], []))) == ["one", "earlier", "later", "two"]
    at_once = StoredInput(request).add(stored([message("msg_2", "later")], [message("msg_1", "earlier")]))
    assert texts(at_once) == ["one", "earlier", "later", "two"]
    assert at_once is not None
    assert at_once.size_bytes > request.size_bytes + 2 * len(orjson.dumps(message("msg_1", "")))


@pytest.mark.parametrize("previous", [None, "resp_1"])
def test_a_second_reference_to_an_item_is_rejected(previous: str | None) -> None:
    """10,000 references to one item of 1 MB would be a chat of 10 GB. The message is OpenAI's."""
    references = [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_2"}, {"id": "msg_1"}]
    request = parsed(input=references, previous_response_id=previous)
    with pytest.raises(InvalidRequest, match="Duplicate item found with id msg_1") as error:
        StoredInput(request)
    assert error.value.param == "input"


def test_a_reference_to_no_stored_item_is_a_404() -> None:
    request = parsed(input=[{"type": "item_reference", "id": "msg_3"}])
    with pytest.raises(NotFound, match="Item 'msg_3' not found"):
        StoredInput(request).add(stored([message("msg_2", "x")], []))


def test_responses_for_one_request_are_bounded() -> None:
    """A request that refers to many large responses does not fill the memory."""
    references = [{"type": "item_reference", "id": f"msg_{number}"} for number in range(3)]
    stored_input = StoredInput(parsed(input=references))
    for number in (2, 1):
        assert stored_input.add(stored([message(f"msg_{number}", "x" * 7_000_000)], [])) is None
    with pytest.raises(InvalidRequest, match="too many stored responses"):
        stored_input.add(stored([message("msg_0", "x" * 7_000_000)], []))


def test_a_conversation_has_at_most_as_many_items_as_a_request() -> None:
    items = [{"role": "user", "content": "x"}] * MAX_MESSAGES
    with pytest.raises(InvalidRequest, match="more than 10000 items"):
        StoredInput(parsed(input="y", previous_response_id="resp_1")).add(stored([], items))


def test_an_items_id_names_its_response() -> None:
    writer = ResponseWriter(parsed(input="x"), "req_0123456789abcdef01234567", 1)
    response = writer.reply({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]})
    assert response_of_item(response["output"][0]["id"]) == response["id"]


@pytest.mark.parametrize("item_id", [None, 5, "", "msg", "msg_1"])
def test_another_id_names_no_response(item_id: object) -> None:
    assert response_of_item(item_id) == "resp_"
