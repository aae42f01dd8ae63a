"""One generation by llama.cpp, told token by token in TGI's terms.

llama.cpp is not told of stop sequences: it would cut the stop text away, and TGI keeps it. They are looked for here,
as TGI looks for them: after each token, at the end of the text.
"""

from __future__ import annotations

import re
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.local import tgi_errors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.local.llama_client import LlamaClient
    from gateway.local.tgi_request import TgiJob

STOP_WINDOW_CHARS = 300
_UNKNOWN_ID = 0


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One generated token.

    `logprob` is None when it was not asked for. A character that is spread over several tokens is told with its
    last one; the ones before have no text and, because llama.cpp does not tell them, the id 0. `finish_reason`
    (`length`, `eos_token`, `stop_sequence`) is set on the last token of a generation.
    """

    id: int
    text: str
    logprob: float | None
    special: bool
    top: tuple[GeneratedToken, ...] = ()
    finish_reason: str | None = None


class LocalGeneration:
    """One run of one job. Iterate `tokens()` once; everything else is final after the last token."""

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
        """Tokens of the prompt."""
        return len(self.job.input_ids)

    async def tokens(self) -> AsyncGenerator[GeneratedToken, None]:
        """The tokens. Closing the iterator, or cancelling its reader, cancels the generation.

        Raises:
            TgiError: 424 when the model failed, 500 when it ended without a reason.
        """
        began = time.monotonic()
        held: GeneratedToken | None = None
        async with aclosing(self._llama.complete(self._llama_body())) as chunks:
            async for chunk in chunks:
                self._take_timings(chunk, time.monotonic() - began)
                if held is not None:
                    # Whether a special token ended the answer shows only in the chunk after it.
                    yield self._close(held, "eos_token" if chunk.get("stop_type") == "eos" else None)
                    held = None
                async for token in self._told(chunk):
                    if self.generated_tokens < self.job.max_new_tokens and token.special:
                        held = token
                    else:
                        yield self._close(token, None)
                    if self.finish_reason:
                        return
        if not self.finish_reason:
            raise tgi_errors.incomplete()

    async def _told(self, chunk: dict[str, Any]) -> AsyncGenerator[GeneratedToken, None]:
        """The tokens which a chunk tells of: those held back before it, then its own."""
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
        """Give `token` its finish reason, if it has one. TGI looks at the length before it looks at the token."""
        if self.generated_tokens >= self.job.max_new_tokens:
            reason = "length"
        elif reason is None and any(stop.search(self.text[-STOP_WINDOW_CHARS:]) for stop in self._stops):
            reason = "stop_sequence"
        if reason is None:
            return token
        self.finish_reason = reason
        return GeneratedToken(token.id, token.text, token.logprob, token.special, token.top, reason)

    def _llama_body(self) -> dict[str, Any]:
        return {
            **self.job.settings,
            "prompt": self.job.input_ids,
            "n_predict": self.job.max_new_tokens,
            # Log probabilities of a large vocabulary cost time on every token.
            "n_probs": max(self.job.top_n_tokens, 1) if self._logprobs else 0,
            "return_tokens": True,
            "timings_per_token": True,
            "cache_prompt": True,
        }

    def _take_timings(self, chunk: dict[str, Any], waited_s: float) -> None:
        timings = chunk.get("timings")
        if timings:
            self.inference_s = (timings["prompt_ms"] + timings["predicted_ms"]) / 1000
            self.queue_s = max(0.0, waited_s - self.inference_s)
