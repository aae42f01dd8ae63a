"""What a request's question looks like, in a few numbers: cheap, pure, and the same on the path and in training.

Only the question is looked at: the last user message of a chat, or what follows the last "Q:" of a raw prompt; of it
the first MAX_CHARS. Every pattern here takes time in proportion to the text: 0.1 ms for a few sentences,
half a millisecond at most.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gateway.protocol.messages import text_of
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from gateway.protocol.requests import CompletionRequest

PromptClass = Literal["choice", "code", "maths", "list", "trivial", "other"]
"""What kind of question it is: the first of these that holds."""

MAX_CHARS = 2_000
_ASKED = "\nQ:"
_ANSWER = "\nA:"

_NUMBER = re.compile(r"\d[\d,.]*")
_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f](?:\s|$)")
# "A) red", "(b) blue", "C. green", "3) grey", each at the beginning of a line or after a blank.
_CHOICE = re.compile(r"(?:^|\s)\(?([A-Ha-h1-8])[).:]\s", re.MULTILINE)
_FEWEST_CHOICES = 2
_FENCES = ("```", "~~~")
_CODE = frozenset({
    "python", "javascript", "typescript", "java", "rust", "golang", "bash", "sql", "regex", "json", "html", "css",
    "code", "function", "compile", "refactor", "stacktrace", "traceback", "unittest",
})  # fmt: skip
_MATHS = frozenset({
    "many", "much", "total", "sum", "difference", "product", "average", "mean", "percent", "ratio", "twice", "half",
    "each", "per", "cost", "costs", "price", "left", "remain", "remains", "remaining", "altogether", "calculate",
    "solve", "equation", "probability", "integer", "remainder",
})  # fmt: skip
_MATHS_MARKS = "%$\u20ac="
_LIST = frozenset({
    "list", "enumerate", "step", "steps", "bullet", "bullets", "ideas", "examples", "outline", "ways",
})  # fmt: skip
_WHY = frozenset({
    "why", "explain", "describe", "compare", "discuss", "essay", "story", "poem", "write",
})  # fmt: skip
_SMALL_TALK = frozenset({
    "hi", "hello", "hey", "thanks", "thank", "ok", "okay", "yes", "no", "bye", "goodbye", "cheers", "good",
})  # fmt: skip
_FEWEST_NUMBERS = 2
_TRIVIAL_WORDS = 4

FEATURES = (
    "log_bytes",
    "log_words",
    "log_sentences",
    "log_numbers",
    "log_maths_words",
    "choices",
    "code",
    "asks_for_list",
    "asks_why",
    "question_mark",
    "log_turns",
    "system",
    "log_max_tokens",
    "raw_prompt",
)
"""The names of the numbers, in their order. A fitted file says with which it was fitted."""


@dataclass(frozen=True, slots=True)
class QuestionFeatures:
    """What a question looks like. `numbers` are in the order of FEATURES, each between 0 and about 20."""

    prompt: PromptClass
    numbers: tuple[float, ...]


def question_of(asked: CompletionRequest) -> str:
    """The question that a request puts, without what was said before; its first MAX_CHARS."""
    if isinstance(asked, TextRequest):
        prompt = asked.prompt or ""
        question = prompt[prompt.rfind(_ASKED) + 1 :].removeprefix("Q:")
        return question.removesuffix(_ANSWER).strip()[:MAX_CHARS]
    for message in reversed(asked.messages):
        if message.get("role") == "user":
            return (text_of(message.get("content")) or "").strip()[:MAX_CHARS]
    return ""


def looks_of(asked: CompletionRequest, max_tokens: int | None) -> QuestionFeatures:
    """What a request's question looks like.

    max_tokens: the limit on the answer, the route's where the caller sends none; None: there is none.
    """
    text = question_of(asked)
    said = _WORD.findall(text.lower())
    known = set(said)
    numbers = len(_NUMBER.findall(text))
    maths = sum(word in _MATHS for word in said) + sum(map(text.count, _MATHS_MARKS))
    choices = len({one.upper() for one in _CHOICE.findall(text)})
    code = any(fence in text for fence in _FENCES) or not known.isdisjoint(_CODE)
    lists = not known.isdisjoint(_LIST)
    raw = isinstance(asked, TextRequest)
    turns = [] if isinstance(asked, TextRequest) else [message.get("role") for message in asked.messages]
    values = (
        math.log1p(len(text.encode("utf-8", "replace"))),
        math.log1p(len(said)),
        math.log1p(len(_SENTENCE_END.findall(text))),
        math.log1p(numbers),
        math.log1p(maths),
        float(choices if choices >= _FEWEST_CHOICES else 0),
        float(code),
        float(lists),
        float(not known.isdisjoint(_WHY)),
        float("?" in text),
        math.log1p(turns.count("assistant")),
        float("system" in turns or "developer" in turns),
        math.log1p(max_tokens or 0),
        float(raw),
    )
    trivial = len(said) <= _TRIVIAL_WORDS and not numbers and "?" not in text and bool(said) and said[0] in _SMALL_TALK
    prompt: PromptClass = "other"
    if choices >= _FEWEST_CHOICES:
        prompt = "choice"
    elif code:
        prompt = "code"
    elif numbers >= _FEWEST_NUMBERS and maths:
        prompt = "maths"
    elif lists:
        prompt = "list"
    elif trivial:
        prompt = "trivial"
    return QuestionFeatures(prompt, values)
