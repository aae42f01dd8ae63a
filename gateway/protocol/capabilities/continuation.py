"""The ways in which engines continue an answer that was begun, and the probes that detect them.

Servers differ in the request that they need and in the reply that they send; `kinds.py` has the table. Only text, never
token ids, is passed from teacher to student, because their vocabularies may differ (paper, section 2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from gateway.protocol.messages import only_text, with_text

if TYPE_CHECKING:
    from gateway.protocol.body import Json

# Ways to ask an engine to continue an answer.
Mode = Literal[
    "vllm",  # `continue_final_message` with `add_generation_prompt` off (vLLM rejects one without the other)
    "sglang",  # `continue_final_message`; without it SGLang turns the message into a user's
    "trailing",  # the message at the end, without a parameter (llama.cpp, TGI, Ollama, Groq, OpenRouter)
    "prefix",  # the message has `prefix: true` (Mistral, DeepSeek)
    "partial",  # the message has `partial: true` (DashScope, Moonshot)
    "completions",  # the engine renders the chat, and continues that and the guidance as raw text
    "instruct",  # the last user message requests an answer with this beginning, and the engine writes it again
]
NATIVE_MODES: tuple[Mode, ...] = ("trailing", "vllm", "sglang", "prefix", "partial")
"""Modes in which the chat itself ends in the guidance."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """The way in which an engine continues an answer."""

    mode: Mode  # the form of the request
    echo: bool | None = None  # whether the reply repeats the message that it continues; None: no reply was read yet
    strips_leading_space: bool = False  # whether the reply loses the space before its first word

    @property
    def writes_again(self) -> bool:
        """Return whether the engine writes the guidance itself, so that it counts and charges those tokens.

        Nothing can then be shown before it has done so, because it may begin differently
        (`SeamJoin(written_again=True)`).
        """
        return self.mode == "instruct"

    def unsupported(self, body: Json) -> str | None:
        """Return the first feature of an OpenAI chat body that this mode does not support; None: it supports all."""
        return unsupported_as_text(body) if self.mode == "completions" else None


class Prefill(NamedTuple):
    """The beginning of an answer, and the way in which the engine continues it."""

    text: str
    continuation: Continuation


Known = Continuation | Literal["not_probed"] | None
"""The continuation of an engine; None: the engine was probed and cannot continue an answer."""

# Of several wordings, greedy models of 0.1 and 0.5 billion parameters obeyed this one most often; docs/engines.md has
# the figures.
INSTRUCTION = "Your answer has already been begun. Repeat the beginning word for word, then continue it:\n\n{opening}"


def place_prefix(mode: Mode, body: Json, prefix: str) -> Json:
    """Return a copy of an OpenAI chat body that asks the engine to continue `prefix` as the beginning of its answer.

    Not for `completions`, which does not change the chat. The caller's continuation parameters refer to its own last
    message, and are removed.
    """
    assert mode != "completions", "a raw prompt has no messages"
    message: Json = {"role": "assistant", "content": prefix}
    placed = {**body, "messages": [*body["messages"], message]}
    placed.pop("continue_final_message", None)
    placed.pop("add_generation_prompt", None)
    match mode:
        case "vllm":
            placed.update(continue_final_message=True, add_generation_prompt=False)
        case "sglang":
            placed.update(continue_final_message=True)
        case "prefix":
            message["prefix"] = True
        case "partial":
            message["partial"] = True
        case "instruct":
            # Not str.format: the guidance may contain other braces.
            placed["messages"] = with_text(body["messages"], after=INSTRUCTION.replace("{opening}", prefix))
        case "trailing":
            pass
    return placed


_TOOLS = ("tools", "functions", "tool_choice", "function_call")


def unsupported_as_text(body: Json) -> str | None:
    """Return the first feature of an OpenAI chat body that a raw prompt does not support; None: it supports all."""
    if any(body.get(name) not in (None, [], "none") for name in _TOOLS):
        return "tools"
    form = body.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        return "response_format"
    if body.get("logprobs"):
        return "logprobs"
    if body.get("modalities") not in (None, ["text"]) or body.get("audio") is not None:
        return "modalities"
    return None if only_text(body["messages"]) else "not_text"


# Every language model, however small, continues the alphabet; none that starts a new answer begins in its middle.
PROBE_PREFIX = "a b c d e f g h i j k l m n"
_PROBE_NEXT = re.compile(r"\s*o(?:pq|(?![a-z]))")  # "o p", or "opq" run together; not "of course"
PROBE_MAX_TOKENS = 12


class ContinuationProbe(NamedTuple):
    """A question whose answer, begun with `prefix`, shows whether and how an engine continues it."""

    question: str
    prefix: str
    max_tokens: int

    def body(self) -> Json:
        """Return the body of the request, with greedy sampling so that the reply is deterministic."""
        message = {"role": "user", "content": self.question}
        return {"messages": [message], "max_tokens": self.max_tokens, "temperature": 0}


_ALPHABET = ContinuationProbe(
    "Write the alphabet in lower case, with a space between the letters.", PROBE_PREFIX, PROBE_MAX_TOKENS
)
# An engine must not write these beginnings by itself: no answer naturally begins so. There are two, because it may
# repeat one by chance.
_INSTRUCT = (
    ContinuationProbe("What is the capital of France?", "Dear reader, the capital of France is", 24),
    ContinuationProbe("Name three colours.", "Well then, three colours that I like are red,", 24),
)


def probes(mode: Mode) -> tuple[ContinuationProbe, ...]:
    """Return the probes of a mode. The engine supports the mode if it passes all of them."""
    return _INSTRUCT if mode == "instruct" else (_ALPHABET,)


def judge_probe(mode: Mode, reply: str, probe: ContinuationProbe = _ALPHABET) -> Continuation | None:
    """Read the reply to a probe. Return how the engine continues, or None if it started a new answer."""
    echo = reply.lstrip().startswith(probe.prefix)
    rest = reply.lstrip()[len(probe.prefix) :] if echo else reply
    if mode == "instruct":
        return Continuation(mode, echo=True) if echo and rest.strip() else None
    if not _PROBE_NEXT.match(rest):
        return None
    return Continuation(mode, echo=echo, strips_leading_space=not rest[:1].isspace())
