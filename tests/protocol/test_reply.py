from __future__ import annotations

from gateway.protocol.reply import ReplyHead, usage_body


def test_usage_is_in_openais_words() -> None:
    """Cached tokens are told when there are some."""
    assert usage_body(9, 4) == {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    assert usage_body(9, 4, 5) == {**usage_body(9, 4), "prompt_tokens_details": {"cached_tokens": 5}}


def test_every_reply_shares_its_head() -> None:
    """One id, one time, one model, whether in one piece or in many."""
    head = ReplyHead("chatcmpl-1", 1_700_000_000, "m")
    shared = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": "m"}
    assert head.completion([{}], {"a": 1}) == {
        **shared,
        "object": "chat.completion",
        "choices": [{}],
        "usage": {"a": 1},
    }
    assert head.chunk([]) == {**shared, "object": "chat.completion.chunk", "choices": []}
    assert head.chunk([], with_usage=True) == {**head.chunk([]), "usage": None}
    assert head.chunk([], with_usage=True, usage={"a": 1}) == {**head.chunk([]), "usage": {"a": 1}}
