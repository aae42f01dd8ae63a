from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.content_run import ContentRun, each_chunk, template_of

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


def chunk(content: Any, /, delta: Any = None, choice: Any = None, **fields: Any) -> dict[str, Any]:
    one = {"index": 0, "delta": {"content": content, **(delta or {})}, "logprobs": None, "finish_reason": None}
    return {"id": "theirs", "choices": [{**one, **(choice or {})}], **fields}


@given(TEXTS, TEXTS, st.booleans(), st.sampled_from(["content", 'a "content": "x"', "theirs", ""]))
def test_a_chunk_that_differs_in_its_content_matches(first: str, second: str, spaces: bool, model: str) -> None:
    """The model's name may equal the content, and JSON may have spaces and escapes."""

    def encoded(content: str) -> bytes:
        value = chunk(content, {"role": "assistant", "refusal": None}, model=model)
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 if spaces else None)

    template = template_of(encoded(first), orjson.loads(encoded(first)))
    if model == "content":
        assert template is None  # the key's bytes occur twice
        return
    assert template is not None
    assert template.content_of(encoded(second)) == second
    assert template.with_content(second) == orjson.loads(encoded(second))
    run = ContentRun(template, [first, second])
    assert list(each_chunk([run, {"choices": []}])) == [*run.chunks(), {"choices": []}]
    assert list(run.chunks()) == [orjson.loads(encoded(text)) for text in (first, second)]


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_a_run_is_encoded_as_its_chunks_are(contents: list[str]) -> None:
    """Byte for byte."""
    template = template_of(orjson.dumps(chunk("a")), chunk("a"))
    assert template is not None
    run = ContentRun(template, contents)
    assert run.events() == b"".join(b"data: " + orjson.dumps(chunk(content)) + b"\n\n" for content in contents)


@pytest.mark.parametrize(
    "one",
    [
        chunk(None),
        chunk([{"type": "text", "text": "a"}]),
        chunk("a", {"reasoning_content": "b"}),
        chunk("a", {"tool_calls": [{"index": 0}]}),
        chunk("a", choice={"finish_reason": "stop"}),
        chunk("a", choice={"logprobs": {"content": []}}),
        chunk("a", choice={"delta": None}),
        chunk("a", usage={"prompt_tokens": 1}),
        {"choices": []},
        {"choices": chunk("a")["choices"] * 2},
        {**chunk("a"), "note": {"content": "b"}},
        chunk("a" * 5000),
    ],
)
def test_a_chunk_with_more_than_text_is_no_template(one: dict[str, Any]) -> None:
    """Each such chunk is decoded."""
    assert template_of(orjson.dumps(one), one) is None


@pytest.mark.parametrize(
    "raw",
    [
        b'{"content":"a","choices":[{"delta":{"c\\u006fntent":"a"}}]}',
        b'{"choices":[{"delta":{"content":"a","c\\u006fntent":"a"}}]}',
        b'{"choices":[{"delta":{"c\\u006fntent":"a"},"note":"\\"content\\":\\"a\\""}]}',
    ],
)
def test_a_key_elsewhere_is_not_taken_for_that_of_the_delta(raw: bytes) -> None:
    """JSON may write a key with escapes, or twice."""
    assert template_of(raw, orjson.loads(raw)) is None


@pytest.mark.parametrize(
    "content",
    [
        b"3",
        b"null",
        b'["a"]',
        b'"a',
        b'a"',
        b'"a","role":"x"',
        b'"a"}],"x":[{"y":"b"',
        b'"\xff"',
        b'"\\ud800"',
        b'"\n"',
        b"",
    ],
)
def test_other_bytes_than_a_text_do_not_match(content: bytes) -> None:
    """Such an event is decoded as a whole, which names what is wrong with it."""
    raw = orjson.dumps(chunk("a"))
    template = template_of(raw, chunk("a"))
    assert template is not None
    assert template.content_of(raw.replace(b'"a"', b'"b"')) == "b"
    assert template.content_of(raw.replace(b'"a"', content)) is None
    assert template.content_of(template.before[: -len(template.after)] + template.after) is None


def test_a_template_does_not_share_a_chunk_that_others_change() -> None:
    """Filters change the first chunk in place."""
    one = chunk("a")
    template = template_of(orjson.dumps(one), one)
    one["choices"][0]["finish_reason"] = "length"
    assert template is not None
    assert template.with_content("b") == chunk("b")
