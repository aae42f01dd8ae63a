"""What `gkt-gateway eval exemplars` shows while it searches, and in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from gateway.evaluation.exemplar_finding import named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.evaluation.exemplar_finding import Checked, Result
    from gateway.evaluation.exemplar_search import Difference, Step, Trial
    from gateway.evaluation.exemplars import Candidate, Split, Style

_PIPE_WIDTH = 120
_LEGEND = (
    "Score: guided, on the same questions in each row. Gain: in points, against no exemplars; in brackets where it lies "
    "with 95 % confidence. Reads, writes: the teacher's tokens for each request. Tried: sets that raced for this place."
)


class Shown:
    """Prints each step as it is taken."""

    def __init__(self) -> None:
        self.console = Console()
        if not self.console.is_terminal:
            self.console = Console(width=_PIPE_WIDTH)

    def planned(self, parts: Split, calls: int, seconds_a_call: float | None) -> None:
        """How large the search is, before it begins."""
        self._say(
            f"Exemplars are made of {len(parts.pool)} questions, compared on {len(parts.select)} others and checked on "
            f"{len(parts.check)} more, in at most {calls:,} calls of engines."
        )
        self._say(
            "How long that takes is known once the first sets were tried."
            if seconds_a_call is None
            else f"A call took {seconds_a_call:.2g} s here so far: all of them {lasting(calls * seconds_a_call)}, those "
            "that are there already included."
        )

    def made(self, styles: Mapping[Style, Sequence[Candidate]], wrong: int) -> None:
        """What may be chosen from."""
        each = ", ".join(f"{len(some)} {style}" for style, some in styles.items())
        none = f" To {wrong} of the pool's questions there is no correct answer short enough." if wrong else ""
        self._say(f"Exemplars to choose from: {each}.{none}")

    def took(self, step: Step) -> None:
        """One step."""
        if step.gained is None:
            self._say(f"Without exemplars: {_percent(step.trial.score)}, after {step.spent:,} calls. Sets race now.")
        else:
            self._say(
                f"{named(step.trial.shown)}: {_percent(step.trial.score)}, {gain(step.gained)}; the best of {step.tried}, "
                f"after {step.spent:,} calls."
            )

    def ended(self, result: Result) -> None:
        """What was found, as a table."""
        table = Table("exemplars", "score", "gain", "reads", "writes", "tried", box=box.SIMPLE)
        for column in table.columns[1:]:
            column.justify = "right"
        for step in result.found.steps:
            table.add_row(*_row(step.trial, step.gained), str(step.tried or ""))
        if result.found.best is None and (close := result.found.runner_up) is not None:
            table.add_row(*_row(close.trial, close.gained), str(close.tried), style="dim")
        if result.checked is not None:
            table.add_section()
            table.add_row(*_row(result.checked.without, None), "check")
            table.add_row(*_row(result.checked.behind, result.checked.gained), "check")
        self.console.print(table)
        self.console.print(_LEGEND, style="dim", soft_wrap=not self.console.is_terminal, highlight=False)
        if result.found.ended == "calls":
            self._say("The search ended because --calls reached no further; more might find more.")
        self._say(f"{result.spent:,} calls.")

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=not self.console.is_terminal, highlight=False, markup=False)


def provenance(result: Result, step: Step, facts: Sequence[str]) -> list[str]:
    """What the file says of itself: `facts`, and what was measured."""
    without = result.found.steps[0].trial
    lines = [
        *facts,
        f"On the {len(without.scores)} questions on which sets were compared: {_measured(without, step.trial, step.gained)}",
    ]
    if result.checked is not None:
        checked = result.checked
        count = len(checked.without.scores)
        lines.append(f"On {count} others, unseen till then: {_compared(checked)}")
    lines.append(
        f"For each request the teacher reads {step.trial.read_tokens:.0f} tokens, and {without.read_tokens:.0f} without."
    )
    if not result.helps:
        lines.append("This is no gain beyond noise: written because --force said so.")
    return lines


def gain(difference: Difference) -> str:
    """In points, with its interval."""
    low, high = difference.low * 100, difference.high * 100
    return f"{difference.gain * 100:+.1f} points ({low:+.1f} to {high:+.1f})"


def lasting(seconds: float) -> str:
    """About how long: in minutes, or hours."""
    return f"about {max(1, round(seconds / 60))} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _compared(checked: Checked) -> str:
    return _measured(checked.without, checked.behind, checked.gained)


def _measured(without: Trial, behind: Trial, gained: Difference | None) -> str:
    said = f"{_percent(behind.score)}, and {_percent(without.score)} without exemplars"
    return f"{said}." if gained is None else f"{said}: {gain(gained)}."


def _row(trial: Trial, gained: Difference | None) -> tuple[str, ...]:
    return (
        named(trial.shown),
        _percent(trial.score),
        "" if gained is None else gain(gained).replace(" points", ""),
        f"{trial.read_tokens:.0f}",
        f"{trial.written_tokens:.0f}",
    )


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"
