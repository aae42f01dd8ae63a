"""Who is asked next, and after how long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.errors import (
    CircuitOpen,
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    EngineUnsupported,
)
from gateway.pipeline.retries import RequestRetries, Retries
from gateway.policy.resolve import RetryPlan, StudentPlan
from gateway.telemetry.metrics import Metrics


def attempts(*engines: str, num_retries: int = 2) -> Retries:
    """Pauses of 0.1 s, then 0.2 s, without chance."""
    return Retries([StudentPlan(engine, None) for engine in engines], RetryPlan(num_retries, 0.1), draw=lambda: 1.0)


def error(kind: type[EngineError], **more: Any) -> EngineError:
    return kind("It failed.", engine="a", **more)


def walked(one: Retries, failure: EngineError, *, placed: bool = False) -> list[tuple[float, str]]:
    """What happens if every call fails like this: each pause, and who is asked after it."""
    steps = []
    while (pause_s := one.next_pause_s(failure, placed=placed)) is not None:
        steps.append((pause_s, one.student.engine))
    return steps


@pytest.mark.parametrize("kind", [EngineUnreachable, EngineFailed, EngineOverloaded])
def test_what_may_pass_is_tried_again_and_then_the_next_is_asked(kind: type[EngineError]) -> None:
    assert walked(attempts("a", "b"), error(kind)) == [
        (0.1, "a"), (0.2, "a"), (0.0, "b"), (0.1, "b"), (0.2, "b"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "failure",
    [
        error(EngineTimeout),
        error(EngineProtocolError),
        error(EngineRejected, status_sent=401),
        error(EngineRejected, status_sent=404),
        error(CircuitOpen, retry_after_s=1.0),
    ],
    ids=lambda failure: failure.label,
)
def test_what_will_not_pass_is_not_tried_again_but_elsewhere(failure: EngineError) -> None:
    assert walked(attempts("a", "b"), failure) == [(0.0, "b")]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_wrong_with_the_request_is_wrong_everywhere(status: int) -> None:
    assert walked(attempts("a", "b"), error(EngineRejected, status_sent=status)) == []


def test_what_one_engine_has_no_way_of_doing_another_may_do() -> None:
    """It was not asked: a raw prompt that goes to a provider of chats, say."""
    assert walked(attempts("a", "b"), error(EngineUnsupported, status_sent=400)) == [(0.0, "b")]


def test_with_an_opening_the_opening_may_be_to_blame() -> None:
    """Another engine may take it."""
    assert walked(attempts("a", "b"), error(EngineRejected, status_sent=400), placed=True) == [(0.0, "b")]


def test_an_engine_that_says_when_is_not_asked_before() -> None:
    assert attempts("a").next_pause_s(error(EngineOverloaded, retry_after_s=3.0), placed=False) == pytest.approx(3.1)


def test_nobody_waits_long_where_another_can_be_asked() -> None:
    assert walked(attempts("a", "b"), error(EngineOverloaded, retry_after_s=3.0))[0] == (0.0, "b")


def test_nobody_waits_for_an_engine_that_asks_for_too_much() -> None:
    assert walked(attempts("a"), error(EngineOverloaded, retry_after_s=60.0)) == []


def test_without_retries_each_is_asked_once() -> None:
    assert walked(attempts("a", "b", num_retries=0), error(EngineFailed)) == [(0.0, "b")]


def test_half_of_a_pause_is_chance() -> None:
    for drawn, pause_s in ((0.0, 0.05), (1.0, 0.1)):
        one = Retries([StudentPlan("a", None)], RetryPlan(1, 0.1), draw=lambda drawn=drawn: drawn)
        assert one.next_pause_s(error(EngineFailed), placed=False) == pytest.approx(pause_s)


def test_once_an_opening_is_shown_only_who_can_continue_it_is_asked() -> None:
    one = attempts("a", "b", "c")
    one.keep_only(lambda finisher: finisher.engine == "c")
    assert walked(one, error(EngineTimeout)) == [(0.0, "c")]


# Bounds.


class Bound:
    """The bound of one request: `left` calls in the place of failed ones, and an engine's budget."""

    def __init__(self, left: int, budget: int = 99) -> None:
        self.draft = SimpleNamespace(tenant="acme", failed=[])
        self.metrics = Metrics()
        self._budget = budget
        plan = SimpleNamespace(max_retries=left, retries=RetryPlan(10, 0.1))
        self.retries = RequestRetries(plan, self.draft, self, self.metrics)  # type: ignore[arg-type]

    def take(self, *_: object) -> bool:
        self._budget -= 1
        return self._budget >= 0

    def walk(self, *engines: str) -> list[str]:
        """Which engines are asked after the first call, if every call fails."""
        finishers = [StudentPlan(engine, None) for engine in engines]
        one, asked = Retries(finishers, RetryPlan(10, 0.1), self.retries, draw=lambda: 1.0), []
        while one.next_pause_s(error(EngineUnreachable), placed=False) is not None:
            self.draft.failed.append("a call")
            asked.append(one.student.engine)
        return asked

    def refused(self, engine: str, budget: str) -> float:
        return self.metrics.retries_refused.labels(engine, budget)._value.get()  # type: ignore[no-any-return]


def test_a_request_makes_no_more_calls_than_its_bound_and_keeps_one_for_each_other_engine() -> None:
    bound = Bound(4)
    assert bound.walk("a", "b", "c") == ["a", "a", "b", "c"]
    assert bound.refused("a", "request") == 1


def test_calls_that_were_made_before_count() -> None:
    """The teacher's, and a prompt that was sent again without its opening."""
    bound = Bound(4)
    bound.draft.failed += ["the teacher's", "the refused prefix"]
    assert bound.walk("a") == ["a", "a"]


def test_an_engine_without_a_budget_is_not_retried_and_the_next_is_asked() -> None:
    bound = Bound(9, budget=0)
    assert bound.walk("a", "b") == ["b"]
    assert (bound.refused("a", "engine"), bound.refused("b", "engine")) == (1, 1)


def test_a_request_that_is_proven_to_fail_at_one_engine_is_asked_of_the_next() -> None:
    """That may be another kind of server."""
    proven = error(EngineRejected, status_sent=500, proven=True)
    assert walked(attempts("a", "b"), proven) == [(0.0, "b")]
