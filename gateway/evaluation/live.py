"""A run through a whole gateway: one in this process with a route for each setting, or one that runs somewhere.

Answers are heard as a caller hears them, and their receipts are read. They cannot be made anew from texts, so each
example is on disk as soon as it is made.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from gateway.config.settings import Settings
from gateway.errors import EngineError
from gateway.evaluation.caller import GatewayClient
from gateway.evaluation.example import failed_example, scored_example
from gateway.evaluation.patience import PAUSES_S, StageRetries
from gateway.evaluation.staged import STUDENT, TEACHER
from gateway.local.redis import EmbeddedRedis
from gateway.policy.book import PolicySet
from gateway.policy.schema import Route, TenantPolicy
from gateway.server.in_process import gateway_in_process, wait_until_probed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from gateway.evaluation.folder import RunFolder
    from gateway.evaluation.pair import Pair
    from gateway.evaluation.question import Question
    from gateway.evaluation.record import Example
    from gateway.evaluation.run import EvalWork, RunProgress
    from gateway.evaluation.setting import Setting
    from gateway.protocol.body import Json

# An engine on a CPU takes its time, and an answer without guidance is no answer to the question of this run.
_DEADLINE_S = 600.0
_LEASE_S = 900.0


@dataclass(frozen=True, slots=True)
class LiveRoute:
    """A route of a gateway, for one setting.

    Attributes:
        model: what callers send.
        name: what the run calls it.
        setting: says how the question is put.
    """

    model: str
    name: str
    setting: Setting


class LiveRun:
    """Puts every question to every route, beside those that the folder has an answer of already.

    Args:
        concurrency: how many are under way at once.
        pauses_s: before each further try of a call that failed.
    """

    def __init__(
        self,
        folder: RunFolder,
        work: EvalWork,
        caller: GatewayClient,
        progress: RunProgress,
        *,
        concurrency: int,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self._folder = folder
        self._work = work
        self._caller = caller
        self._progress = progress
        self._concurrency = concurrency
        self._pauses_s = pauses_s

    async def run(self, routes: Sequence[LiveRoute]) -> None:
        """Raises StartupError where the gateway is gone: the answers that came are kept."""
        left = [(route, self._left(route)) for route in routes]
        patience = StageRetries(self._pauses_s)
        self._progress.begin("live", sum(len(questions) for _, questions in left))
        try:
            for route, questions in left:
                if questions:
                    await self._stage(route, questions, patience)
        finally:
            self._folder.write_examples(self._work.questions)
        self._progress.end()

    async def one(self, route: LiveRoute, question: Question, patience: StageRetries) -> Example:
        """Ask it, and keep what came."""
        body = body_of(route, question, self._work)
        try:
            heard = await patience.with_it(lambda: self._caller.ask(body))
        except EngineError as error:
            example = failed_example(route.name, question, error.reason or error.label, route.setting.mode)
        else:
            example = await scored_example(route.name, question, heard.answered, self._work.score, heard.total_s)
        self._folder.add(example)
        return example

    async def _stage(self, route: LiveRoute, questions: Sequence[Question], patience: StageRetries) -> None:
        started, done = time.perf_counter(), 0

        async def one(question: Question) -> None:
            nonlocal done
            example = await self.one(route, question, patience)
            done += 1
            self._progress.step(example.teacher_output_tokens + example.student_output_tokens)

        try:
            await patience.side_by_side(questions, one, self._concurrency)
        finally:
            seconds = round(time.perf_counter() - started, 3)
            self._folder.add_stage("live", route.name, done, seconds, self._concurrency)

    def _left(self, route: LiveRoute) -> list[Question]:
        done = self._folder.examples
        keys = ((question, done.get((route.name, question.id))) for question in self._work.questions)
        return [question for question, example in keys if example is None or example.error is not None]


def body_of(route: LiveRoute, question: Question, work: EvalWork) -> Json:
    """What the caller sends."""
    return {**route.setting.asked(question, work.exemplars).body, "model": route.model}


def routes_of(settings: Sequence[Setting]) -> list[LiveRoute]:
    """One route for each setting."""
    return [LiveRoute(f"setting-{place}", setting.name, setting) for place, setting in enumerate(settings)]


@asynccontextmanager
async def gateway_of(pair: Pair, routes: Sequence[LiveRoute], folder: Path) -> AsyncIterator[GatewayClient]:
    """A caller of a gateway in this process, with a Redis of its own. Raises StartupErrors."""
    key = f"gk-{secrets.token_urlsafe(24)}"
    async with AsyncExitStack() as exits:
        redis = await exits.enter_async_context(EmbeddedRedis())
        engines = await exits.enter_async_context(pair.serving(TEACHER, STUDENT))
        settings = Settings.model_validate(
            {
                "server": {"host": "127.0.0.1", "port": 0},
                "admin": {"port": 0},
                "redis": {"lease": _LEASE_S},
                "data": folder,
                "models": engines.models,
            }
        )
        at = await exits.enter_async_context(gateway_in_process(settings, _book(routes, key), redis.url))
        session = await exits.enter_async_context(_session(key))
        await wait_until_probed(session, at.admin)
        yield GatewayClient(session, at.public)


@asynccontextmanager
async def gateway_at(url: str, key: str) -> AsyncIterator[GatewayClient]:
    """A caller of a gateway that runs."""
    async with _session(key) as session:
        yield GatewayClient(session, url)


def _session(key: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"},
        timeout=aiohttp.ClientTimeout(total=2 * _LEASE_S),
        connector=aiohttp.TCPConnector(limit=0),
    )


def _book(routes: Sequence[LiveRoute], key: str) -> PolicySet:
    keys = [{"id": "eval", "sha256": hashlib.sha256(key.encode()).hexdigest()}]
    policy = TenantPolicy.model_validate({"tenant": "eval", "keys": keys, "routes": [_told(one) for one in routes]})
    asking = tuple(_asking(told, one.setting) for told, one in zip(policy.routes, routes, strict=True))
    return PolicySet.of([policy.model_copy(update={"routes": asking})])


def _asking(told: Route, setting: Setting) -> Route:
    """With the projection itself: it may have exemplars of its own, or a file in no folder that is read here."""
    return told.model_copy(update={"guidance": told.guidance.asking(setting.projection)})


def _told(route: LiveRoute) -> dict[str, Any]:
    return {
        "model": route.model,
        "mode": route.setting.mode,
        "teacher": TEACHER,
        "student": STUDENT,
        "baseline": TEACHER,
        "guidance": {
            **route.setting.length,
            "placement": route.setting.placement,
            "boundary": route.setting.boundary,
            "stream": False,  # the guidance comes in one piece
            "deadline": _DEADLINE_S,
            "cache_ttl": 0.0,  # each setting pays for its own
            "on_failure": "reject",
            "on_queue_full": "reject",
        },
    }
