"""By how much a token count may be wrong that another model's tokenizer made. Pure.

The bounds are measured: `load_tests/token_counts.py` prints how far tokenizers are apart on real text, and how often
one lies outside; docs/prices.md has what it printed.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

_LATIN_BYTES_PER_CHAR = 1.2
_RATIO = {"ascii": 0.6, "latin": 0.8, "other": 7.0}
_FIXED_TOKENS = 4  # short texts vary by more
_RECOUNT_RATIO = 0.02
_RECOUNT_FIXED_TOKENS = 2
_TEMPLATE_FIXED_TOKENS = 32


class TokenErrorBound(NamedTuple):
    """How long some text is. What it is written in shows in how many bytes its characters take."""

    chars: int
    size_bytes: int

    @classmethod
    def of(cls, texts: Iterable[str]) -> TokenErrorBound:
        """Of all of them together."""
        chars = size = 0
        for text in texts:
            chars += len(text)
            size += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        return cls(chars, size)

    @property
    def script(self) -> str:
        """ascii, latin (with some letters more) or other."""
        if self.size_bytes <= self.chars:
            return "ascii"
        return "latin" if self.size_bytes <= _LATIN_BYTES_PER_CHAR * self.chars else "other"


def off_tokens(counted: int, extent: TokenErrorBound) -> int:
    """How many tokens more or fewer another tokenizer may make of what one made `counted` of.

    No tokenizer makes more tokens of a text than it has bytes.
    """
    if counted == 0 and extent.size_bytes == 0:
        return 0
    off = ceil(counted * _RATIO[extent.script]) + _FIXED_TOKENS
    return min(off, max(extent.size_bytes - counted, counted))


def most_tokens(words: int, rest_bytes: int) -> int:
    """Return an upper bound on the tokens that any tokenizer makes of a text.

    Tokenizers differ most in digits, blanks, punctuation and other scripts, where a caller can make the difference as
    large as it likes. So each byte of these counts as a token, and only words by the measured distance.

    Args:
        words: the tokens that one tokenizer makes of the words of ASCII letters.
        rest_bytes: the bytes of all else.
    """
    return ceil(words * (1 + _RATIO["ascii"])) + _FIXED_TOKENS + rest_bytes


def off_recounted(counted: int) -> int:
    """The same of an answer that was counted in the model's own tokenizer.

    A model may write a text in other tokens than its tokenizer would, and it counts the one that ends its answer.
    """
    return ceil(counted * _RECOUNT_RATIO) + _RECOUNT_FIXED_TOKENS


def off_template(messages: int, tokens_per_message: int) -> int:
    """The same of what a chat template adds: around each message, and before them all."""
    return messages * tokens_per_message + _TEMPLATE_FIXED_TOKENS
