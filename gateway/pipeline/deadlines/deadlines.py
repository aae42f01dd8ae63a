"""The deadline of each guidance, and a warning while a route's guidance is often late."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from gateway.pipeline.deadlines.times import GuidanceTimes, as_duration, recommended_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.policy.plan import GuidancePlan

log = structlog.get_logger()

RECENT = 20
"""The number of a route's last answers that decide whether its guidance is often late."""
OFTEN = 0.2
"""Share of late guidance from which a route is reported as often late."""
_LEAST_LATE = 3
_FORGET_S = 900.0
_MAX_ROUTES = 1_000
_UNKNOWN_FACTOR = 2.0


@dataclass(slots=True)
class _RouteRecord:
    """The last answers of one route; True: its guidance was late."""

    recent: deque[bool]
    seen: float
    guidance: GuidancePlan
    held_s: float = 0.0  # the deadline of the last late guidance
    warned: bool = False

    @property
    def late(self) -> int:
        return sum(self.recent)

    @property
    def often_late(self) -> bool:
        return self.late >= max(_LEAST_LATE, OFTEN * len(self.recent))


class GuidanceDeadlines:
    """Decides how long a request waits for guidance, and records how long guidance took.

    Args:
        times: the measured times.
        clock: seconds that only grow.
    """

    def __init__(self, times: GuidanceTimes | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.times = GuidanceTimes(clock) if times is None else times
        self._clock = clock
        self._routes: OrderedDict[tuple[str, str], _RouteRecord] = OrderedDict()

    def deadline_s(self, guidance: GuidancePlan) -> float:
        """Return how long this guidance may take.

        `auto` follows the tenant's measured 95th percentile with headroom, within its bounds. While nothing is measured
        the upper bound holds, so that the first requests measure the teacher instead of missing it.
        """
        bounds = guidance.auto_deadline
        if bounds is None:
            return guidance.deadline_s
        p95_s = self.times.p95_s(guidance.teacher, guidance.requested_tokens, guidance.tenant)
        if p95_s is None:
            return bounds.max_s
        return min(bounds.max_s, max(bounds.min_s, recommended_s(p95_s)))

    def arrived(
        self, route: str, guidance: GuidancePlan, waited_s: float, called_s: float, *, stopped: bool = False
    ) -> None:
        """Record guidance that a teacher wrote for this request in time.

        Args:
            waited_s: from the ticket's arrival in the queue to the last token.
            called_s: from the grant to the last token.
            stopped: whether a stop text of the caller may have ended it. Then its time does not count.
        """
        if not stopped:
            self._add(guidance, waited_s, called_s)
        self._record(route, guidance, late=False)

    def missed(
        self,
        route: str,
        guidance: GuidancePlan,
        held_s: float,
        waited_s: float,
        tokens: int,
        *,
        called_s: float | None,
    ) -> str | None:
        """Record guidance that was late. Returns the setting to change and its value, if the route is often late.

        Args:
            held_s: the deadline that it missed.
            waited_s: from the ticket's arrival in the queue.
            tokens: how many tokens had arrived; 0 for a teacher that does not stream.
            called_s: from the grant; None: the teacher was not called, and all the time was spent in the queue.
        """
        if called_s is None:
            self._add(guidance, waited_s, None)
        else:
            factor = max(1.0, guidance.requested_tokens / tokens) if tokens > 0 else _UNKNOWN_FACTOR
            self._add(guidance, waited_s + called_s * (factor - 1), called_s * factor)
        record = self._record(route, guidance, late=True)
        record.held_s = held_s
        if not record.often_late:
            return None
        if not record.warned:
            record.warned = True
            log.warning(
                "guidance_often_late",
                tenant=guidance.tenant,
                route=route,
                teacher=guidance.teacher,
                late=record.late,
                of=len(record.recent),
                set=self._setting(guidance, held_s),
            )
        return self._setting(guidance, held_s)

    def warnings(self, teacher: str) -> list[str]:
        """Return one sentence for each route of this teacher whose guidance is often late now."""
        since = self._clock() - _FORGET_S
        return [
            f"route {route} of tenant {tenant}: {record.late} of its last {len(record.recent)} answers went without "
            f"guidance because the teacher was late: set {self._setting(record.guidance, record.held_s)}"
            for (tenant, route), record in self._routes.items()
            if record.guidance.teacher == teacher and record.often_late and record.seen >= since
        ]

    def _add(self, guidance: GuidancePlan, waited_s: float, called_s: float | None) -> None:
        self.times.add(guidance.teacher, guidance.requested_tokens, waited_s, guidance.tenant)
        if called_s is not None:
            self.times.add(guidance.teacher, guidance.requested_tokens, called_s)

    def _record(self, route: str, guidance: GuidancePlan, *, late: bool) -> _RouteRecord:
        name = (guidance.tenant, route)
        record = self._routes.get(name)
        if record is None:
            record = self._routes[name] = _RouteRecord(deque(maxlen=RECENT), 0.0, guidance)
            if len(self._routes) > _MAX_ROUTES:
                self._routes.popitem(last=False)
        self._routes.move_to_end(name)
        record.recent.append(late)
        record.seen, record.guidance = self._clock(), guidance
        if record.warned and not record.often_late:
            record.warned = False
            log.info("guidance_in_time_again", tenant=guidance.tenant, route=route, teacher=guidance.teacher)
        return record

    def _setting(self, guidance: GuidancePlan, held_s: float) -> str:
        """Return the setting of the policy file that ends the lateness, as `name=value`.

        Args:
            held_s: the deadline that was missed. The value is larger.
        """
        p95_s = self.times.p95_s(guidance.teacher, guidance.requested_tokens, guidance.tenant) or held_s
        target_s, bounds = recommended_s(max(p95_s, held_s)), guidance.auto_deadline
        if bounds is None:
            return f"guidance.deadline={as_duration(target_s)}"
        if held_s >= bounds.max_s or recommended_s(p95_s) > bounds.max_s:
            return f"guidance.auto_deadline.max={as_duration(target_s)}"
        return f"guidance.auto_deadline.min={as_duration(min(target_s, bounds.max_s))}"
