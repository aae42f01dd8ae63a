"""Stored usage reports: one file each in one folder, safe against crashes and concurrent processes.

A report is written before it is sent, and deleted after the gateway accepted it. The gateway deduplicates reports by
id. Reports contain counts and times, and no text of a question or an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.edge.link import address_of
from gateway.edge.usage import UsageReport

MAX_WAITING = 1000
"""Maximum stored reports; the oldest is dropped."""


@dataclass(frozen=True, slots=True)
class Synced:
    """Result of sending stored reports.

    Attributes:
        sent: reports stored by the gateway.
        known: reports that the gateway had already.
        refused: rejected reports, which are dropped: unknown receipt, too late, or above the limit.
        waiting: reports still stored.
        why: why reports are still stored; None if there are none.
    """

    sent: int = 0
    known: int = 0
    refused: int = 0
    waiting: int = 0
    why: str | None = None


class UsageQueue:
    """The report folder of one gateway, created on first use. Methods block: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, report: UsageReport) -> Path:
        """Store a report and return its file. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{time.time_ns():020}-{uuid.uuid4().hex[:8]}.json"
        unfinished = self.folder / f".{name}"
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                json.dump({"path": report.path, "body": report.body}, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.folder / name)
        except OSError:
            self.drop(unfinished)
            raise
        for oldest in self._files()[:-MAX_WAITING]:
            self.drop(oldest)
        return self.folder / name

    def waiting(self) -> list[tuple[Path, UsageReport]]:
        """Return the stored reports with their files, oldest first. Drop invalid files."""
        reports = []
        for file in self._files():
            try:
                reports.append((file, _report(json.loads(file.read_bytes()))))
            except FileNotFoundError:
                continue  # another process sent it
            except (ValueError, KeyError, TypeError):
                self.drop(file)
        return reports

    def count(self) -> int:
        return len(self._files())

    def drop(self, file: Path) -> None:
        file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.json"))


def _report(entry: Any) -> UsageReport:
    """Decode a report. Raises ValueError, KeyError and TypeError.

    The path is checked, since a report is sent with the key.
    """
    path = entry["path"]
    if not (isinstance(path, str) and path.startswith("/v1/guidance/")):
        raise ValueError(path)
    return UsageReport(path, entry["body"])


def default_folder(gateway: str) -> Path:
    """Return gkt-edge/HASH in `$XDG_STATE_HOME` or `~/.local/state`; HASH is of the gateway's URL."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    state = base if base.is_absolute() else Path.home() / ".local" / "state"
    return state / "gkt-edge" / hashlib.sha256(address_of(gateway).encode()).hexdigest()[:16]
