"""A run of the task set: every task with the teacher or the student alone, with plans, and with a choice for each turn.

The folder is that of `eval run`: stored replies are not requested again, and `eval report` reads it.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from msgspec import structs

from gateway.errors import EngineError
from gateway.evaluation.folder import new_manifest
from gateway.evaluation.generations import Generations, RecordingEngine
from gateway.evaluation.pair import PAUSES_S, LocalPair, StageRetries, engine, manifest_facts
from gateway.evaluation.record import Example
from gateway.evaluation.setting import STUDENT, TEACHER, Setting
from gateway.evaluation.tool_tasks.conversation import MAX_TURNS, converse, shown
from gateway.evaluation.tool_tasks.plans import PlanMissing, Planner
from gateway.evaluation.tool_tasks.switching import EngineNeeded, EngineUse, SwitchedTask
from gateway.evaluation.tool_tasks.tasks import KINDS, as_question, tool_tasks
from gateway.local.weights import model_name
from gateway.policy.projections import CUTOFF, TOOL_PLAN
from gateway.policy.route_rules import SwitchRule
from gateway.pricing import charge_usd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from gateway.engines.base import Engine, TeacherRequest
    from gateway.evaluation.folder import RunFolder
    from gateway.evaluation.pair import Pair
    from gateway.evaluation.record import Manifest
    from gateway.evaluation.run import RunProgress
    from gateway.evaluation.tool_tasks.conversation import TaskOutcome
    from gateway.evaluation.tool_tasks.plans import WrittenPlan
    from gateway.evaluation.tool_tasks.tools import ToolTask
    from gateway.protocol.body import Json

T = TypeVar("T")
DATA = "tools"
PLAN, SWITCH = "plan", "switch"
ROLES = (TEACHER, STUDENT, PLAN, SWITCH)
"""The engine of a task's turns; plan: the student with the teacher's plans; switch: one is chosen for each turn."""
TEMPLATE = Path(__file__).with_name("function_call.jinja")
"""Chat template for Qwen2.5-Coder, with a tag around calls that these models write."""
_TEMPLATE_MODELS = "qwen2.5-coder"  # models of another kind have other tags
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolWork:
    """The first `count` tasks of a seed, and the limits of each task: replies, and tokens of a reply."""

    count: int
    seed: int = 0
    roles: tuple[str, ...] = (TEACHER, STUDENT)
    shots: int = 1
    max_turns: int = MAX_TURNS
    max_tokens: int = 256
    plan_tokens: int = 160
    switch: SwitchRule = field(default_factory=SwitchRule)

    @property
    def tasks(self) -> list[ToolTask]:
        return tool_tasks(self.count, self.seed)

    def setting(self, role: str) -> Setting:
        common = Setting(mode="teacher" if role == TEACHER else "student", max_tokens=self.max_tokens, shots=self.shots)
        if role == SWITCH:
            rule = replace(CUTOFF, name=f"tool_switch {self.switch.min_probability:g} ± {self.switch.margin:g}")
            return replace(common, mode="guided", projection=rule, placement="context")
        if role != PLAN:
            return common
        return replace(common, mode="guided", tokens=self.plan_tokens, projection=TOOL_PLAN, placement="context")

    def manifest(self, pair: Pair) -> Manifest:
        template = pair.chat_template.read_text() if isinstance(pair, LocalPair) and pair.chat_template else None
        read = [shown(kind, self.shots) for kind in KINDS], template, self.max_turns
        digest = blake2b(orjson.dumps(read), digest_size=8).hexdigest()
        more = {"turns": self.max_turns, "shown": digest}
        settings = [self.setting(role).as_dict() | more for role in self.roles]
        for role, one in zip(self.roles, settings, strict=True):
            if role == PLAN:
                prompts = digest, TOOL_PLAN.instruction, TOOL_PLAN.introduction
                one["shown"] = blake2b(orjson.dumps(prompts), digest_size=8).hexdigest()
            elif role == SWITCH:
                one["switch"] = self.switch.model_dump()
        questions = [as_question(task) for task in self.tasks]
        return new_manifest(DATA, questions, settings, seed=self.seed, live=False, **manifest_facts(pair))


class ToolRun:
    """A run in a folder. `pauses_s` are the seconds before retries of a failed call."""

    def __init__(
        self,
        folder: RunFolder,
        work: ToolWork,
        pair: Pair,
        progress: RunProgress,
        *,
        concurrency: int,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self._folder, self._work, self._pair = folder, work, pair
        self._progress, self._concurrency, self._pauses_s = progress, concurrency, pauses_s

    async def run(self) -> None:
        """Run the tasks with one engine after the other. Raises StartupError if an engine is gone."""
        tasks = self._work.tasks
        questions = [as_question(task) for task in tasks]
        self._folder.begin(self._work.manifest(self._pair), questions)
        for role in self._work.roles:
            name = self._work.setting(role).name
            # One kind after the other: its tools and its example are then in the engine's prompt cache.
            missing = sorted((task for task in tasks if not self._is_done(name, task)), key=lambda one: one.kind)
            if not missing:
                continue
            try:
                if role == PLAN:
                    await self._run_planned(missing)
                elif role == SWITCH:
                    await self._run_switched(missing)
                else:
                    async with tool_engine(self._pair, role) as found:
                        await self._run_role(role, missing, found)
            finally:
                self._folder.write_examples(questions)

    @property
    def is_finished(self) -> bool:
        """Return whether all tasks have results."""
        work = self._work
        return all(self._is_done(work.setting(role).name, task) for role in work.roles for task in work.tasks)

    def _is_done(self, setting: str, task: ToolTask) -> bool:
        example = self._folder.examples.get((setting, task.id))
        return example is not None and example.error is None

    async def _run_planned(self, tasks: Sequence[ToolTask]) -> None:
        """Run tasks in rounds of two stages, so that one engine runs at a time.

        The teacher writes plans, then the student runs each task until a failed call requires another plan. In the next
        round, the replies to this point are the stored ones.
        """
        planner = Planner(self._work.plan_tokens)
        waiting = [(task, await self._first_plan(task, planner)) for task in tasks]
        while waiting:
            async with tool_engine(self._pair, TEACHER) as found:
                await self._write_plans([request for _, request in waiting], planner, found)
            async with tool_engine(self._pair, STUDENT) as found:
                waiting = await self._run_role(PLAN, [task for task, _ in waiting], found, planner)

    async def _run_switched(self, tasks: Sequence[ToolTask]) -> None:
        """Run tasks in stages of one engine. A task whose next reply is the other one's waits for the next stage, where
        the replies to this point are the stored ones."""
        role, other = TEACHER, STUDENT
        waiting: dict[str, list[ToolTask]] = {TEACHER: list(tasks), STUDENT: []}

        async def run_one(recorded: RecordingEngine, retries: StageRetries, task: ToolTask) -> None:
            switched = SwitchedTask(self._work.switch, recorded, self._revision(other), retries)
            try:
                outcome = await self._converse(task, switched.complete)
            except EngineNeeded as needed:
                waiting[needed.role].append(task)
                self._progress.step()
            except EngineError as error:
                self._keep_failed(SWITCH, task, error)
            else:
                self._add(SWITCH, outcome, switched.uses, teacher_turns=switched.teacher_turns)

        while any(waiting.values()):
            items, waiting[role] = waiting[role], []
            if items:
                async with tool_engine(self._pair, role) as found:
                    await self._run_stage(role, self._work.setting(SWITCH).name, items, found, run_one)
            role, other = other, role

    async def _first_plan(self, task: ToolTask, planner: Planner) -> TeacherRequest:
        """Return the request for the plan of a task's first turn."""

        async def complete(body: Json) -> Json:
            planner.place(body)
            raise AssertionError("no plan is written yet")

        try:
            await self._converse(task, complete)
        except PlanMissing as missing:
            return missing.request
        raise AssertionError("the first turn needs a plan")

    async def _write_plans(self, requests: Sequence[TeacherRequest], planner: Planner, found: Engine) -> None:
        async def write(recorded: RecordingEngine, retries: StageRetries, request: TeacherRequest) -> None:
            await planner.write(request, lambda: retries.call(lambda: recorded.teacher_text(request)))
            self._progress.step()

        await self._run_stage(TEACHER, self._work.setting(PLAN).name, requests, found, write)

    async def _run_role(
        self, role: str, tasks: Sequence[ToolTask], found: Engine, planner: Planner | None = None
    ) -> list[tuple[ToolTask, TeacherRequest]]:
        """Run the tasks. Return those that wait for a plan, with the request for it."""
        name = self._work.setting(role).name
        waiting: list[tuple[ToolTask, TeacherRequest]] = []

        async def run_one(recorded: RecordingEngine, retries: StageRetries, task: ToolTask) -> None:
            plans: list[WrittenPlan] = []

            async def complete(body: Json) -> Json:
                if planner is None:
                    return await retries.call(lambda: recorded.complete(body))
                planned, plan = planner.place(body)
                if not plans or plans[-1] is not plan:
                    plans.append(plan)
                return await retries.call(lambda: recorded.complete(planned))

            try:
                outcome = await self._converse(task, complete)
            except PlanMissing as missing:
                waiting.append((task, missing.request))
                self._progress.step()
            except EngineError as error:
                self._keep_failed(role, task, error)
            else:
                own = (outcome.input_tokens, outcome.output_tokens, outcome.cached_tokens), outcome.seconds
                uses = [EngineUse(TEACHER, one.counts, one.seconds) for one in plans]
                uses.append(EngineUse(TEACHER if role == TEACHER else STUDENT, *own))
                self._add(role, outcome, uses, guidance=plans[-1].text if plans else "")

        await self._run_stage(TEACHER if role == TEACHER else STUDENT, name, tasks, found, run_one)
        return waiting

    def _keep_failed(self, role: str, task: ToolTask, error: EngineError) -> None:
        costs: dict[str, Any] = dict.fromkeys(("cost_usd", "teacher_usd", "baseline_usd"), _ZERO)
        setting = self._work.setting(role)
        failed = Example(
            setting=setting.name, question=task.id, mode=setting.mode, score=0.0, text="", error=error.label, **costs
        )
        self._folder.keep(failed)
        self._progress.step()

    def _revision(self, role: str) -> str:
        return f"{DATA} {self._pair.names[role]}"

    async def _converse(self, task: ToolTask, complete: Callable[[Json], Awaitable[Json]]) -> TaskOutcome:
        work = self._work
        return await converse(task, complete, max_tokens=work.max_tokens, max_turns=work.max_turns, shots=work.shots)

    async def _run_stage(
        self,
        role: str,
        setting: str,
        items: Sequence[T],
        found: Engine,
        work: Callable[[RecordingEngine, StageRetries, T], Awaitable[None]],
    ) -> None:
        """Run `work` on all items with one engine, whose replies are stored."""
        retries = StageRetries(self._pauses_s)
        with closing(Generations(self._folder.generations)) as storage:
            recorded = RecordingEngine(found, storage, self._revision(role))
            recorded.name = role
            self._progress.begin(f"{role} {self._pair.names[role]}", len(items))
            started = time.perf_counter()
            try:
                await retries.run_concurrently(items, lambda item: work(recorded, retries, item), self._concurrency)
            finally:
                seconds = round(time.perf_counter() - started, 3)
                stage: Any = role
                self._folder.add_stage(stage, setting, recorded.calls, seconds, self._concurrency)
            self._progress.end()

    def _add(
        self,
        role: str,
        outcome: TaskOutcome,
        uses: Sequence[EngineUse],
        *,
        guidance: str = "",
        teacher_turns: int | None = None,
    ) -> None:
        """Add the result of a task. `uses` are all calls of its engines."""
        prices, setting = self._pair.prices.prices, self._work.setting(role)
        of_teacher = [use for use in uses if use.role == TEACHER]
        of_student = [use for use in uses if use.role == STUDENT]
        teacher_usd = sum((charge_usd(prices[TEACHER], *use.counts) for use in of_teacher), _ZERO)
        student_usd = sum((charge_usd(prices[STUDENT], *use.counts) for use in of_student), _ZERO)
        own = outcome.input_tokens, outcome.output_tokens, outcome.cached_tokens
        example = Example(
            setting=setting.name,
            question=outcome.task.id,
            mode=setting.mode,
            score=outcome.score,
            text=outcome.text,
            finish=outcome.finish,
            guidance=guidance,
            cost_usd=teacher_usd + student_usd,
            teacher_usd=teacher_usd,
            baseline_usd=charge_usd(prices[TEACHER], *own),
            teacher_input_tokens=sum(use.counts[0] for use in of_teacher),
            teacher_output_tokens=sum(use.counts[1] for use in of_teacher),
            student_input_tokens=sum(use.counts[0] for use in of_student),
            student_output_tokens=sum(use.counts[1] for use in of_student),
            teacher_s=round(sum(use.seconds for use in of_teacher), 3) if of_teacher else None,
            student_s=round(sum(use.seconds for use in of_student), 3) if of_student else None,
            tools=structs.replace(outcome.facts, teacher_turns=teacher_turns),
        )
        self._folder.add(example)
        self._progress.step(outcome.output_tokens)


@asynccontextmanager
async def tool_engine(pair: Pair, role: str) -> AsyncIterator[Engine]:
    """Yield the engine of a role. A local teacher is served like the student, since TGI has no tools of this kind."""
    if isinstance(pair, LocalPair):
        model = pair.teacher if role == TEACHER else pair.student
        template = pair.chat_template if model_name(model).startswith(_TEMPLATE_MODELS) else None
        pair, role = replace(pair, student=model, chat_template=template), STUDENT
    async with engine(pair, role) as found:
        yield found
