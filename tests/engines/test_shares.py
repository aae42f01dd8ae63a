"""The division of a list's token counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.engines.base import TokenUsage
from gateway.engines.list_wires import apportion, shares

COUNTS = st.integers(0, 10_000)


@given(COUNTS, st.lists(COUNTS, min_size=1, max_size=20))
def test_portions_add_up_and_are_fair(total: int, weights: list[int]) -> None:
    """To the last token, and each within one of what is exact."""
    portions = apportion(total, weights)
    assert sum(portions) == total
    assert min(portions) >= 0
    whole = sum(weights)
    exact = [total * weight / whole if whole else total / len(weights) for weight in weights]
    assert all(abs(portion - share) < 1.000001 for portion, share in zip(portions, exact, strict=True))


@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.integers(1, 5000), st.none() | st.integers(0, 500)), min_size=2, max_size=20),
    st.data(),
)
def test_shares_add_up_and_truncated_members_have_their_limit(
    max_tokens: int, members: list[tuple[int, int | None]], data: st.DataObject
) -> None:
    """The sum equals the engine's count, and every share is marked as an estimate."""
    read, written = [one for one, _ in members], [one for _, one in members]
    cut = written.count(None)
    rest = 0 if cut == len(members) else data.draw(st.integers(0, max_tokens * (len(members) - cut)))
    total = TokenUsage(data.draw(st.integers(len(members), 50_000)), max_tokens * cut + rest)
    found = [usage for usage in shares(total, max_tokens, read, written) if usage is not None]
    assert len(found) == len(members)
    assert sum(usage.input_tokens for usage in found) == total.input_tokens
    assert sum(usage.output_tokens for usage in found) == total.output_tokens
    assert all(usage.output_tokens == max_tokens for usage, size in zip(found, written, strict=True) if size is None)
    assert all(usage.estimated for usage in found)


def test_a_member_that_wrote_nothing_has_still_ended() -> None:
    """The end token was counted. Truncated members have none."""
    assert shares(TokenUsage(20, 6), 4, [10, 10], [None, 0]) == [
        TokenUsage(10, 4, estimated=True),
        TokenUsage(10, 2, estimated=True),
    ]


def test_cached_tokens_are_divided_like_prompt_tokens() -> None:
    found = shares(TokenUsage(100, 8, 50), 4, [300, 100], [None, None])
    assert found == [TokenUsage(75, 4, 37, estimated=True), TokenUsage(25, 4, 13, estimated=True)]


def test_cache_writes_are_divided_like_prompt_tokens() -> None:
    found = shares(TokenUsage(101, 8, 50, cache_write_input_tokens=51), 4, [300, 100], [None, None])
    parts = [(one.input_tokens, one.cached_input_tokens, one.cache_write_input_tokens) for one in found if one]
    assert parts == [(75, 37, 38), (26, 13, 13)]


def test_a_count_of_one_member_is_not_taken_for_the_lists() -> None:
    """llama.cpp's /v1/completions reports the first only: 12 tokens, where three were cut at 12."""
    assert shares(TokenUsage(36, 12), 12, [10, 10, 10], [None, None, None]) == [None, None, None]


def test_without_a_count_there_is_none_to_share() -> None:
    assert shares(None, 12, [10, 10], [None, 5]) == [None, None]
