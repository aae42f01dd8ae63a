"""How an engine is told to go on with an answer that was begun, and how that is found out.

Servers differ in what they want and in what they send back; `kinds.py` is the table of who wants what. Text,
never token ids, crosses from teacher to student: their vocabularies may differ (paper, section 2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gateway.protocol.messages import only_text, with_text

if TYPE_CHECKING:
    from gateway.protocol.body import Json

Mode = Literal["vllm", "sglang", "trailing", "prefix", "partial", "completions", "instruct"]
"""
vllm         `continue_final_message` with `add_generation_prompt` off (vLLM refuses one without the other)
sglang       `continue_final_message`; without it SGLang turns the message into a user's
trailing     nothing but the message at the end (llama.cpp, TGI, Ollama, Groq, OpenRouter)
prefix       the message carries `prefix: true` (Mistral, DeepSeek)
partial      the message carries `partial: true` (DashScope, Moonshot)
completions  the engine renders the chat, and goes on with that and the opening behind it as raw text
instruct     the last user message asks for an answer that begins so, and the engine writes the opening again
"""
NATIVE_MODES: tuple[Mode, ...] = ("trailing", "vllm", "sglang", "prefix", "partial")
"""Those in which the chat itself ends in the opening."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What is known of how one engine continues.

    Attributes:
        mode: how it is asked.
        echo: whether the reply repeats the message it continues; None when nobody has seen a reply yet.
        strips_leading_space: whether the reply loses the space that belongs before its first word.
    """

    mode: Mode
    echo: bool | None = None
    strips_leading_space: bool = False

    @property
    def writes_again(self) -> bool:
        """Whether the engine writes the opening itself: its tokens are the engine's, and count fully.

        Then nothing is shown before it has done so, for it may begin otherwise (`SeamJoin(written_again=True)`).
        """
        return self.mode == "instruct"

    def unsupported(self, body: Json) -> str | None:
        """What of an OpenAI chat body this mode cannot carry, in one word; None: nothing."""
        return unsupported_as_text(body) if self.mode == "completions" else None


@dataclass(frozen=True, slots=True)
class Prefill:
    """An answer that was begun, and how the engine is to go on with it."""

    text: str
    continuation: Continuation


Known = Continuation | Literal["not_probed"] | None
"""How an engine continues, as far as is known: None when it was probed and cannot."""

# Of the wordings that were tried with greedy models of 0.1 and 0.5 billion parameters, the one that was obeyed most
# often over both; docs/engines.md has the figures.
INSTRUCTION = "Your answer has already been begun. Repeat the beginning word for word, then continue it:\n\n{opening}"


def place_prefix(mode: Mode, body: Json, opening: str) -> Json:
    """A copy of an OpenAI chat body that asks the engine to go on with `opening` as the beginning of its answer.

    Not for `completions`, which leaves the chat as it is. What the caller says of continuing was said of its own last
    message, and is left out.
    """
    assert mode != "completions", "a raw prompt has no messages"
    message: Json = {"role": "assistant", "content": opening}
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
            # Not str.format: the opening may hold other braces.
            placed["messages"] = with_text(body["messages"], after=INSTRUCTION.replace("{opening}", opening))
        case "trailing":
            pass
    return placed


_TOOLS = ("tools", "functions", "tool_choice", "function_call")


def unsupported_as_text(body: Json) -> str | None:
    """What of an OpenAI chat body cannot go along with a raw prompt; None: all of it can."""
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


# The alphabet: any language model continues it, however small, and none that starts anew starts in its middle.
PROBE_OPENING = "a b c d e f g h i j k l m n"
_PROBE_NEXT = re.compile(r"\s*o(?:pq|(?![a-z]))")  # "o p", or "opq" run together; not "of course"
PROBE_MAX_TOKENS = 12

# Who is told to write the opening again must not come upon it alone: nobody opens an answer like these. Two, for one
# may be obeyed by chance.
INSTRUCT_PROBES: tuple[tuple[str, str], ...] = (
    ("What is the capital of France?", "Dear reader, the capital of France is"),
    ("Name three colours.", "Well then, three colours that I like are red,"),
)
_INSTRUCT_MAX_TOKENS = 24


@dataclass(frozen=True, slots=True)
class ContinuationProbe:
    """A question whose answer, begun with `opening`, shows whether, and how, an engine goes on with it."""

    question: str
    opening: str
    max_tokens: int

    def body(self) -> Json:
        """Greedy, so that it says the same each time."""
        message = {"role": "user", "content": self.question}
        return {"messages": [message], "max_tokens": self.max_tokens, "temperature": 0}


_ALPHABET = ContinuationProbe(
    "Write the alphabet in lower case, with a space between the letters.", PROBE_OPENING, PROBE_MAX_TOKENS
)


def probes(mode: Mode) -> tuple[ContinuationProbe, ...]:
    """What to ask to see whether an engine continues in this way: it does when it passes all of them."""
    if mode == "instruct":
        return tuple(
            ContinuationProbe(question, opening, _INSTRUCT_MAX_TOKENS) for question, opening in INSTRUCT_PROBES
        )
    return (_ALPHABET,)


def judge_probe(mode: Mode, reply: str, probe: ContinuationProbe = _ALPHABET) -> Continuation | None:
    """Read the reply to a probe: how the engine continues, or None when it started anew."""
    echo = reply.lstrip().startswith(probe.opening)
    rest = reply.lstrip()[len(probe.opening) :] if echo else reply
    if mode == "instruct":
        return Continuation(mode, echo=True) if echo and rest.strip() else None
    if not _PROBE_NEXT.match(rest):
        return None
    return Continuation(mode, echo=echo, strips_leading_space=not rest[:1].isspace())
