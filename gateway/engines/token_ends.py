"""Find where each token of a generated text ends, from the token texts that an engine reports."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.protocol.body import Json

_BROKEN = "\ufffd"  # the text of a token that is a part of a character
_MAX_CHARACTER = 8  # characters of text that tokens without a text of their own may stand for


def token_texts(choice: Json) -> list[str] | None:
    """Return the text of each token in the log-probabilities of a chat's or a text completion's choice."""
    logprobs: Any = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return None
    entries: Any = logprobs.get("content")
    texts: Any = logprobs.get("tokens")
    if isinstance(entries, list):
        texts = [entry.get("token") if isinstance(entry, dict) else None for entry in entries]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    return texts


def token_ends(text: str, tokens: Sequence[str]) -> tuple[int, ...] | None:
    """Return the number of characters of `text` after each of its tokens; None if the tokens do not spell the text.

    A token that is decoded alone may lack the space before it, and a part of a character has no text. Tokens after the
    text, such as the end token or a stop string, are left out.
    """
    ends: list[int] = []
    at, in_character = 0, False
    for token in tokens:
        if token and text.startswith(token, at):
            at += len(token)
            in_character = False
        elif at == len(text):
            break
        elif not token or _BROKEN in token:
            in_character = True
        elif (begin := text.find(token, at, at + len(token) + (_MAX_CHARACTER if in_character else 1))) >= 0:
            if in_character and ends:
                ends[-1] = begin  # the character is complete with its last token
            at = begin + len(token)
            in_character = False
        elif token.startswith(text[at:]):
            at = len(text)  # a stop string began within the token
        else:
            return None
        ends.append(at)
    if in_character and ends and len(text) - at <= _MAX_CHARACTER:
        ends[-1] = at = len(text)
    return tuple(ends) if not text[at:].strip(_BROKEN) else None


def tokens_in(ends: Sequence[int], begin: int, end: int) -> int:
    """Return the number of tokens with characters from `begin` to `end`, where each token ends at one of `ends`."""
    first = bisect_right(ends, begin) if begin else 0
    return max(1, min(bisect_left(ends, end) + 1, len(ends)) - first)
