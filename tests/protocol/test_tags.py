"""Tags of a request: from its header and its metadata, limited in number and length."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.chat import parse_chat
from gateway.protocol.embeddings import parse_embeddings
from gateway.protocol.responses.request import parse_responses
from gateway.protocol.tags import HEADER, MAX_TAGS, tags_of, tags_of_metadata
from gateway.protocol.text import parse_text_completion


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        ("a", ("a",)),
        ("team:search , nightly,  a/b@c=1+2-3.4_5", ("team:search", "nightly", "a/b@c=1+2-3.4_5")),
        ("b,a,b", ("b", "a")),
        ("", ()),
        (",".join(f"t{n}" for n in range(MAX_TAGS)), tuple(f"t{n}" for n in range(MAX_TAGS))),
        ("x" * 64, ("x" * 64,)),
    ],
)
def test_a_header_has_tags(value: str, tags: tuple[str, ...]) -> None:
    assert tags_of({HEADER: value}, ()) == tags


MANY = ",".join(f"t{n}" for n in range(MAX_TAGS + 1))


@pytest.mark.parametrize("value", ["a b", "x" * 65, "a;b", "a,,b", "a,", "ä", "a\x00", "a\n", MANY])
def test_an_invalid_header_is_rejected(value: str) -> None:
    with pytest.raises(InvalidRequest, match="'x-gkt-tags': expected at most 10 tags, separated by commas") as caught:
        tags_of({HEADER: value}, ("from-the-body",))
    assert caught.value.param == HEADER
    assert value not in caught.value.message


@pytest.mark.parametrize(
    ("metadata", "tags"),
    [
        ({"tags": ["a", " b ", "a"]}, ("a", "b")),
        ({"tags": "a, b"}, ("a", "b")),
        ({"tags": ["a", 1, None, "not a tag", "x" * 65, "b"]}, ("a", "b")),
        ({"tags": "prose, with words, b"}, ("prose", "b")),
        ({"tags": [f"t{n}" for n in range(50)]}, tuple(f"t{n}" for n in range(MAX_TAGS))),
        ({"tags": "x " * 500_000 + ",a"}, ()),
        ({"tags": {"a": "b"}}, ()),
        ({"team": "a"}, ()),
        ("a", ()),
        (None, ()),
    ],
)
def test_metadata_may_have_tags_and_other_text(metadata: object, tags: tuple[str, ...]) -> None:
    assert tags_of_metadata(metadata) == tags


def test_tags_of_the_header_come_first_and_both_together_are_limited() -> None:
    of_body = tuple(f"t{n}" for n in range(MAX_TAGS))
    assert tags_of({HEADER: "h,t3"}, of_body) == ("h", "t3", "t0", "t1", "t2", *of_body[4:9])
    assert tags_of({}, of_body) is of_body


def raw(**body: Any) -> bytes:
    return orjson.dumps({"model": "m", "metadata": {"tags": "a,b"}, **body})


@pytest.mark.parametrize(
    ("metadata", "sent"),
    [
        ({"tags": ["a", "b"], "other": "c"}, {"other": "c"}),
        ({"tags": ["a", "b"]}, None),
        ({"tags": [1, "not a tag"], "other": "c"}, {"other": "c"}),
        ({"tags": "a,b", "other": "c"}, {"tags": "a,b", "other": "c"}),
        ({"other": ["c"]}, {"other": ["c"]}),
        ({}, {}),
        ("text", "text"),
    ],
)
def test_engines_get_no_list_of_tags(metadata: object, sent: object) -> None:
    """OpenAI rejects a list in `metadata`; text is OpenAI's own metadata."""
    bodies = (
        parse_chat(raw(messages=[{"role": "user", "content": "Why?"}], metadata=metadata)).body,
        parse_text_completion(raw(prompt="Why", metadata=metadata)).body,
        parse_embeddings(raw(input="Why", metadata=metadata)).body,
    )
    assert [body.get("metadata") for body in bodies] == [sent] * 3
    assert all(("metadata" in body) is (sent is not None) for body in bodies)


def test_the_responses_api_takes_tags_as_text_only() -> None:
    with pytest.raises(InvalidRequest, match="'metadata"):
        parse_responses(raw(input="Why?", metadata={"tags": ["a"]}))


def test_each_api_with_metadata_has_tags() -> None:
    requests = (
        parse_chat(raw(messages=[{"role": "user", "content": "Why?"}])),
        parse_text_completion(raw(prompt="Why")),
        parse_embeddings(raw(input="Why")),
        parse_responses(raw(input="Why?")).chat(),
    )
    assert [request.tags for request in requests] == [("a", "b")] * 4
