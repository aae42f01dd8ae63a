"""What `gkt-gateway queue` shows: for each teacher what is in flight, and a table of its tenants."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from gateway.batching.view import CacheView, ProcessView, QueuesReply, QueueView

_UNKNOWN = "?"
_MOST_PROCESSES = 8
_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def queues_shown(queues: QueuesReply) -> RenderableType:
    """All teachers of the answer, one below the other."""
    if not queues.teachers:
        return Text("No policy has a guided route: no teacher is asked for guidance.")
    parts: list[RenderableType] = []
    for name, view in queues.teachers.items():
        if view.alone:
            parts.append(Text(f"{view.why}: these are the figures of worker {queues.worker} alone", "bold yellow"))
        parts.append(Text.assemble((name, "bold"), "  ", _first_line(view)))
        parts += [Text(line) for line in _more_lines(view)]
        if view.unreadable:
            parts.append(Text(f"{view.unreadable} unreadable on the board, left out here", "bold yellow"))
        if view.tenants:
            parts.append(_tenants(view))
        if view.more_tenants or view.more_waiting:
            upto = "" if view.complete else "up to "
            parts.append(Text(f"and {upto}{view.more_tenants} tenants more, with {view.more_waiting} waiting"))
        parts.append(Text())
    return Group(*parts[:-1])


def _first_line(view: QueueView) -> str:
    said = [f"in flight {view.in_flight} of {view.cap}", f"waiting {view.waiting}"]
    if view.oldest_wait_s is not None:
        said.append(f"oldest {'' if view.complete else 'at least '}{_lasting(view.oldest_wait_s)}")
    if view.followers is not None:
        said.append(f"followers {view.followers}")
    return ", ".join(said)


def _more_lines(view: QueueView) -> Iterator[str]:
    """What only the fleet's board knows."""
    if view.alone:
        return
    time = datetime.fromtimestamp(view.redis_time or 0, UTC)
    yield (
        f"batches {view.batches}, arriving {view.arrivals_per_s:g}/s, granted {view.grants_per_s:g}/s, Redis time "
        f"{time:%H:%M:%S} UTC"
    )
    if view.cache is not None and view.cache.max_bytes:
        yield f"kept guidance: {_kept(view.cache)}"
    first = [_process(process) for process in view.processes[:_MOST_PROCESSES]]
    more = len(view.processes) + view.more_processes - len(first)
    yield f"processes {len(first) + more}: {'; '.join(first) or 'none'}{f'; and {more} more' if more else ''}"


def _kept(cache: CacheView) -> str:
    return f"{cache.entries} entries, {_sized(cache.bytes)} of {_sized(cache.max_bytes)}"


def _process(process: ProcessView) -> str:
    holds = _UNKNOWN if process.in_flight is None else process.in_flight
    return f"{process.process} (heard {_lasting(process.heard_ago_s)} ago, {holds} in flight)"


def _tenants(view: QueueView) -> Table:
    table = Table("tenant", "waiting", "oldest", "in flight", "weight", "share", box=box.SIMPLE)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    for one in view.tenants:
        table.add_row(
            Text(one.tenant),
            str(one.waiting),
            _lasting(one.oldest_wait_s) if one.oldest_wait_s is not None else "",
            _UNKNOWN if one.in_flight is None else str(one.in_flight),
            f"{one.weight:.3g}" if one.weight is not None else _UNKNOWN,
            f"{one.share:.0%}" if one.share is not None else "",
        )
    return table


def _lasting(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _sized(size: int) -> str:
    for factor, unit in _UNITS:
        if abs(size) >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} B"
