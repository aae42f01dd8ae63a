"""How usage is asked for, in a query: what callers and operators may say, and what is wrong with it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, get_args

from gateway.config.yaml_messages import nearest
from gateway.errors import InvalidRequest
from gateway.usage.span import TIMES, requested_range, span
from gateway.usage.sums import Granularity
from gateway.usage.usage import MODES, UsageQuery

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp import web

    from gateway.protocol.body import Json
    from gateway.usage.sums import Retention

DIMENSIONS = ("key", "route", "mode", "teacher", "student")
"""What a tenant may tell apart."""
FILTERS = ("key", "route", "mode")

PARAMETERS: dict[str, tuple[str, Json]] = {
    "since": (
        f"Where it begins: {TIMES}. Without it 24h; with granularity minute 1h, and with day 30d.",
        {"type": "string"},
    ),
    "until": ("Before when it ends, in the same words; without it, now.", {"type": "string"}),
    "granularity": (
        "One row for each of these; without it, for the whole time.",
        {"enum": ["", *get_args(Granularity)]},
    ),
    "by": (
        f"What to tell apart, with commas between: {', '.join(DIMENSIONS)}; model is understood as route.",
        {"type": "string"},
    ),
    **{name: (f"Only what is counted for this {name}.", {"type": "string"}) for name in ("key", "route", "model")},
    "mode": ("Only what was answered so.", {"enum": ["", *MODES]}),
}
"""What a tenant may say, for the description of the API. What is empty is not said."""

_ALIASES = {"model": "route"}
# As far back as a chart of it is read at one look.
_DEFAULT_SINCE: dict[Granularity | None, str] = {None: "24h", "minute": "1h", "hour": "24h", "day": "30d"}


def read_ask(
    request: web.Request,
    retention: Retention,
    *,
    dimensions: tuple[str, ...] = DIMENSIONS,
    filters: tuple[str, ...] = FILTERS,
    more: tuple[str, ...] = (),
) -> UsageQuery:
    """The question that a query asks.

    Args:
        more: parameters that somebody else reads.

    Raises InvalidRequest, which names the parameter and what it may be.
    """
    _only(
        request,
        "since",
        "until",
        "granularity",
        "by",
        *filters,
        *(a for a, b in _ALIASES.items() if b in filters),
        *more,
    )
    now = time.time()
    granularity = _granularity(request.query.get("granularity", ""))
    asked = requested_range(
        request.query.get("since") or _DEFAULT_SINCE[granularity], request.query.get("until", ""), now
    )
    only = {}
    for name, value in request.query.items():
        if value and (dimension := _ALIASES.get(name, name)) in filters:
            if dimension in only:
                raise InvalidRequest(f"'{name}' says again what '{dimension}' does: keep one of the two.", param=name)
            only[dimension] = value
    if "mode" in only and only["mode"] not in MODES:
        raise InvalidRequest(f"'mode' must be one of {', '.join(MODES)}.{_meant(only['mode'], MODES)}", param="mode")
    by = _dimensions(request.query.get("by", ""), dimensions)
    return UsageQuery(span(asked, granularity, retention, now), granularity, by, only)


def _only(request: web.Request, *known: str) -> None:
    for name in request.query:
        if name not in known:
            raise InvalidRequest(
                f"'{name}': unknown parameter; known here: {', '.join(known)}.{_meant(name, known)}", param=name
            )
        if len(request.query.getall(name)) > 1:
            raise InvalidRequest(f"'{name}' stands there twice: say it once.", param=name)


def _granularity(text: str) -> Granularity | None:
    known: tuple[Granularity, ...] = get_args(Granularity)
    if not text:
        return None
    for one in known:
        if text == one:
            return one
    raise InvalidRequest(
        f"'granularity' must be one of {', '.join(known)}, or be left out, for the whole time in one."
        f"{_meant(text, known)}",
        param="granularity",
    )


def _dimensions(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for said in text.split(",") if text else ():
        name = _ALIASES.get(said.strip(), said.strip())
        if name not in known:
            raise InvalidRequest(
                f"'by': there is no dimension '{said.strip()[:64]}' here. Known are {', '.join(known)}; model is "
                f"understood as route.{_meant(said.strip(), known)}",
                param="by",
            )
        if name in found:
            raise InvalidRequest(f"'by' names '{name}' twice: once is enough.", param="by")
        found.append(name)
    return tuple(found)


def _meant(said: str, known: Iterable[str]) -> str:
    close = nearest(said, known)
    return f" Did you mean '{close}'?" if close and close != said else ""
