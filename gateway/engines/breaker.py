"""When an engine that keeps failing is left alone, and when it is tried again. Pure: it is told the time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

BreakerState = Literal["closed", "open", "half_open"]

# An engine that asks for more than this is asked again all the same: its limit may have been raised meanwhile.
_LONGEST_ASKED_S = 60.0


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """After `failures` failed calls in a row, rest for `rest_s`; each failed trial doubles it, to `longest_s`."""

    failures: int = 5
    rest_s: float = 1.0
    longest_s: float = 30.0


class Breaker:
    """Closed, calls go through. Open, none does. Half open, one call is the trial, and the others wait for its verdict.

    Times are seconds on one clock of the caller's choice. An engine that was overloaded and said for how long has not
    failed: it is left alone until then, and no trial is needed.

    Args:
        draw: a number from 0 to 1, for rests that differ from process to process.
    """

    def __init__(self, rule: BreakerRule, draw: Callable[[], float] = random.random) -> None:
        self._rule = rule
        self._draw = draw
        self._failures = 0  # in a row
        self._rest_s = rule.rest_s
        self._open_until: float | None = None  # None: closed
        self._held_until = 0.0
        self._trial = False

    def state(self, now: float) -> BreakerState:
        if self._open_until is None:
            return "open" if now < self._held_until else "closed"
        return "open" if now < self._open_until else "half_open"

    def refuses_for_s(self, now: float) -> float:
        """How long calls are refused; 0 when the next one may go. Asking changes nothing."""
        until = max(self._held_until, self._open_until or 0.0)
        if now < until:
            return until - now
        return self._rest_s if self._trial else 0.0

    def begin(self, now: float) -> bool:
        """A call goes out, which `refuses_for_s` allowed. Returns whether it is the trial: tell so how it ends."""
        if self._open_until is None:
            return False
        self._trial = True
        return True

    def succeeded(self) -> bool:
        """The engine answered, or refused a request for the request's sake. Returns whether that closed it."""
        closed = self._open_until is not None
        self._failures, self._rest_s = 0, self._rule.rest_s
        self._open_until, self._trial = None, False
        return closed

    def begun(self) -> None:
        """The engine has begun to answer. That ends a trial; what failed before is not forgotten until it succeeds."""
        if self._open_until is not None:
            self.succeeded()

    def failed(self, now: float, *, trial: bool) -> bool:
        """The engine did not do its part. Returns whether the breaker opened by it."""
        if trial:
            self._trial = False
            self._rest_s = min(self._rule.longest_s, self._rest_s * 2)
        elif self._open_until is not None:
            return False  # a call that was under way when it opened
        else:
            self._failures += 1
            if self._failures < self._rule.failures:
                return False
        self._open_until = now + self._rest_s * (0.75 + self._draw() / 2)
        return True

    def asked_to_wait(self, now: float, seconds: float) -> None:
        """The engine is overloaded, and said for how long."""
        self._held_until = max(self._held_until, now + min(seconds, _LONGEST_ASKED_S))

    def abandoned(self, *, trial: bool) -> None:
        """The call ended without a verdict: its caller has gone. Another one may be the trial."""
        if trial:
            self._trial = False

    def answers(self, now: float) -> None:
        """A probe in the background found the engine there: a trial may come at once."""
        if self._open_until is not None:
            self._open_until = min(self._open_until, now)
