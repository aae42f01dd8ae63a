"""Types of input items that are no strings."""

from __future__ import annotations

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.responses.request import parse_responses


@pytest.mark.parametrize("kind", [[], {}, 1, True])
def test_a_type_that_is_no_string_is_rejected_with_its_path(kind: object) -> None:
    items = [{"role": "user", "content": "x"}, {"type": kind, "role": "user", "id": "msg_1"}]
    with pytest.raises(InvalidRequest, match="must be a string") as error:
        parse_responses(orjson.dumps({"model": "chat", "input": items}))
    assert error.value.param == "input[1].type"
