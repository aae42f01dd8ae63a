"""Numeric features of a request's question: cheap, pure, and the same for requests and for training.

The question is the last user message of a chat, or the text after the last "Q:" of a raw prompt. Features use its first
MAX_CHARS characters. Every pattern takes linear time: 0.1 ms for a few sentences, at most half a millisecond.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from gateway.protocol.messages import text_of
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from gateway.protocol.requests import CompletionRequest

PromptClass = Literal["choice", "code", "maths", "list", "trivial", "other"]
"""Classes of questions; the first matching class is chosen."""

MAX_CHARS = 2_000
_QUESTION = "\nQ:"
_ANSWER = "\nA:"

_NUMBER = re.compile(r"\d[\d,.]*")
_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f](?:\s|$)")
# "A) red", "(b) blue", "C. green", "3) grey", each at the beginning of a line or after a blank.
_CHOICE = re.compile(r"(?:^|\s)\(?([A-Ha-h1-8])[).:]\s", re.MULTILINE)
_MIN_CHOICES = 2
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
_MIN_NUMBERS = 2
_MAX_TRIVIAL_WORDS = 4

FEATURES = (
    "log_bytes", "log_words", "log_sentences", "log_numbers", "log_maths_words", "choices", "code", "asks_for_list",
    "asks_why", "question_mark", "log_turns", "system", "log_max_tokens", "raw_prompt",
)  # fmt: skip
"""Names of the features in order. A fitted file names the features it was fitted with."""


class QuestionFeatures(NamedTuple):
    """Features of a question. `numbers` are in the order of FEATURES, each between 0 and about 20."""

    prompt: PromptClass
    numbers: tuple[float, ...]


def question_of(request: CompletionRequest) -> str:
    """Return the question of a request, without earlier messages: its first MAX_CHARS."""
    if isinstance(request, TextRequest):
        prompt = request.prompt or ""
        question = prompt[prompt.rfind(_QUESTION) + 1 :].removeprefix("Q:")
        return question.removesuffix(_ANSWER).strip()[:MAX_CHARS]
    for message in reversed(request.messages):
        if message.get("role") == "user":
            return (text_of(message.get("content")) or "").strip()[:MAX_CHARS]
    return ""


def features_of(request: CompletionRequest, max_tokens: int | None) -> QuestionFeatures:
    """Return the features of a request's question. `max_tokens` limits its answer; None: no limit."""
    text = question_of(request)
    tokens = _WORD.findall(text.lower())
    vocabulary = set(tokens)
    numbers = len(_NUMBER.findall(text))
    maths = sum(word in _MATHS for word in tokens) + sum(map(text.count, _MATHS_MARKS))
    choices = len({one.upper() for one in _CHOICE.findall(text)})
    code = any(fence in text for fence in _FENCES) or not vocabulary.isdisjoint(_CODE)
    lists = not vocabulary.isdisjoint(_LIST)
    raw = isinstance(request, TextRequest)
    turns = [] if isinstance(request, TextRequest) else [message.get("role") for message in request.messages]
    values = (
        math.log1p(len(text.encode("utf-8", "replace"))),
        math.log1p(len(tokens)),
        math.log1p(len(_SENTENCE_END.findall(text))),
        math.log1p(numbers),
        math.log1p(maths),
        float(choices if choices >= _MIN_CHOICES else 0),
        float(code),
        float(lists),
        float(not vocabulary.isdisjoint(_WHY)),
        float("?" in text),
        math.log1p(turns.count("assistant")),
        float("system" in turns or "developer" in turns),
        math.log1p(max_tokens or 0),
        float(raw),
    )
    small_talk = bool(tokens) and tokens[0] in _SMALL_TALK
    trivial = len(tokens) <= _MAX_TRIVIAL_WORDS and not numbers and "?" not in text and small_talk
    prompt: PromptClass = "other"
    if choices >= _MIN_CHOICES:
        prompt = "choice"
    elif code:
        prompt = "code"
    elif numbers >= _MIN_NUMBERS and maths:
        prompt = "maths"
    elif lists:
        prompt = "list"
    elif trivial:
        prompt = "trivial"
    return QuestionFeatures(prompt, values)
