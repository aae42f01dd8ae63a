"""Measurement of sets of exemplars on real engines, and collection of their source answers, as staged runs.

All runs share one folder, so a killed search requests only missing texts. Each tried set is a setting there: cutoff for
no exemplars, and `primed` with a digest of the set for the others.
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
    from gateway.evaluation.priming.exemplars import PromptStyle
    from gateway.evaluation.priming.search import Shown
    from gateway.evaluation.question import Question
    from gateway.evaluation.record import Example
    from gateway.evaluation.run import RunProgress
    from gateway.evaluation.setting import Setting
    from gateway.policy.projections import Exemplar

POOL_CALLS_EACH = 3
"""Calls of one question of the pool: plain, concise and primed."""
# Errors that a retry cannot fix: a set that exceeds an engine's context, or an unreadable judgment.
_FINAL_ERRORS = frozenset({"engine_rejected", "invalid_request", "judge_unreadable"})


@dataclass(frozen=True, slots=True)
class Trials:
    """Measures in `folder`; `begin` adds each setting to its manifest.

    Attributes:
        folder, pair, score, progress, concurrency: As in `StagedRun`.
        setting: Guided setting with the guidance length of the search; its projection is ignored.
        all_questions: All questions of the search, in one order.
        begin: Adds settings to the manifest.
    """

    folder: RunFolder
    pair: Pair
    setting: Setting
    all_questions: Sequence[Question]
    score: QuestionScorer
    progress: RunProgress
    concurrency: int
    begin: Callable[[Sequence[Setting]], None]

    async def answers(self, pool: Sequence[Question], pool_answer_tokens: int) -> dict[str, list[TeacherAnswer]]:
        """Return the teacher's complete answers to each question from three prompts, by id.

        `pool_answer_tokens`: token limit of an answer. Raises StartupError if the teacher is missing or fails.
        """
        plain = replace(self.setting, mode="teacher", max_tokens=pool_answer_tokens)
        primed = replace(plain, shots=len(PRIMED.exemplars))
        concise = [replace(one, id=f"{one.id} (concise)", text=f"{CONCISE.instruction} {one.text}") for one in pool]
        await self._run([plain, primed], pool, PRIMED.exemplars)
        await self._run([plain], concise)
        styles: tuple[tuple[PromptStyle, Setting, Sequence[Question]], ...] = (
            ("as it is", plain, pool),
            ("concise", plain, concise),
            ("primed", primed, pool),
        )
        found: dict[str, list[TeacherAnswer]] = {}
        for style, setting, prompts in styles:
            for question, prompt in zip(pool, prompts, strict=True):
                example = self._example(setting, prompt)
                if example.error is None and example.finish == "stop":
                    answer = TeacherAnswer(style, example.text, example.teacher_output_tokens)
                    found.setdefault(question.id, []).append(answer)
        return found

    async def measure(self, requests: Sequence[tuple[Shown, Question]]) -> list[TrialOutcome]:
        """Return the outcomes in order. Raises StartupError if an engine is missing or fails.

        A request that an engine rejects scores 0, since such exemplars prevent an answer. An answer whose judgment is
        unreadable scores 0 too.
        """
        settings = {shown: self.setting_with(shown) for shown, _ in requests}
        by_names: dict[tuple[str, ...], list[Setting]] = {}
        for shown, setting in settings.items():
            names = tuple(question.id for one, question in requests if one == shown)
            by_names.setdefault(names, []).append(setting)
        by_id = {question.id: question for _, question in requests}
        for names, group in by_names.items():
            await self._run(group, [by_id[name] for name in names])
        return [_outcome(self._example(settings[shown], question)) for shown, question in requests]

    def setting_with(self, shown: Shown) -> Setting:
        """Return the setting in which only the teacher reads these exemplars."""
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
        self.folder.write_examples(self.all_questions)
        examples = [self._example(setting, question) for setting in settings for question in questions]
        failed = {one.error for one in examples if one.error is not None} - _FINAL_ERRORS
        if failed:
            raise StartupError(
                f"Answers are missing ({', '.join(sorted(failed))}), so no exemplars can be chosen. All texts are "
                "stored: repeat the command to resume."
            )

    def _example(self, setting: Setting, question: Question) -> Example:
        return self.folder.examples[setting.name, question.id]


def _outcome(example: Example) -> TrialOutcome:
    if example.error is not None:
        return TrialOutcome(0.0, 0, 0, 1)
    student_wrote = example.mode != "teacher_complete"
    return TrialOutcome(example.score, example.teacher_input_tokens, example.teacher_output_tokens, 1 + student_wrote)


def _digest(exemplars: Sequence[Exemplar]) -> str:
    """Return eight hexadecimal digits that identify these exemplars in this order."""
    texts = [(one.question, one.answer) for one in exemplars]
    return hashlib.blake2b(orjson.dumps(texts), digest_size=4).hexdigest()
