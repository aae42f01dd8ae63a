"""A list call's token counts, shared out among its members. OpenAI's list routes report one sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.engines.base import TokenUsage

if TYPE_CHECKING:
    from collections.abc import Sequence


def shares(
    total: TokenUsage | None, max_tokens: int, read: Sequence[int], written: Sequence[int | None]
) -> list[TokenUsage | None]:
    """One usage for each member; together they are the total, and each is marked as an estimate.

    A member that was cut wrote `max_tokens`, exactly. The rest is shared in proportion to size.

    Args:
        total: what the engine counted; None when it did not.
        max_tokens: what each member was allowed to write.
        read: each prompt's size, in any unit.
        written: the size of each text, in any unit; None for one that was cut at `max_tokens`.

    Returns:
        None for all when there is no sum: no total, or one below what the members that were cut have written. Such a
        total counts one member only (llama.cpp's /v1/completions does that).
    """
    cut = [size is None for size in written]
    rest = -1 if total is None else total.output_tokens - max_tokens * sum(cut)
    if total is None or rest < 0:
        return [None] * len(written)
    # One more than its text: the token that ended it counts too, also where it wrote nothing.
    output = apportion(rest, [0 if size is None else size + 1 for size in written])
    parts = (total.input_tokens, total.cached_input_tokens, total.cache_write_input_tokens)
    inputs = zip(*(apportion(tokens, read) for tokens in parts), strict=True)
    return [
        TokenUsage(
            tokens_read,
            max_tokens * was_cut + tokens_written,
            min(cached, tokens_read - min(stored, tokens_read)),
            estimated=True,
            cache_write_input_tokens=min(stored, tokens_read),
        )
        for (tokens_read, cached, stored), was_cut, tokens_written in zip(inputs, cut, output, strict=True)
    ]


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in whole shares that add up to it, each within one of its exact share; equal ones without weights."""
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    portions, seen, given = [], 0, 0
    for weight in weights:
        seen += weight
        portions.append(total * seen // whole - given)
        given += portions[-1]
    return portions
