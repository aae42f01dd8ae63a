"""Usage reports, stored until the gateway accepts them: one file each, safe against crashes and other processes.

A report is written before it is sent, and deleted after the gateway accepted it. The gateway deduplicates reports by
id. Reports contain counts and times, and no text of a question or an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from gateway.edge.link import address_of

if TYPE_CHECKING:
    from gateway.protocol.body import Json

MAX_NAME_CHARS = 64
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_REASON = re.compile(r"[a-z_]{1,32}")


class UsageReport(NamedTuple):
    """A report of one answer, with the path to send it to."""

    path: str
    body: Json


class DeviceUsage(NamedTuple):
    """Usage of one answer on the device. Times count from the request."""

    input_tokens: int
    output_tokens: int
    finish_reason: str | None  # why the answer ended; None if it was canceled or failed
    student: str  # the device's name of its model
    first_token_ms: int | None
    total_ms: int
    guided: bool
    at: int  # end of the answer, in Unix seconds

    def report(self, receipt: str | None, route: str, tag_fields: Json) -> UsageReport:
        """Return the report that closes the receipt of guidance, which has the tags.

        Without a receipt, the report has the tags, and an id that prevents counting it twice.
        """
        body: Json = {
            **self._asdict(),
            "finish_reason": self.finish_reason if _REASON.fullmatch(self.finish_reason or "") else None,
            # The gateway accepts only printable ASCII, since it logs the name.
            "student": _UNPRINTABLE.sub("?", self.student)[:MAX_NAME_CHARS] or "unknown",
        }
        if receipt is not None:
            return UsageReport(f"/v1/guidance/{quote(receipt, safe='')}/usage", body)
        return UsageReport("/v1/guidance/usage", {**body, **tag_fields, "model": route, "id": str(uuid.uuid4())})


class Synced(NamedTuple):
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
    """The report folder of one gateway, created on first use. Methods block: call them in a thread.

    Above `max_reports`, the oldest report is dropped.
    """

    def __init__(self, folder: Path, *, max_reports: int = 1000) -> None:
        self.folder, self._max_reports = folder, max_reports

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
        for oldest in self._files()[: -self._max_reports]:
            self.drop(oldest)
        return self.folder / name

    def waiting(self) -> list[tuple[Path, UsageReport]]:
        """Return the stored reports with their files, oldest first. Drop invalid files."""
        reports = []
        for file in self._files():
            try:
                entry = json.loads(file.read_bytes())
                if not entry["path"].startswith("/v1/guidance/"):  # a report is sent with the key
                    raise ValueError
                reports.append((file, UsageReport(entry["path"], entry["body"])))
            except FileNotFoundError:
                continue  # another process sent it
            except (ValueError, KeyError, TypeError, AttributeError):
                self.drop(file)
        return reports

    def count(self) -> int:
        return len(self._files())

    def drop(self, file: Path) -> None:
        file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.json"))


def default_folder(gateway: str) -> Path:
    """Return gkt-edge/HASH in `$XDG_STATE_HOME` or `~/.local/state`; HASH is of the gateway's URL."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    state = base if base.is_absolute() else Path.home() / ".local" / "state"
    return state / "gkt-edge" / hashlib.sha256(address_of(gateway).encode()).hexdigest()[:16]
