"""The task set with tools: its reference solutions, its scores, its tools' errors, and arithmetic."""

from __future__ import annotations

import copy

import orjson
import pytest

from gateway.evaluation.tool_tasks.calculator import evaluate
from gateway.evaluation.tool_tasks.conversation import example
from gateway.evaluation.tool_tasks.tasks import DEFAULT_COUNT, KINDS, as_question, is_solved, tool_tasks
from gateway.evaluation.tool_tasks.tools import State, ToolCall, ToolError, ToolTask, apply, call

TASKS = [task for seed in (0, 1, 2) for task in tool_tasks(DEFAULT_COUNT, seed)]


def final_state(task: ToolTask, calls: tuple[ToolCall, ...]) -> State:
    state = task.state
    for made in calls:
        result = apply(KINDS[task.kind].tools, state, made)
        assert not result.failed, (task.id, made, result.output)
        state = result.state
    return state


def first(kind: str) -> ToolTask:
    return next(task for task in TASKS if task.kind == kind)


def test_the_reference_solution_solves_every_task() -> None:
    assert DEFAULT_COUNT >= 150
    for task in TASKS:
        before = copy.deepcopy(task.state)
        state = final_state(task, task.reference)
        assert state == task.expected, task.id
        assert is_solved(task, state), task.id
        assert task.state == before, "tools leave the old state unchanged"
        assert 2 <= len(task.reference) <= 5


def test_no_task_is_solved_without_all_of_its_changes() -> None:
    """The last call of each reference solution changes the state; without it, the score is 0."""
    for task in TASKS:
        assert not is_solved(task, task.state), task.id
        assert not is_solved(task, final_state(task, task.reference[:-1])), task.id


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("calculator", call("store", name="other", value=1)),
        ("table", None),
        ("calendar", call("add_event", title="Extra", day="Monday", start="20:00", minutes=30)),
        ("files", call("write_file", path="extra.txt", content="x")),
    ],
)
def test_a_further_change_is_wrong(kind: str, extra: ToolCall | None) -> None:
    task = first(kind)
    if extra is None:
        extra = call("set_cell", id=next(iter(task.state["rows"])), column="price", value=9999)
    assert not is_solved(task, final_state(task, (*task.reference, extra)))


def test_equal_seeds_make_equal_tasks_and_a_larger_set_begins_with_a_smaller_one() -> None:
    assert tool_tasks(24, 7) == tool_tasks(DEFAULT_COUNT, 7)[:24]
    assert tool_tasks(24, 8) != tool_tasks(24, 7)
    assert [task.kind for task in tool_tasks(8)] == list(KINDS) * 2
    assert len({(*as_question(task).options, task.request) for task in TASKS}) == len(TASKS)


@pytest.mark.parametrize("kind", ["table", "calendar"])
def test_ids_of_the_example_solve_no_task(kind: str) -> None:
    def used(task: ToolTask) -> set[str]:
        return {orjson.loads(one.arguments).get("id") for one in task.reference} - {None}

    assert used(example(kind)), "the example shows how to pass an id"
    for task in (*TASKS, *tool_tasks()):
        if task.kind == kind:
            assert not used(example(kind)) & used(task), task.id


def test_deleting_all_events_of_a_day_solves_no_cancellation() -> None:
    tasks = [task for task in TASKS if "Cancel all events" in task.request]
    assert tasks
    for task in tasks:
        day = orjson.loads(task.reference[0].arguments)["day"]
        of_day = [name for name, event in task.state["events"].items() if event["day"] == day]
        assert not is_solved(task, final_state(task, tuple(call("delete_event", id=name) for name in of_day)))


def test_results_in_another_form_are_right() -> None:
    """A moved event may be a new one, numbers may be strings, and a file may lack its last newline."""
    task = next(one for one in TASKS if one.reference[-1].name == "move_event" and len(one.reference) == 2)
    moved = orjson.loads(task.reference[-1].arguments)
    event = task.state["events"][moved["id"]]
    added = call(
        "add_event", title=event["title"], day=moved["day"], start=moved["start"], minutes=str(event["minutes"])
    )
    assert is_solved(task, final_state(task, (call("delete_event", id=moved["id"]), added)))
    task = next(one for one in TASKS if one.reference[-1].name == "delete_file")
    read, written, deleted = task.reference
    arguments = orjson.loads(written.arguments)
    stripped = call("write_file", path=arguments["path"], content=arguments["content"].rstrip())
    assert is_solved(task, final_state(task, (read, stripped, deleted)))


@pytest.mark.parametrize(
    ("kind", "made", "error"),
    [
        ("calculator", ToolCall("divide", "{}"), "there is no tool 'divide'; tools: calculate, store"),
        ("calculator", ToolCall("store", '{"name": "a"'), "the arguments are not valid JSON"),
        ("calculator", ToolCall("store", "[]"), "the arguments must be a JSON object"),
        ("calculator", ToolCall("store", '{"name": "a"}'), "missing: value"),
        ("calculator", call("store", name="a", value=1, unit="m"), "unknown: unit; store has name, value"),
        ("calculator", call("store", name="a", value="much"), "value must be a number"),
        ("calculator", call("store", name="a", value=True), "value must be a number"),
        ("calculator", call("store", name=1, value=1), "name must be a string"),
        ("calculator", call("calculate", expression="1 / 0"), "division by zero"),
        ("table", call("find_rows", column="colour", value="x"), "there is no column 'colour'"),
        ("table", call("find_rows", column="product", value="boat"), "no row has the product 'boat'"),
        ("table", call("set_cell", id="P0", column="stock", value=1), "there is no row with the id 'P0'"),
        ("table", call("set_cell", id="{row}", column="product", value=1), "column must be one of price, stock"),
        ("calendar", call("list_events", day="Sunday"), "day must be one of Monday"),
        ("calendar", call("delete_event", id="E99"), "there is no event with the id 'E99'"),
        ("calendar", call("move_event", id="{event}", day="Monday", start="25:00"), "start must be a time like 09:30"),
        ("calendar", call("add_event", title="x", day="Monday", start="23:30", minutes=60), "must end on the same day"),
        ("calendar", call("add_event", title="x", day="Monday", start="08:00", minutes=0.5), "whole number above 0"),
        ("calendar", call("add_event", title=" ", day="Monday", start="08:00", minutes=5), "title must not be empty"),
        ("files", call("read_file", path="none.txt"), "there is no file 'none.txt'"),
        ("files", call("replace_text", path="{file}", old="absent", new=""), "does not have the text 'absent'"),
        ("files", call("search_files", text=""), "text must not be empty"),
        ("files", call("write_file", path="big.txt", content="x" * 5001), "a file may have at most 5000 characters"),
        ("files", call("write_file", path="./", content="x"), "path must not be empty"),
    ],
)
def test_an_invalid_call_is_rejected_with_its_cause(kind: str, made: ToolCall, error: str) -> None:
    task = first(kind)
    for mark, key in (("{row}", "rows"), ("{file}", "files"), ("{event}", "events")):
        if names := task.state.get(key):
            made = ToolCall(made.name, made.arguments.replace(mark, next(iter(names))))
    result = apply(KINDS[kind].tools, task.state, made)
    assert result.failed
    assert result.output.startswith("Error: ")
    assert error in result.output
    assert result.state == task.state


def test_overlapping_events_are_rejected() -> None:
    task = first("calendar")
    name, event = next(iter(task.state["events"].items()))
    clock = f"{event['start'] // 60}:{event['start'] % 60:02d}"
    made = call("add_event", title="x", day=event["day"], start=clock, minutes=5)
    assert f"it would overlap {name}" in apply(KINDS["calendar"].tools, task.state, made).output


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12 * 7", 84),
        (" -(2 + 3) * +4 ", -20),
        ("0.1 + 0.2", 0.3),
        ("10 / 4", 2.5),
        ("10 / 5", 2),
        ("2 / 3", 0.666667),
    ],
)
def test_arithmetic(expression: str, value: float) -> None:
    found = evaluate(expression)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "expression",
    [
        *("", "1 +", "x", "abs(1)", "2 ** 3", "9 % 2", "1 // 2", "True", "1j", "'a' * 3", "[1]", "1, 2", "1 < 2"),
        *("().__class__", "1 if 1 else 2", "lambda: 1", "(x := 1)", "1e400", "1e300 * 1e300", "9" * 300, "(" * 150),
        *("1 1", "~1", "not 1", "f'{1}'", "\x00"),
    ],
)
def test_other_expressions_are_rejected(expression: str) -> None:
    with pytest.raises(ToolError):
        evaluate(expression)
