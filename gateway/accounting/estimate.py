"""Token counts of our own: for when an engine gave none, and in the baseline model's own tokenizer. Takes milliseconds.

A tokenizer is a tiktoken encoding, by its name, or a tokenizer.json, by its path. Nothing is fetched: a count waits for
no network.
"""

from __future__ import annotations

import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import tiktoken

from gateway.accounting.bounds import most_tokens, off_recounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = structlog.get_logger()

MOST_COUNTED_CHARS = 50_000
"""Beyond this a count takes longer than it is worth: English has about four bytes to a token."""
TOKENS_PER_MESSAGE = 4
"""What a chat template adds around each message, roughly."""
FALLBACK = "o200k_base"
"""Where the model's own tokenizer is not known."""
_BYTES_PER_TOKEN = 4
MAX_BOUNDED_BYTES = 512_000
"""The rest of a longer text is bounded by its bytes: a count would cost more CPU than it is worth."""
# A tokenizer may take time that grows with the square of a piece's length. A cut adds a token at most.
_PIECE_CHARS = 4096
_WORD = re.compile(r" ?([A-Za-z]+)")
_SAME_LETTERS = re.compile(r"([A-Za-z])\1{3,}")


@cache
def _encoding(name: str) -> Callable[[str], int] | None:
    """What counts; None when it cannot be loaded: an estimate may be rough, but it may not cost anybody an answer.

    Loads 0.1 to 0.5 s the first time.
    """
    try:
        return _of_file(name) if name.endswith(".json") else _of_tiktoken(name)
    except Exception:
        log.exception("encoding_not_loaded", encoding=name, then="four bytes a token")
        return None


def _of_tiktoken(name: str) -> Callable[[str], int]:
    """From the vocabularies in LiteLLM's wheel, so that no network is needed."""
    litellm = find_spec("litellm")
    if litellm is not None and litellm.origin is not None:
        # The environment is the one way in which tiktoken is told where to look.
        os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers")
    encoding = tiktoken.get_encoding(name)
    return lambda text: len(encoding.encode_ordinary(text))


def _of_file(name: str) -> Callable[[str], int]:
    # Only here: most gateways have none, and need not pay for the library.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(name)
    # Files may say that texts are cut or filled up to some length.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Of this library only a list lets other threads run meanwhile.
    return lambda text: len(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])


def load(names: Iterable[str]) -> None:
    """Load tokenizers before they are needed: some hold up all threads for tenths of a second while they load."""
    for name in names:
        _encoding(name)


def counts(name: str, size_chars: int) -> bool:
    """Whether a text of that length can be counted in this tokenizer; else `count_text` goes by its bytes."""
    return size_chars <= MOST_COUNTED_CHARS and _encoding(name) is not None


def count_text(encoding: str, text: str) -> int:
    """Tokens of `text`. Takes milliseconds: call it off the event loop."""
    vocabulary = None if len(text) > MOST_COUNTED_CHARS else _encoding(encoding)
    if vocabulary is None:
        return len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN
    return vocabulary(text)


def bound_text(encoding: str, text: str, *, own: bool) -> int:
    """Return an upper bound on the tokens of `text`. Takes tenths of a second at most: call it off the event loop.

    Args:
        own: whether `encoding` is the model's own tokenizer; else the bound holds for any tokenizer.
    """
    size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    vocabulary = _encoding(encoding)
    if vocabulary is None:
        return size
    counted = rest = 0
    for start in range(0, min(len(text), MAX_BOUNDED_BYTES), _PIECE_CHARS):
        piece = text[start : min(start + _PIECE_CHARS, MAX_BOUNDED_BYTES)]
        if not own:
            piece = _SAME_LETTERS.sub(lambda run: "0" * len(run[0]), piece)
            rest += len(_WORD.sub("", piece).encode("utf-8", "replace"))
            piece = " ".join(_WORD.findall(piece))
        counted += vocabulary(piece)
    uncounted = len(text[MAX_BOUNDED_BYTES:].encode("utf-8", "replace"))
    most = counted + off_recounted(counted) if own else most_tokens(counted, rest)
    return min(size, most + uncounted)


def count_messages(encoding: str, messages: Iterable[dict[str, Any]]) -> int:
    """Tokens of a chat, text parts only."""
    total = 0
    for message in messages:
        total += TOKENS_PER_MESSAGE + sum(count_text(encoding, text) for text in texts_of(message))
    return total


def texts_of(message: dict[str, Any]) -> list[str]:
    """The text parts of a message, whatever its shape."""
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return [text for text in texts if isinstance(text, str)]
