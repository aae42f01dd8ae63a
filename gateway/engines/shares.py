"""Apportions the token counts of a list call to its members, since OpenAI's list routes report one sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.engines.base import TokenUsage

if TYPE_CHECKING:
    from collections.abc import Sequence


def shares(
    total: TokenUsage | None, max_tokens: int, read: Sequence[int], written: Sequence[int | None]
) -> list[TokenUsage | None]:
    """Return the estimated usage of each member. The estimates add up to the total.

    A member that was cut has exactly `max_tokens`. The rest is shared in proportion to size.

    Args:
        total: the engine's counts; None: not reported.
        max_tokens: the token limit of each member.
        read: the size of each prompt, in any unit.
        written: the size of each text, in any unit; None if it was cut at `max_tokens`.

    Returns:
        None for each member without a valid sum: no total, or a total below the tokens of the members that were cut.
        llama.cpp's /v1/completions reports such a total, of one member only.
    """
    cut = [size is None for size in written]
    rest = -1 if total is None else total.output_tokens - max_tokens * sum(cut)
    if total is None or rest < 0:
        return [None] * len(written)
    # Plus one for the token that ended the text, which also counts for an empty text.
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
    """Return integer shares of `total` by weight, each within one of its exact share. Equal without weights."""
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    portions, weight_sum, portion_sum = [], 0, 0
    for weight in weights:
        weight_sum += weight
        portions.append(total * weight_sum // whole - portion_sum)
        portion_sum += portions[-1]
    return portions
