"""Statements of an answer's result: "The answer is 18.", "#### 18", "\\boxed{18}". Pure functions.

Only the answer is parsed, never the question, so numbers and choices of a question cannot be taken for a result.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import NamedTuple

# A model that was given example questions may continue with a question of its own.
_NEXT_QUESTION = re.compile(r"^[ \t*]*(?:Q|Question)[ \t*]*:|(?<=[.!?)\]] )(?:Q|Question):", re.MULTILINE)
_ANSWER_LABEL = re.compile(r"^[ \t*]*(?:A|Answer)[ \t*]*:", re.MULTILINE)
_CUE = re.compile(
    r"(?:\b(?:answer|choice|option)(?:\s+(?:here|to (?:the|this|your) (?:question|problem)))?"
    r"(?:\s+(?:is|would be|will be|should be|must be|has to be)\b(?:\s*:)?|\s*[:=]))|####",
    re.IGNORECASE,
)
_DUTY = re.compile(r"(?:should|must|has to) be", re.IGNORECASE)
# A negation, or a remark about an answer given elsewhere.
_DENIED = re.compile(r"[\s:*]*(?:not|never|neither|incorrect|wrong|correct|right)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"')\]*]|\Z)|\n")
_ENDED = re.compile(r"(?:[.!?][\"')\]*`]*|`{3})\s*\Z")
_FENCE = "```"
_KIND = re.compile(r"[ \t]*+(\w*+)")
_PRINTED = frozenset({"", "output", "text"})
_BRACE = re.compile(r"[{}]")
_BOX = "\\boxed"
_LATEX = (
    (re.compile(r"(?<=\d)(?:\{,\}|\\,|\\!)(?=\d{3})"), ""),
    (re.compile(r"\\[dt]?frac\s*+\{([^{}]++)\}\s*+\{([^{}]++)\}"), r"(\1)/(\2)"),
    (re.compile(r"\(\s*+(-?[0-9.,]++)\s*+\)/\(\s*+([0-9.,]++)\s*+\)"), r"\1/\2"),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|bf|rm)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:times|cdot|ast)\b"), "*"),
    (re.compile(r"\\div\b"), "/"),
    (re.compile(r"\\(?:approx|implies|Rightarrow|equiv)\b"), "="),
    (re.compile(r"\\([$%&#_])"), r"\1"),
    (re.compile(r"\\[()\[\],;:! ]|\\q?quad\b|\\(?:left|right)\b"), " "),
    (re.compile(r"[\u2212\u2013\u2014]"), "-"),
    (re.compile(r"[\u00a0\u202f\u2009]"), " "),
    (re.compile("\u2248"), "="),
    (re.compile("[\u00d7\u00b7]"), "*"),
)
_AROUND = " .!?;:,\"'\u201c\u201d\u2018\u2019*`"
# In scripts without spaces each character counts as a word.
_SPACELESS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")


class ResultStatement(NamedTuple):
    """A statement of the result in an answer.

    Attributes:
        text: The text after the announcing words, to the end of the sentence or line, or to the next such words.
        marked: The announcement is a mark ("####", a LaTeX box), not words.
        prescriptive: The statement describes what an answer must or should be, which is often not yet an answer.
    """

    text: str
    marked: bool
    prescriptive: bool


def first_answer(text: str) -> str:
    """Return the answer without a further question that the model asked itself.

    If the text begins with a question, return the answer to that question; return "" if it has none.
    """
    first = _NEXT_QUESTION.search(text)
    if first is None:
        return text
    if text[: first.start()].strip():
        return text[: first.start()]
    begins = _ANSWER_LABEL.search(text, first.end())
    if begins is None:
        return ""
    second = _NEXT_QUESTION.search(text, first.end())
    if second is not None and second.start() < begins.start():
        return ""
    return text[begins.end() : second.start()] if second is not None else text[begins.end() :]


def plain(text: str) -> str:
    """Return the text without LaTeX and program code. Fenced program output and bold marks remain."""
    text = _unboxed(_without_programs(text))
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def statements(text: str) -> list[ResultStatement]:
    """Return the result statements of a `plain` text in order. Denials and judgments ("is wrong") are left out."""
    text = text.replace("**", "").replace("__", "")
    found = []
    end = len(text)
    for cue in reversed(list(_CUE.finditer(text))):
        # Stop at the next statement: reading each one to the end of the text would take quadratic time.
        rest, end = text[cue.end() : end], cue.start()
        if _DENIED.match(text, cue.end()):
            continue
        marked = cue[0] == "####"
        content = rest.partition("\n")[0].strip() if marked else _first_sentence(rest)
        if content:
            found.append(ResultStatement(content, marked, _DUTY.search(cue[0]) is not None))
    return found[::-1]


def _first_sentence(text: str) -> str:
    """Return the text to the end of the sentence or line, skipping leading empty lines."""
    text = text.lstrip(" \t:*\n\r")
    end = _SENTENCE_END.search(text)
    return (text[: end.start()] if end is not None else text).strip()


def is_complete(text: str) -> bool:
    """Return whether the text ends at the end of a sentence, so that no limit truncated it."""
    return _ENDED.search(text) is not None


def sentences(text: str) -> list[str]:
    """Return the nonempty sentences and lines of the text, in order."""
    text = text.replace("**", "").replace("__", "")
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def _without_programs(text: str) -> str:
    """Return the text without fenced code but with fenced output; an unclosed fence extends to the end.

    A regular expression would search for the end of the line again from each fence.
    """
    parts: list[str] = []
    at = 0
    while (begin := text.find(_FENCE, at)) >= 0 and (line_end := text.find("\n", begin)) >= 0:
        kind = _KIND.match(text, begin + len(_FENCE))
        end = text.find(_FENCE, line_end + 1)
        if end < 0:
            end = len(text)
        printed = kind is not None and kind[1].lower() in _PRINTED
        parts += text[at:begin], text[line_end + 1 : end] if printed else "\n"
        at = end + len(_FENCE)
    return "".join([*parts, text[at:]])


def _unboxed(text: str) -> str:
    """Replace each LaTeX box by a line of its own after "####"; a truncated box is removed."""
    parts = []
    at = 0
    while (begin := text.find(_BOX, at)) >= 0:
        parts.append(text[at:begin])
        inside, at = _braced(text, begin + len(_BOX))
        if inside:
            parts.append(f"\n#### {inside}\n")
    return "".join([*parts, text[at:]])


def _braced(text: str, at: int) -> tuple[str, int]:
    """Return the content of the braces that open at `at`, and the index after them; the end of the text if unclosed."""
    if not text.startswith("{", at):
        return "", at
    depth = 0
    for brace in _BRACE.finditer(text, at):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[at + 1 : brace.start()], brace.end()
    return "", len(text)


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
