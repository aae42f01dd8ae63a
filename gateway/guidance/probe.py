"""Measure the student's confidence in its first token: request one token and the probabilities of its alternatives.

GlimpRouter (arXiv 2601.05110): the entropy of a step's first token indicates how hard the step is, without training.
The student reads the prompt once more; an engine that caches prefixes does not read it again for the answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gateway.capabilities.reasoning import without_reasoning
from gateway.engines.chat import read_usage
from gateway.engines.replies import first_choice
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.capabilities.reasoning import Reasoning
    from gateway.engines.base import Engine, TokenUsage
    from gateway.policy.length_rules import ProbeRule
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest

Outcome = Literal["confident", "unsure", "no_logprobs", "late", "failed"]
"""Outcome of a probe. `no_logprobs`: the engine returned no probabilities."""

# Values that engines write for a probability of almost 0, or for 1 with a rounding error.
_MIN_LOGPROB, _MAX_LOGPROB = -1e4, 1e-3
# The caller's fields that affect the student's input, its reasoning, and the destination of the call.
_FORWARDED = frozenset({
    "model", "messages", "prompt", "tools", "functions", "tool_choice", "function_call", "chat_template",
    "chat_template_kwargs", "documents", "add_special_tokens", "mm_processor_kwargs", "media_io_kwargs", "lora",
    "lora_path", "adapter_id", "reasoning", "reasoning_effort", "thinking", "enable_thinking", "think", "user",
    "cache_salt", "prompt_cache_key", "priority", "provider", "service_tier",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The distribution of the student's first token.

    Attributes:
        p1: probability of the most likely token.
        entropy: in nats, over the reported tokens, with all others counted as one.
    """

    p1: float
    entropy: float

    def is_confident(self, rule: ProbeRule) -> bool:
        """Return whether the rule skips the teacher."""
        return self.p1 >= rule.confident or (rule.entropy is not None and self.entropy <= rule.entropy)


async def first_token(
    engine: Engine, request: CompletionRequest, reasoning: Reasoning, top: int
) -> tuple[FirstToken | None, TokenUsage | None]:
    """Request one token and its `top` most likely alternatives. Raises EngineErrors.

    Returns:
        The distribution, or None if the engine returns no probabilities; and the usage, or None if it reports none.
    """
    reply = await engine.complete(probe_body(request, reasoning, top))
    return read_first(first_choice(reply).get("logprobs")), read_usage(reply.get("usage"))


def probe_body(request: CompletionRequest, reasoning: Reasoning, top: int) -> Json:
    """Return a body that requests one token without sampling, with only those of the caller's fields in `_FORWARDED`.

    Any other field may change the reported probabilities, or make the engine reject the request.
    """
    forwarded = {name: value for name, value in request.body.items() if name in _FORWARDED}
    body: Json = {**forwarded, request.limit_field: 1, "temperature": 0}
    if isinstance(request, TextRequest):
        return {**body, "logprobs": top}
    return without_reasoning(reasoning, {**body, "logprobs": True, "top_logprobs": top})


def read_first(logprobs: Any) -> FirstToken | None:
    """Return the distribution of the first token from a choice's `logprobs`, or None.

    Args:
        logprobs: in the format of chats or of text completions.
    """
    if not isinstance(logprobs, dict):
        return None
    logprob_values = _of_chat(logprobs.get("content")) or _of_text(logprobs)
    probabilities = [math.exp(min(0.0, one)) for one in logprob_values if _is_logprob(one)]
    if not probabilities or len(probabilities) < len(logprob_values):
        return None
    shares = [*probabilities, max(0.0, 1 - sum(probabilities))]
    return FirstToken(max(probabilities), -sum(share * math.log(share) for share in shares if share > 0))


def _of_chat(content: Any) -> Sequence[Any]:
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, dict):
        return ()
    top = first.get("top_logprobs")
    if isinstance(top, list) and top:
        return [one.get("logprob") if isinstance(one, dict) else None for one in top]
    return (first.get("logprob"),)


def _of_text(logprobs: Json) -> Sequence[Any]:
    top = logprobs.get("top_logprobs")
    if isinstance(top, list) and top and isinstance(top[0], dict) and top[0]:
        return list(top[0].values())
    own = logprobs.get("token_logprobs")
    return (own[0],) if isinstance(own, list) and own else ()


def _is_logprob(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _MIN_LOGPROB <= value <= _MAX_LOGPROB
