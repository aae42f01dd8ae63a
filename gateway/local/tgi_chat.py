"""Converts chats and completions to prompts and parameters, and generations to replies, as TGI does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.local import tgi_errors
from gateway.local.tgi_request import TgiGrammar, TgiParameters, Unsigned
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.local.generation import GeneratedToken, LocalGeneration
    from gateway.local.llama_client import LlamaClient


class TgiMessage(msgspec.Struct, frozen=True):
    """A message of a chat. `content` is a text or a list of chunks; only chunks of type `text` are supported."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: Any = None

    @property
    def text(self) -> str:
        """The content as one string, joined as TGI joins it. Raises TgiError 422 for an image."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        if any(chunk.get("type") != "text" for chunk in self.content):
            raise tgi_errors.invalid("only text can be read by this model")
        return "".join(str(chunk.get("text", "")) for chunk in self.content)


class TgiStreamOptions(msgspec.Struct, frozen=True):
    """The options of a stream. `include_usage` requests a last chunk with the usage and without choices."""

    include_usage: bool = False


class _SamplingBody(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of both routes."""

    frequency_penalty: float | None = None
    max_tokens: Unsigned | None = None
    seed: Unsigned | None = None
    stop: list[str] | None = None
    stream: bool = False
    stream_options: TgiStreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None

    @property
    def wants_usage(self) -> bool:
        """Return whether a stream ends with a chunk with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _parameters(self, **own: Any) -> TgiParameters:
        return TgiParameters(
            details=True,
            do_sample=self.temperature != 0,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=self.stop or [],
            temperature=self.temperature or None,
            top_p=self.top_p,
            **own,
        )


class TgiChatBody(_SamplingBody, frozen=True, kw_only=True):
    """The body of /v1/chat/completions and /chat_tokenize. Fields that TGI does not read are ignored."""

    messages: list[TgiMessage]
    logprobs: bool | None = None
    max_completion_tokens: Unsigned | None = None
    presence_penalty: float | None = None
    response_format: TgiGrammar | None = None
    tools: list[Any] | None = None
    top_logprobs: Unsigned | None = None

    @property
    def parameters(self) -> TgiParameters:
        """The parameters as TGI maps them. A `presence_penalty` of x becomes a repetition penalty of x + 2."""
        penalty = self.presence_penalty
        return self._parameters(
            grammar=self.response_format,
            max_new_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            repetition_penalty=None if penalty is None else penalty + 2.0,
            top_n_tokens=self.top_logprobs,
        )


class TgiCompletionBody(_SamplingBody, frozen=True, kw_only=True):
    """The body of /v1/completions."""

    prompt: str | list[str]
    repetition_penalty: float | None = None
    suffix: str | None = None

    @property
    def parameters(self) -> TgiParameters:
        """The parameters as TGI maps them."""
        return self._parameters(max_new_tokens=self.max_tokens, repetition_penalty=self.repetition_penalty)


async def prompt_of(body: TgiChatBody, llama: LlamaClient) -> str:
    """Return the rendered prompt of a chat.

    A trailing assistant message is continued as by TGI. The chat is rendered with the start of another turn, then cut
    after the last occurrence of the message's text, and stripped at the end. If the template changes the text, for
    example by stripping it, the text is not found, and the prompt starts a new turn. Raises TgiError 422.
    """
    if body.tools:
        raise tgi_errors.failure("tool_error", "this server has no tools")
    if not body.messages:
        raise tgi_errors.failure("template_error", "there are no messages")
    messages = [{"role": message.role, "content": message.text} for message in body.messages]
    prompt = await llama.render(messages)
    last = messages[-1]
    if last["role"] != "assistant":
        return prompt
    found = prompt.rfind(last["content"])
    return prompt if found < 0 else prompt[: found + len(last["content"])].rstrip()


class TgiReplies(NamedTuple):
    """Builds the replies of one request. Like TGI's, each has an empty `id`."""

    model: str

    def chat(self, run: LocalGeneration, tokens: Sequence[GeneratedToken], *, logprobs: bool) -> dict[str, Any]:
        """Return the reply to a chat without streaming."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": run.text},
            "logprobs": _logprobs(tokens) if logprobs else None,
            "finish_reason": _finish_reason(run.finish_reason),
        }
        return self._envelope("chat.completion", [choice]) | {"usage": _usage([run])}

    def chat_chunk(self, token: GeneratedToken, *, logprobs: bool) -> dict[str, Any]:
        """Return the chunk of one token of a streamed chat. The role is in each delta."""
        reason = token.finish_reason
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": "" if token.special else token.text},
            "logprobs": _logprobs([token]) if logprobs else None,
            "finish_reason": None if reason is None else _finish_reason(reason),
        }
        return self._envelope("chat.completion.chunk", [choice]) | {"usage": None}

    def usage_chunk(self, runs: Sequence[LocalGeneration], kind: str) -> dict[str, Any]:
        """Return the usage chunk of a stream with `include_usage`."""
        return self._envelope(kind, []) | {"usage": _usage(runs)}

    def completion(self, runs: Sequence[LocalGeneration]) -> dict[str, Any]:
        """Return the reply to a completion without streaming, with one choice for each prompt."""
        choices = [
            {"index": index, "text": run.text, "logprobs": None, "finish_reason": _finish_reason(run.finish_reason)}
            for index, run in enumerate(runs)
        ]
        return self._envelope("text_completion", choices) | {"usage": _usage(runs)}

    def completion_chunk(self, index: int, token: GeneratedToken) -> dict[str, Any]:
        """Return the chunk of one token of a streamed completion. `eos_token` is not renamed here."""
        text = "" if token.special else token.text
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": token.finish_reason or ""}
        return self._envelope("text_completion", [choice])

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "object": kind,
            "id": "",
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": f"{__version__}-llama.cpp",
            "choices": choices,
        }


def _usage(runs: Sequence[LocalGeneration]) -> dict[str, int]:
    read = sum(run.input_tokens for run in runs)
    written = sum(run.generated_tokens for run in runs)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _finish_reason(reason: str) -> str:
    return "stop" if reason == "eos_token" else reason


def _logprobs(tokens: Sequence[GeneratedToken]) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": token.text,
                "logprob": token.logprob,
                "top_logprobs": [{"token": other.text, "logprob": other.logprob} for other in token.top],
            }
            for token in tokens
            if token.logprob is not None
        ]
    }
