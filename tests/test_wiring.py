"""Values that the composition root derives from settings and policies."""

from __future__ import annotations

import math
from typing import Any

from gateway.policy.book import PolicySet
from gateway.policy.policies import Policies, PolicyEdition
from gateway.policy.schema import TenantPolicy
from gateway.telemetry.metrics import Metrics
from gateway.wiring import leases_of, set_deadlines

EDITION = PolicyEdition("1", 1, 0.0)


def book(*routes: dict[str, Any]) -> PolicySet:
    return PolicySet.of([TenantPolicy.model_validate({"tenant": "acme", "routes": routes})])


def test_a_teachers_lease_is_no_shorter_than_its_longest_deadline_and_follows_edits() -> None:
    """A call must not outlive its permit."""

    def of(deadline: float | str, **more: Any) -> dict[str, Any]:
        guidance = {"deadline": deadline, **more}
        return {"model": "c", "mode": "guided", "teacher": "big", "student": "small", "guidance": guidance}

    policies = Policies(book(of(30.0), {"model": "d", "mode": "teacher", "teacher": "huge"}), EDITION)
    lease_of = leases_of(10.0, policies)
    assert [lease_of(name) for name in ("big", "huge", "other")] == [30.0, 10.0, 10.0]
    policies.put(book(of(2.0)), EDITION)
    assert lease_of("big") == 10.0
    policies.put(book(of("auto", auto_deadline={"min": 1.0, "max": 45.0})), EDITION)
    assert lease_of("big") == 45.0


def test_the_shortest_deadline_of_each_teacher_is_published_until_its_last_route() -> None:
    """The deadline of a removed route has no effect."""
    metrics = Metrics(max_tenants=1)

    def result_of(*deadlines: tuple[str, float]) -> dict[str, float]:
        routes = [
            {"model": f"r{number}", "mode": "guided", "teacher": teacher, "student": "small",
             "guidance": {"deadline": deadline_s}}
            for number, (teacher, deadline_s) in enumerate(deadlines)
        ]  # fmt: skip
        set_deadlines(metrics, PolicySet.of([TenantPolicy.model_validate({"tenant": "acme", "routes": routes})]))
        return {
            sample.labels["teacher"]: sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name == "gkt_guidance_deadline_seconds"
        }

    assert result_of(("big", 4.0), ("big", 2.0), ("huge", 10.0)) == {"big": 2.0, "huge": 10.0}
    assert result_of(("big", 4.0)) == {"big": 4.0, "huge": math.inf}
