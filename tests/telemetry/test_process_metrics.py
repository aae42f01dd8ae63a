"""Process metrics equal the kernel's values, and the lag of a blocked loop is measured."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.telemetry import process_metrics
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.process_metrics import ProcessMetrics, ProcessSnapshot, read_process

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

on_linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system has no /proc")


def samples(metrics: Metrics, name: str) -> list[Sample]:
    return [sample for family in metrics.registry.collect() for sample in family.samples if sample.name == name]


def test_open_files_are_counted(tmp_path: Path) -> None:
    before = read_process().open_files
    assert before is not None
    with (tmp_path / "one").open("w"), (tmp_path / "two").open("w"):
        assert read_process().open_files == before + 2
    assert read_process().open_files == before


def test_memory_is_unknown_without_proc_but_open_files_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_metrics, "_PROC", tmp_path / "none")
    snapshot = read_process()
    assert snapshot.resident_bytes is None
    assert snapshot.open_files


@on_linux
def test_memory_that_is_taken_is_seen() -> None:
    """In a new process: the system may reclaim unused pages of this one."""
    read_twice = (
        "from gateway.telemetry.process_metrics import read_process; before = read_process().resident_bytes; "
        "taken = bytes([1]) * 64_000_000; "
        "print(read_process().resident_bytes - before)"
    )
    done = subprocess.run([sys.executable, "-c", read_twice], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 64_000_000 * 0.9


def test_the_bound_of_open_files_is_the_soft_one() -> None:
    assert read_process().max_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_cpu_time_never_decreases() -> None:
    """The counter never decreases, whatever the kernel reports."""
    metrics = Metrics(max_tenants=1)
    signs = ProcessMetrics(metrics)
    for cpu_s in (3.0, 4.5, 4.25, 5.0):
        signs.update(ProcessSnapshot(None, None, 10, cpu_s))
    (sample,) = samples(metrics, "gkt_process_cpu_seconds_total")
    assert sample.labels == {"worker": "1"}
    assert sample.value == pytest.approx(5.25)


def test_values_without_kernel_support_are_omitted() -> None:
    metrics = Metrics(max_tenants=1)
    before = samples(metrics, "gkt_process_open_fds")
    ProcessMetrics(metrics).update(ProcessSnapshot(None, None, 10, 1.0))
    assert [sample.value for sample in samples(metrics, "gkt_process_open_fds")] == [0.0]
    assert before == []


async def test_a_loop_that_was_held_is_late() -> None:
    metrics = Metrics(max_tenants=1)
    measuring = asyncio.get_running_loop().create_task(ProcessMetrics(metrics).watch_loop(0.01))
    while not samples(metrics, "gkt_event_loop_lag_seconds_count")[0].value:
        await asyncio.sleep(0.01)
    time.sleep(0.3)  # noqa: ASYNC251  the lag to measure
    before = samples(metrics, "gkt_event_loop_lag_seconds_count")[0].value
    while samples(metrics, "gkt_event_loop_lag_seconds_count")[0].value == before:
        await asyncio.sleep(0.01)
    measuring.cancel()
    assert samples(metrics, "gkt_event_loop_lag_seconds_sum")[0].value >= 0.25


async def test_tasks_that_have_not_ended_are_counted() -> None:
    metrics, loop = Metrics(max_tenants=1), asyncio.get_running_loop()
    updating = loop.create_task(ProcessMetrics(metrics).run(0.01))
    idle = [loop.create_task(asyncio.sleep(3600)) for _ in range(7)]
    for left in (7, 0):
        for one in idle[left:]:
            one.cancel()
        await asyncio.gather(*idle[left:], return_exceptions=True)
        # The test's own task, and the one that updates the metrics.
        while [sample.value for sample in samples(metrics, "gkt_process_tasks")] != [left + 2]:
            await asyncio.sleep(0.01)
    updating.cancel()
