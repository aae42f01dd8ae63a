"""Engine curves for the planner's tests, simple enough for calculation by hand."""

from __future__ import annotations

from typing import Any

from gateway.planning.curve import Curve


def curve(**changes: Any) -> Curve:
    """Return a curve: steps of 10 ms for one answer and 20 ms for ten, 10,000 prompt tokens/s, two GPUs at 3 USD/h."""
    values: dict[str, Any] = {
        "model": "m",
        "gpus_per_replica": 2,
        "decode": [{"batch": 1, "seconds_per_step": 0.01}, {"batch": 10, "seconds_per_step": 0.02}],
        "prefill": {"tokens_per_s": 10_000},
        "price": {"gpu_usd_per_hour": 3},
        "origin": {"kind": "measured", "source": "a test"},
    }
    return Curve.model_validate(values | changes)
