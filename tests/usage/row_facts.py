"""Sums of a row as plain values, by names that rows of both versions have. Pure."""

from __future__ import annotations

from typing import Any

_NUMBERS = (
    *("requests", "guided", "kept_tokens", "answer_tokens", "teacher_answer_tokens", "baseline_estimated"),
    *("cost_pico", "teacher_pico", "student_pico", "failed_pico", "baseline_pico", "baseline_error_pico"),
    *("savings_pico", "savings_error_pico"),
)
_BY_NAME = ("errors", "unguided", "batches", "engines")
_STAGES = 5  # stages that both versions have
_CLASS = ("requests", "cost_pico", "baseline_pico", "savings_pico", "error_pico")


def facts(row: Any) -> dict[str, Any]:
    """Return numbers by name, some in nested dictionaries, which omit zeros."""
    found: dict[str, Any] = {name: getattr(row, name) for name in _NUMBERS}
    found |= {name: {str(key): count for key, count in getattr(row, name).items() if count} for name in _BY_NAME}
    for role in ("teacher", "student", "failed"):
        tokens = getattr(row, role)
        found[role] = {"input": tokens.input, "cached": tokens.cached, "output": tokens.output}
    for index, stage in enumerate(row.stages[:_STAGES]):
        buckets = {f"bucket {key}": count for key, count in stage.buckets.items() if count}
        found[f"stage {index}"] = {"count": stage.count, "sum_us": stage.sum_us} | buckets
    for name, one in row.classes.items():
        if any(numbers := {field: getattr(one, field) for field in _CLASS}.values()):
            found[f"class {name}"] = dict(zip(_CLASS, numbers, strict=True))
    return found


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the sum of the facts of two rows."""
    found = dict(one)
    for name, value in other.items():
        found[name] = added(found.get(name, {}), value) if isinstance(value, dict) else found.get(name, 0) + value
    return found
