"""A judge that is a configured model. Its replies are stored next to a run's texts and not requested again."""

from __future__ import annotations

from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

from gateway.engines.build import build
from gateway.engines.replies import message_text
from gateway.errors import StartupError
from gateway.evaluation.generations import Generations, RecordingEngine
from gateway.evaluation.judging import Judge
from gateway.evaluation.patience import StageRetries
from gateway.policy.book import PolicySet
from gateway.policy.policies import Policies
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.config.settings import Settings

_MAX_TOKENS = 64


@asynccontextmanager
async def judge_of(settings: Settings, name: str, storage_path: Path) -> AsyncIterator[Judge]:
    """Yield a judge that uses this model with greedy decoding. Raises StartupError if the configuration lacks it."""
    model = settings.by_name.get(name)
    if model is None:
        known = ", ".join(settings.by_name)
        raise StartupError(f"--judge {name}: the configuration has no such model. Models: {known}.")
    engines = await build([model], Policies(PolicySet.of([]), None), Metrics(None, 1))
    retries = StageRetries()
    try:
        with closing(Generations(storage_path)) as storage:
            recorded = RecordingEngine(engines[name], storage, f"judge {name}")

            async def complete(prompt: str) -> str:
                body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": _MAX_TOKENS}
                return message_text(await retries.call(lambda: recorded.complete(body))) or ""

            yield Judge(complete)
    finally:
        await engines[name].close()
