from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.accounting.shares import EngineCall
from gateway.engines.base import TokenUsage
from gateway.pipeline.generation import MAX_TOKEN_BYTES, GenerationTracker
from gateway.pipeline.unread_tokens import MAX_TOKENS_PER_S, MIN_UNREAD_TOKENS

if TYPE_CHECKING:
    from gateway.local.stack import LocalStack

COUNTED = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def generation(
    limit: int | None = 5,
    *,
    choices: int = 1,
    stops_within_s: float | None = None,
    preface: str | None = "",
    call: EngineCall | None = None,
) -> GenerationTracker:
    return GenerationTracker(
        call or EngineCall("small", ()),
        limit=limit,
        choices=choices,
        generated_choices=choices,
        stops_within_s=stops_within_s,
        preface=preface,
        now=0.0,
    )


def says(text: str, finish: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}], **fields}


def read(one: GenerationTracker, *chunks: dict[str, Any]) -> str:
    """Return the remaining text of the first choice, and its finish_reason."""
    text, reason = "", None
    for chunk in chunks:
        one.read(chunk, 0.0)
        for choice in chunk["choices"]:
            if choice["index"] == 0 and reason is None:
                text += choice["delta"].get("content") or ""
                reason = choice["finish_reason"]
    return f"{text}|{reason}"


def answer(text: str, tokens: int | None, finish: str = "stop") -> dict[str, Any]:
    usage = None if tokens is None else {"prompt_tokens": 9, "completion_tokens": tokens}
    return {"choices": [{"message": {"content": text}, "finish_reason": finish}], "usage": usage}


def test_a_stream_above_its_limit_is_cut_at_a_word() -> None:
    """The call is then canceled. The tokens that the engine generates meanwhile have no bound."""
    call = EngineCall("small", ())
    one = generation(5, call=call)
    assert read(one, *(says(f" w{index}") for index in range(9))) == " w0 w1 w2 w3 w4 |length"
    assert one.stopped
    one.close(1.0)
    assert (call.unbounded, call.limit_tokens, call.ended) == (True, None, False)


@pytest.mark.parametrize(
    "pieces",
    [
        [*"To be or not to"],  # a proxy that sends single letters
        ["To be", " or", "", " n", "ot ", "to"],
        ["a\n  \n\n   \n", "b //\n//\n//", " c", "\n", "\n", "d e"],  # o200k_base holds "//\n//" in one token
        ["—" * 42, "-" * 400],
        ["x" * (5 * MAX_TOKEN_BYTES)],
    ],
)
def test_an_engine_within_its_limit_is_never_cut(pieces: list[str]) -> None:
    """However it splits its tokens into deltas."""
    one = generation(5)
    assert read(one, *map(says, pieces), says("", "length")) == "".join(pieces) + "|length"
    assert not one.stopped


def test_text_without_spaces_is_limited_by_the_longest_token() -> None:
    text = "界" * 200
    assert read(generation(2), says(text), says(text)) == "界" * (2 * MAX_TOKEN_BYTES // 3) + "|length"


def test_a_whole_answer_in_one_delta_is_cut_in_it() -> None:
    assert read(generation(3), says("one two three four five", "stop", usage=COUNTED)) == "one two three |length"


def test_an_engines_running_count_ends_a_stream() -> None:
    """One token above the limit is the end token."""
    counting = [says("ab", usage={"prompt_tokens": 9, "completion_tokens": count}) for count in (5, 6, 7, 8)]
    one = generation(5)
    assert read(one, *counting).startswith("abab")
    assert one.stopped


def test_each_choice_has_the_limit() -> None:
    """One choice that ends does not end the others, and the call continues for them."""
    one = generation(2, choices=2)
    assert read(one, says("a b"), says("c", index=1), says(" d e"), says(" f", index=1)) == "a b |length"
    assert not one.stopped
    one.read(says(" g", index=1), 0.0)
    assert one.stopped


def test_repeated_text_is_not_counted() -> None:
    assert read(generation(2, preface="It is"), says("It is one two"), says("", "stop")) == "It is one two|stop"
    long = "much that is repeated, of a length that nobody knows"
    assert read(generation(2, preface=None), says(long), says("", "stop")) == long + "|stop"


def test_hidden_reasoning_is_not_counted_against_the_text() -> None:
    counted = {"prompt_tokens": 9, "completion_tokens": 90, "completion_tokens_details": {"reasoning_tokens": 86}}
    reply = answer("a b c d", None)
    reply["usage"] = counted
    generation(5).read_reply(reply)
    assert reply["choices"][0]["message"]["content"] == "a b c d"


def test_a_whole_reply_is_cut_by_the_engines_own_count() -> None:
    """All tokens of the reply are assumed to be equally long. Its reported usage is charged."""
    call = EngineCall("small", ())
    reply = answer("ab" * 100, 100)
    generation(20, call=call).read_reply(reply)
    assert reply["choices"][0] == {"message": {"content": "ab" * 20}, "finish_reason": "length"}
    assert call.usage == TokenUsage(9, 100)


def test_a_whole_reply_without_a_count_is_cut_by_its_words() -> None:
    reply = answer("one two three four", None)
    generation(3).read_reply(reply)
    assert reply["choices"][0] == {"message": {"content": "one two three "}, "finish_reason": "length"}


@pytest.mark.parametrize("tokens", [3, 5, 6, None])
def test_a_whole_reply_within_the_limit_is_left_alone(tokens: int | None) -> None:
    reply = answer("one two, three", tokens)
    generation(5).read_reply(reply)
    assert reply == answer("one two, three", tokens)


def test_the_usage_after_the_last_choice_is_final() -> None:
    call = EngineCall("small", ())
    one = generation(5, call=call)
    read(one, says("Hi", "stop"), {"choices": [], "usage": COUNTED})
    one.close(9.0)
    assert (call.usage, call.lost_tokens, call.unbounded) == (TokenUsage(9, 4), 0, False)


def test_a_usage_event_is_final_where_the_stream_breaks_off_after_it() -> None:
    """A proxy may drop the finish_reason and the end of the stream."""
    call = EngineCall("small", ())
    one = generation(500, call=call)
    read(one, says("Hi"), says(" there"), {"choices": [], "usage": COUNTED})
    one.close(9.0)
    assert (call.usage, call.lost_tokens, call.unbounded) == (TokenUsage(9, 4), 0, False)


@pytest.mark.parametrize("later", [None, "text", "an end"])
def test_a_usage_event_before_the_text_is_not_final(later: str | None) -> None:
    """An engine may count the prompt first, and the answer while it generates."""
    call = EngineCall("small", ())
    one = generation(500, choices=2, stops_within_s=0.0, call=call)
    event = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3 if later else 0}}
    chunks = {None: [], "text": [says("Hi")], "an end": [says("Hi", "stop")]}[later]
    read(one, event, *chunks)
    one.close(0.0)
    assert (call.usage, call.lost_tokens) == (None, 2 * MIN_UNREAD_TOKENS)


def test_a_usage_event_is_not_final_where_the_engine_passed_its_limit() -> None:
    """The engine generates until the call is canceled."""
    call = EngineCall("small", ())
    one = generation(1, call=call)
    read(one, says("one two"), {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}})
    one.close(0.0)
    assert (call.usage, call.unbounded) == (None, True)


@pytest.mark.parametrize("later", [None, {}, {"prompt_tokens": "9"}])
def test_the_last_usable_usage_counts(later: Any) -> None:
    """An unreadable usage does not replace a readable one."""
    call = EngineCall("small", ())
    one = generation(call=call)
    for usage in ({"prompt_tokens": 9, "completion_tokens": 1}, COUNTED, later):
        one.read({"choices": [], "usage": usage}, 0.0)
    one.finish()
    one.close(0.0)
    assert call.usage == TokenUsage(9, 4)


def test_a_canceled_call_of_an_engine_not_known_to_stop_is_bounded_by_its_limit() -> None:
    call = EngineCall("small", ())
    one = generation(500, call=call)
    read(one, says("Hi"), says(" there"))
    one.close(0.1)
    assert (call.lost_tokens, call.limit_tokens, call.unbounded) == (500, 500, False)
    unlimited = EngineCall("small", ())
    generation(None, call=unlimited).close(0.1)
    assert (unlimited.lost_tokens, unlimited.unbounded) == (0, True)


@pytest.mark.parametrize("limit", [500_000, None])
def test_a_canceled_call_of_an_engine_that_stops_is_bounded_by_time(limit: int | None) -> None:
    """The time counts from the last chunk that was read until the engine stops."""
    call = EngineCall("small", ())
    one = generation(limit, stops_within_s=1.0, call=call)
    one.read(says("Hi"), 10.0)
    one.close(12.0)
    assert (call.lost_tokens, call.unbounded) == (3 * MAX_TOKENS_PER_S, False)
    quick = EngineCall("small", ())
    generation(limit, choices=2, stops_within_s=0.0, call=quick).close(0.0)
    assert quick.lost_tokens == 2 * MIN_UNREAD_TOKENS


def streamed(call: EngineCall, *, tokens: int, tokens_per_s: float) -> GenerationTracker:
    """Return the tracker of a stream after `tokens` words, the first of them at 0.0 s."""
    one = generation(5000, stops_within_s=1.0, call=call)
    for number in range(tokens):
        one.read(says(" word"), number / tokens_per_s)
    return one


def test_the_measured_speed_bounds_a_canceled_stream() -> None:
    """The engine generates 50 tokens in the second in which it stops, and is charged at most three times as many."""
    call = EngineCall("small", ())
    streamed(call, tokens=50, tokens_per_s=50).close(1.0)
    assert 50 <= call.lost_tokens <= 150


def test_a_stream_that_is_too_short_to_measure_is_bounded_by_the_largest_speed() -> None:
    call = EngineCall("small", ())
    streamed(call, tokens=10, tokens_per_s=50).close(0.18)
    assert call.lost_tokens == MAX_TOKENS_PER_S


def test_text_that_waits_for_a_slow_caller_is_bounded_by_time_until_a_read_waits_for_the_engine() -> None:
    """The engine generates 50 tokens per second meanwhile, which lie in buffers."""
    slow, caught_up = EngineCall("small", ()), EngineCall("small", ())
    one = streamed(slow, tokens=50, tokens_per_s=50)
    one.hold(0.98, 30.98)
    one.read(says(" word" * 80), 30.981)
    one.close(30.981)
    assert slow.lost_tokens >= 31 * 50
    one = streamed(caught_up, tokens=50, tokens_per_s=50)
    one.hold(0.98, 30.98)
    one.read(says(" word"), 31.0)
    one.close(31.0)
    assert caught_up.lost_tokens <= 150


@pytest.mark.parametrize("role_s", [None, 0.0], ids=["a stall after the first token", "a role long before the text"])
def test_a_stream_whose_first_tokens_are_slow_has_no_measured_speed(role_s: float | None) -> None:
    """The engine then generates 100 tokens per second, and 100 more in the second in which it stops."""
    call = EngineCall("small", ())
    one = generation(5000, stops_within_s=1.0, call=call)
    one.read(says(" word") if role_s is None else says(""), 0.0)
    for number in range(20):
        one.read(says(" word"), 1.0 + number / 100)
    one.close(1.2)
    assert call.lost_tokens >= MAX_TOKENS_PER_S


@pytest.mark.parametrize("quick_tokens", [5, 100])
def test_a_stream_that_becomes_faster_is_bounded_by_its_fastest_part(quick_tokens: int) -> None:
    """Its last tokens count, although the caller leaves within the quarter of a second that measures them."""
    call = EngineCall("small", ())
    one = streamed(call, tokens=50, tokens_per_s=50)
    for number in range(quick_tokens):
        one.read(says(" word"), 1.0 + number / 500)
    one.close(1.0 + quick_tokens / 500)
    assert (call.lost_tokens >= 500) == (quick_tokens == 100)


def test_a_chunk_of_several_tokens_is_bounded_by_its_bytes() -> None:
    """Ten tokens of Chinese text have 15 characters. The engine generates 100 tokens per second."""
    call = EngineCall("small", ())
    one = generation(5000, stops_within_s=1.0, call=call)
    for number in range(20):
        one.read(says("天地玄黃宇宙洪荒日月盈昃辰宿列"), number / 10)
    one.close(2.0)
    assert 110 <= call.lost_tokens <= MAX_TOKENS_PER_S


@settings(max_examples=300)
@given(
    st.sampled_from([(" word", 1), ("字", 1), ("天地玄黃宇宙洪荒日月盈昃辰宿列", 10)]),
    st.floats(1, 500),
    st.floats(0, 3),
    st.dictionaries(st.integers(1, 60), st.floats(0, 3), max_size=3),
    st.lists(st.floats(0.5, 1), max_size=8),
    st.integers(0, 400),
    st.lists(st.floats(0, 3), max_size=12),
    st.floats(0, 0.5),
    st.sampled_from([0.1, 1.0, 4.0]),
)
def test_no_disconnect_gets_more_tokens_than_are_charged(
    text: tuple[str, int],
    tokens_per_s: float,
    prefill_s: float,
    pauses_s: dict[int, float],
    slower: list[float],
    last_piece: int,
    holds_s: list[float],
    rest_s: float,
    stops_within_s: float,
) -> None:
    """The engine pauses three times, or once while its speed changes, and ends at its full speed.

    The caller leaves at any time from the first chunk on. It reads at any speed after the first two seconds of text.
    """
    piece, piece_tokens = text
    speeds = slower if len(pauses_s) <= 1 else []
    call = EngineCall("small", ())
    one = generation(100_000, stops_within_s=stops_within_s, call=call)
    one.read(says(""), 0.0)
    generated_s = [prefill_s]  # time of each piece
    while generated_s[-1] < 60 or len(generated_s) < 600:
        number = len(generated_s)
        slow = speeds[number * len(speeds) // last_piece] if speeds and number < last_piece else 1.0
        pause_s = pauses_s.get(number, 0.0) if number < last_piece else 0.0
        generated_s.append(generated_s[-1] + piece_tokens / (tokens_per_s * slow) + pause_s)
    now, pieces = 0.0, 0

    def read_some() -> None:
        nonlocal now, pieces
        now = max(now, generated_s[pieces])  # wait for the next piece
        count = min(80, bisect_right(generated_s, now) - pieces)  # a read has a largest size
        one.read_text(0, piece * count, now, count)
        pieces += count

    while pieces < last_piece and now < prefill_s + 2:
        read_some()
    for hold_s in holds_s if pieces < last_piece else []:
        one.hold(now, now + hold_s)
        now += hold_s
        read_some()
    now += rest_s
    one.close(now)
    generated = bisect_right(generated_s, now + stops_within_s)
    assert generated < len(generated_s), "the schedule is long enough"
    assert pieces * piece_tokens + call.lost_tokens >= generated * piece_tokens


def test_a_running_count_is_the_base_of_the_bound() -> None:
    """A running count is not exact, and at most the limit. With several choices it may count one of them."""
    counting = says("Hi", usage={"prompt_tokens": 9, "completion_tokens": 2})
    call = EngineCall("small", ())
    one = generation(100, stops_within_s=0.0, call=call)
    one.read(counting, 0.0)
    one.close(0.0)
    assert (call.usage, call.lost_tokens) == (TokenUsage(9, 2 + MIN_UNREAD_TOKENS, estimated=True), 0)
    other = EngineCall("small", ())
    one = generation(100, call=other)
    one.read(counting, 0.0)
    one.close(0.0)
    assert other.usage == TokenUsage(9, 100, estimated=True)
    several = EngineCall("small", ())
    one = generation(100, choices=2, call=several)
    one.read(counting, 0.0)
    one.close(0.0)
    assert (several.usage, several.lost_tokens) == (None, 200)


@pytest.mark.long
@pytest.mark.parametrize("limit", [1, 12, 60])
@pytest.mark.parametrize("prompt", ["Write Python code, with many comments.", "写一首诗。", "Draw a table of - and |."])
async def test_a_real_engine_within_its_limit_is_never_cut(engines: LocalStack, prompt: str, limit: int) -> None:
    """llama.cpp at a high temperature generates all kinds of tokens. The bounds never exceed its own count."""
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": limit, "stream": True, "temperature": 1.5,
            "stream_options": {"include_usage": True}, "ignore_eos": True, "model": "x"}  # fmt: skip
    call = EngineCall("small", ())
    one = generation(limit, stops_within_s=1.0, call=call)
    sent = ""
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", f"{engines.student.url}/v1/chat/completions", json=body) as answer,
    ):
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = orjson.loads(line[6:])
            text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            one.read(chunk, 0.0)
            assert text == "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            sent += text
    assert not one.stopped
    one.close(0.0)
    assert call.text.getvalue() == sent
    assert call.usage is not None
    assert call.seen_tokens <= call.usage.output_tokens <= limit
    assert call.lost_tokens == 0


@pytest.mark.parametrize("size", [1, 3, 50])
def test_text_is_cut_at_the_same_place_however_it_arrives(size: int) -> None:
    """Tokens are counted only where the text could exceed the limit."""
    text = "To be,  or not\nto be: that is   the question. " * 3
    whole = read(generation(17), says(text))
    assert whole.endswith("|length")
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert read(generation(17), *map(says, pieces)) == whole


@pytest.mark.parametrize(("text", "expected_tokens"), [("word " * 100, 800), ("Yes", 8), ("界" * 6000, 8 * 141)])
@pytest.mark.parametrize("choices", [8])
def test_the_count_of_one_choice_is_not_used_for_all(text: str, expected_tokens: int, choices: int) -> None:
    """llama.cpp merges the choices of a reply and keeps the usage of the first."""
    call = EngineCall("small", ())
    one = generation(5000, choices=choices, call=call)
    replies = [answer(text, 5)["choices"][0] | {"index": index} for index in range(choices)]
    one.read_reply({"choices": replies, "usage": {"prompt_tokens": 9, "completion_tokens": 5}})
    one.close(1.0)
    assert call.min_output_tokens == expected_tokens


@pytest.mark.parametrize("tokens", [800, 799])
def test_a_streams_count_is_compared_with_the_words_of_all_choices(tokens: int) -> None:
    """Letters of different choices arrive in turn; repeated text is not counted."""
    call = EngineCall("small", ())
    one = generation(None, choices=8, preface="It is", call=call)
    for letter in "It is":
        one.read(says(letter), 0.1)
    for letter in " word" * 100:
        for index in range(8):
            one.read(says(letter, index=index), 0.1)
    for index in range(8):
        one.read(says("", "stop", index), 0.1)
    one.read({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens}}, 0.1)
    one.finish()
    one.close(1.0)
    assert call.min_output_tokens == 800
    assert call.usage == TokenUsage(9, tokens)


@pytest.mark.parametrize("choices", [1, 2])
def test_several_usage_events_of_several_choices_are_ignored(choices: int) -> None:
    """llama.cpp ends each choice with a usage event. An event before the output counts the prompt alone."""
    call = EngineCall("small", ())
    one = generation(9, choices=choices, call=call)
    one.read({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}, 0.1)
    for index in range(choices):
        one.read(says("a b", "stop", index), 0.1)
        one.read({"choices": [], "usage": COUNTED}, 0.1)
    one.finish()
    one.close(1.0)
    assert call.usage == (TokenUsage(9, 4) if choices == 1 else None)
