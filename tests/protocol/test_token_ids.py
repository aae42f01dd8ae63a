from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.embeddings import parse_embeddings
from gateway.protocol.structure import MAX_VALUES
from gateway.protocol.text import parse_text_completion
from gateway.protocol.texts import MAX_IDS, take_token_ids

IDS = [128_000 + index for index in range(2 * MAX_VALUES)]
LISTS = [IDS[at : at + 8191] for at in range(0, len(IDS), 8191)]


def body(ids: Any, **fields: Any) -> bytes:
    return orjson.dumps({"model": "m", "prompt": ids, **fields})


def test_token_ids_do_not_count_as_values() -> None:
    """Up to the limit, in one list or several."""
    request = parse_text_completion(body(IDS, seed=1))
    assert (request.body["prompt"], request.prompt, request.choices) == (IDS, None, 1)
    assert parse_text_completion(body(LISTS)).body["prompt"] == LISTS
    assert parse_text_completion(body([IDS])).body["prompt"] == [IDS]
    vectors = parse_embeddings(orjson.dumps({"input": LISTS, "model": "m"}))
    assert vectors.inputs == LISTS


def test_whitespace_between_token_ids_is_ignored() -> None:
    raw = body(LISTS).replace(b",", b" ,\n").replace(b"[", b" [ ").replace(b"]", b" ] ")
    assert parse_text_completion(raw).body["prompt"] == LISTS


def test_the_last_of_repeated_fields_counts() -> None:
    raw = b'{"prompt": "first", ' + body(IDS)[1:]
    assert parse_text_completion(raw).body["prompt"] == IDS
    assert parse_text_completion(body(IDS)[:-1] + b', "seed": 7}').body["seed"] == 7


@pytest.mark.parametrize("wrong", [-1, 2**31, 1.5, None, True, [1], []])
def test_a_long_list_of_other_values_is_rejected(wrong: Any) -> None:
    """The error names the field."""
    for ids in ([*IDS, wrong], [wrong, *IDS], [[*IDS, wrong]]):
        with pytest.raises(InvalidRequest) as caught:
            parse_text_completion(body(ids))
        assert (caught.value.param or "").startswith("prompt")


def test_other_values_are_counted() -> None:
    with pytest.raises(InvalidRequest, match=f"more than {MAX_VALUES} JSON values"):
        parse_text_completion(body(IDS, other=[[]] * MAX_VALUES))


@pytest.mark.parametrize("end", [b",]", b",,1]", b"", b"]]", b"1"])
def test_broken_lists_are_rejected(end: bytes) -> None:
    for ids in (IDS, LISTS):
        raw = body(ids)[:-2] + end + b"}"
        with pytest.raises(InvalidRequest):
            parse_text_completion(raw)


def test_a_body_without_token_ids_is_unchanged() -> None:
    assert take_token_ids(b'{"x": [1]}') is None
    assert take_token_ids(body("Why?")) is None
    assert take_token_ids(body(["Why?"])) is None


def test_a_million_token_ids_are_accepted() -> None:
    assert parse_text_completion(body([1] * MAX_IDS)).body["prompt"] == [1] * MAX_IDS
    for ids in ([1] * (MAX_IDS + 1), [[1] * (MAX_IDS // 2)] * 3):
        with pytest.raises(InvalidRequest, match=f"more than {MAX_IDS} token ids") as caught:
            parse_text_completion(body(ids))
        assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model": "m", "x": %b, "prompt": [0]}' % body(IDS),
        b'{"model": "m", "x": %b, "\\u0070rompt": [0]}' % body(IDS),
        body(IDS)[:-1] + b', "prompt": [0]}',
    ],
)
def test_a_list_of_another_object_is_not_removed(raw: bytes) -> None:
    """The list belongs to another object, or the field is repeated later."""
    with pytest.raises(InvalidRequest, match=f"more than {MAX_VALUES} JSON values"):
        parse_text_completion(raw)


def test_the_name_of_the_field_may_be_text_elsewhere() -> None:
    raw = b'{"user": "prompt", "metadata": {"prompt": [1]}, ' + body(IDS)[1:]
    assert parse_text_completion(raw).body["prompt"] == IDS
