"""The teacher and the student of an evaluation: small local models, or two models of a config.yaml.

Each engine is named by its role, so texts, prices and error messages of both kinds are alike.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.accounting.baseline import Encoding
from gateway.accounting.estimate import FALLBACK
from gateway.capabilities.continuation import Continuation
from gateway.config.models import BreakerSettings, ModelSettings
from gateway.config.settings import Settings
from gateway.engines.base import EngineState
from gateway.engines.build import build
from gateway.errors import EngineError, StartupError
from gateway.evaluation.staged import STUDENT, TEACHER, TokenPrices
from gateway.local import weights
from gateway.local.stack import LocalStack
from gateway.policy.book import PolicySet
from gateway.policy.policies import Policies
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

    from gateway.capabilities.continuation import Prefill
    from gateway.engines.base import Engine, EngineEmbeddings, TeacherReply, TeacherRequest
    from gateway.protocol.body import Json

ROLES = (TEACHER, STUDENT)
# Evaluations tolerate slow answers, and a CPU reads many concurrent prompts slowly.
_TIMEOUTS: Json = {"first_token": 3000.0, "total": 3600.0, "idle": 3000.0}
_NOWHERE = "http://127.0.0.1:9"
_PER_1M = 1_000_000
_TEACHER_CONCURRENCY = 128
_PROBES = 3
_PROBE_PAUSE_S = 1.0
# The run itself retries calls and stops if an engine is gone, so the circuit breaker is disabled.
_NO_BREAKER = BreakerSettings(failures=1000)


@dataclass(frozen=True, slots=True)
class LocalPair:
    """Models of the catalog or .gguf files, served by child processes. Prices are examples.

    Attributes:
        teacher, student: Model names or paths.
        parallel: Concurrent requests of each engine, each with `slot_tokens` of context.
        slot_tokens: Context of a request in tokens.
    """

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
        """Return the token prices by role."""
        return _token_prices(self._models({}))

    @asynccontextmanager
    async def serving(self, *roles: str) -> AsyncIterator[Settings]:
        """Start these engines and yield their settings; a single engine gets all cores. Raises StartupErrors."""
        models = {role: model for role, model in ((TEACHER, self.teacher), (STUDENT, self.student)) if role in roles}
        stack = LocalStack(
            teacher=models.get(TEACHER),
            student=models.get(STUDENT),
            parallel=self.parallel,
            slot_tokens=self.slot_tokens,
            max_concurrent_requests=max(_TEACHER_CONCURRENCY, self.parallel),
        )
        async with stack:
            urls = {role: getattr(stack, f"{role}_url") for role in models}
            yield Settings(models=tuple(self._models(urls)))

    def _models(self, urls: Mapping[str, str]) -> list[ModelSettings]:
        models: tuple[Json, ...] = (
            {
                "name": TEACHER,
                "protocol": "tgi",
                "api_base": urls.get(TEACHER, _NOWHERE),
                "price": {"input_per_1m": Decimal("0.90"), "output_per_1m": Decimal("0.90")},
            },
            {
                "name": STUDENT,
                "model": self.names[STUDENT],
                "protocol": "openai",
                "api_base": urls.get(STUDENT, _NOWHERE) + "/v1",
                "price": {"input_per_1m": Decimal("0.10"), "output_per_1m": Decimal("0.10")},
            },
        )
        return [ModelSettings.model_validate(one | {"timeouts": _TIMEOUTS}) for one in models]


@dataclass(frozen=True, slots=True)
class ConfiguredPair:
    """Two models of a configuration file, served elsewhere."""

    settings: Settings
    teacher: str
    student: str
    _chosen: list[ModelSettings] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise StartupError if the file lacks one of the models."""
        chosen = []
        for role, name in ((TEACHER, self.teacher), (STUDENT, self.student)):
            model = self.settings.by_name.get(name)
            if model is None:
                known = ", ".join(self.settings.by_name)
                raise StartupError(f"--{role} {name}: the configuration has no such model. Models: {known}.")
            chosen.append(model.model_copy(update={"name": role, "breaker": _NO_BREAKER}))
        object.__setattr__(self, "_chosen", chosen)

    @property
    def names(self) -> dict[str, str]:
        """Return the names of the models in the file, by role."""
        return {TEACHER: self.teacher, STUDENT: self.student}

    @property
    def prices(self) -> TokenPrices:
        """Return the token prices by role."""
        return _token_prices(self._chosen)

    @asynccontextmanager
    async def serving(self, *roles: str) -> AsyncIterator[Settings]:
        """Yield the file's settings with only these two models."""
        yield self.settings.model_copy(update={"models": tuple(self._chosen)})


Pair = LocalPair | ConfiguredPair


@asynccontextmanager
async def engine(pair: Pair, role: str) -> AsyncIterator[Engine]:
    """Yield one probed engine of the pair. Raises StartupError if it does not respond."""
    async with AsyncExitStack() as stack:
        settings = await stack.enter_async_context(pair.serving(role))
        models = [model for model in settings.models if model.name == role]
        engines = await build(models, Policies(PolicySet.of([]), None), Metrics(None, 1))
        stack.push_async_callback(engines[role].close)
        await _probe(engines[role], role, pair.names[role])
        yield engines[role]


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
    continuation = None if state.continuation is None else msgspec.to_builtins(state.continuation)
    return {"continuation": continuation, "takes_prompts": state.takes_prompts, "reasoning": state.reasoning}


class AbsentEngine:
    """An engine that is not running, for reading stored texts. `capabilities`: the result of `student_state`."""

    def __init__(self, name: str, capabilities: Json | None = None) -> None:
        self.name = name
        self.state = EngineState()
        if capabilities is not None:
            known = capabilities["continuation"]
            self.state.continuation = None if known is None else Continuation(**known)
            self.state.takes_prompts = capabilities["takes_prompts"]
            self.state.reasoning = capabilities["reasoning"]

    async def generate_guidance(
        self, request: TeacherRequest, *, batch: str | None = None, on_text: Callable[[str], None] | None = None
    ) -> TeacherReply:
        raise self._absent()

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        raise self._absent()

    def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[list[Json], None]:
        raise self._absent()

    async def embed(self, body: Json) -> EngineEmbeddings:
        raise self._absent()

    async def probe(self) -> None:
        raise self._absent()

    async def close(self) -> None: ...

    def _absent(self) -> RuntimeError:
        return RuntimeError(f"the {self.name} is not running: only its stored texts are available")


def _token_prices(models: list[ModelSettings]) -> TokenPrices:
    return TokenPrices(
        {model.name: model.price for model in models},
        {model.name: Encoding(model.tokenizer or FALLBACK, own=model.tokenizer is not None) for model in models},
    )


def prices_of(prices: TokenPrices) -> dict[str, tuple[Decimal, Decimal]]:
    """Return USD per 1M input and output tokens, by role."""
    return {
        role: ((price.input_usd * _PER_1M).normalize(), (price.output_usd * _PER_1M).normalize())
        for role, price in prices.prices.items()
    }


def manifest_facts(pair: Pair) -> dict[str, Any]:
    """Return the pair's facts for a manifest."""
    return {"teacher": pair.names[TEACHER], "student": pair.names[STUDENT], "prices": prices_of(pair.prices)}
