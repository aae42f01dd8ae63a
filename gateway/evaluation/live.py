"""A run through a whole gateway: one in this process with a route for each setting, or one that runs elsewhere.

The client reads streamed answers and their receipts. They cannot be computed again from texts, so each example is
written to disk at once.
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

# An engine on a CPU is slow, and an unguided answer would not count for a guided setting.
_DEADLINE_S = 600.0
_LEASE_S = 900.0


@dataclass(frozen=True, slots=True)
class LiveRoute:
    """A route of a gateway, for one setting.

    Attributes:
        model: The `model` value of requests.
        name: The name of the setting in the run.
        setting: The request parameters.
    """

    model: str
    name: str
    setting: Setting


class LiveRun:
    """Sends every question to every route, unless the folder has its answer.

    Args:
        folder: Folder of the run.
        work: The questions.
        client: Client of the gateway.
        progress: Receiver of progress.
        concurrency: Number of concurrent requests.
        pauses_s: Pauses in seconds before each retry of a failed call.
    """

    def __init__(
        self,
        folder: RunFolder,
        work: EvalWork,
        client: GatewayClient,
        progress: RunProgress,
        *,
        concurrency: int,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self._folder = folder
        self._work = work
        self._client = client
        self._progress = progress
        self._concurrency = concurrency
        self._pauses_s = pauses_s

    async def run(self, routes: Sequence[LiveRoute]) -> None:
        """Send the missing requests. Raises StartupError if the gateway is gone; earlier answers are kept."""
        remaining = [(route, self._remaining(route)) for route in routes]
        retries = StageRetries(self._pauses_s)
        self._progress.begin("live", sum(len(questions) for _, questions in remaining))
        try:
            for route, questions in remaining:
                if questions:
                    await self._stage(route, questions, retries)
        finally:
            self._folder.write_examples(self._work.questions)
        self._progress.end()

    async def run_one(self, route: LiveRoute, question: Question, retries: StageRetries) -> Example:
        """Send one question and store the example."""
        body = request_body(route, question, self._work)
        try:
            answer = await retries.call(lambda: self._client.complete(body))
        except EngineError as error:
            example = failed_example(route.name, question, error.reason or error.label, route.setting.mode)
        else:
            example = await scored_example(route.name, question, answer.answered, self._work.score, answer.total_s)
        self._folder.add(example)
        return example

    async def _stage(self, route: LiveRoute, questions: Sequence[Question], retries: StageRetries) -> None:
        started, done = time.perf_counter(), 0

        async def run_one(question: Question) -> None:
            nonlocal done
            example = await self.run_one(route, question, retries)
            done += 1
            self._progress.step(example.teacher_output_tokens + example.student_output_tokens)

        try:
            await retries.run_concurrently(questions, run_one, self._concurrency)
        finally:
            seconds = round(time.perf_counter() - started, 3)
            self._folder.add_stage("live", route.name, done, seconds, self._concurrency)

    def _remaining(self, route: LiveRoute) -> list[Question]:
        done = self._folder.examples
        keys = ((question, done.get((route.name, question.id))) for question in self._work.questions)
        return [question for question, example in keys if example is None or example.error is not None]


def request_body(route: LiveRoute, question: Question, work: EvalWork) -> Json:
    """Return the request body of a question."""
    return {**route.setting.request(question, work.exemplars).body, "model": route.model}


def setting_routes(settings: Sequence[Setting]) -> list[LiveRoute]:
    """Return one route for each setting."""
    return [LiveRoute(f"setting-{index}", setting.name, setting) for index, setting in enumerate(settings)]


@asynccontextmanager
async def start_gateway(pair: Pair, routes: Sequence[LiveRoute], folder: Path) -> AsyncIterator[GatewayClient]:
    """Start a gateway in this process with its own Redis, and yield a client of it. Raises StartupErrors."""
    key = f"gk-{secrets.token_urlsafe(24)}"
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(EmbeddedRedis())
        engines = await stack.enter_async_context(pair.serving(TEACHER, STUDENT))
        settings = Settings.model_validate(
            {
                "server": {"host": "127.0.0.1", "port": 0},
                "admin": {"port": 0},
                "redis": {"lease": _LEASE_S},
                "data": folder,
                "models": engines.models,
            }
        )
        at = await stack.enter_async_context(gateway_in_process(settings, _policies(routes, key), redis.url))
        session = await stack.enter_async_context(_session(key))
        await wait_until_probed(session, at.admin)
        yield GatewayClient(session, at.public)


@asynccontextmanager
async def connect_gateway(url: str, key: str) -> AsyncIterator[GatewayClient]:
    """Yield a client of a running gateway."""
    async with _session(key) as session:
        yield GatewayClient(session, url)


def _session(key: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"},
        timeout=aiohttp.ClientTimeout(total=2 * _LEASE_S),
        connector=aiohttp.TCPConnector(limit=0),
    )


def _policies(routes: Sequence[LiveRoute], key: str) -> PolicySet:
    keys = [{"id": "eval", "sha256": hashlib.sha256(key.encode()).hexdigest()}]
    policy = TenantPolicy.model_validate(
        {"tenant": "eval", "keys": keys, "routes": [_route(run_one) for run_one in routes]}
    )
    with_projections = tuple(
        _with_projection(run_one, by.setting) for run_one, by in zip(policy.routes, routes, strict=True)
    )
    return PolicySet.of([policy.model_copy(update={"routes": with_projections})])


def _with_projection(route: Route, setting: Setting) -> Route:
    """Set the projection object: it may have its own exemplars, or come from a file that the gateway does not read."""
    return route.model_copy(update={"guidance": route.guidance.with_projection(setting.projection)})


def _route(route: LiveRoute) -> dict[str, Any]:
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
            "stream": False,  # guidance arrives as one piece
            "deadline": _DEADLINE_S,
            "cache_ttl": 0.0,  # each setting pays for its own guidance
            "on_failure": "reject",
            "on_queue_full": "reject",
        },
    }
