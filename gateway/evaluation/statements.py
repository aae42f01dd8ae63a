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

_FENCE = re.compile(r"```[ \t]*(?P<kind>\w*)[^\n]*\n(?P<code>.*?)(?:```|\Z)", re.DOTALL)
_LATEX = (
    (re.compile(r"(?<=\d)(?:\{,\}|\\,|\\!)(?=\d{3})"), ""),
    (re.compile(r"\\[dt]?frac\s*\{\s*([^{}]+?)\s*\}\s*\{\s*([^{}]+?)\s*\}"), r"(\1)/(\2)"),
    (re.compile(r"\((-?[0-9.,]+)\)/\(([0-9.,]+)\)"), r"\1/\2"),
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
class Statement:
    """A place where an answer says its result.

    Attributes:
        said: what stands after the words that announce it, to the end of the sentence or line.
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
    text = _FENCE.sub(lambda fence: fence["code"] if fence["kind"].lower() in {"", "output", "text"} else "\n", text)
    text = _unboxed(text)
    for pattern, instead in _LATEX:
        text = pattern.sub(instead, text)
    return text


def statements(text: str) -> list[Statement]:
    """Where a `plain` text announces its result, in order. What it denies, or judges ("is wrong"), is none."""
    text = text.replace("**", "").replace("__", "")
    found = []
    for cue in _CUE.finditer(text):
        if _DENIED.match(text, cue.end()):
            continue
        marked = cue[0] == "####"
        said = text[cue.end() :].partition("\n")[0].strip() if marked else sentence_at(text, cue.end())
        if said:
            found.append(Statement(said, marked, _DUTY.search(cue[0]) is not None))
    return found


def sentence_at(text: str, at: int) -> str:
    """From here to the end of the sentence or line; where the line has nothing more, the next line that has."""
    rest = text[at:].lstrip(" \t:*\n\r")
    end = _SENTENCE_END.search(rest)
    return (rest[: end.start()] if end is not None else rest).strip()


def is_whole(text: str) -> bool:
    """Whether it ends where a sentence does: a limit did not break it off."""
    return _ENDED.search(text) is not None


def sentences(text: str) -> list[str]:
    """Its sentences and lines, in order, without empty ones."""
    text = text.replace("**", "").replace("__", "")
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def _unboxed(text: str) -> str:
    """Each LaTeX box as a line of its own behind "####"; one that a limit cut off holds nothing."""
    parts = []
    while (at := text.find("\\boxed")) >= 0:
        parts.append(text[:at])
        inside, text = _braced(text[at + len("\\boxed") :])
        if inside:
            parts.append(f"\n#### {inside}\n")
    return "".join([*parts, text])


def _braced(text: str) -> tuple[str, str]:
    """What stands in the braces that the text begins with, and what comes after them."""
    if not text.startswith("{"):
        return "", text
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[1:at], text[at + 1 :]
    return "", ""
