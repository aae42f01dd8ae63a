"""Students that reason before they answer: whether a prefix can begin the answer, and how to filter reasoning.

A prefix is placed where the reasoning would be. A model whose reasoning can be disabled gets it disabled, and continues
the prefix. Any other model would treat the prefix as a thought, or reason after it, and gets the guidance as context.

    setting      the caller             a prefix is placed     fields of the request
    none         any                    yes                    unchanged
    switchable   requests no reasoning  yes                    both switches off, except those that the caller set
    switchable   requests reasoning     no, as context         the caller's
    always       any                    no, as context         the caller's

Placements that leave the answer's beginning to the student do not affect its reasoning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from gateway.protocol.body import Json

Reasoning = Literal[
    "none",  # the model answers at once, or its server has disabled reasoning
    "switchable",  # its chat template reads `enable_thinking` or `thinking`
    "always",  # it always reasons before it answers
]

# Qwen3 reads the first, DeepSeek-V3.1 and Granite the second (vLLM 0.26, "Reasoning Outputs"); a template ignores the
# other one. llama.cpp rejects a prefix for such a model unless the first is false (PR 15404).
SWITCHES = ("enable_thinking", "thinking")
_BUDGETS = ("thinking_budget", "thinking_budget_tokens", "thinking_token_budget")
_OFF = (None, False, "none", "disabled", "off", 0)

_OPEN = "<think>"
_CLOSE = "</think>"


def asks_for_reasoning(body: Mapping[str, Any]) -> bool:
    """Return whether a caller's chat body requests reasoning, in any form that servers support."""
    if body.get("reasoning_effort") not in _OFF or body.get("include_reasoning") is True:
        return True
    kwargs = body.get("chat_template_kwargs")
    if isinstance(kwargs, dict) and any(kwargs.get(switch) not in _OFF for switch in SWITCHES):
        return True
    if any(body.get(budget) not in _OFF for budget in _BUDGETS):
        return True
    return any(_is_on(body.get(field)) for field in ("thinking", "enable_thinking", "reasoning"))


def _is_on(value: object) -> bool:
    if isinstance(value, dict):
        values = [value[key] for key in ("type", "enabled", "effort") if key in value]
        return bool(value) and all(one not in _OFF for one in values)
    return value not in _OFF


def takes_prefix(setting: Reasoning, body: Mapping[str, Any]) -> bool:
    """Return whether a prefix can begin the answer of a student with this setting."""
    return setting == "none" or (setting == "switchable" and not asks_for_reasoning(body))


def without_reasoning(setting: Reasoning, body: Json) -> Json:
    """Return the body of a call with a prefix, with the model's reasoning disabled. The input is not changed.

    Only for bodies where `takes_prefix` is true.
    """
    if setting != "switchable":
        return body
    kwargs = body.get("chat_template_kwargs")
    return {**body, "chat_template_kwargs": {**dict.fromkeys(SWITCHES, False), **(kwargs or {})}}


def begins_with_reasoning(text: str) -> bool:
    """Return whether an answer begins with a block of reasoning."""
    return text.lstrip().startswith(_OPEN)


class ReasoningFilter:
    """Separate unwanted reasoning of a student from its continuation of the guidance.

    Use it before `SeamJoin`: the first value of `feed` and `finish` is the input of the seam. A `<think>` block at the
    beginning of the continuation, or after the repeated guidance, is reasoning. Whitespace after it is kept, so that
    words stay separate. Later blocks are text. The second value belongs into `reasoning_content`, where servers that
    separate reasoning put it.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.lstrip()
        self._held = ""
        self._state: Literal["before", "within", "after"] = "before"
        self._reasoned = False
        self._has_answer = False

    @property
    def is_silent(self) -> bool:
        """Return whether the student only reasoned, so that the caller has the guidance and no answer."""
        return self._reasoned and not self._has_answer

    @property
    def is_settled(self) -> bool:
        """Return whether all further text continues the answer."""
        return self._state == "after" and self._has_answer

    def note(self, reasoning: str | None) -> None:
        """Record reasoning that the server sent in a field of its own (`reasoning_content`, `reasoning`)."""
        self._reasoned = self._reasoned or bool(reasoning)

    def feed(self, text: str) -> tuple[str, str]:
        """Read the student's text. Return the part that continues the answer, and the reasoning."""
        if self._state == "after":
            return self._answer(text), ""
        self._held += text
        if self._state == "before":
            return self._begin()
        return self._within()

    def finish(self) -> tuple[str, str]:
        """Return the text that was held back, as `feed` does, after the student has ended."""
        held, self._held = self._held, ""
        return ("", held) if self._state == "within" else (self._answer(held, self._echo_in(held)), "")

    def _begin(self) -> tuple[str, str]:
        reply = self._held.lstrip()
        echo = self._echo_in(reply)
        rest = reply[len(echo) :].lstrip()
        if rest.startswith(_OPEN):
            before = self._held[: -len(rest)] if echo else ""
            self._state, self._reasoned, self._held = "within", True, rest[len(_OPEN) :]
            answer, reasoning = self._within()
            return before + answer, reasoning
        if _OPEN.startswith(rest) or (not echo and self._prefix.startswith(reply)):
            return "", ""
        self._state = "after"
        held, self._held = self._held, ""
        return self._answer(held, echo), ""

    def _echo_in(self, text: str) -> str:
        return self._prefix if self._prefix and text.lstrip().startswith(self._prefix) else ""

    def _within(self) -> tuple[str, str]:
        reasoning, closed, rest = self._held.partition(_CLOSE)
        if closed:
            self._state, self._held = "after", ""
            return self._answer(rest), reasoning
        keep = next((n for n in range(len(_CLOSE) - 1, 0, -1) if self._held.endswith(_CLOSE[:n])), 0)
        cut = len(self._held) - keep
        reasoning, self._held = self._held[:cut], self._held[cut:]
        return "", reasoning

    def _answer(self, text: str, echo: str = "") -> str:
        self._has_answer = self._has_answer or len(text.strip()) > len(echo)
        return text
