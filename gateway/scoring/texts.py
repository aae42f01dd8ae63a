"""The text that an answer comes to, and the words that two texts share. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from gateway.scoring.statements import own_part, plain, statements

_AROUND = " .!?;:,\"'\u201c\u201d\u2018\u2019*`"
# Of scripts that are written without spaces each sign counts as a word.
_SPACELESS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")


def stated_text(text: str) -> str:
    """What an answer states last ("The answer is"), else all of it."""
    own = own_part(text)
    stated = [statement.said for statement in statements(plain(own)) if not statement.duty]
    return stated[-1] if stated else own.strip()


def folded(text: str) -> str:
    """A text without what says nothing: letter case, runs of white space, and marks and quotes around it."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_AROUND)


def shared_words(text: str, other: str) -> float | None:
    """F1 of the words that both have, each as often as in both; None where the other has none."""
    ours, theirs = (Counter(_WORD.findall(folded(one))) for one in (text, other))
    if not theirs:
        return None
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())
