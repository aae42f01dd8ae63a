from __future__ import annotations

from gateway.protocol.reply import ReplyHead, TextReplyHead, usage_body


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
    logprobs = {"content": [], "refusal": None}
    choice = {"index": 1, "message": {"content": "Hi", "refusal": "No"}, "logprobs": logprobs}
    first, second = head.completion([bare, choice], {})["choices"]
    assert (first["message"]["content"], first["message"]["refusal"], first["logprobs"]) == (None, None, None)
    assert second == choice


def test_logprobs_of_a_chat_have_both_of_openais_fields() -> None:
    """Engines send `content` alone. Text completions have other fields."""
    entries = [{"token": "Hi", "logprob": -1.0, "bytes": None, "top_logprobs": []}]
    head, texts = ReplyHead("chatcmpl-1", 1, "m"), TextReplyHead("cmpl-1", 1, "m")
    choice = {"index": 0, "message": {"content": "Hi"}, "logprobs": {"content": entries}}
    [whole] = head.completion([choice], {})["choices"]
    assert whole["logprobs"] == {"content": entries, "refusal": None}
    [part] = head.chunk([{"index": 0, "delta": {"content": "Hi"}, "logprobs": {"content": entries}}])["choices"]
    assert part["logprobs"] == {"content": entries, "refusal": None}
    refused = {"content": None, "refusal": entries}
    [kept] = head.completion([{**choice, "logprobs": refused}], {})["choices"]
    assert kept["logprobs"] == refused
    [text] = texts.completion([{**choice, "logprobs": {"tokens": ["Hi"]}}], {})["choices"]
    assert text["logprobs"] == {"tokens": ["Hi"]}
