"""Bounds on the difference between the token counts of different tokenizers. Pure.

The ratios are measured: `load_tests/token_counts.py` prints how far tokenizers differ on real text, and how often a
difference exceeds the bound. docs/design/accounting.md shows the results.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

_LATIN_BYTES_PER_CHAR = 1.2
_RATIO = {"ascii": 0.6, "latin": 0.8, "other": 7.0}
_FIXED_TOKENS = 4  # short texts differ by more
_RECOUNT_RATIO = 0.02
_RECOUNT_FIXED_TOKENS = 2
_TEMPLATE_FIXED_TOKENS = 32


class TextSize(NamedTuple):
    """The length of a text in characters and UTF-8 bytes. Their ratio indicates the script."""

    chars: int
    size_bytes: int

    @classmethod
    def of(cls, texts: Iterable[str]) -> TextSize:
        """Return the size of all texts together."""
        chars = size_bytes = 0
        for text in texts:
            chars += len(text)
            size_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        return cls(chars, size_bytes)

    @property
    def script(self) -> str:
        """Return "ascii", "latin" (with some non-ASCII letters) or "other"."""
        if self.size_bytes <= self.chars:
            return "ascii"
        return "latin" if self.size_bytes <= _LATIN_BYTES_PER_CHAR * self.chars else "other"


def token_error(counted: int, size: TextSize) -> int:
    """Return the largest difference between `counted` tokens and the count of another tokenizer.

    No tokenizer makes more tokens of a text than it has bytes.
    """
    if counted == 0 and size.size_bytes == 0:
        return 0
    error = ceil(counted * _RATIO[size.script]) + _FIXED_TOKENS
    return min(error, max(size.size_bytes - counted, counted))


def token_upper_bound(words: int, rest_bytes: int) -> int:
    """Return an upper bound on the tokens that any tokenizer makes of a text.

    Tokenizers differ most in digits, blanks, punctuation and other scripts, where a caller can choose the difference.
    So each byte of these counts as a token. Only words are bounded by the measured ratio.

    Args:
        words: the tokens that one tokenizer makes of the words of ASCII letters.
        rest_bytes: the size of all other text in bytes.
    """
    return ceil(words * (1 + _RATIO["ascii"])) + _FIXED_TOKENS + rest_bytes


def recount_error(counted: int) -> int:
    """Return the largest error of a count of an answer by the model's own tokenizer.

    A model may use other tokens than its tokenizer for the same text. It also counts the token that ends its answer.
    """
    return ceil(counted * _RECOUNT_RATIO) + _RECOUNT_FIXED_TOKENS


def template_error(messages: int, tokens_per_message: int) -> int:
    """Return the largest number of tokens that a chat template adds, around each message and before all of them."""
    return messages * tokens_per_message + _TEMPLATE_FIXED_TOKENS
