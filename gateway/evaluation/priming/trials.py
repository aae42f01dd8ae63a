"""Sets of exemplars measured on real engines, and the answers of which they are made: each a staged run of its own.

All of it goes into one run's folder, so a search that was killed asks for what is missing, and each set that was tried
is a setting there like any other: cutoff for none, and `primed` with a number of the set for the others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import orjson

from gateway.errors import StartupError
from gateway.evaluation.priming.exemplars import TeacherAnswer
from gateway.evaluation.priming.search import TrialOutcome
from gateway.evaluation.run import EvalWork, StagedRun
from gateway.policy.projections import CONCISE, CUTOFF, PRIMED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.evaluation.example import QuestionScorer
    from gateway.evaluation.folder import RunFolder
    from gateway.evaluation.pair import Pair
    from gateway.evaluation.priming.exemplars import Asked
    from gateway.evaluation.priming.search import Shown
    from gateway.evaluation.question import Question
    from gateway.evaluation.record import Example
    from gateway.evaluation.run import RunProgress
    from gateway.evaluation.setting import Setting
    from gateway.policy.projections import Exemplar

POOL_CALLS_EACH = 3
"""What a question of the pool takes: its teacher's answer as it is, concise and primed."""
# What no further try mends: a set that does not fit into an engine's context, or a judge who cannot make up its mind.
_WRONG = frozenset({"engine_rejected", "invalid_request", "judge_unreadable"})


@dataclass(frozen=True, slots=True)
class Trials:
    """Measures in `folder`, whose manifest is told of each setting by `begin`.

    Attributes:
        setting: guided, with the length that exemplars are sought for; its projection is not looked at.
        every: all questions of the search, in one order.
        begin: notes the settings that come now.
    """

    folder: RunFolder
    pair: Pair
    setting: Setting
    every: Sequence[Question]
    score: QuestionScorer
    progress: RunProgress
    concurrency: int
    begin: Callable[[Sequence[Setting]], None]

    async def answers(self, pool: Sequence[Question], longest: int) -> dict[str, list[TeacherAnswer]]:
        """What the teacher writes to each question, asked in three ways; by id. What it did not end is left out.

        longest: of an answer, in tokens. Raises StartupError where the teacher is not there, or fails.
        """
        plain = replace(self.setting, mode="teacher", max_tokens=longest)
        primed = replace(plain, shots=len(PRIMED.exemplars))
        asked = [replace(one, id=f"{one.id} (concise)", text=f"{CONCISE.instruction} {one.text}") for one in pool]
        await self._run([plain, primed], pool, PRIMED.exemplars)
        await self._run([plain], asked)
        ways: tuple[tuple[Asked, Setting, Sequence[Question]], ...] = (
            ("as it is", plain, pool),
            ("concise", plain, asked),
            ("primed", primed, pool),
        )
        found: dict[str, list[TeacherAnswer]] = {}
        for way, setting, those in ways:
            for question, put in zip(pool, those, strict=True):
                example = self._example(setting, put)
                if example.error is None and example.finish == "stop":
                    answer = TeacherAnswer(way, example.text, example.teacher_output_tokens)
                    found.setdefault(question.id, []).append(answer)
        return found

    async def measure(self, asks: Sequence[tuple[Shown, Question]]) -> list[TrialOutcome]:
        """The outcomes, in the same order. Raises StartupError where an engine is not there, or fails.

        A request that an engine refuses scores 0: behind such exemplars it is not answered. So does an answer of which
        a judge said nothing that can be read.
        """
        settings = {shown: self.behind(shown) for shown, _ in asks}
        together: dict[tuple[str, ...], list[Setting]] = {}
        for shown, setting in settings.items():
            names = tuple(question.id for one, question in asks if one == shown)
            together.setdefault(names, []).append(setting)
        by_id = {question.id: question for _, question in asks}
        for names, some in together.items():
            await self._run(some, [by_id[name] for name in names])
        return [_outcome(self._example(settings[shown], question)) for shown, question in asks]

    def behind(self, shown: Shown) -> Setting:
        """The setting in which the teacher sees these exemplars, and the student none."""
        if not shown:
            return replace(self.setting, mode="guided", projection=CUTOFF)
        exemplars = tuple(one.exemplar for one in shown)
        return replace(
            self.setting,
            mode="guided",
            projection=replace(PRIMED, name=f"primed {_digest(exemplars)}", exemplars=exemplars),
        )

    async def _run(
        self, settings: Sequence[Setting], questions: Sequence[Question], exemplars: Sequence[Exemplar] = ()
    ) -> None:
        self.begin(settings)
        work = EvalWork(questions=questions, exemplars=exemplars, settings=settings, score=self.score)
        run = StagedRun(self.folder, work, self.pair, self.progress, concurrency=self.concurrency)
        try:
            await run.run()
        finally:
            run.close()
        self.folder.write_examples(self.every)
        examples = [self._example(setting, question) for setting in settings for question in questions]
        failed = {one.error for one in examples if one.error is not None} - _WRONG
        if failed:
            raise StartupError(
                f"Answers are missing ({', '.join(sorted(failed))}), and no exemplars are chosen without them. What "
                "was written is kept: the same command goes on where it stopped."
            )

    def _example(self, setting: Setting, question: Question) -> Example:
        return self.folder.examples[setting.name, question.id]


def _outcome(example: Example) -> TrialOutcome:
    if example.error is not None:
        return TrialOutcome(0.0, 0, 0, 1)
    student_wrote = example.mode != "teacher_complete"
    return TrialOutcome(example.score, example.teacher_input_tokens, example.teacher_output_tokens, 1 + student_wrote)


def _digest(exemplars: Sequence[Exemplar]) -> str:
    """Eight letters and digits, of these exemplars in this order."""
    texts = [(one.question, one.answer) for one in exemplars]
    return hashlib.blake2b(orjson.dumps(texts), digest_size=4).hexdigest()
