"""Converts chat bodies to text completion bodies, and text completion replies to chat replies. Performs no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.engines.renderers import Prompt
    from gateway.protocol.body import Json

# Fields of a chat body that a text completion lacks or defines differently. `continuation.unsupported_as_text` has
# rejected those that the caller would miss, and the chat template has read the others.
_CHAT_FIELDS = frozenset(
    {
        *("messages", "chat_template", "chat_template_kwargs", "documents", "reasoning_effort"),
        *("continue_final_message", "add_generation_prompt", "add_special_tokens"),
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("response_format", "modalities", "audio", "verbosity", "prediction", "web_search_options"),
        *("include_reasoning", "separate_reasoning", "stream_reasoning", "reasoning_format"),
        *("max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"),
        *("echo", "suffix", "best_of", "prompt", "prompt_embeds"),
    }
)


def text_body(chat: Json, prompt: Prompt, limit: int | None) -> Json:
    """Return a text completion body with a raw prompt and the sampling parameters of a chat body.

    Args:
        limit: max_tokens; None is sent as null, since some engines use 16 for a missing one. Other null fields are
            omitted, since not all engines accept them.
    """
    body = {name: value for name, value in chat.items() if value is not None and name not in _CHAT_FIELDS}
    return {**body, "prompt": prompt, "max_tokens": limit}


def is_text(body: Json) -> bool:
    """Return whether a body is a text completion body."""
    return "messages" not in body


def requested_limit(chat: Json) -> int | None:
    """Return the token limit of a chat body from `max_completion_tokens` or `max_tokens`."""
    return chat.get("max_completion_tokens") or chat.get("max_tokens")


def chat_reply(reply: Json) -> Json:
    """Return a text completion reply as a chat completion reply."""
    choices = [
        {**_plain(choice), "message": {"role": "assistant", "content": choice["text"]}} for choice in reply["choices"]
    ]
    return {**reply, "object": "chat.completion", "choices": choices}


def chat_chunk(chunk: Json) -> Json:
    """Return a text completion chunk as a chat completion chunk."""
    choices = [{**_plain(choice), "delta": {"content": choice.get("text") or ""}} for choice in chunk["choices"]]
    return {**chunk, "object": "chat.completion.chunk", "choices": choices}


def _plain(choice: Json) -> Json:
    """Return a choice without its text. Log-probabilities keep the format of text completions."""
    rest = {name: value for name, value in choice.items() if name != "text"}
    return {**rest, "finish_reason": choice.get("finish_reason") or None}
