"""Large bodies take a bounded time: one thread decodes those of all tenants, and the event loop makes the chats."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.protocol.responses.request import parse_responses
from gateway.protocol.responses.tools import MAX_TOOLS
from tests.cpu_time import cpu_seconds

ITEMS = 9900
USER = {"role": "user", "content": "a"}
CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}


def reasoning(size: int) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x" * size}]}


@pytest.mark.parametrize(
    "fields",
    [
        {"input": [{"role": "developer", "content": "x" * 750}] * ITEMS},
        {"input": [*[reasoning(700)] * ITEMS, CALL]},
        {"input": [reasoning(1400), CALL] * (ITEMS // 2)},
        {"input": [USER], "tools": [{"type": "function", "name": "." * 7_800_000}]},
    ],
    ids=["instructions", "reasoning", "reasoning of many calls", "a long name"],
)
def test_a_body_of_8_mb_is_read_in_linear_time(fields: dict[str, Any]) -> None:
    body = orjson.dumps({"model": "chat", **fields})
    assert 7_500_000 < len(body) < 8_000_000
    assert cpu_seconds(lambda: parse_responses(body)) < 0.5


def test_a_list_of_allowed_tools_takes_no_product_of_its_length_and_the_tools() -> None:
    tools = [
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": f"f{n}"} for n in range(MAX_TOOLS)]}
    ]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "namespace", "name": "n"}] * MAX_TOOLS}
    body = {"model": "chat", "input": "a", "tools": tools, "tool_choice": choice}
    request = parse_responses(orjson.dumps(body))
    assert len(request.chat().body["tools"]) == MAX_TOOLS
    assert cpu_seconds(request.chat) < 0.02
