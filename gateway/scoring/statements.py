"""Where an answer says what its result is: "The answer is 18.", "#### 18", "\\boxed{18}". Pure.

Only the answer is read here, never what was asked: a question's numbers and choices cannot be taken for a result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# A model that was shown questions and answers may go on with a question of its own.
_NEXT_QUESTION = re.compile(r"^[ \t*]*(?:Q|Question)[ \t*]*:|(?<=[.!?)\]] )(?:Q|Question):", re.MULTILINE)
_ITS_ANSWER = re.compile(r"^[ \t*]*(?:A|Answer)[ \t*]*:", re.MULTILINE)

_CUE = re.compile(
    r"(?:\b(?:answer|choice|option)(?:\s+(?:here|to (?:the|this|your) (?:question|problem)))?"
    r"(?:\s+(?:is|would be|will be|should be|must be|has to be)\b(?:\s*:)?|\s*[:=]))|####",
    re.IGNORECASE,
)
_DUTY = re.compile(r"(?:should|must|has to) be", re.IGNORECASE)
# Denied, or a word about an answer that stands elsewhere.
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


@dataclass(frozen=True, slots=True)
class ResultStatement:
    """A place where an answer says its result.

    Attributes:
        said: what stands after the words that announce it, to the end of the sentence or line, or the next such words.
        marked: it was announced by a mark ("####", a LaTeX box) and not by words.
        duty: it says what an answer must or should be, which often is no answer yet.
    """

    said: str
    marked: bool
    duty: bool


def own_part(text: str) -> str:
    """The answer without a next question that the model put to itself.

    Where the text begins with a question, what it gives as the answer to that one; empty where it gives none.
    """
    first = _NEXT_QUESTION.search(text)
    if first is None:
        return text
    if text[: first.start()].strip():
        return text[: first.start()]
    begins = _ITS_ANSWER.search(text, first.end())
    if begins is None:
        return ""
    second = _NEXT_QUESTION.search(text, first.end())
    if second is not None and second.start() < begins.start():
        return ""
    return text[begins.end() : second.start()] if second is not None else text[begins.end() :]


def plain(text: str) -> str:
    """The text without LaTeX and program code; what a program is said to have printed stays. Bold marks stay."""
    text = _unboxed(_without_programs(text))
    for pattern, instead in _LATEX:
        text = pattern.sub(instead, text)
    return text


def statements(text: str) -> list[ResultStatement]:
    """Where a `plain` text announces its result, in order. What it denies, or judges ("is wrong"), is none."""
    text = text.replace("**", "").replace("__", "")
    found = []
    end = len(text)
    for cue in reversed(list(_CUE.finditer(text))):
        # To the next one at most: read to the end of the text each, they would take the square of its length.
        rest, end = text[cue.end() : end], cue.start()
        if _DENIED.match(text, cue.end()):
            continue
        marked = cue[0] == "####"
        said = rest.partition("\n")[0].strip() if marked else _first_sentence(rest)
        if said:
            found.append(ResultStatement(said, marked, _DUTY.search(cue[0]) is not None))
    return found[::-1]


def _first_sentence(text: str) -> str:
    """To the end of the sentence or line; where the line has nothing, of the next line that has."""
    text = text.lstrip(" \t:*\n\r")
    end = _SENTENCE_END.search(text)
    return (text[: end.start()] if end is not None else text).strip()


def is_whole(text: str) -> bool:
    """Whether it ends where a sentence does: a limit did not break it off."""
    return _ENDED.search(text) is not None


def sentences(text: str) -> list[str]:
    """Its sentences and lines, in order, without empty ones."""
    text = text.replace("**", "").replace("__", "")
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def _without_programs(text: str) -> str:
    """The text without fenced code, but with what is fenced as output; a fence that a limit cut off reaches to the end.

    No pattern: one would look for the end of the line again from each of a row of fences.
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
    """Each LaTeX box as a line of its own behind "####"; one that a limit cut off holds nothing."""
    parts = []
    at = 0
    while (begin := text.find(_BOX, at)) >= 0:
        parts.append(text[at:begin])
        inside, at = _braced(text, begin + len(_BOX))
        if inside:
            parts.append(f"\n#### {inside}\n")
    return "".join([*parts, text[at:]])


def _braced(text: str, at: int) -> tuple[str, int]:
    """What stands in the braces that open here, and where they end: at the end of the text where they stay open."""
    if not text.startswith("{", at):
        return "", at
    depth = 0
    for brace in _BRACE.finditer(text, at):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[at + 1 : brace.start()], brace.end()
    return "", len(text)
