"""Conversion of a data set's line to a question: this project's, GSM8K's and CSQA's formats, recognized by fields."""

from __future__ import annotations

import string
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import re2

from gateway.evaluation.record import Question
from gateway.evaluation.scoring import JUDGE, KNOWN, PREFERENCE, check_name, is_plug_in
from gateway.protocol.messages import RULES
from gateway.scoring import numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.protocol.body import Json

_FIELDS = ("question", "messages", "answer", "answerKey", "id", "scorer", "choices", "pattern", "tolerance")
_GSM8K_MARK = "####"
_MIN_CHOICES = 2
_ROLES = (*sorted(RULES), "user", "assistant")


class InvalidLine(Exception):
    """An invalid line. `field` is empty for an error of the whole line."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


def _with_choices(question: str, choices: Mapping[str, str]) -> str:
    """Return the question with its choices by letter, as models read it (paper, Appendix D)."""
    return f"{question} Answer Choices: {' '.join(f'({letter}) {text}' for letter, text in choices.items())}"


def question_of(line: object, default_id: str, scorer: str | None = None, *, only_chats: bool = True) -> Question:
    """Return the question of a parsed line. Raises InvalidLine.

    Args:
        default_id: for a line without an id.
        only_chats: whether no setting sends raw prompts, which have no turns.
    """
    if not isinstance(line, dict):
        raise InvalidLine("", "must be an object with 'question' and 'answer', or with 'messages'")
    for name in line:
        # Other fields are allowed, but a misspelled one must not be ignored silently.
        close = [] if name in _FIELDS else get_close_matches(name, set(_FIELDS) - set(line), n=1, cutoff=0.8)
        if close:
            raise InvalidLine(name, f"unknown field. Did you mean '{close[0]}'?")
    if "messages" in line:
        return _chat(line, default_id, scorer, only_chats=only_chats)
    text, choices = _text(line, "question"), _choices(line)
    # CSQA on the hub uses `answerKey`.
    answer = _answer(line, "answerKey" if "answerKey" in line and "answer" not in line else "answer")
    if _GSM8K_MARK in answer and not choices and line.get("scorer") in {None, "numeric"}:
        return _build(line, text, answer.rpartition(_GSM8K_MARK)[2].strip(), {}, default_id, scorer or "numeric")
    scorer_name = scorer or _scorer(line, answer, choices)
    return _build(line, text, answer, choices, default_id, scorer_name)


def _chat(line: Json, default_id: str, scorer: str | None, *, only_chats: bool) -> Question:
    """Return the question of a line with a chat's messages. A judge scores it if it has no answer."""
    if not only_chats:
        raise InvalidLine("messages", "a raw prompt has no turns: use --form chat for these questions")
    for field in ("question", "choices"):
        if field in line:
            raise InvalidLine(field, "conflicts with 'messages': put it into the text of the last message")
    messages = _messages(line["messages"])
    text = messages[0][1] if len(messages) == 1 else "\n\n".join(f"{role}: {text}" for role, text in messages)
    if line.get("answer") is not None:
        answer = _answer(line, "answer")
        question = _build(line, text, answer, {}, default_id, scorer or _scorer(line, answer, {}))
    else:
        name = scorer or (PREFERENCE if line.get("scorer") is None else _scorer(line, "", {}))
        if name in KNOWN and name not in {JUDGE, PREFERENCE}:
            raise InvalidLine("answer", f"missing: the scorer {name} needs it; preference and judge do not")
        question = Question(_id(line, default_id), text, "", name)
    return replace(question, messages=messages)


def _messages(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise InvalidLine("messages", "must be a list of messages with 'role' and 'content'")
    messages = []
    for index, one in enumerate(value):
        at = f"messages[{index}]"
        if not isinstance(one, dict) or one.get("role") not in _ROLES:
            raise InvalidLine(f"{at}.role", f"must be one of {', '.join(_ROLES)}")
        if not isinstance(one.get("content"), str):
            raise InvalidLine(f"{at}.content", "must be text")
        messages.append((one["role"], one["content"]))
    if messages[-1][0] != "user":
        raise InvalidLine("messages", "the last one must be of role user: models answer it")
    return tuple(messages)


def _build(line: Json, text: str, answer: str, choices: Mapping[str, str], default_id: str, scorer: str) -> Question:
    options: dict[str, str] = dict(choices)
    if choices:
        letter = _letter(answer, choices)
        # Scorers that compare texts need the choice's text; a plug-in gets the letter, like the scorer choice.
        answer = choices[letter] if scorer in KNOWN and scorer != "choice" else letter
        text = _with_choices(text, choices)
    elif scorer == "choice":
        raise InvalidLine("choices", 'missing: the scorer choice needs them, as {"a": "...", "b": "..."}')
    if scorer == "numeric":
        if not _is_number(answer):
            raise InvalidLine("answer", f"'{answer[:40]}' is not a number, and the scorer numeric needs one")
        if "tolerance" in line:
            options["tolerance"] = _tolerance(line["tolerance"])
    if scorer == "regex":
        options["pattern"] = _pattern(line)
    return Question(_id(line, default_id), text, answer, scorer, tuple(options.items()))


def _text(line: Json, field: str) -> str:
    if field not in line:
        raise InvalidLine(field, "missing: add it")
    value = line[field]
    if not isinstance(value, str):
        raise InvalidLine(field, "must be text")
    if not value.strip():
        raise InvalidLine(field, "must not be empty")
    return value.strip()


def _answer(line: Json, field: str) -> str:
    value = line.get(field)
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return str(value)
    return _text(line, field)


def _id(line: Json, default: str) -> str:
    value = line.get("id", default)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InvalidLine("id", "must be text or a whole number")
    return str(value)


def _scorer(line: Json, answer: str, choices: Mapping[str, str]) -> str:
    value = line.get("scorer")
    if value is not None:
        if not isinstance(value, str):
            raise InvalidLine("scorer", "must be text")
        if is_plug_in(value):
            # A downloaded file must not choose which code runs.
            raise InvalidLine(
                "scorer", "a plug-in may be named only on the command line: --scorer package.module:function"
            )
        message = check_name(value)
        if message is not None:
            raise InvalidLine("scorer", message)
        return value
    if choices:
        return "choice"
    if "pattern" in line:
        return "regex"
    return "numeric" if _is_number(answer) else "exact"


def _is_number(text: str) -> bool:
    try:
        numbers.number(text)
    except ValueError:
        return False
    return True


def _choices(line: Json) -> dict[str, str]:
    """Return the choices by lowercase letter; empty without choices."""
    value = line.get("choices")
    if value is None:
        return {}
    if isinstance(value, dict) and set(value) == {"label", "text"}:
        labels, texts = value["label"], value["text"]
        if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
            raise InvalidLine("choices", "'label' and 'text' must be lists of the same length")
    elif isinstance(value, dict):
        labels, texts = list(value), list(value.values())
    elif isinstance(value, list) and len(value) <= len(string.ascii_lowercase):
        labels, texts = list(string.ascii_lowercase[: len(value)]), value
    else:
        raise InvalidLine("choices", 'must be {"a": "...", "b": "..."} or a list of texts')
    if not all(isinstance(value, str) and value.strip() for value in (*labels, *texts)):
        raise InvalidLine("choices", "every letter and every choice must be text that is not empty")
    choices = {label.strip().lower(): text.strip() for label, text in zip(labels, texts, strict=True)}
    if len(choices) < max(_MIN_CHOICES, len(labels)):
        raise InvalidLine("choices", "there must be at least two, each with its own letter")
    return choices


def _letter(answer: str, choices: Mapping[str, str]) -> str:
    if answer.lower() in choices:
        return answer.lower()
    letters = [letter for letter, text in choices.items() if text.lower() == answer.lower()]
    if len(letters) == 1:
        return letters[0]
    raise InvalidLine("answer", f"'{answer[:40]}' is not one of the choices ({', '.join(choices)})")


def _tolerance(value: object) -> str:
    try:
        tolerance = Decimal(str(value))
    except InvalidOperation:
        raise InvalidLine("tolerance", "must be a number") from None
    if not tolerance.is_finite() or tolerance < 0:
        raise InvalidLine("tolerance", "must be 0 or more")
    return f"{tolerance:f}"


def _pattern(line: Json) -> str:
    pattern = _text(line, "pattern")
    try:
        re2.compile(pattern)
    except re2.error as error:
        reason: Any = error.args[0] if error.args else ""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise InvalidLine("pattern", f"not a valid RE2 pattern: {text}") from None
    return pattern
