"""What `gkt-gateway eval exemplars` shows while it searches, and in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from gateway.cli.eval_progress import duration
from gateway.evaluation.priming.finding import describe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gateway.evaluation.folder import RunFolder
    from gateway.evaluation.priming.exemplars import ExemplarCandidate, QuestionSplit, Style
    from gateway.evaluation.priming.finding import SearchReport
    from gateway.evaluation.priming.search import ScoreDifference, SearchStep, Trial

_PIPE_WIDTH = 120
_LEGEND = (
    "Score: guided, on the same questions in each row. Gain: in points, against no exemplars; in brackets where it "
    "lies with 95 % confidence. Reads, writes: the teacher's tokens for each request. Tried: sets that raced for it."
)


class SearchPrinter:
    """Prints each step as it is taken.

    Args:
        folder: knows how long calls took.
        calls: of which there may be so many.
    """

    def __init__(self, folder: RunFolder, calls: int) -> None:
        self.console = Console()
        if not self.console.is_terminal:
            self.console = Console(width=_PIPE_WIDTH)
        self._folder = folder
        self._calls = calls

    def planned(self, parts: QuestionSplit) -> None:
        """How large the search is, before it begins."""
        self.say(
            f"Exemplars are made of {len(parts.pool)} questions, compared on {len(parts.select)} others and checked on "
            f"{len(parts.check)} more, in at most {self._calls:,} calls of engines{self._left()}."
        )

    def on_candidates(self, styles: Mapping[Style, Sequence[ExemplarCandidate]], wrong: int) -> None:
        """What may be chosen from."""
        each = ", ".join(f"{len(some)} {style}" for style, some in styles.items())
        none = f" To {wrong} of the pool's questions there is no correct answer short enough." if wrong else ""
        self.say(f"Exemplars to choose from: {each}.{none}")

    def on_step(self, step: SearchStep) -> None:
        """One step."""
        score, spent = _percent(step.trial.score), f"after {step.spent:,} calls{self._left()}"
        if step.gained is None:
            self.say(f"Without exemplars: {score}, {spent}. Now sets of them race.")
        else:
            best = f"the best of {step.tried}" if step.tried > 1 else "the only one"
            self.say(f"Taken: {describe(step.trial.shown)}: {score}, {gain(step.gained)}; {best}, {spent}.")

    def ended(self, result: SearchReport) -> None:
        """What was found, as a table."""
        table = Table("exemplars", "score", "gain", "reads", "writes", "tried", box=box.SIMPLE)
        for column in table.columns[1:]:
            column.justify = "right"
        for step in result.search.steps:
            table.add_row(*_row(step.trial, step.gained), str(step.tried or ""))
        if (close := result.search.runner_up) is not None:
            table.add_row(*_row(close.trial, close.gained), f"{close.tried}, not taken", style="dim")
        if result.check is not None:
            table.add_section()
            table.add_row(*_row(result.check.without, None), "check")
            table.add_row(*_row(result.check.with_exemplars, result.check.gained), "check")
        self.console.print(table)
        self.console.print(_LEGEND, style="dim", soft_wrap=not self.console.is_terminal, highlight=False)
        if result.search.ended == "calls":
            self.say("It ended because --calls reach no further: more may find more.")
        self.say(f"It took {result.spent:,} calls, those of earlier sittings included.")

    def verdict(self, result: SearchReport, out: Path, *, written: bool) -> None:
        """Whether exemplars help, and where they are."""
        if result.helps:
            self.say(f"These exemplars help: they are in {out}.")
            if result.check is None:
                self.say("They were chosen by what is measured here, so expect less. --check measures it anew.")
        elif result.search.best is not None:
            self.say("What was found gains nothing on the questions of the check: no exemplars help.")
        else:
            self.say("No exemplars help: none gains beyond noise.")
        if not result.helps:
            self.say(f"The best there is are in {out} all the same." if written else "So there is no file.")

    def _left(self) -> str:
        """How long it may take yet, once that can be told."""
        seconds, made = (sum(getattr(one, name) for one in self._folder.stages) for name in ("seconds", "calls"))
        if not made:
            return "" if self._folder.examples else "; how long they take is known after the first ones"
        return f"; {duration(max(0, self._calls - made) * seconds / made)} left at most"

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, soft_wrap=not self.console.is_terminal, highlight=False, markup=False)


def provenance(result: SearchReport, step: SearchStep, facts: Sequence[str]) -> list[str]:
    """What the file says of itself: `facts`, and what was measured."""
    without = result.search.steps[0].trial
    compared = f"On the {len(without.scores)} questions on which sets were compared"
    lines = [*facts, f"{compared}: {_measured(without, step.trial, step.gained)}"]
    if (checked := result.check) is not None:
        others = f"On {len(checked.without.scores)} others, unseen till then"
        lines.append(f"{others}: {_measured(checked.without, checked.with_exemplars, checked.gained)}")
    read, before = step.trial.read_tokens, without.read_tokens
    lines.append(f"For each request the teacher reads {read:.0f} tokens, and {before:.0f} without exemplars.")
    if not result.helps:
        lines.append("That is no gain beyond noise: they were written because --force said so.")
    return lines


def gain(difference: ScoreDifference) -> str:
    """In points, with its interval."""
    low, high = difference.low * 100, difference.high * 100
    return f"{difference.gain * 100:+.1f} points ({low:+.1f} to {high:+.1f})"


def _measured(without: Trial, behind: Trial, gained: ScoreDifference | None) -> str:
    said = f"{_percent(behind.score)}, and {_percent(without.score)} without exemplars"
    return f"{said}." if gained is None else f"{said}: {gain(gained)}."


def _row(trial: Trial, gained: ScoreDifference | None) -> tuple[str, ...]:
    return (
        describe(trial.shown),
        _percent(trial.score),
        "" if gained is None else gain(gained).replace(" points", ""),
        f"{trial.read_tokens:.0f}",
        f"{trial.written_tokens:.0f}",
    )


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"
