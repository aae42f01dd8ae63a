"""The task set: tasks of four kinds from a seed, in turn."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import orjson

from gateway.evaluation.questions.problem_stories import ProblemRandom
from gateway.evaluation.record import Question
from gateway.evaluation.tool_tasks.calculator import CALCULATOR
from gateway.evaluation.tool_tasks.sandbox import SANDBOX
from gateway.evaluation.tool_tasks.schedule import SCHEDULE
from gateway.evaluation.tool_tasks.table import TABLE
from gateway.evaluation.tool_tasks.tools import ToolTask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.evaluation.tool_tasks.tools import State, TaskKind

KINDS: Mapping[str, TaskKind] = {"calculator": CALCULATOR, "table": TABLE, "calendar": SCHEDULE, "files": SANDBOX}
"""The kinds by name."""
DEFAULT_COUNT = 160
SCORER = "state"


def tool_tasks(count: int = DEFAULT_COUNT, seed: int = 0) -> list[ToolTask]:
    """Return `count` different tasks. A larger count begins with the tasks of a smaller one."""
    found: list[ToolTask] = []
    for index in range(count):
        kind = list(KINDS)[index % len(KINDS)]
        stories = KINDS[kind].stories
        story = stories[index // len(KINDS) % len(stories)]
        for attempt in itertools.count():
            generated = story(ProblemRandom(f"tools:{seed}:{index}:{attempt}"))
            if generated is None or any(
                generated.request == one.request and generated.state == one.state for one in found
            ):
                continue
            found.append(ToolTask(id=f"{kind}-{seed}-{index}", kind=kind, **generated._asdict()))
            break
    return found


def is_solved(task: ToolTask, state: State) -> bool:
    """Return whether a final state has the expected outcome, and nothing else was changed."""
    outcome = KINDS[task.kind].outcome
    return outcome(state) == outcome(task.expected)


def as_question(task: ToolTask) -> Question:
    """Return the task as the questions of a run's folder, whose answer is the expected state."""
    answer = orjson.dumps(task.expected, option=orjson.OPT_SORT_KEYS).decode()
    start = orjson.dumps(task.state, option=orjson.OPT_SORT_KEYS).decode()
    return Question(task.id, task.request, answer, SCORER, (("state", start),), steps=len(task.reference))
