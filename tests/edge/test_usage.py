"""Usage reports of answers on a device."""

from __future__ import annotations

from uuid import UUID

import pytest

from gateway.edge.queue import DeviceUsage

USAGE = DeviceUsage(9, 3, "stop", "small", 410, 5200, guided=True, at=1796083206)


def test_a_report_has_the_id_of_its_receipt_or_its_own() -> None:
    assert USAGE.report("req_1/..", "chat", {}).path == "/v1/guidance/req_1%2F../usage"
    first, second = USAGE.report(None, "chat", {}), USAGE.report(None, "chat", {})
    assert first.path == second.path == "/v1/guidance/usage"
    assert first.body["model"] == "chat"
    assert UUID(first.body["id"]) != UUID(second.body["id"])
    assert "metadata" not in first.body


def test_a_report_without_a_receipt_has_the_tags() -> None:
    """The receipt of guidance has the tags already."""
    tags = {"metadata": {"tags": ["a"]}}
    assert USAGE.report(None, "chat", tags).body["metadata"] == {"tags": ["a"]}
    assert "metadata" not in USAGE.report("req_1", "chat", tags).body


@pytest.mark.parametrize(
    ("name", "reported"), [("Qwen 2.5 \u00e9\n", "Qwen 2.5 ??"), ("m" * 80, "m" * 64), ("", "unknown")]
)
def test_a_students_name_is_printable_and_short(name: str, reported: str) -> None:
    assert USAGE._replace(student=name).report("req_1", "chat", {}).body["student"] == reported


@pytest.mark.parametrize(("reason", "reported"), [("tool_calls", "tool_calls"), ("STOP!", None), (None, None)])
def test_a_reason_is_an_identifier_or_none(reason: str | None, reported: str | None) -> None:
    assert USAGE._replace(finish_reason=reason).report("req_1", "chat", {}).body["finish_reason"] == reported
