"""A run in the paper's two stages: first the teacher, once for each distinct request, then the students.

Every text is stored at once, so a killed run resumes with the missing requests. `folder.py` checks which runs may
share a folder, and `live.py` does the run through a gateway.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from gateway.accounting.engine_set import EngineSet
from gateway.engines.breaker import Breaker, BreakerRule
from gateway.engines.guard import GuardedEngine
from gateway.errors import EngineError, GatewayError, StartupError
from gateway.evaluation import staged
from gateway.evaluation.generations import Generations, RecordingEngine
from gateway.evaluation.pair import PAUSES_S, StageRetries, engine, stored_state, student_state
from gateway.evaluation.record import Example, ScoredAnswer
from gateway.evaluation.scoring import NO_REFERENCE, PREFERENCE, Unscored
from gateway.evaluation.setting import STUDENT, TEACHER
from gateway.pipeline.student import StudentCall
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.accounting.receipt import EngineShare
    from gateway.engines.base import Engine, TeacherRequest
    from gateway.evaluation.folder import RunFolder, StageName
    from gateway.evaluation.pair import Pair
    from gateway.evaluation.record import Question
    from gateway.evaluation.setting import Setting
    from gateway.evaluation.staged import QuestionAnswer
    from gateway.policy.projections import Exemplar

T = TypeVar("T")
QuestionScorer: TypeAlias = "Callable[[str, Question], Awaitable[ScoredAnswer]]"
"""Scorer of an answer to a question. Raises Unscored, and EngineErrors of a judge."""
_SAVE_INTERVAL_S = 60.0
_ZERO = Decimal(0)


async def scored_example(
    setting: str,
    question: Question,
    answered: QuestionAnswer,
    score: QuestionScorer,
    total_s: float | None = None,
    *,
    reference: str | None = None,
) -> Example:
    """Return the record of an answer and its guidance. Without a score it has an error label next to its text.

    `reference`: the teacher's answer, with which the scorer preference compares this one.
    """
    verdict, guidance_verdict, error = ScoredAnswer(0.0), ScoredAnswer(0.0), None
    compares = question.scorer == PREFERENCE
    if compares:
        question = replace(question, answer=reference or "")
    try:
        if compares and not reference:
            raise Unscored(NO_REFERENCE, f"the teacher has no answer to '{question.id}'")
        verdict = await score(answered.text, question)
        if answered.guidance and not compares:
            guidance_verdict = await score(answered.guidance, question)
    except (Unscored, EngineError) as failure:
        verdict, error = ScoredAnswer(0.0), failure.label
    receipt = answered.receipt
    teacher, guidance = receipt.teacher, receipt.guidance
    kept_tokens = 0 if teacher is None or receipt.mode != "teacher" else teacher.output_tokens
    student = [share for share in (receipt.student, receipt.warmup) if share is not None]
    return Example(
        setting=setting,
        question=question.id,
        mode=receipt.mode,
        score=verdict.score,
        found=verdict.found,
        text=answered.text,
        finish=receipt.finish_reason,
        unguided=receipt.unguided,
        guidance=answered.guidance,
        guidance_score=guidance_verdict.score,
        guidance_logprob=answered.guidance_logprob,
        answer_logprobs=answered.answer_logprobs,
        kept_tokens=kept_tokens if guidance is None else guidance.kept_tokens,
        teacher_input_tokens=0 if teacher is None else teacher.input_tokens,
        teacher_output_tokens=0 if teacher is None else teacher.output_tokens,
        student_input_tokens=sum(share.input_tokens for share in student),
        student_output_tokens=sum(share.output_tokens for share in student),
        teacher_cached_tokens=_cached_tokens([] if teacher is None else [teacher], TEACHER in answered.no_cache_reads),
        student_cached_tokens=_cached_tokens(student, STUDENT in answered.no_cache_reads),
        cost_usd=receipt.cost_usd,
        teacher_usd=_ZERO if teacher is None else teacher.cost_usd,
        baseline_usd=receipt.baseline_usd,
        teacher_s=answered.teacher_s,
        student_s=answered.student_s,
        total_s=total_s,
        error=error,
    )


def _cached_tokens(shares: Sequence[EngineShare], no_reads: bool) -> int | None:
    """Return the input tokens read from the prompt cache; None if the engine reported none and not even 0."""
    cached = sum(share.cached_input_tokens for share in shares)
    return cached if cached or no_reads else None


def failed_example(setting: str, question: Question, label: str, mode: str, folder: RunFolder) -> Example:
    """Return the record of a question without an answer. `label`: the error label, unless the teacher failed as well.

    Then a preference would count a failure of both as the teacher's success.
    """
    label = NO_REFERENCE if folder.lacks_reference(setting, question.id) else label
    costs: dict[str, Any] = dict.fromkeys(("cost_usd", "teacher_usd", "baseline_usd"), _ZERO)
    return Example(setting=setting, question=question.id, mode=mode, score=0.0, text="", error=label, **costs)


class RunProgress(Protocol):
    """Receiver of a run's progress: stages of `total` steps, and finished steps with newly generated tokens."""

    def begin(self, stage: str, total: int) -> None: ...
    def step(self, tokens: int = 0) -> None: ...
    def end(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EvalWork:
    """The questions and settings of a run, the exemplars of few-shot prompts, and the scorer."""

    questions: Sequence[Question]
    exemplars: Sequence[Exemplar]
    settings: Sequence[Setting]
    score: QuestionScorer

    @property
    def items(self) -> list[tuple[Setting, Question]]:
        return [(setting, question) for setting in self.settings for question in self.questions]


@dataclass
class StagedRun:
    """A run of every question under every setting, stored in a folder; close it.

    `pauses_s` are the seconds before retries. With `scores_guidance`, the student returns the log-probability of the
    guidance; with `scores_answers`, those of the tokens that it writes.
    """

    folder: RunFolder
    work: EvalWork
    pair: Pair
    progress: RunProgress
    concurrency: int
    pauses_s: Sequence[float] = PAUSES_S
    scores_guidance: bool = False
    scores_answers: bool = False

    def __post_init__(self) -> None:
        self._labels: dict[str, str] = {}  # error labels of failed teacher calls, by request
        self._prices = self.pair.prices
        self._storage = Generations(self.folder.generations)
        self._teacher = self._recorded(TEACHER)
        self._metrics = Metrics(None, 1)
        self._student_call = StudentCall(self._metrics)
        self._saved_at = time.monotonic()

    async def run(self) -> None:
        """Run both stages. Raises StartupError if an engine does not start or is gone; all texts are stored."""
        try:
            if missing := self._missing_requests():
                async with engine(self.pair, TEACHER) as teacher:
                    await self._run_teacher(missing, teacher)
            remaining = await self._from_texts(self._student_state(), self.work.items)
            if remaining:
                async with engine(self.pair, STUDENT) as student:
                    if self.scores_guidance and "version" not in student.state.facts:  # vLLM reports it
                        raise StartupError("--guidance-logprobs: the student must be a vLLM server.")
                    if (state := student_state(student.state)) is not None:
                        self.folder.set_student_state(state)
                    await self._run_student(await self._from_texts(state, remaining), student)
        finally:
            self.write()

    async def rescore(self) -> list[tuple[Setting, Question]]:
        """Compute every example from the stored texts. Returns the items without texts; their examples stay."""
        try:
            return await self._from_texts(self._student_state(), self.work.items)
        finally:
            self.write()

    def calls_left(self) -> dict[str, int]:
        """Return the number of remaining calls by stage; that of the student is an upper bound."""
        done = {key for key, example in self.folder.examples.items() if example.error is None}
        students = ((setting.name, question.id) for setting, question in self.work.items if setting.mode != "teacher")
        return {TEACHER: len(self._missing_requests()), STUDENT: sum(key not in done for key in students)}

    def write(self) -> None:
        self._saved_at = time.monotonic()
        self.folder.write_examples(self.work.questions)

    def close(self) -> None:
        self._storage.close()

    def _missing_requests(self) -> list[tuple[Setting, TeacherRequest]]:
        """Return each distinct teacher request without a text, with its first setting and the largest token limit."""
        found: dict[str, tuple[Setting, TeacherRequest]] = {}
        for setting, question in self.work.items:
            request = staged.teacher_request(setting, question, self.work.exemplars)
            if request is not None:
                key = self._teacher.key_of(request)
                first, longest = found.get(key, (setting, request))
                found[key] = first, max(longest, request, key=lambda one: one.max_tokens)
        return [(setting, request) for setting, request in found.values() if self._teacher.stored(request) is None]

    async def _run_teacher(self, missing: Sequence[tuple[Setting, TeacherRequest]], teacher: Engine) -> None:
        recorded = self._recorded(TEACHER, teacher)
        retries = StageRetries(self.pauses_s)

        async def send(one: tuple[Setting, TeacherRequest]) -> None:
            request = one[1]
            try:
                teacher_text = await retries.call(lambda: recorded.teacher_text(request))
            except GatewayError as error:
                self._labels[recorded.key_of(request)] = error.label
                self.progress.step()
            else:
                self.progress.step(teacher_text.output_tokens)

        await self._run_stage("teacher", missing, send, recorded, retries)

    async def _from_texts(
        self, state: dict[str, object] | None, items: Sequence[tuple[Setting, Question]]
    ) -> list[tuple[Setting, Question]]:
        """Compute the examples whose texts are stored, and return the others; without `state` those of students."""
        engine_set = self._engine_set(self._recorded(STUDENT, state=state))
        remaining = []
        for setting, question in items:
            known = state is not None or setting.mode == "teacher"
            if not known or not await self._answer(setting, question, engine_set):
                remaining.append((setting, question))
            await asyncio.sleep(0)  # allow an interrupt between two items
        return remaining

    async def _run_student(self, remaining: Sequence[tuple[Setting, Question]], student: Engine) -> None:
        recorded = self._recorded(STUDENT, student)
        recorded.scores_guidance, recorded.scores_answers = self.scores_guidance, self.scores_answers
        engine_set = self._engine_set(recorded)
        retries = StageRetries(self.pauses_s)

        async def run_one(pair: tuple[Setting, Question]) -> None:
            await self._answer(*pair, engine_set, retries)
            self.progress.step(self.folder.examples[pair[0].name, pair[1].id].student_output_tokens)
            if time.monotonic() > self._saved_at + _SAVE_INTERVAL_S:
                self.write()

        await self._run_stage("student", remaining, run_one, recorded, retries)

    async def _answer(
        self, setting: Setting, question: Question, engine_set: EngineSet, retries: StageRetries | None = None
    ) -> bool:
        """Compute one example. Returns False if a text is missing and may not be requested."""
        request = staged.teacher_request(setting, question, self.work.exemplars)
        if request is not None and self._teacher.stored(request) is None:
            label = self._labels.get(self._teacher.key_of(request))
            if label is not None:
                self.folder.keep(failed_example(setting.name, question, label, setting.mode, self.folder))
            return label is not None

        def answering() -> Awaitable[staged.QuestionAnswer]:
            exemplars, student_call = self.work.exemplars, self._student_call
            return staged.answer(setting, question, exemplars, self._teacher, student_call, engine_set)

        try:
            answered = await (answering() if retries is None else retries.call(answering))
        except KeyError:
            return False
        except GatewayError as error:
            self.folder.keep(failed_example(setting.name, question, error.label, setting.mode, self.folder))
        else:
            reference = self.folder.reference(setting.name, question.id, answered.text)
            self.folder.keep(
                await scored_example(setting.name, question, answered, self.work.score, reference=reference)
            )
        return True

    def _student_state(self) -> dict[str, object] | None:
        return None if self.folder.manifest is None else self.folder.manifest.student_look

    def _recorded(
        self, role: str, running: Engine | None = None, state: dict[str, object] | None = None
    ) -> RecordingEngine:
        return RecordingEngine(running, self._storage, self.pair.names[role], role, stored_state(state))

    def _engine_set(self, student: RecordingEngine) -> EngineSet:
        # The circuit breaker is disabled, since the run retries calls itself.
        guarded = GuardedEngine(student, Breaker(BreakerRule(failures=10**6)), self._metrics)
        return EngineSet({STUDENT: guarded}, self._prices.prices, self._prices.encodings)

    async def _run_stage(
        self,
        stage: StageName,
        items: Sequence[tuple[Setting, T]],
        work: Callable[[tuple[Setting, T]], Awaitable[None]],
        recorded: RecordingEngine,
        retries: StageRetries,
    ) -> None:
        """Run `work` on every item, by setting, and record the duration for each setting, also after an error."""
        self.progress.begin(f"{stage} {self.pair.names[stage]}", len(items))
        for setting in dict.fromkeys(setting for setting, _ in items):
            before, started = recorded.calls, time.perf_counter()
            try:
                group = [item for item in items if item[0] is setting]
                await retries.run_concurrently(group, work, self.concurrency)
            finally:
                seconds = round(time.perf_counter() - started, 3)
                self.folder.add_stage(stage, setting.name, recorded.calls - before, seconds, self.concurrency)
        self.progress.end()
