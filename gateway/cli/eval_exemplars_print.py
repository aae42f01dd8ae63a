"""Output of `gkt-gateway eval exemplars`: the steps of the search, and the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.cli.eval_progress import duration
from gateway.cli.tables import console_for, plain_table
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
    "Score: guided accuracy on the same questions in each row. Gain: points against no exemplars, with the 95 % "
    "confidence interval. Input, output: teacher tokens per request. Tried: number of compared sets."
)


class SearchPrinter:
    """Prints the steps of a search.

    Args:
        folder: the folder of the search, with the times of its calls.
        calls: the limit of engine calls.
    """

    def __init__(self, folder: RunFolder, calls: int) -> None:
        self.console = console_for(_PIPE_WIDTH)
        self._folder = folder
        self._calls = calls

    def planned(self, parts: QuestionSplit) -> None:
        """Print the size of the search."""
        self.say(
            f"Exemplars are made of {len(parts.pool)} questions, compared on {len(parts.select)} others and checked on "
            f"{len(parts.check)} more, in at most {self._calls:,} calls of engines{self._left()}."
        )

    def on_candidates(self, styles: Mapping[Style, Sequence[ExemplarCandidate]], wrong: int) -> None:
        """Print the number of candidates by style."""
        each = ", ".join(f"{len(candidates)} {style}" for style, candidates in styles.items())
        none = f" {wrong} questions of the pool have no correct answer that is short enough." if wrong else ""
        self.say(f"Exemplars to choose from: {each}.{none}")

    def on_step(self, step: SearchStep) -> None:
        """Print one step."""
        score, spent = _percent(step.trial.score), f"after {step.spent:,} calls{self._left()}"
        if step.gained is None:
            self.say(f"Without exemplars: {score}, {spent}. Comparing sets of exemplars.")
        else:
            best = f"the best of {step.tried}" if step.tried > 1 else "the only one"
            self.say(f"Taken: {describe(step.trial.shown)}: {score}, {gain(step.gained)}; {best}, {spent}.")

    def ended(self, result: SearchReport) -> None:
        """Print the result as a table."""
        table = plain_table("exemplars", "score", "gain", "input", "output", "tried", right=slice(1, None))
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
            self.say("The search ended at the limit --calls. A higher limit may find better exemplars.")
        self.say(f"It took {result.spent:,} calls, including those of earlier sessions.")

    def verdict(self, result: SearchReport, out: Path, *, written: bool) -> None:
        """Print whether exemplars help, and the file."""
        if result.helps:
            self.say(f"These exemplars help: they are in {out}.")
            if result.check is None:
                self.say("Expect a smaller gain: they were selected on these questions. Validate it with --check.")
        elif result.search.best is not None:
            self.say("No exemplars help: the best set gains nothing on the questions of the check.")
        else:
            self.say("No exemplars help: no gain is significant.")
        if not result.helps:
            self.say(f"The best exemplars were written to {out}." if written else "No file was written.")

    def _left(self) -> str:
        """Return the longest remaining time as text, if calls were timed."""
        seconds, calls = (sum(getattr(stage, name) for stage in self._folder.stages) for name in ("seconds", "calls"))
        if not calls:
            return "" if self._folder.examples else "; the time is estimated after the first calls"
        return f"; at most {duration(max(0, self._calls - calls) * seconds / calls)} left"

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, soft_wrap=not self.console.is_terminal, highlight=False, markup=False)


def provenance(result: SearchReport, step: SearchStep, facts: Sequence[str]) -> list[str]:
    """Return the header lines of the file: `facts` and the measurements."""
    without = result.search.steps[0].trial
    compared = f"On the {len(without.scores)} questions on which sets were compared"
    lines = [*facts, f"{compared}: {_measured(without, step.trial, step.gained)}"]
    if (checked := result.check) is not None:
        others = f"On {len(checked.without.scores)} other questions"
        lines.append(f"{others}: {_measured(checked.without, checked.with_exemplars, checked.gained)}")
    read, before = step.trial.read_tokens, without.read_tokens
    lines.append(f"Each request has {read:.0f} input tokens of the teacher, and {before:.0f} without exemplars.")
    if not result.helps:
        lines.append("The gain is not significant: the file was written because of --force.")
    return lines


def gain(difference: ScoreDifference) -> str:
    """Return a difference in points with its interval."""
    low, high = difference.low * 100, difference.high * 100
    return f"{difference.gain * 100:+.1f} points ({low:+.1f} to {high:+.1f})"


def _measured(without: Trial, behind: Trial, gained: ScoreDifference | None) -> str:
    scores = f"{_percent(behind.score)}, and {_percent(without.score)} without exemplars"
    return f"{scores}." if gained is None else f"{scores}: {gain(gained)}."


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
