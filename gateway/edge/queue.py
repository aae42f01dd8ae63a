"""Reports that wait for the gateway: a file each in one folder, so that no crash and no second process harms them.

A report is written before it is sent and deleted when the gateway has taken it. Sent twice it counts once: the gateway
knows the id. They hold counts and times; of a question or an answer, nothing.
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

MOST_WAITING = 1000
"""With one more the oldest is dropped."""


@dataclass(frozen=True, slots=True)
class Synced:
    """What came of sending what waited.

    Attributes:
        sent: the gateway has taken them down.
        known: it had them already.
        refused: it takes no such report: unknown, too late, or more than was asked for. They are dropped.
        waiting: still to be sent.
        why: why some still wait; None: none do.
    """

    sent: int = 0
    known: int = 0
    refused: int = 0
    waiting: int = 0
    why: str | None = None


class UsageQueue:
    """The folder of one gateway; it is made when something is put there. Blocks: call it from a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, report: UsageReport) -> Path:
        """Keep a report; where it is kept. Raises OSError."""
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
        for oldest in self._files()[:-MOST_WAITING]:
            self.drop(oldest)
        return self.folder / name

    def waiting(self) -> list[tuple[Path, UsageReport]]:
        """Where each is kept, oldest first. One that cannot be read is dropped."""
        found = []
        for file in self._files():
            try:
                found.append((file, _report(json.loads(file.read_bytes()))))
            except FileNotFoundError:
                continue  # another process has sent it meanwhile
            except (ValueError, KeyError, TypeError):
                self.drop(file)
        return found

    def count(self) -> int:
        return len(self._files())

    def drop(self, file: Path) -> None:
        file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.json"))


def _report(kept: Any) -> UsageReport:
    """Raises ValueError, KeyError and TypeError. A report goes with the key, so it goes to the gateway alone."""
    path = kept["path"]
    if not (isinstance(path, str) and path.startswith("/v1/guidance/")):
        raise ValueError(path)
    return UsageReport(path, kept["body"])


def default_folder(gateway: str) -> Path:
    """`$XDG_STATE_HOME` or `~/.local/state`, then gkt-edge and a name made of the gateway's address."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    state = base if base.is_absolute() else Path.home() / ".local" / "state"
    return state / "gkt-edge" / hashlib.sha256(address_of(gateway).encode()).hexdigest()[:16]
