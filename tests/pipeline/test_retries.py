"""The next engine and the pause after a failed call."""

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
from gateway.policy.plan import StudentPlan
from gateway.policy.route_rules import RetryRule
from gateway.telemetry.metrics import Metrics


def retries_of(*engines: str, num_retries: int = 2) -> Retries:
    """Return Retries without randomness: pauses of 0.1 s, then 0.2 s."""
    return Retries(
        [StudentPlan(engine, None) for engine in engines],
        RetryRule(num_retries=num_retries, backoff_s=0.1),
        draw=lambda: 1.0,
    )


def error(kind: type[EngineError], **more: Any) -> EngineError:
    return kind("It failed.", engine="a", **more)


def attempts_after(one: Retries, failure: EngineError, *, placed: bool = False) -> list[tuple[float, str]]:
    """Return each pause, and the engine that is called after it, if every call fails with this error."""
    steps = []
    while (pause_s := one.next_pause_s(failure, placed=placed)) is not None:
        steps.append((pause_s, one.student.engine))
    return steps


@pytest.mark.parametrize("kind", [EngineUnreachable, EngineFailed, EngineOverloaded])
def test_transient_errors_are_retried_before_the_next_engine_is_called(kind: type[EngineError]) -> None:
    assert attempts_after(retries_of("a", "b"), error(kind)) == [
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
def test_permanent_errors_move_on_to_the_next_engine(failure: EngineError) -> None:
    assert attempts_after(retries_of("a", "b"), failure) == [(0.0, "b")]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_rejected_request_is_not_sent_to_other_engines(status: int) -> None:
    assert attempts_after(retries_of("a", "b"), error(EngineRejected, status_sent=status)) == []


def test_an_unsupported_request_moves_on_to_the_next_engine() -> None:
    """The engine received no call, for example because a raw prompt cannot go to a provider of chats."""
    assert attempts_after(retries_of("a", "b"), error(EngineUnsupported, status_sent=400)) == [(0.0, "b")]


def test_a_request_rejected_with_a_prefix_moves_on_to_the_next_engine() -> None:
    """The engine may have rejected the prefix; another engine may accept it."""
    assert attempts_after(retries_of("a", "b"), error(EngineRejected, status_sent=400), placed=True) == [(0.0, "b")]


def test_retry_after_is_respected() -> None:
    assert retries_of("a").next_pause_s(error(EngineOverloaded, retry_after_s=3.0), placed=False) == pytest.approx(3.1)


def test_a_long_retry_after_moves_on_to_the_next_engine() -> None:
    assert attempts_after(retries_of("a", "b"), error(EngineOverloaded, retry_after_s=3.0))[0] == (0.0, "b")


def test_a_retry_after_above_the_maximum_ends_the_attempts() -> None:
    assert attempts_after(retries_of("a"), error(EngineOverloaded, retry_after_s=60.0)) == []


def test_without_retries_each_engine_is_called_once() -> None:
    assert attempts_after(retries_of("a", "b", num_retries=0), error(EngineFailed)) == [(0.0, "b")]


def test_half_of_a_pause_is_random() -> None:
    for drawn, pause_s in ((0.0, 0.05), (1.0, 0.1)):
        one = Retries([StudentPlan("a", None)], RetryRule(num_retries=1, backoff_s=0.1), draw=lambda drawn=drawn: drawn)
        assert one.next_pause_s(error(EngineFailed), placed=False) == pytest.approx(pause_s)


def test_keep_only_removes_later_engines() -> None:
    one = retries_of("a", "b", "c")
    one.keep_only(lambda student: student.engine == "c")
    assert attempts_after(one, error(EngineTimeout)) == [(0.0, "c")]


# Limits.


class CallLimits:
    """The limits of one request: `left` further calls, and an engine's retry budget."""

    def __init__(self, left: int, budget: int = 99) -> None:
        plan = SimpleNamespace(max_retries=left, retries=RetryRule(num_retries=10, backoff_s=0.1))
        self.builder = SimpleNamespace(tenant="acme", failed=[], plan=plan)
        self.metrics = Metrics()
        self._budget = budget
        self.retries = RequestRetries(self.builder, self, self.metrics)  # type: ignore[arg-type]

    def try_acquire(self, *_: object) -> bool:
        self._budget -= 1
        return self._budget >= 0

    def walk(self, *engines: str, kind: type[EngineError] = EngineUnreachable) -> list[str]:
        """Return the engines that are called after the first call, if every call fails."""
        students = [StudentPlan(engine, None) for engine in engines]
        one, called = Retries(students, RetryRule(num_retries=10, backoff_s=0.1), self.retries, draw=lambda: 1.0), []
        while one.next_pause_s(error(kind), placed=False) is not None:
            self.builder.failed.append("a call")
            called.append(one.student.engine)
        return called

    def refused(self, engine: str, budget: str) -> float | None:
        labels = {"engine": engine, "budget": budget}
        return self.metrics.registry.get_sample_value("gkt_retries_refused_total", labels)


def test_a_request_makes_no_more_calls_than_its_bound_and_keeps_one_for_each_other_engine() -> None:
    limits = CallLimits(4)
    assert limits.walk("a", "b", "c") == ["a", "a", "b", "c"]
    assert limits.refused("a", "request") == 1


def test_earlier_failed_calls_count_toward_the_limit() -> None:
    """The teacher's calls, and a prompt that was resent without its prefix."""
    limits = CallLimits(4)
    limits.builder.failed += ["the teacher's", "the refused prefix"]
    assert limits.walk("a") == ["a", "a"]


@pytest.mark.parametrize("kind", [EngineUnreachable, EngineOverloaded])
def test_an_engine_without_a_retry_budget_is_not_retried_and_the_next_is_called(kind: type[EngineError]) -> None:
    limits = CallLimits(9, budget=0)
    assert limits.walk("a", "b", kind=kind) == ["b"]
    assert (limits.refused("a", "engine"), limits.refused("b", "engine")) == (1, 1)


def test_a_proven_rejection_moves_on_to_the_next_engine() -> None:
    """The next engine may be another kind of server."""
    proven = error(EngineRejected, status_sent=500, proven=True)
    assert attempts_after(retries_of("a", "b"), proven) == [(0.0, "b")]
