"""Students that reason before they answer: when a prefix can open their answer, and what of their reply is the answer.

A prefix lands where the reasoning would stand. A model that can be told not to reason is told so, and goes on with the
prefix; one that cannot would take the prefix for a thought, or think after it, and gets the guidance as context.

    setting      the caller             a prefix is placed          what goes out beside it
    none         whatever               yes                         nothing
    switchable   asks for no reasoning  yes                         both switches off, but for what the caller set
    switchable   asks for reasoning     no, as context            the caller's body as it came
    always       whatever               no, as context            the caller's body as it came

Placements that leave the answer's beginning to the student change nothing of this: it may reason as it likes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from gateway.protocol.body import Json

Reasoning = Literal["none", "switchable", "always"]
"""
none        the model answers at once, or its server has switched reasoning off
switchable  its chat template listens to `enable_thinking` or `thinking`
always      it reasons, whatever it is told
"""

# Qwen3 reads the first, DeepSeek-V3.1 and Granite the second (vLLM 0.26, "Reasoning Outputs"); a template passes over
# the one it does not know. llama.cpp refuses a prefix for such a model unless the first is false (PR 15404).
_SWITCHES = ("enable_thinking", "thinking")
_BUDGETS = ("thinking_budget", "thinking_budget_tokens", "thinking_token_budget")
_OFF = (None, False, "none", "disabled", "off", 0)

_OPEN = "<think>"
_CLOSE = "</think>"


def asks_for_reasoning(body: Mapping[str, Any]) -> bool:
    """Whether a caller's chat body asks the model to reason, in any of the ways that servers know."""
    if body.get("reasoning_effort") not in _OFF or body.get("include_reasoning") is True:
        return True
    kwargs = body.get("chat_template_kwargs")
    if isinstance(kwargs, dict) and any(kwargs.get(switch) not in _OFF for switch in _SWITCHES):
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
    """Whether a prefix can open the answer of a student with this setting."""
    return setting == "none" or (setting == "switchable" and not asks_for_reasoning(body))


def without_reasoning(setting: Reasoning, body: Json) -> Json:
    """The body of a call whose answer is begun for the model, with its reasoning switched off. The input is kept.

    Only where it `takes_prefix`.
    """
    if setting != "switchable":
        return body
    kwargs = body.get("chat_template_kwargs")
    return {**body, "chat_template_kwargs": {**dict.fromkeys(_SWITCHES, False), **(kwargs or {})}}


class ReasoningFilter:
    """Parts the reasoning that a student was not to do from the continuation that it was to write.

    It stands before `SeamJoin`: what `feed` and `finish` return first goes there. A `<think>` block with which the
    continuation begins (behind the repeated opening, where the engine repeats it) is reasoning; white space after it
    stays, so that no words run together. Later ones are text, as everywhere. What it returns second belongs into
    `reasoning_content`, where servers that part the two by themselves put it.

    opening: what the student was sent to go on with.
    """

    def __init__(self, opening: str) -> None:
        self._opening = opening.lstrip()
        self._held = ""
        self._state: Literal["before", "within", "after"] = "before"
        self._reasoned = False
        self._has_answer = False

    @property
    def is_silent(self) -> bool:
        """The student reasoned and said nothing else: what the caller has is the opening alone, not an answer."""
        return self._reasoned and not self._has_answer

    def note(self, reasoning: str | None) -> None:
        """The server has put this into a field of its own (`reasoning_content`, `reasoning`)."""
        self._reasoned = self._reasoned or bool(reasoning)

    def feed(self, text: str) -> tuple[str, str]:
        """Take the student's text; return what of it goes on with the answer, and what is reasoning."""
        if self._state == "after":
            return self._answer(text), ""
        self._held += text
        if self._state == "before":
            return self._begin()
        return self._within()

    def finish(self) -> tuple[str, str]:
        """The student has ended: what was held back."""
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
        if _OPEN.startswith(rest) or (not echo and self._opening.startswith(reply)):
            return "", ""
        self._state = "after"
        held, self._held = self._held, ""
        return self._answer(held, echo), ""

    def _echo_in(self, text: str) -> str:
        return self._opening if self._opening and text.lstrip().startswith(self._opening) else ""

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
