"""Where several workers count: files of one folder, from which each of them answers for all."""

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
"""The environment variable in which prometheus_client looks for that folder."""


def count_in_files(worker: int) -> None:
    """Metrics made from now on count in files. Those are named by the worker's number, not by its pid: one that is
    started again goes on counting where it ended, and files do not become more."""
    values.ValueClass = values.MultiProcessValue(lambda: worker)


def of_all_workers() -> CollectorRegistry:
    """What all of them counted until now, summed at each collection."""
    everybody = CollectorRegistry()
    everybody.register(_BegunFiles())
    return everybody


def forget_gauges(folder: str, worker: int) -> None:
    """Take what a worker that is gone held out of the sums. What it counted stays."""
    mark_process_dead(worker, folder)


class _BegunFiles(Collector):
    """A file that a worker just makes is empty for a moment, or for long, where it was killed in that moment; the
    library's own collector would break on it, and with that a scrape or another worker's start."""

    def collect(self) -> Iterable[Metric]:
        """For prometheus_client, in whatever thread renders."""
        folder = Path(os.environ[MULTIPROCESS_FOLDER])
        merged: Iterable[Metric] = MultiProcessCollector.merge(
            [str(file) for file in folder.glob("*.db") if _is_begun(file)]
        )
        return merged


def _is_begun(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:  # the gauges of a worker that is gone
        return False
