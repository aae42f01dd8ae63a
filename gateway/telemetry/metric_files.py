"""Metrics of several workers in files of one folder. Each worker reads all files to report all workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable in which prometheus_client expects the folder."""


def count_in_worker_files(worker: int) -> None:
    """Store values of metrics created from now on in files. A file's name contains the worker's number, not its pid.

    So a restarted worker continues its counters, and the number of files is bounded.
    """
    values.ValueClass = values.MultiProcessValue(lambda: worker)


def all_workers_registry() -> CollectorRegistry:
    """Return a registry with the values of all workers. It merges the files at each collection."""
    registry = CollectorRegistry()
    registry.register(_NonEmptyFiles())
    return registry


def remove_gauges(folder: str, worker: int) -> None:
    """Remove the gauges of a stopped worker. Its counters remain."""
    mark_process_dead(worker, folder)


class _NonEmptyFiles(Collector):
    """Merge the files that are not empty.

    A new file is empty until its worker writes to it. It stays empty where the worker was killed before. The library's
    own collector raises an error on an empty file, which would fail a scrape or another worker's start.
    """

    def collect(self) -> Iterable[Metric]:
        """Return the merged metrics. prometheus_client calls this in the thread that renders."""
        folder = Path(os.environ[MULTIPROCESS_FOLDER])
        merged: Iterable[Metric] = MultiProcessCollector.merge(
            [str(file) for file in folder.glob("*.db") if _is_non_empty(file)]
        )
        return merged


def _is_non_empty(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:  # gauges of a stopped worker
        return False
