"""Shared code of the Python programs. It runs in the client's environment, with only the standard library."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

Json = dict[str, Any]
Act = Callable[[], Any]


def plan() -> Json:
    """Report readiness, then read the plan of programs.py. Call this when everything is imported."""
    print("ready", flush=True)
    read: Json = json.load(sys.stdin)
    return read


def play(plan: Json, scenarios: dict[str, Callable[[str], Any]], refuse: Callable[[Json], Awaitable[Any]]) -> None:
    """Play all scenarios and refusals concurrently and print the results. A plain function runs in a thread."""

    async def play_all() -> Json:
        refused, played = await asyncio.gather(
            _each({refusal["name"]: refuse(refusal) for refusal in plan["refusals"]}),
            _each({name: _acting(scenarios[name], question) for name, question in plan["questions"].items()}),
        )
        return {"scenarios": played, "refusals": refused}

    print(json.dumps(asyncio.run(play_all())))


def _acting(scenario: Callable[[str], Any], question: str) -> Awaitable[Any]:
    return scenario(question) if inspect.iscoroutinefunction(scenario) else asyncio.to_thread(scenario, question)


async def _each(acts: dict[str, Awaitable[Any]]) -> Json:
    return dict(zip(acts, await asyncio.gather(*map(_outcome, acts.values())), strict=True))


async def _outcome(act: Awaitable[Any]) -> Json:
    try:
        return {"value": await act}
    except Exception as error:  # noqa: BLE001
        return describe(error)


def describe(error: BaseException) -> Json:
    """Describe an exception for programs.py; `also` has the names of its base classes."""
    body = getattr(error, "body", None)
    read = body if isinstance(body, dict) else {}
    fields = {name: getattr(error, name, read.get(name)) for name in ("code", "param")}
    bases = [f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(error).__mro__]
    return {"raised": type(error).__name__, "also": bases, "status": getattr(error, "status_code", None),
            "message": str(error), **fields}  # fmt: skip
