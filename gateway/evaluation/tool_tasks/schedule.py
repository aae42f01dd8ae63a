"""Tasks for a calendar of one week. The state has the events by id; times are minutes after midnight."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gateway.evaluation.questions.problem_stories import PEOPLE
from gateway.evaluation.tool_tasks.tools import GeneratedTask, Parameter, TaskKind, Tool, ToolError, call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.evaluation.questions.problem_stories import ProblemRandom
    from gateway.evaluation.tool_tasks.tools import State, ToolCall

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
_TITLES = ("Planning", "Review", "Standup", "Training", "Interview", "Budget", "Retrospective", "Workshop", "Demo")
_NEW_TITLES = ("Lunch", "Call with the bank", "Dentist", "Fire drill")
_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_DAY_MINUTES = 24 * 60
_SLOTS = (9 * 60, 11 * 60, 13 * 60, 15 * 60)
"""Starts of the generated events. Each leaves two hours, so that most changes fit."""
_NUMBERS = range(1000, 9000)
"""Numbers in the ids of the generated events. Added events have higher ones."""


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _minutes(text: str) -> int:
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ToolError(f"start must be a time like 09:30, not {text!r}")
    return int(match[1]) * 60 + int(match[2])


def _day(text: str) -> str:
    day = text.strip().capitalize()
    if day not in _DAYS:
        raise ToolError(f"day must be one of {', '.join(_DAYS)}, not {text!r}")
    return day


def _described(name: str, event: Mapping[str, Any]) -> str:
    ends = event["start"] + event["minutes"]
    return f"{name}: {event['title']}, {event['day']} {_clock(event['start'])} to {_clock(ends)}"


def _known(state: State, text: str) -> str:
    name = text.strip()
    if name not in state["events"]:
        raise ToolError(f"there is no event with the id {name!r}")
    return name


def _placed(state: State, name: str, event: dict[str, Any]) -> tuple[State, str]:
    """Add or replace an event. Raises ToolError if it overlaps another one."""
    ends = event["start"] + event["minutes"]
    if ends > _DAY_MINUTES:
        raise ToolError("the event must end on the same day")
    for other, one in state["events"].items():
        same_day = other != name and one["day"] == event["day"]
        if same_day and one["start"] < ends and event["start"] < one["start"] + one["minutes"]:
            raise ToolError(f"it would overlap {_described(other, one)}")
    return state | {"events": state["events"] | {name: event}}, _described(name, event)


def _list(state: State, given: Mapping[str, Any]) -> tuple[State, str]:
    day = _day(given["day"])
    events = sorted((one["start"], name) for name, one in state["events"].items() if one["day"] == day)
    listed = [_described(name, state["events"][name]) for _, name in events]
    return state, "\n".join(listed) or f"No events on {day}."


def _add(state: State, given: Mapping[str, Any]) -> tuple[State, str]:
    minutes = given["minutes"]
    if not isinstance(minutes, int) or not 0 < minutes < _DAY_MINUTES:
        raise ToolError("minutes must be a whole number above 0")
    title = given["title"].strip()
    if not title:
        raise ToolError("title must not be empty")
    event = {"title": title, "day": _day(given["day"]), "start": _minutes(given["start"]), "minutes": minutes}
    # Ids are not used again after a deletion.
    return _placed(state | {"next": state["next"] + 1}, f"E{state['next']}", event)


def _move(state: State, given: Mapping[str, Any]) -> tuple[State, str]:
    name = _known(state, given["id"])
    event = state["events"][name] | {"day": _day(given["day"]), "start": _minutes(given["start"])}
    return _placed(state, name, event)


def _delete(state: State, given: Mapping[str, Any]) -> tuple[State, str]:
    name = _known(state, given["id"])
    return state | {
        "events": {other: one for other, one in state["events"].items() if other != name}
    }, f"Deleted {name}."


_ID = Parameter("id", "string", "The id of the event.")
_ON_DAY = Parameter("day", "string", "Monday to Friday.")
_START = Parameter("start", "string", "The start, like 09:30.")
_TOOLS = (
    Tool("list_events", "List the events of a day with their ids.", (_ON_DAY,), _list),
    Tool(
        "add_event",
        "Add an event.",
        (
            Parameter("title", "string", "The title."),
            _ON_DAY,
            _START,
            Parameter("minutes", "number", "The duration in minutes."),
        ),
        _add,
    ),
    Tool("move_event", "Move an event to another start; its duration stays.", (_ID, _ON_DAY, _START), _move),
    Tool("delete_event", "Delete an event.", (_ID,), _delete),
)


def _week(draw: ProblemRandom) -> dict[str, dict[str, Any]]:
    """Return seven events of one hour or less with different titles, on random days and slots."""
    places = draw.some([(day, start) for day in _DAYS for start in _SLOTS], 7)
    titles = draw.some(_TITLES, 7)
    return {
        f"E{number}": {"title": title, "day": day, "start": start, "minutes": draw.pick((30, 45, 60))}
        for number, title, (day, start) in zip(draw.some(_NUMBERS, 7), titles, places, strict=True)
    }


def _task(
    request: str, week: dict[str, Any], after: dict[str, Any], days: Sequence[str], *changes: ToolCall
) -> GeneratedTask:
    """Return a task that lists days, and then changes events."""
    lists = (call("list_events", day=day) for day in dict.fromkeys(days))
    following = _NUMBERS.stop
    added = any(one.name == "add_event" for one in changes)
    state, expected = {"events": week, "next": following}, {"events": after, "next": following + added}
    return GeneratedTask(request, state, expected, (*lists, *changes))


def _later(draw: ProblemRandom) -> GeneratedTask:
    week = _week(draw)
    name, event = draw.pick(list(week.items()))
    later = draw.pick((30, 60))
    start = event["start"] + later
    length = "one hour" if later == 60 else "half an hour"
    request = f"Move {event['title']} on {event['day']} to {length} later on the same day."
    after = week | {name: event | {"start": start}}
    change = call("move_event", id=name, day=event["day"], start=_clock(start))
    return _task(request, week, after, [event["day"]], change)


def _following(draw: ProblemRandom) -> GeneratedTask:
    week = _week(draw)
    event = draw.pick(list(week.values()))
    title, minutes, start = draw.pick(_NEW_TITLES), draw.pick((15, 30, 45)), event["start"] + event["minutes"]
    request = (
        f'Add the event "{title}" of {minutes} minutes on {event["day"]}. It starts when {event["title"]} ends on that '
        "day."
    )
    new = {"title": title, "day": event["day"], "start": start, "minutes": minutes}
    change = call("add_event", title=title, day=event["day"], start=_clock(start), minutes=minutes)
    return _task(request, week, week | {f"E{_NUMBERS.stop}": new}, [event["day"]], change)


def _replacement(draw: ProblemRandom) -> GeneratedTask | None:
    week = _week(draw)
    (name, event), (name_2, event_2) = draw.some(list(week.items()), 2)
    if event["day"] == event_2["day"]:
        return None
    request = (
        f"Cancel {event_2['title']} on {event_2['day']}, and move {event['title']} from {event['day']} to the start of "
        "the cancelled event."
    )
    after = {key: one for key, one in week.items() if key != name_2}
    after[name] = event | {"day": event_2["day"], "start": event_2["start"]}
    changes = (
        call("delete_event", id=name_2),
        call("move_event", id=name, day=event_2["day"], start=_clock(event_2["start"])),
    )
    return _task(request, week, after, [event["day"], event_2["day"]], *changes)


def _cancellation(draw: ProblemRandom) -> GeneratedTask | None:
    week = _week(draw)
    person, other = draw.some(PEOPLE, 2)
    day = draw.pick(_DAYS)
    of_day = [name for name, event in week.items() if event["day"] == day]
    if len(of_day) != 3:
        return None
    named = draw.some(of_day, 2)
    week = {
        name: event | {"title": f"{event['title']} with {person if name in named else other}"}
        for name, event in week.items()
    }
    request = f"{person} is ill. Cancel all events with {person} on {day}."
    after = {name: event for name, event in week.items() if name not in named}
    return _task(request, week, after, [day], *(call("delete_event", id=name) for name in named))


def _outcome(state: State) -> object:
    """Return the events without ids: an event that was added again in place of a move is right."""
    return sorted(
        (one["day"], one["start"], one["minutes"], one["title"].casefold()) for one in state["events"].values()
    )


SCHEDULE = TaskKind(_TOOLS, (_later, _following, _replacement, _cancellation), _outcome)
