"""How an engine is told to continue an assistant message instead of starting a new one, and how that is found out.

Servers differ in what they want and in what they send back; the table of who wants what is docs/engines.md. Text, never
token ids, crosses from teacher to student: their vocabularies may differ (paper, section 2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gateway.protocol import Json

Mode = Literal["vllm", "sglang", "trailing", "prefix", "partial", "completions"]
"""
vllm      `continue_final_message` with `add_generation_prompt` off (vLLM refuses one without the other)
sglang    `continue_final_message`; without it SGLang turns the message into a user's
trailing  nothing but the message at the end (llama.cpp, TGI, Ollama, Groq, OpenRouter)
prefix    the message carries `prefix: true` (Mistral, DeepSeek)
partial   the message carries `partial: true` (DashScope, Moonshot)
"""


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


@dataclass(frozen=True, slots=True)
class Prefill:
    """An answer that was begun, and how the engine is to go on with it."""

    text: str
    how: Continuation


Known = Continuation | Literal["not_probed"] | None
"""How an engine continues, as far as is known: None when it was probed and cannot."""


def place_prefix(mode: Mode, body: Json, opening: str) -> Json:
    """A copy of an OpenAI chat body that asks the engine to continue `opening` as the assistant's message.

    What the caller says of continuing was said of its own last message, and is left out.
    """
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
        case "trailing":
            pass
    return placed


# The alphabet: any language model continues it, however small, and none that starts anew starts in its middle.
PROBE_OPENING = "a b c d e f g h i j k l m n"
_PROBE_NEXT = re.compile(r"\s*o(?:pq|(?![a-z]))")  # "o p", or "opq" run together; not "of course"
PROBE_MAX_TOKENS = 12


def probe_body() -> Json:
    """A chat whose answer, begun with `PROBE_OPENING`, shows whether, and how, the engine continues."""
    question = {
        "role": "user",
        "content": "Write the alphabet in lower case, with a space between the letters.",
    }
    return {"messages": [question], "max_tokens": PROBE_MAX_TOKENS, "temperature": 0}


def judge_probe(mode: Mode, reply: str) -> Continuation | None:
    """Read the reply to `probe_body`: how the engine continues, or None when it started anew."""
    echo = reply.lstrip().startswith(PROBE_OPENING)
    rest = reply.lstrip()[len(PROBE_OPENING) :] if echo else reply
    if not _PROBE_NEXT.match(rest):
        return None
    return Continuation(mode, echo=echo, strips_leading_space=not rest[:1].isspace())


# Which way to try first, by what /v1/models says of its owner.
_BY_OWNER: dict[str, Mode] = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "trailing",
    "library": "trailing",
}
_ALL_MODES: tuple[Mode, ...] = ("trailing", "vllm", "sglang", "prefix", "partial")


def candidates(owner: object) -> list[Mode]:
    """The modes to probe, the likeliest first; `owner` is whatever /models says of it."""
    first = _BY_OWNER.get(owner.lower()) if isinstance(owner, str) else None
    return [first, *(mode for mode in _ALL_MODES if mode != first)] if first else list(_ALL_MODES)
