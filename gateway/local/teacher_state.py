"""What the teacher's routes share: the limits, the permits, the counts, and one way to run a generation."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from gateway.local import tgi_errors, tgi_request
from gateway.local.generation import LocalGeneration

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from gateway.local.generation import GeneratedToken
    from gateway.local.llama_client import LlamaClient
    from gateway.local.tgi_request import TgiLimits, TgiParameters


class TeacherState:
    """One per server. `counts` holds `requests`, `success`, and one entry for each error type."""

    def __init__(self, llama: LlamaClient, limits: TgiLimits, model: str) -> None:
        self.llama = llama
        self.limits = limits
        self.model = model
        self.counts: Counter[str] = Counter()
        self._in_flight = 0

    @property
    def in_flight(self) -> int:
        """Requests that hold a permit."""
        return self._in_flight

    @asynccontextmanager
    async def opened(
        self, inputs: str, parameters: TgiParameters, *, logprobs: bool, special: bool = True
    ) -> AsyncIterator[tuple[LocalGeneration, AsyncGenerator[GeneratedToken, None]]]:
        """Take a permit, check the request, and open its tokens. TGI takes the permit first, so this does.

        Leaving the context cancels what still runs and gives the permit back.

        Raises:
            TgiError: 429 without a free permit; 422 for a request outside of the limits.
        """
        self.counts["requests"] += 1
        if self._in_flight >= self.limits.max_concurrent_requests:
            raise tgi_errors.overloaded()
        self._in_flight += 1
        try:
            job = await tgi_request.accept(inputs, parameters, self.limits, self.llama, special=special)
            run = LocalGeneration(self.llama, job, logprobs=logprobs)
            async with aclosing(run.tokens()) as tokens:
                yield run, tokens
            self.counts["success"] += 1
        finally:
            self._in_flight -= 1

    async def finished(
        self, inputs: str, parameters: TgiParameters, *, logprobs: bool, special: bool = True
    ) -> tuple[LocalGeneration, list[GeneratedToken]]:
        """Run one generation to its end. Raises what `opened` raises, and TgiError 424 or 500."""
        async with self.opened(inputs, parameters, logprobs=logprobs, special=special) as (run, tokens):
            return run, [token async for token in tokens]
