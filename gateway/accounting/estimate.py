"""Count tokens for engines that report no usage and for baselines, and bound the difference between tokenizers.

A count takes milliseconds. A tokenizer is the name of a tiktoken encoding or the path of a tokenizer.json. Nothing is
downloaded.
"""

from __future__ import annotations

import os
import re
from functools import cache
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
import tiktoken

from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = structlog.get_logger()

MAX_COUNTED_CHARS = 50_000
"""Longer texts are estimated from their bytes. English has about four bytes per token."""
TOKENS_PER_MESSAGE = 4
"""Approximate tokens that a chat template adds to each message."""
FALLBACK = "o200k_base"
"""The encoding for models without a configured tokenizer."""
_BYTES_PER_TOKEN = 4
MAX_BOUNDED_BYTES = 512_000
"""The rest of a longer text is bounded by its bytes: a count would use too much CPU time."""
# A tokenizer's time may grow with the square of the text's length. Each cut adds at most one token.
_PIECE_CHARS = 4096
_WORD = re.compile(r" ?([A-Za-z]+)")
_SAME_LETTERS = re.compile(r"([A-Za-z])\1{3,}")
# Ratios between tokenizers. docs/design/accounting.md shows the measurement.
_LATIN_BYTES_PER_CHAR = 1.2
_RATIO = {"ascii": 0.6, "latin": 0.8, "other": 7.0}
_FIXED_TOKENS = 4  # short texts differ by more
_RECOUNT_RATIO = 0.02
_RECOUNT_FIXED_TOKENS = 2
_TEMPLATE_FIXED_TOKENS = 32


class Encoding(NamedTuple):
    """A tokenizer for a model. `own` is true where it is the model's own tokenizer."""

    name: str
    own: bool = False


class TextSize(Record, frozen=True):
    """The length of a text in characters and UTF-8 bytes. Their ratio indicates the script."""

    chars: int
    size_bytes: int

    @classmethod
    def of(cls, texts: Iterable[str]) -> TextSize:
        """Return the size of all texts together."""
        chars = size_bytes = 0
        for text in texts:
            chars += len(text)
            size_bytes += utf8_length(text)
        return cls(chars, size_bytes)

    @classmethod
    def of_messages(cls, messages: Iterable[dict[str, Any]]) -> TextSize:
        """Return the size of all text parts of a chat."""
        chars = size_bytes = 0
        for message in messages:
            content = message.get("content")
            for text in [content] if type(content) is str else texts_of(message):
                chars += len(text)
                size_bytes += utf8_length(text)
        return cls(chars, size_bytes)

    @property
    def script(self) -> str:
        """Return "ascii", "latin" (with some non-ASCII letters) or "other"."""
        if self.size_bytes <= self.chars:
            return "ascii"
        return "latin" if self.size_bytes <= _LATIN_BYTES_PER_CHAR * self.chars else "other"


def utf8_length(text: str) -> int:
    """Return the length in bytes. Lone surrogates count as one byte each."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def token_error(counted: int, size: TextSize) -> int:
    """Return the largest difference between `counted` tokens and the count of another tokenizer. No tokenizer makes
    more tokens of a text than it has bytes."""
    size_bytes = size.size_bytes
    if counted == 0 and size_bytes == 0:
        return 0
    error = ceil(counted * _RATIO["ascii" if size_bytes <= size.chars else size.script]) + _FIXED_TOKENS
    most = size_bytes - counted if size_bytes > 2 * counted else counted
    return min(most, error)


def token_upper_bound(words: int, rest_bytes: int) -> int:
    """Return an upper bound on the tokens of a text, from one tokenizer's count of its ASCII words.

    Tokenizers differ most in digits, blanks, punctuation and other scripts, where a caller can choose the difference.
    So each byte of these counts as a token. Only words are bounded by the measured ratio.
    """
    return ceil(words * (1 + _RATIO["ascii"])) + _FIXED_TOKENS + rest_bytes


def recount_error(counted: int) -> int:
    """Return the largest error of a count of an answer by the model's own tokenizer. A model may use other tokens than
    its tokenizer for the same text. It also counts the token that ends its answer."""
    return ceil(counted * _RECOUNT_RATIO) + _RECOUNT_FIXED_TOKENS


def template_error(messages: int) -> int:
    """Return the largest number of tokens that a chat template adds, around each message and before all of them."""
    return messages * TOKENS_PER_MESSAGE + _TEMPLATE_FIXED_TOKENS


@cache
def _encoding(name: str) -> Callable[[str], int] | None:
    """Return a function that counts tokens. Return None where loading fails: a bad tokenizer must not fail requests.
    The first call for a name takes 0.1 to 0.5 s."""
    try:
        return _of_file(name) if name.endswith(".json") else _of_tiktoken(name)
    except Exception:
        log.exception("encoding_not_loaded", encoding=name, fallback="four bytes per token")
        return None


def _of_tiktoken(name: str) -> Callable[[str], int]:
    """Load an encoding from the vocabulary files in LiteLLM's wheel, without network access."""
    litellm = find_spec("litellm")
    if litellm is not None and litellm.origin is not None:
        # tiktoken reads the location of its files from the environment only.
        os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers")
    encoding = tiktoken.get_encoding(name)
    return lambda text: len(encoding.encode_ordinary(text))


def _of_file(name: str) -> Callable[[str], int]:
    # Imported here, since most gateways have no tokenizer.json.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(name)
    # A file may configure truncation or padding to a fixed length.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Only the batch call releases the GIL.
    return lambda text: len(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])


def load(names: Iterable[str]) -> None:
    """Load tokenizers in advance. Loading some of them blocks all threads for tenths of a second."""
    for name in names:
        _encoding(name)


def can_count(name: str, size_chars: int) -> bool:
    """Return whether this tokenizer counts a text of that length. Otherwise `count_text` estimates."""
    return size_chars <= MAX_COUNTED_CHARS and _encoding(name) is not None


def count_text(encoding: str, text: str) -> int:
    """Return the number of tokens in `text`. Takes milliseconds: call it off the event loop."""
    vocabulary = None if len(text) > MAX_COUNTED_CHARS else _encoding(encoding)
    if vocabulary is None:
        return len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN
    return vocabulary(text)


def bound_text(encoding: str, text: str, *, own: bool) -> int:
    """Return an upper bound on the tokens of `text`. Takes tenths of a second at most: call it off the event loop.
    Unless `encoding` is the model's `own` tokenizer, the bound holds for any tokenizer."""
    size_bytes, vocabulary = TextSize.of([text]).size_bytes, _encoding(encoding)
    if vocabulary is None:
        return size_bytes
    counted = other_bytes = 0
    for start in range(0, min(len(text), MAX_BOUNDED_BYTES), _PIECE_CHARS):
        piece = text[start : min(start + _PIECE_CHARS, MAX_BOUNDED_BYTES)]
        if not own:
            piece = _SAME_LETTERS.sub(lambda run: "0" * len(run[0]), piece)
            other_bytes += len(_WORD.sub("", piece).encode("utf-8", "replace"))
            piece = " ".join(_WORD.findall(piece))
        counted += vocabulary(piece)
    uncounted = len(text[MAX_BOUNDED_BYTES:].encode("utf-8", "replace"))
    bound = counted + recount_error(counted) if own else token_upper_bound(counted, other_bytes)
    return min(size_bytes, bound + uncounted)


def count_messages(encoding: str, messages: Iterable[dict[str, Any]]) -> int:
    """Return the number of tokens in a chat. Only text parts count."""
    counts = (sum(count_text(encoding, text) for text in texts_of(message)) for message in messages)
    return sum(TOKENS_PER_MESSAGE + count for count in counts)


def texts_of(message: dict[str, Any]) -> list[str]:
    """Return the text parts of a message."""
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return [text for text in texts if isinstance(text, str)]
