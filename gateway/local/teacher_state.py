"""The state that the teacher's routes share: limits, permits, counts, and the start of generations."""

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
    """The state of one server. `counts` has `requests`, `success`, and one entry for each error type."""

    def __init__(self, llama: LlamaClient, limits: TgiLimits, model: str) -> None:
        self.llama = llama
        self.limits = limits
        self.model = model
        self.counts: Counter[str] = Counter()
        self._in_flight = 0

    @property
    def in_flight(self) -> int:
        """The number of requests that hold a permit."""
        return self._in_flight

    @asynccontextmanager
    async def start(
        self, inputs: str, parameters: TgiParameters, *, logprobs: bool, special: bool = True
    ) -> AsyncIterator[tuple[LocalGeneration, AsyncGenerator[GeneratedToken, None]]]:
        """Acquire a permit, validate the request, and yield the generation and its tokens.

        Like TGI, acquire the permit before the validation. Leaving the context cancels the generation and releases the
        permit.

        Raises:
            TgiError: 429 without a free permit, 422 for an invalid request.
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

    async def run(
        self, inputs: str, parameters: TgiParameters, *, logprobs: bool, special: bool = True
    ) -> tuple[LocalGeneration, list[GeneratedToken]]:
        """Run a generation to its end. Raises the errors of `start`, and TgiError 424 or 500."""
        async with self.start(inputs, parameters, logprobs=logprobs, special=special) as (generation, tokens):
            return generation, [token async for token in tokens]
