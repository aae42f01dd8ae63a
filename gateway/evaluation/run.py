"""A run in the paper's two stages: first the teacher, once for each distinct request, then the students.

Every text is stored at once, so a killed run resumes with the missing requests. `folder.py` checks which runs may
share a folder, and `live.py` does the run through a whole gateway.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import orjson

from gateway.engines.breaker import Breaker, BreakerRule
from gateway.engines.guard import GuardedEngine
from gateway.errors import GatewayError
from gateway.evaluation import staged
from gateway.evaluation.example import failed_example, scored_example
from gateway.evaluation.generations import Generations, RecordingEngine
from gateway.evaluation.pair import AbsentEngine, engine, student_state
from gateway.evaluation.patience import PAUSES_S, StageRetries
from gateway.evaluation.staged import STUDENT, TEACHER
from gateway.pipeline.student import StudentCall
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence

    from gateway.engines.base import Engine, TeacherRequest
    from gateway.evaluation.example import QuestionScorer
    from gateway.evaluation.folder import RunFolder, StageName
    from gateway.evaluation.pair import Pair
    from gateway.evaluation.question import Question
    from gateway.evaluation.setting import Setting
    from gateway.policy.projections import Exemplar

_SAVE_INTERVAL_S = 60.0


class RunProgress(Protocol):
    """Receiver of a run's progress."""

    def begin(self, stage: str, total: int) -> None:
        """A stage of `total` steps begins."""
        ...

    def step(self, tokens: int = 0) -> None:
        """Record a finished step, with `tokens` newly generated tokens."""
        ...

    def end(self) -> None:
        """The stage ends."""
        ...


@dataclass(frozen=True, slots=True)
class EvalWork:
    """The questions and settings of a run, and the scorer.

    Attributes:
        questions: The questions.
        exemplars: Exemplars of few-shot prompts.
        settings: The settings.
        score: Scorer of an answer to a question.
    """

    questions: Sequence[Question]
    exemplars: Sequence[Exemplar]
    settings: Sequence[Setting]
    score: QuestionScorer

    @property
    def items(self) -> list[tuple[Setting, Question]]:
        """Return every setting with every question, in processing order."""
        return [(setting, question) for setting in self.settings for question in self.questions]


@dataclass(slots=True)
class _TeacherRequest:
    """A distinct teacher request with the largest token limit of all settings; `setting` is the first of them."""

    request: TeacherRequest
    setting: Setting


class StagedRun:
    """A run of every question under every setting, stored in a folder. Close it with `close`.

    Args:
        folder: Folder of the run.
        work: The questions and settings.
        pair: Teacher and student.
        progress: Receiver of progress.
        concurrency: Number of concurrent questions.
        pauses_s: Pauses in seconds before each retry of a failed call.
    """

    def __init__(
        self,
        folder: RunFolder,
        work: EvalWork,
        pair: Pair,
        progress: RunProgress,
        *,
        concurrency: int,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self._folder = folder
        self._work = work
        self._pair = pair
        self._progress = progress
        self._concurrency = concurrency
        self._pauses_s = pauses_s
        self._labels: dict[bytes, str] = {}  # error labels of failed teacher calls, by request
        self._prices = pair.prices
        self._storage = Generations(folder.generations)
        self._teacher = self._recorded(TEACHER)
        self._saved_at = time.monotonic()

    async def run(self) -> None:
        """Run both stages. Raises StartupError if an engine does not start or is gone; all texts are stored."""
        try:
            missing = [one for one in self._teacher_requests() if not self._teacher.holds(one.request)]
            if missing:
                async with engine(self._pair, TEACHER) as teacher:
                    await self._run_teacher(missing, teacher)
            remaining = await self._from_texts(self._student_state(), self._work.items)
            if remaining:
                async with engine(self._pair, STUDENT) as student:
                    if (state := student_state(student.state)) is not None:
                        self._folder.set_student_state(state)
                    await self._run_student(await self._from_texts(state, remaining), student)
        finally:
            self.write()

    async def rescore(self) -> list[tuple[Setting, Question]]:
        """Compute every example from the stored texts. Returns the items without texts; their examples stay."""
        try:
            return await self._from_texts(self._student_state(), self._work.items)
        finally:
            self.write()

    def calls_left(self) -> tuple[int, int]:
        """Return the number of teacher calls and the upper bound of student calls that remain."""
        teacher = sum(not self._teacher.holds(one.request) for one in self._teacher_requests())
        done = {key for key, example in self._folder.examples.items() if example.error is None}
        students = [(setting, question) for setting, question in self._work.items if setting.mode != "teacher"]
        return teacher, sum((setting.name, question.id) not in done for setting, question in students)

    def write(self) -> None:
        """Write the examples to disk."""
        self._saved_at = time.monotonic()
        self._folder.write_examples(self._work.questions)

    def close(self) -> None:
        """Close the text storage."""
        self._storage.close()

    def _teacher_requests(self) -> list[_TeacherRequest]:
        """Return each distinct teacher request once, with the largest token limit of all settings."""
        found: dict[bytes, _TeacherRequest] = {}
        for setting, question in self._work.items:
            request = staged.teacher_request(setting, question, self._work.exemplars)
            if request is None:
                continue
            one = found.setdefault(_identity(request), _TeacherRequest(request, setting))
            if request.max_tokens > one.request.max_tokens:
                one.request = request
        return list(found.values())

    async def _run_teacher(self, requests: Sequence[_TeacherRequest], teacher: Engine) -> None:
        recorded = self._recorded(TEACHER, teacher)
        retries = StageRetries(self._pauses_s)

        async def send(one: _TeacherRequest) -> None:
            try:
                teacher_text = await retries.call(lambda: recorded.teacher_text(one.request))
            except GatewayError as error:
                self._labels[_identity(one.request)] = error.label
                self._progress.step()
            else:
                self._progress.step(teacher_text.output_tokens)

        self._progress.begin(f"teacher {self._pair.names[TEACHER]}", len(requests))
        for setting in dict.fromkeys(one.setting for one in requests):
            async with self._stage("teacher", setting, recorded):
                group = [one for one in requests if one.setting is setting]
                await retries.run_concurrently(group, send, self._concurrency)
        self._progress.end()

    async def _from_texts(
        self, state: dict[str, object] | None, items: Sequence[tuple[Setting, Question]]
    ) -> list[tuple[Setting, Question]]:
        """Compute the examples whose texts are stored, and return the other items.

        Without the student's capabilities its requests are unknown, and so are their stored texts.
        """
        student_call = self._student_call(self._recorded(STUDENT, state=state))
        remaining = []
        for setting, question in items:
            known = state is not None or setting.mode == "teacher"
            if not known or not await self._answer(setting, question, student_call):
                remaining.append((setting, question))
            await asyncio.sleep(0)  # allow an interrupt between two items
        return remaining

    async def _run_student(self, remaining: Sequence[tuple[Setting, Question]], student: Engine) -> None:
        recorded = self._recorded(STUDENT, student)
        student_call = self._student_call(recorded)
        retries = StageRetries(self._pauses_s)

        async def run_one(pair: tuple[Setting, Question]) -> None:
            await self._answer(*pair, student_call, retries)
            self._progress.step(self._folder.examples[pair[0].name, pair[1].id].student_output_tokens)
            if time.monotonic() > self._saved_at + _SAVE_INTERVAL_S:
                self.write()

        self._progress.begin(f"student {self._pair.names[STUDENT]}", len(remaining))
        for setting in dict.fromkeys(setting for setting, _ in remaining):
            async with self._stage("student", setting, recorded):
                pairs = [pair for pair in remaining if pair[0] is setting]
                await retries.run_concurrently(pairs, run_one, self._concurrency)
        self._progress.end()

    async def _answer(
        self, setting: Setting, question: Question, student_call: StudentCall, retries: StageRetries | None = None
    ) -> bool:
        """Compute one example. Returns False if a text is missing and may not be requested."""
        request = staged.teacher_request(setting, question, self._work.exemplars)
        if request is not None and not self._teacher.holds(request):
            label = self._labels.get(_identity(request))
            if label is not None:
                self._folder.keep(failed_example(setting.name, question, label, setting.mode))
            return label is not None

        def answering() -> Awaitable[staged.QuestionAnswer]:
            return staged.answer(setting, question, self._work.exemplars, self._teacher, student_call, self._prices)

        try:
            answered = await (answering() if retries is None else retries.call(answering))
        except KeyError:
            return False
        except GatewayError as error:
            self._folder.keep(failed_example(setting.name, question, error.label, setting.mode))
        else:
            self._folder.keep(await scored_example(setting.name, question, answered, self._work.score))
        return True

    def _student_state(self) -> dict[str, object] | None:
        return None if self._folder.manifest is None else self._folder.manifest.student_look

    def _recorded(
        self, role: str, running: Engine | None = None, state: dict[str, object] | None = None
    ) -> RecordingEngine:
        return RecordingEngine(
            running or AbsentEngine(role, state), self._storage, self._pair.names[role], may_send=running is not None
        )

    @staticmethod
    def _student_call(student: RecordingEngine) -> StudentCall:
        metrics = Metrics(None, 1)
        # The circuit breaker is disabled, since the run retries calls itself.
        return StudentCall({STUDENT: GuardedEngine(student, Breaker(BreakerRule(10**6, 1.0, 1.0)), metrics)}, metrics)

    @asynccontextmanager
    async def _stage(self, stage: StageName, setting: Setting, recorded: RecordingEngine) -> AsyncIterator[None]:
        """Record the duration of a stage, also after an error."""
        before, started = recorded.calls, time.perf_counter()
        try:
            yield
        finally:
            seconds = round(time.perf_counter() - started, 3)
            self._folder.add_stage(stage, setting.name, recorded.calls - before, seconds, self._concurrency)


def _identity(request: TeacherRequest) -> bytes:
    """Return the identity of a request without its token limit."""
    return orjson.dumps(
        (request.messages, request.prompt, request.temperature, request.top_p, request.seed, tuple(request.stop))
    )
