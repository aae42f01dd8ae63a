"""Bodies of the Responses and Messages APIs that are nested as deep as the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.anthropic.request import parse_messages
from gateway.protocol.responses.request import parse_responses
from gateway.protocol.structure import MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.protocol.body import Json


def _responses(raw: bytes) -> Json:
    return parse_responses(raw).chat().body


def _messages(raw: bytes) -> Json:
    return parse_messages(raw).chat.body


_RESPONSE = b'{"model":"m","input":"a","tools":[{"type":"function","name":"f","parameters":%b}]}'
_MESSAGE = (
    b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"a"}],"tools":[{"name":"f","input_schema":%b}]}'
)


@pytest.mark.parametrize(("parse", "body"), [(_responses, _RESPONSE), (_messages, _MESSAGE)])
def test_a_tool_at_the_limit_of_depth_becomes_a_chat_that_can_be_encoded(
    parse: Callable[[bytes], Json], body: bytes
) -> None:
    """A tool has one level more in the chat. The body, its list of tools and the tool are three levels."""

    def nested(levels: int) -> bytes:
        return body % (b'{"a":' * levels + b"1" + b"}" * levels)

    deepest = MAX_DEPTH - 1 - 3
    assert orjson.dumps(parse(nested(deepest))).count(b'{"a":') == deepest
    with pytest.raises(InvalidRequest, match="nested more than 253 levels"):
        parse(nested(deepest + 1))
