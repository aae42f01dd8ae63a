"""The teacher and the student of an evaluation: small ones on this machine, or two models of a config.yaml.

Each goes by its role: texts, prices and error messages of both kinds look alike.
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
    from gateway.engines.base import Engine, EngineEmbeddings, OpeningReply, OpeningRequest
    from gateway.protocol.body import Json

ROLES = (TEACHER, STUDENT)
# Nobody waits for one answer of an evaluation, and a CPU reads many prompts at once slowly.
_PATIENCE: Json = {"first_token": 3000.0, "total": 3600.0, "idle": 3000.0}
_NOWHERE = "http://127.0.0.1:9"
_PER_1M = 1_000_000
_MOST_AT_THE_TEACHER = 128
_PROBES = 3
_PROBE_PAUSE_S = 1.0
# How long an engine is left alone is the run's to say: it tries again itself, and stops where that does not help.
_UNGUARDED = BreakerSettings(failures=1000)


@dataclass(frozen=True, slots=True)
class LocalPair:
    """Models of the catalogue or .gguf files, run by this process's children. Example prices: nobody bills a laptop.

    Attributes:
        parallel: how many requests each decodes at once, each with `slot_tokens` of context.
    """

    teacher: str
    student: str
    parallel: int = 16
    slot_tokens: int = 2048

    @property
    def names(self) -> dict[str, str]:
        """What the weights are called, by role: by this their texts are kept."""
        return {TEACHER: weights.model_name(self.teacher), STUDENT: weights.model_name(self.student)}

    @property
    def money(self) -> TokenPrices:
        """What tokens cost, by role."""
        return _money(self._models({}))

    @asynccontextmanager
    async def serving(self, *roles: str) -> AsyncIterator[Settings]:
        """These engines, started: with all cores for one alone. Raises StartupErrors."""
        models = {role: model for role, model in ((TEACHER, self.teacher), (STUDENT, self.student)) if role in roles}
        stack = LocalStack(
            teacher=models.get(TEACHER),
            student=models.get(STUDENT),
            parallel=self.parallel,
            slot_tokens=self.slot_tokens,
            max_concurrent_requests=max(_MOST_AT_THE_TEACHER, self.parallel),
        )
        async with stack:
            urls = {role: getattr(stack, f"{role}_url") for role in models}
            yield Settings(models=tuple(self._models(urls)))

    def _models(self, urls: Mapping[str, str]) -> list[ModelSettings]:
        told: tuple[Json, ...] = (
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
        return [ModelSettings.model_validate(one | {"timeouts": _PATIENCE}) for one in told]


@dataclass(frozen=True, slots=True)
class ConfiguredPair:
    """Two models of a configuration file, which run somewhere already."""

    settings: Settings
    teacher: str
    student: str
    _chosen: list[ModelSettings] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raises StartupError where the file has no such model."""
        chosen = []
        for role, name in ((TEACHER, self.teacher), (STUDENT, self.student)):
            model = self.settings.by_name.get(name)
            if model is None:
                known = ", ".join(self.settings.by_name)
                raise StartupError(f"--{role} {name}: the configuration has no such model. It has: {known}.")
            chosen.append(model.model_copy(update={"name": role, "breaker": _UNGUARDED}))
        object.__setattr__(self, "_chosen", chosen)

    @property
    def names(self) -> dict[str, str]:
        """As the file calls them, by role."""
        return {TEACHER: self.teacher, STUDENT: self.student}

    @property
    def money(self) -> TokenPrices:
        """What tokens cost, by role."""
        return _money(self._chosen)

    @asynccontextmanager
    async def serving(self, *roles: str) -> AsyncIterator[Settings]:
        """The file's settings, with these two models alone."""
        yield self.settings.model_copy(update={"models": tuple(self._chosen)})


Pair = LocalPair | ConfiguredPair


@asynccontextmanager
async def engine(pair: Pair, role: str) -> AsyncIterator[Engine]:
    """One engine of the pair, looked at. Raises StartupError where it is not there."""
    async with AsyncExitStack() as exits:
        settings = await exits.enter_async_context(pair.serving(role))
        models = [model for model in settings.models if model.name == role]
        engines = await build(models, Policies(PolicySet.of([]), None), Metrics(None, 1))
        exits.push_async_callback(engines[role].close)
        await _look(engines[role], role, pair.names[role])
        yield engines[role]


async def _look(found: Engine, role: str, name: str) -> None:
    for left in reversed(range(_PROBES)):
        try:
            await found.probe()
            if role == TEACHER or found.state.continuation != "not_probed":
                return
        except EngineError as error:
            if not left:
                raise StartupError(f"The {role} {name} does not answer: {error.message}") from error
        await asyncio.sleep(_PROBE_PAUSE_S)


def look_of(state: EngineState) -> Json | None:
    """What is known of a student, as plain values; None while it is not known how it continues."""
    if state.continuation == "not_probed":
        return None
    continuation = None if state.continuation is None else msgspec.to_builtins(state.continuation)
    return {"continuation": continuation, "takes_prompts": state.takes_prompts, "reasoning": state.reasoning}


class AbsentEngine:
    """An engine that is not there: what it wrote before is. `look`: what `look_of` said of it."""

    def __init__(self, name: str, look: Json | None = None) -> None:
        self.name = name
        self.state = EngineState()
        if look is not None:
            known = look["continuation"]
            self.state.continuation = None if known is None else Continuation(**known)
            self.state.takes_prompts, self.state.reasoning = look["takes_prompts"], look["reasoning"]

    async def opening(
        self, request: OpeningRequest, *, batch: str | None = None, tell: Callable[[str], None] | None = None
    ) -> OpeningReply:
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
        return RuntimeError(f"the {self.name} is not there: its texts are read, and it is not asked")


def _money(models: list[ModelSettings]) -> TokenPrices:
    return TokenPrices(
        {model.name: model.price for model in models},
        {model.name: Encoding(model.tokenizer or FALLBACK, own=model.tokenizer is not None) for model in models},
    )


def prices_of(money: TokenPrices) -> dict[str, tuple[Decimal, Decimal]]:
    """USD per 1M tokens, read and written, by role."""
    return {
        role: ((price.input_usd * _PER_1M).normalize(), (price.output_usd * _PER_1M).normalize())
        for role, price in money.prices.items()
    }


def facts_of(pair: Pair) -> dict[str, Any]:
    """What a manifest says of it."""
    return {"teacher": pair.names[TEACHER], "student": pair.names[STUDENT], "prices": prices_of(pair.money)}
