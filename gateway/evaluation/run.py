"""A run in the paper's two stages: the teacher once for each distinct request, then the students.

Every text is kept when it comes, so a run that was killed asks for what is missing. `folder.py` says what may share a
folder, `live.py` runs the same through a whole gateway.
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
from gateway.evaluation.pair import AbsentEngine, engine, look_of
from gateway.evaluation.patience import PAUSES_S, StageRetries
from gateway.evaluation.staged import STUDENT, TEACHER
from gateway.pipeline.student import StudentCall
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence

    from gateway.engines.base import Engine, OpeningRequest
    from gateway.evaluation.example import QuestionScorer
    from gateway.evaluation.folder import RunFolder, StageName
    from gateway.evaluation.pair import Pair
    from gateway.evaluation.question import Question
    from gateway.evaluation.setting import Setting
    from gateway.policy.projections import Exemplar

_WRITE_EVERY_S = 60.0


class RunProgress(Protocol):
    """Who is told how far a run is."""

    def begin(self, stage: str, total: int) -> None:
        """A stage of so many steps begins."""
        ...

    def step(self, tokens: int = 0) -> None:
        """One more is done, for which an engine wrote so many tokens now."""
        ...

    def end(self) -> None:
        """The stage is over."""
        ...


@dataclass(frozen=True, slots=True)
class EvalWork:
    """What is to be answered, and how it is judged.

    Attributes:
        score: holds an answer against its question.
    """

    questions: Sequence[Question]
    exemplars: Sequence[Exemplar]
    settings: Sequence[Setting]
    score: QuestionScorer

    @property
    def asked(self) -> list[tuple[Setting, Question]]:
        """Every question under every setting, in the order in which they are answered."""
        return [(setting, question) for setting in self.settings for question in self.questions]


@dataclass(slots=True)
class _Wanted:
    """One distinct request to the teacher, as long as any setting wants it; `setting` wants it first."""

    request: OpeningRequest
    setting: Setting


class StagedRun:
    """Answers every question under every setting, into a folder. `close` it.

    Args:
        concurrency: how many questions are under way at once.
        pauses_s: before each further try of a call that failed.
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
        self._labels: dict[bytes, str] = {}  # of the teacher's calls that failed, by request
        self._money = pair.money
        self._kept = Generations(folder.generations)
        self._teacher = self._recorded(TEACHER)
        self._written_at = time.monotonic()

    async def run(self) -> None:
        """Both stages. Raises StartupError where an engine is not there, or is gone: what was written is kept."""
        try:
            missing = [one for one in self._wanted() if not self._teacher.holds(one.request)]
            if missing:
                async with engine(self._pair, TEACHER) as teacher:
                    await self._ask_teacher(missing, teacher)
            left = await self._from_texts(self._look(), self._work.asked)
            if left:
                async with engine(self._pair, STUDENT) as student:
                    if (look := look_of(student.state)) is not None:
                        self._folder.note_student(look)
                    await self._ask_student(await self._from_texts(look, left), student)
        finally:
            self.write()

    async def rescore(self) -> list[tuple[Setting, Question]]:
        """Every example anew, from the texts alone. Returns those whose texts are not there: they stay as they were."""
        try:
            return await self._from_texts(self._look(), self._work.asked)
        finally:
            self.write()

    def calls_left(self) -> tuple[int, int]:
        """How many calls the teacher will be asked, and at most the student."""
        teacher = sum(not self._teacher.holds(one.request) for one in self._wanted())
        done = {key for key, example in self._folder.examples.items() if example.error is None}
        students = [(setting, question) for setting, question in self._work.asked if setting.mode != "teacher"]
        return teacher, sum((setting.name, question.id) not in done for setting, question in students)

    def write(self) -> None:
        """The examples, as they are now."""
        self._written_at = time.monotonic()
        self._folder.write_examples(self._work.questions)

    def close(self) -> None:
        """Let go of the texts."""
        self._kept.close()

    def _wanted(self) -> list[_Wanted]:
        """What the teacher has to write for all of it: each distinct request once, at the largest length wanted."""
        found: dict[bytes, _Wanted] = {}
        for setting, question in self._work.asked:
            request = staged.to_teacher(setting, question, self._work.exemplars)
            if request is None:
                continue
            one = found.setdefault(_identity(request), _Wanted(request, setting))
            if request.max_tokens > one.request.max_tokens:
                one.request = request
        return list(found.values())

    async def _ask_teacher(self, wanted: Sequence[_Wanted], teacher: Engine) -> None:
        recorded = self._recorded(TEACHER, teacher)
        patience = StageRetries(self._pauses_s)

        async def write(one: _Wanted) -> None:
            try:
                written = await patience.with_it(lambda: recorded.written(one.request))
            except GatewayError as error:
                self._labels[_identity(one.request)] = error.label
                self._progress.step()
            else:
                self._progress.step(written.output_tokens)

        self._progress.begin(f"teacher {self._pair.names[TEACHER]}", len(wanted))
        for setting in dict.fromkeys(one.setting for one in wanted):
            async with self._stage("teacher", setting, recorded):
                those = [one for one in wanted if one.setting is setting]
                await patience.side_by_side(those, write, self._concurrency)
        self._progress.end()

    async def _from_texts(
        self, look: dict[str, object] | None, asked: Sequence[tuple[Setting, Question]]
    ) -> list[tuple[Setting, Question]]:
        """Make the examples whose texts are there; return what they are not there for.

        While nobody knows how the student continues, nobody knows what it would be asked, either.
        """
        finisher = self._finisher(self._recorded(STUDENT, look=look))
        left = []
        for setting, question in asked:
            known = look is not None or setting.mode == "teacher"
            if not known or not await self._answer(setting, question, finisher):
                left.append((setting, question))
            await asyncio.sleep(0)  # a Ctrl-C is heard between two
        return left

    async def _ask_student(self, left: Sequence[tuple[Setting, Question]], student: Engine) -> None:
        recorded = self._recorded(STUDENT, student)
        finisher = self._finisher(recorded)
        patience = StageRetries(self._pauses_s)

        async def one(pair: tuple[Setting, Question]) -> None:
            await self._answer(*pair, finisher, patience)
            self._progress.step(self._folder.examples[pair[0].name, pair[1].id].student_output_tokens)
            if time.monotonic() > self._written_at + _WRITE_EVERY_S:
                self.write()

        self._progress.begin(f"student {self._pair.names[STUDENT]}", len(left))
        for setting in dict.fromkeys(setting for setting, _ in left):
            async with self._stage("student", setting, recorded):
                pairs = [pair for pair in left if pair[0] is setting]
                await patience.side_by_side(pairs, one, self._concurrency)
        self._progress.end()

    async def _answer(
        self, setting: Setting, question: Question, finisher: StudentCall, patience: StageRetries | None = None
    ) -> bool:
        """Make one example. False where a text is missing, and may not be asked for: then none is made."""
        request = staged.to_teacher(setting, question, self._work.exemplars)
        if request is not None and not self._teacher.holds(request):
            label = self._labels.get(_identity(request))
            if label is not None:
                self._folder.note(failed_example(setting.name, question, label, setting.mode))
            return label is not None

        def answering() -> Awaitable[staged.QuestionAnswer]:
            return staged.answer(setting, question, self._work.exemplars, self._teacher, finisher, self._money)

        try:
            answered = await (answering() if patience is None else patience.with_it(answering))
        except KeyError:
            return False
        except GatewayError as error:
            self._folder.note(failed_example(setting.name, question, error.label, setting.mode))
        else:
            self._folder.note(await scored_example(setting.name, question, answered, self._work.score))
        return True

    def _look(self) -> dict[str, object] | None:
        return None if self._folder.manifest is None else self._folder.manifest.student_look

    def _recorded(
        self, role: str, asked: Engine | None = None, look: dict[str, object] | None = None
    ) -> RecordingEngine:
        return RecordingEngine(
            asked or AbsentEngine(role, look), self._kept, self._pair.names[role], asks=asked is not None
        )

    @staticmethod
    def _finisher(student: RecordingEngine) -> StudentCall:
        metrics = Metrics(None, 1)
        # It never rests: the run has a patience of its own.
        return StudentCall({STUDENT: GuardedEngine(student, Breaker(BreakerRule(10**6, 1.0, 1.0)), metrics)}, metrics)

    @asynccontextmanager
    async def _stage(self, stage: StageName, setting: Setting, asked: RecordingEngine) -> AsyncIterator[None]:
        """Note how long it took, however it ends."""
        before, started = asked.calls, time.perf_counter()
        try:
            yield
        finally:
            seconds = round(time.perf_counter() - started, 3)
            self._folder.add_stage(stage, setting.name, asked.calls - before, seconds, self._concurrency)


def _identity(request: OpeningRequest) -> bytes:
    """What tells two requests apart, but for the length."""
    return orjson.dumps(
        (request.messages, request.prompt, request.temperature, request.top_p, request.seed, tuple(request.stop))
    )
