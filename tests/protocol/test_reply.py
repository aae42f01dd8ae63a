from __future__ import annotations

from gateway.protocol.reply import ReplyHead, usage_body


def test_usage_has_openais_names() -> None:
    """Cached and stored tokens are present only if there are any."""
    assert usage_body(9, 4) == {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    assert usage_body(9, 4, 5) == {**usage_body(9, 4), "prompt_tokens_details": {"cached_tokens": 5}}
    details = {"cached_tokens": 0, "cache_write_tokens": 3}
    assert usage_body(9, 4, 0, 3) == {**usage_body(9, 4), "prompt_tokens_details": details}


def test_every_reply_shares_its_head() -> None:
    """JSON replies and streams have the same id, time and model."""
    head = ReplyHead("chatcmpl-1", 1_700_000_000, "m")
    shared = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": "m"}
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi", "refusal": None}, "logprobs": None}
    assert head.completion([choice], {"a": 1}) == {
        **shared,
        "object": "chat.completion",
        "choices": [choice],
        "usage": {"a": 1},
    }
    assert head.chunk([]) == {**shared, "object": "chat.completion.chunk", "choices": []}
    assert head.chunk([], with_usage=True) == {**head.chunk([]), "usage": None}
    assert head.chunk([], with_usage=True, usage={"a": 1}) == {**head.chunk([]), "usage": {"a": 1}}


def test_a_message_has_all_of_openais_fields() -> None:
    """Missing fields become null; others are kept."""
    head = ReplyHead("chatcmpl-1", 1, "m")
    bare = {"index": 0, "message": {"role": "assistant", "tool_calls": []}, "finish_reason": "tool_calls"}
    choice = {"index": 1, "message": {"content": "Hi", "refusal": "No"}, "logprobs": {"content": []}}
    first, second = head.completion([bare, choice], {})["choices"]
    assert (first["message"]["content"], first["message"]["refusal"], first["logprobs"]) == (None, None, None)
    assert second == choice
