"""A chat as a raw prompt: its body as one of a text completion, and a text completion's reply as a chat's. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.engines.renderers import Prompt
    from gateway.protocol.body import Json

# What a chat body says that a prompt cannot, or that means something else there. Of the first kind is nothing left that
# the caller would miss: `continuation.unsupported_as_text` is asked before, and the template has read its part.
_OF_CHATS = frozenset(
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
    """A chat body's sampling for a raw prompt.

    limit: on tokens; None goes out as null, for some engines take a missing one as 16. Other nulls are left out: they
    say the same, and not every engine takes them here.
    """
    body = {name: value for name, value in chat.items() if value is not None and name not in _OF_CHATS}
    return {**body, "prompt": prompt, "max_tokens": limit}


def is_text(body: Json) -> bool:
    """Whether a body is one of a text completion already: its caller wrote the prompt."""
    return "messages" not in body


def asked_limit(chat: Json) -> int | None:
    """The limit on tokens of a chat body, in whichever field it stands."""
    return chat.get("max_completion_tokens") or chat.get("max_tokens")


def chat_reply(reply: Json) -> Json:
    """A text completion as a chat completion."""
    choices = [
        {**_plain(choice), "message": {"role": "assistant", "content": choice["text"]}} for choice in reply["choices"]
    ]
    return {**reply, "object": "chat.completion", "choices": choices}


def chat_chunk(chunk: Json) -> Json:
    """A chunk of a text completion as one of a chat completion."""
    choices = [{**_plain(choice), "delta": {"content": choice.get("text") or ""}} for choice in chunk["choices"]]
    return {**chunk, "object": "chat.completion.chunk", "choices": choices}


def _plain(choice: Json) -> Json:
    """A choice without its text. Its log-probabilities stay as text completions have them, for those who speak such."""
    rest = {name: value for name, value in choice.items() if name != "text"}
    return {**rest, "finish_reason": choice.get("finish_reason") or None}
