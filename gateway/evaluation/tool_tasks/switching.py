"""Turns that the teacher or the student writes, chosen as by a gateway with `guidance.tools: switch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.engines.chat import read_usage
from gateway.evaluation.generations import RecordingEngine
from gateway.evaluation.setting import STUDENT, TEACHER
from gateway.pipeline.tool_turns import read_probability
from gateway.policy.tool_switch import choose_at_once, choose_by_probability, read_signals

if TYPE_CHECKING:
    from gateway.evaluation.pair import StageRetries
    from gateway.policy.route_rules import SwitchRule
    from gateway.policy.tool_switch import TurnEngine
    from gateway.protocol.body import Json


class EngineUse(NamedTuple):
    """Calls of one engine: input, output and cached input tokens, and seconds."""

    role: str
    counts: tuple[int, int, int]
    seconds: float


class EngineNeeded(Exception):
    """The next reply is that of an engine that does not run now."""

    def __init__(self, role: str) -> None:
        super().__init__(f"the {role} does not run")
        self.role = role


class SwitchedTask:
    """The engines of one task: `running`, and the stored replies of the other role's engine, with its revision.

    `uses` has each call of the task, and `teacher_turns` the number of the teacher's replies.
    """

    def __init__(self, rule: SwitchRule, running: RecordingEngine, other: str, retries: StageRetries) -> None:
        self._rule, self._running, self._retries = rule, running, retries
        role = TEACHER if running.name == STUDENT else STUDENT
        stored = RecordingEngine(None, running.storage, other, name=role)
        self._engines = {running.name: running, role: stored}
        student = self._engines[STUDENT]
        self._questions = RecordingEngine(
            student.engine, student.storage, student.revision, STUDENT, scores_answers=True
        )
        self._previous: TurnEngine = "teacher"
        self.uses: list[EngineUse] = []
        self.teacher_turns = 0

    async def complete(self, body: Json) -> Json:
        """Return the next reply. Raises EngineErrors, and EngineNeeded."""
        seconds = 0.0
        choice = choose_at_once(read_signals(body["messages"]))
        if choice is None:
            question = await self._call(self._questions, STUDENT, {**body, "max_tokens": 1})
            seconds = question["seconds"]
            logprob, *_ = question.get("answer_logprobs") or (None,)
            probability = read_probability({"content": [{"logprob": logprob}]})
            choice = choose_by_probability(self._rule, self._previous, probability)
        self._previous = choice.engine
        role = TEACHER if choice.engine == "teacher" else STUDENT
        reply = await self._call(self._engines[role], role, body)
        self.teacher_turns += role == TEACHER
        return {**reply, "seconds": seconds + reply["seconds"]}

    async def _call(self, engine: RecordingEngine, role: str, body: Json) -> Json:
        before = engine.calls
        try:
            reply = await self._retries.call(lambda: engine.complete(body))
        except KeyError:
            if engine.engine is not None:
                raise
            raise EngineNeeded(role) from None
        if engine is self._questions:
            self._running.calls += engine.calls - before
        usage = read_usage(reply.get("usage"))
        counts = (0, 0, 0) if usage is None else (usage.input_tokens, usage.output_tokens, usage.cached_input_tokens)
        self.uses.append(EngineUse(role, counts, reply["seconds"]))
        return reply
