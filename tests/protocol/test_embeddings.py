from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.embeddings import parse_embeddings

LEAST: dict[str, Any] = {"model": "m", "input": "Why?"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 5}, "model"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", [1]]}, "input[1]"),
        ({"input": [[1], [-1]]}, "input[1][0]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 2.5}, "dimensions"),
        ({"dimensions": "256"}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"encoding_format": 5}, "encoding_format"),
        ({"user": 5}, "user"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    """In the error's `param` and message."""
    with pytest.raises(InvalidRequest) as caught:
        parse_embeddings(orjson.dumps({**LEAST, **fields}))
    assert caught.value.param == param
    assert caught.value.message.startswith(f"'{param}'")


@pytest.mark.parametrize("missing", ["model", "input"])
def test_a_missing_field_is_named(missing: str) -> None:
    """Both fields are required."""
    with pytest.raises(InvalidRequest, match=f"^'{missing}' is required.$"):
        parse_embeddings(orjson.dumps({key: value for key, value in LEAST.items() if key != missing}))


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("Why?", ["Why?"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a"] * 2048, ["a"] * 2048),
        (list(range(8192)), [list(range(8192))]),
    ],
)
def test_there_is_a_vector_for_each_input(given: Any, inputs: list[Any]) -> None:
    """A list of token ids is one input, however long. At most 2048 inputs are allowed."""
    raw = orjson.dumps({**LEAST, "input": given, "encoding_format": "base64", "dimensions": 256, "unknown": [1.5]})
    request = parse_embeddings(raw)
    assert request.inputs == inputs
    assert orjson.dumps(request.body) == raw
    assert (request.model, request.size_bytes) == ("m", len(raw))
