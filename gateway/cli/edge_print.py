"""What `gkt-gateway edge` shows: the answer as it comes, the teacher's part marked, and what it was."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.text import Text

from gateway.cli.marked_text import MarkedText

if TYPE_CHECKING:
    from rich.console import Console

    from gateway.edge import Synced
    from gateway.protocol.body import Json


class AnswerPrinter:
    """Prints one answer's chunks. Where colour does not survive, brackets stand around what the teacher said."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._first_s: float | None = None
        self._answer = MarkedText(console)
        self._facts: Json = {}
        self._usage: Json = {}

    def show(self, chunk: Json) -> None:
        """Print what a chunk says."""
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            if choice["finish_reason"] is not None:
                self._facts = chunk["gkt"]
            if text := choice["delta"].get("content"):
                self._first_s = self._first_s or time.monotonic() - self._began
                self._answer.print(text, teachers=chunk["gkt"].get("by") == "teacher")

    def end(self, waiting: int) -> None:
        """Print what the answer was. `waiting`: how many reports the gateway is yet to be told."""
        self._answer.end()
        facts = self._facts
        said = [f"mode {facts.get('mode', 'none')}"]
        if why := facts.get("unguided"):
            said.append(f"unguided: {why}")
        if facts.get("guidance_tokens"):
            said.append(f"guidance {facts['guidance_tokens']} tokens")
        if self._usage:
            said.append(f"answer {self._usage['completion_tokens']} tokens")
        if self._first_s is not None:
            said.append(f"first word {self._first_s:.2f} s")
        said.append(f"total {time.monotonic() - self._began:.2f} s")
        if receipt := facts.get("receipt"):
            said.append(f"receipt {receipt}")
        self._print(Text("\n\n" + ", ".join(said) + "\n"))
        if facts.get("said"):
            alone = " The student answered alone." if why else ""
            self._print(Text(f"{facts['said']}{alone}\n"))
        if waiting > 1 or (waiting and why):
            self._print(Text(f"{waiting} to be told to the gateway: gkt-gateway edge --sync\n"))

    def _print(self, text: Any) -> None:
        self._console.print(text, end="", soft_wrap=True, highlight=False)


def print_synced(console: Console, synced: Synced) -> None:
    """What came of telling the gateway."""
    parts = {
        "told to the gateway": synced.sent,
        "known to it before": synced.known,
        "that it will never take": synced.refused,
        "waiting": synced.waiting,
    }
    said = ", ".join(f"{count} {what}" for what, count in parts.items() if count) or "nothing was waiting"
    console.print(f"Sync: {said}.{f' {synced.why}' if synced.why else ''}", soft_wrap=True, highlight=False)
