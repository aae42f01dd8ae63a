"""Extraction of the text that an answer states, and the words that two texts share. Pure functions."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from gateway.scoring.statements import first_answer, plain, statements

_AROUND = " .!?;:,\"'\u201c\u201d\u2018\u2019*`"
# In scripts without spaces each character counts as a word.
_SPACELESS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")


def stated_text(text: str) -> str:
    """Return the last statement of an answer ("The answer is"), else the whole answer."""
    own = first_answer(text)
    stated = [statement.text for statement in statements(plain(own)) if not statement.prescriptive]
    return stated[-1] if stated else own.strip()


def normalize_text(text: str) -> str:
    """Return the text normalized: case-folded, single spaces, without surrounding punctuation and quotes."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_AROUND)


def shared_words(text: str, other: str) -> float | None:
    """Return the F1 score of the words that both texts share, by count; None if the other text has no words."""
    ours, theirs = (Counter(_WORD.findall(normalize_text(one))) for one in (text, other))
    if not theirs:
        return None
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())
