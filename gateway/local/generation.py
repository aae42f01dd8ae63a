"""A generation by llama.cpp, converted token by token to TGI's format.

Stop sequences are not sent to llama.cpp, which would remove the stop text; TGI keeps it. Like TGI, this module searches
for them at the end of the text after each token.
"""

from __future__ import annotations

import re
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.local import tgi_errors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.local.llama_client import LlamaClient
    from gateway.local.tgi_request import TgiJob

STOP_WINDOW_CHARS = 300
_UNKNOWN_ID = 0


class GeneratedToken(NamedTuple):
    """A generated token.

    A character that spans several tokens is the text of the last one. The tokens before it have no text and, since
    llama.cpp does not report them, the id 0.
    """

    id: int
    text: str
    logprob: float | None  # the log-probability; None if it was not requested
    special: bool  # whether this is a special token
    top: tuple[GeneratedToken, ...] = ()  # the most likely alternatives
    finish_reason: str | None = None  # of the last token: `length`, `eos_token` or `stop_sequence`


class LocalGeneration:
    """A run of a job. Iterate `tokens()` once; the other values are final after the last token."""

    def __init__(self, llama: LlamaClient, job: TgiJob, *, logprobs: bool) -> None:
        self.job = job
        self.text = ""
        self.generated_tokens = 0
        self.finish_reason = ""
        self.inference_s = 0.0
        self.queue_s = 0.0
        self._llama = llama
        self._logprobs = logprobs
        self._stops = tuple(re.compile(f"{re.escape(stop)}$") for stop in job.stop)

    @property
    def input_tokens(self) -> int:
        return len(self.job.input_ids)

    async def tokens(self) -> AsyncGenerator[GeneratedToken, None]:
        """Yield the tokens. Closing the iterator or canceling its reader cancels the generation.

        Raises TgiError 424 if the model failed, and 500 if the generation ended without a reason.
        """
        started = time.monotonic()
        held: GeneratedToken | None = None
        async with aclosing(self._llama.complete(self._llama_body())) as chunks:
            async for chunk in chunks:
                if timings := chunk.get("timings"):
                    self.inference_s = (timings["prompt_ms"] + timings["predicted_ms"]) / 1000
                    self.queue_s = max(0.0, time.monotonic() - started - self.inference_s)
                if held is not None:
                    # Only the next chunk shows whether a special token ended the answer.
                    yield self._close(held, "eos_token" if chunk.get("stop_type") == "eos" else None)
                    held = None
                async for token in self._tokens_of(chunk):
                    if self.generated_tokens < self.job.max_new_tokens and token.special:
                        held = token
                    else:
                        yield self._close(token, None)
                    if self.finish_reason:
                        return
        if not self.finish_reason:
            raise tgi_errors.failure("incomplete_generation")

    async def _tokens_of(self, chunk: dict[str, Any]) -> AsyncGenerator[GeneratedToken, None]:
        """Yield the tokens of a chunk: those that llama.cpp held back, then the chunk's own."""
        ids = chunk.get("tokens") or []
        for _ in range(chunk["tokens_predicted"] - self.generated_tokens - len(ids)):
            self.generated_tokens += 1
            yield GeneratedToken(_UNKNOWN_ID, "", None, special=False)
        if ids:
            self.generated_tokens += 1
            yield await self._token(chunk, ids[-1])

    async def _token(self, chunk: dict[str, Any], token_id: int) -> GeneratedToken:
        text = chunk["content"]
        special = not text
        if special:
            text = await self._llama.special_text(token_id)
        else:
            self.text += text
        probability = (chunk.get("completion_probabilities") or [{}])[0]
        top = [
            GeneratedToken(each["id"], each["token"], each["logprob"], special=not each["token"])
            for each in probability.get("top_logprobs", ())[: self.job.top_n_tokens]
        ]
        return GeneratedToken(token_id, text, probability.get("logprob"), special=special, top=tuple(top))

    def _close(self, token: GeneratedToken, reason: str | None) -> GeneratedToken:
        """Set the finish reason of a token, if it has one. Like TGI, check the length before the token."""
        if self.generated_tokens >= self.job.max_new_tokens:
            reason = "length"
        elif reason is None and any(stop.search(self.text[-STOP_WINDOW_CHARS:]) for stop in self._stops):
            reason = "stop_sequence"
        if reason is None:
            return token
        self.finish_reason = reason
        return token._replace(finish_reason=reason)

    def _llama_body(self) -> dict[str, Any]:
        return {
            **self.job.settings,
            "prompt": self.job.input_ids,
            "n_predict": self.job.max_new_tokens,
            # Log-probabilities of a large vocabulary cost time for each token.
            "n_probs": max(self.job.top_n_tokens, 1) if self._logprobs else 0,
            "return_tokens": True,
            "timings_per_token": True,
            "cache_prompt": True,
        }
