"""The engines of an evaluation: small local models, or two models of a config.yaml, and a judge from the latter.

Each engine is named by its role, so texts, prices and error messages of both kinds are alike.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from gateway.accounting.estimate import FALLBACK, Encoding
from gateway.config.models import BreakerSettings, ModelSettings
from gateway.config.settings import Settings
from gateway.engines.base import EngineState
from gateway.engines.build import build
from gateway.engines.replies import message_text
from gateway.errors import EngineError, EngineFailed, EngineProtocolError, EngineRejected, StartupError
from gateway.evaluation.generations import Generations, RecordingEngine
from gateway.evaluation.setting import STUDENT, TEACHER
from gateway.evaluation.staged import TokenPrices
from gateway.local import weights
from gateway.local.stack import LocalStack
from gateway.policy.book import PolicySet
from gateway.policy.policies import Policies
from gateway.protocol.capabilities.continuation import Continuation
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from gateway.engines.base import Engine
    from gateway.evaluation.scoring import Judge
    from gateway.protocol.body import Json

# Evaluations tolerate slow answers, and a CPU reads many concurrent prompts slowly.
_TIMEOUTS: Json = {"first_token": 3000.0, "total": 3600.0, "idle": 3000.0}
_NOWHERE = "http://127.0.0.1:9"
_PER_1M = 1_000_000
_PROBES = 3
_PROBE_PAUSE_S = 1.0
_MAX_JUDGMENT_TOKENS = 64
# The run itself retries calls and stops if an engine is gone, so the circuit breaker is disabled.
_NO_BREAKER = BreakerSettings(failures=1000)
T = TypeVar("T")
PAUSES_S = (1.0, 4.0, 15.0)
"""Pauses in seconds before each retry of a failed call."""
_GONE_AFTER_FAILURES = 8
# An engine that responds with errors is running; some questions may be too long for it.
_BROKEN_AFTER_FAILURES = 64
_MAX_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class LocalPair:
    """Models of the catalog or .gguf files in child processes: `parallel` slots of `slot_tokens`; example prices."""

    teacher: str
    student: str
    parallel: int = 16
    slot_tokens: int = 2048

    @property
    def names(self) -> dict[str, str]:
        """Return the names of the weights by role; stored texts are keyed by them."""
        return {TEACHER: weights.model_name(self.teacher), STUDENT: weights.model_name(self.student)}

    @property
    def prices(self) -> TokenPrices:
        return _token_prices(self._models({}))

    def fetch(self) -> None:
        """Download the weights. Blocks. An unknown name fails before any download."""
        for fetch in (weights.find, weights.fetch):
            for model in dict.fromkeys((self.teacher, self.student)):
                fetch(model)

    @asynccontextmanager
    async def serving(self, role: str) -> AsyncIterator[Settings]:
        """Start this engine on all cores, and yield its settings. Raises StartupErrors."""
        stack = LocalStack(
            teacher=self.teacher if role == TEACHER else None,
            student=self.student if role == STUDENT else None,
            parallel=self.parallel,
            slot_tokens=self.slot_tokens,
        )
        async with stack:
            url = (stack.teacher if role == TEACHER else stack.student).url
            yield Settings(models=tuple(self._models({role: url})))

    def _models(self, urls: Mapping[str, str]) -> list[ModelSettings]:
        models = []
        for role, usd in ((TEACHER, Decimal("0.90")), (STUDENT, Decimal("0.10"))):
            model: Json = {
                "name": role,
                "model": self.names[role],
                "protocol": "openai",
                "api_base": urls.get(role, _NOWHERE) + "/v1",
                "price": {"input_per_1m": usd, "output_per_1m": usd},
                "timeouts": _TIMEOUTS,
            }
            models.append(ModelSettings.model_validate(model))
        return models


class ConfiguredPair:
    """Two models of a configuration file, served elsewhere. Raises StartupError if the file lacks one of them."""

    def __init__(self, settings: Settings, teacher: str, student: str) -> None:
        self.settings = settings
        self.names = {TEACHER: teacher, STUDENT: student}
        named = {role: _named(settings, role, name) for role, name in self.names.items()}
        self._chosen = [
            model.model_copy(update={"name": role, "breaker": _NO_BREAKER}) for role, model in named.items()
        ]
        self.prices = _token_prices(self._chosen)

    def fetch(self) -> None:
        """Do nothing: the models are served elsewhere."""

    @asynccontextmanager
    async def serving(self, role: str) -> AsyncIterator[Settings]:
        """Yield the file's settings with only this model."""
        yield self.settings.model_copy(update={"models": tuple(one for one in self._chosen if one.name == role)})


Pair = LocalPair | ConfiguredPair


@asynccontextmanager
async def engine(pair: Pair, role: str) -> AsyncIterator[Engine]:
    """Yield one probed engine of the pair. Raises StartupError if it does not respond."""
    async with pair.serving(role) as settings:
        model = next(one for one in settings.models if one.name == role)
        async with built(model) as found:
            await _probe(found, role, pair.names[role])
            yield found


@asynccontextmanager
async def built(model: ModelSettings) -> AsyncIterator[Engine]:
    found = (await build([model], Policies(PolicySet.of([]), None), Metrics(None, 1)))[model.name]
    try:
        yield found
    finally:
        await found.close()


async def _probe(engine: Engine, role: str, name: str) -> None:
    for remaining in reversed(range(_PROBES)):
        try:
            await engine.probe()
            if role == TEACHER or engine.state.continuation != "not_probed":
                return
        except EngineError as error:
            if not remaining:
                raise StartupError(f"The {role} {name} does not respond: {error.message}") from error
        await asyncio.sleep(_PROBE_PAUSE_S)


def student_state(state: EngineState) -> Json | None:
    """Return the student's capabilities as plain values; None until a probe finds how it continues text."""
    if state.continuation == "not_probed":
        return None
    known = {name: getattr(state, name) for name in ("continuation", "takes_prompts", "reasoning")}
    return dict(msgspec.to_builtins(known))


def stored_state(capabilities: Json | None) -> EngineState:
    """Return the state for a result of `student_state`; for None a state before any probe."""
    if capabilities is None:
        return EngineState()
    known = capabilities["continuation"]
    return EngineState(**capabilities | {"continuation": None if known is None else Continuation(**known)})


def _token_prices(models: list[ModelSettings]) -> TokenPrices:
    return TokenPrices(
        {model.name: model.price for model in models},
        {model.name: Encoding(model.tokenizer or FALLBACK, own=model.tokenizer is not None) for model in models},
    )


def manifest_facts(pair: Pair) -> dict[str, Any]:
    """Return the pair's facts for a manifest, with prices in USD per 1M input and output tokens."""
    prices = {
        role: ((price.input_usd * _PER_1M).normalize(), (price.output_usd * _PER_1M).normalize())
        for role, price in pair.prices.prices.items()
    }
    return {"teacher": pair.names[TEACHER], "student": pair.names[STUDENT], "prices": prices}


def _named(settings: Settings, option: str, name: str) -> ModelSettings:
    if name not in settings.by_name:
        known = ", ".join(settings.by_name)
        raise StartupError(f"--{option} {name}: the configuration has no such model. Models: {known}.")
    return settings.by_name[name]


def judge_settings(pair: Pair, name: str) -> Settings:
    """Return the configuration that has the judge's model. Raises StartupError for a pair without a configuration."""
    if isinstance(pair, ConfiguredPair):
        return pair.settings
    raise StartupError(f"--judge {name} is a model of a configuration: name the configuration with --config.")


@asynccontextmanager
async def judge_of(pair: Pair, name: str | None, storage_path: Path) -> AsyncIterator[Judge | None]:
    """Yield a judge with greedy decoding and stored replies; None without a name. Raises StartupErrors."""
    if name is None:
        yield None
        return
    retries = StageRetries()
    async with built(_named(judge_settings(pair, name), "judge", name)) as judge:
        with closing(Generations(storage_path)) as storage:
            recorded = RecordingEngine(judge, storage, f"judge {name}")

            async def complete(prompt: str) -> str:
                messages = [{"role": "user", "content": prompt}]
                body = {"messages": messages, "temperature": 0, "max_tokens": _MAX_JUDGMENT_TOKENS}
                return message_text(await retries.call(lambda: recorded.complete(body))) or ""

            yield complete


class StageRetries:
    """Retries of one stage with one engine, `pauses_s` seconds apart. A longer Retry-After is respected."""

    def __init__(self, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._pauses_s = pauses_s
        self._failed = 0  # consecutive calls that failed after all retries
        self._gone: EngineError | None = None

    async def call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `call` with retries. Raises the last EngineError, at once if it blames the request."""
        for pause_s in (*self._pauses_s, None):
            try:
                result = await call()
            except EngineError as error:
                rejected = isinstance(error, EngineRejected)
                if isinstance(error, EngineRejected) and error.blames_request:
                    self._failed = 0
                    raise
                if pause_s is None or rejected or self._gone is not None:
                    self._failed += 1
                    answers = isinstance(error, EngineFailed | EngineProtocolError)
                    if self._failed >= (_BROKEN_AFTER_FAILURES if answers else _GONE_AFTER_FAILURES):
                        self._gone = error
                    raise
                await asyncio.sleep(max(pause_s, min(error.retry_after_s or 0.0, _MAX_RETRY_AFTER_S)))
            else:
                self._failed = 0
                return result
        raise AssertionError("the last attempt returns or raises")

    async def run_concurrently(
        self, items: Iterable[T], work: Callable[[T], Awaitable[None]], concurrency: int
    ) -> None:
        """Run `work` on the items in order, `concurrency` at a time. Raises StartupError once the engine is gone."""
        queue = iter(items)

        async def run_worker() -> None:
            for item in queue:
                if self._gone is not None:
                    return
                await work(item)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(run_worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self._gone is not None:
            raise StartupError(
                f"Engine '{self._gone.engine}' is gone: {self._failed} consecutive calls failed ({self._gone.label}). "
                "All texts are stored: start the engine and repeat the command to resume."
            ) from self._gone
