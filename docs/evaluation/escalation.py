"""Compare escalation with fixed settings, on stored answers: the study of docs/design/escalation.md.

    .venv/bin/python docs/evaluation/escalation.py RECORDS
    .venv/bin/python docs/evaluation/escalation.py RECORDS --calibration OTHER_RECORDS

Both folders need the teacher alone with and without exemplars, the student alone, and guidance measured with
`--answer-logprobs`. Without `--calibration`, scores and thresholds of each fifth of the questions come from the other
four.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import combinations, product
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import click
import numpy as np
from scipy.optimize import minimize

from gateway.evaluation.advice.evidence import evidence_of
from gateway.evaluation.advice.price_sheets import read_price_sheets
from gateway.evaluation.advice.repricing import PromptCaching
from gateway.evaluation.advice.target import AnswerPanel, Contrast, claims
from gateway.evaluation.record import read_run
from gateway.evaluation.statistics import holm
from gateway.pricing import cost_usd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gateway.evaluation.advice.evidence import Evidence
    from gateway.evaluation.advice.price_sheets import PriceSheets, TeacherPrice
    from gateway.evaluation.record import Example
    from gateway.evaluation.summary import SettingSummary

    Numbers = NDArray[np.float64]

_CACHE_HITS = Decimal("0.95")  # an assumption: the part of the exemplars' tokens that is read from the prompt cache

SHEETS = ("Claude Sonnet 5.5", "GPT-5.5")
LENGTHS, SHARES = (40, 80, 120), (0.2, 0.3, 0.4)
PRIMARY = (80, "the teacher", 0.3)
CHUNK = 40
CONFIDENCE, FOLDS, RIDGE = 0.95, 5, 1.0


class Escalation(NamedTuple):
    """Guidance at one length, with the teacher's own answer for the questions below a threshold.

    Attributes:
        correct, usd: arrays of shape (n,).
        escalated: the share of the questions.
    """

    correct: Numbers
    usd: Numbers
    escalated: float


class Row(NamedTuple):
    """A comparison at the prices of a sheet. `cost` is a part of the cost of the teacher with exemplars."""

    sheet: str
    tokens: int
    target: str
    share: float
    found: Escalation
    cost: float
    contrast: Contrast
    mixture: str


def features(answers: Sequence[Example]) -> Numbers:
    """Return an array of shape (n, 4): lowest and mean log-probability, length, and whether the answer ended."""
    return np.array(
        [
            [*(one.answer_logprobs or (0.0, 0.0))[::-1], one.student_output_tokens / 100, one.finish == "stop"]
            for one in answers
        ],
        float,
    )


def is_continued(answers: Sequence[Example]) -> NDArray[np.bool_]:
    """Return for which answers the student wrote tokens. The others are complete answers of the teacher."""
    continued = [one.student_output_tokens > 0 for one in answers]
    if any(has and one.answer_logprobs is None for has, one in zip(continued, answers, strict=True)):
        raise click.ClickException("the run has no log-probabilities: repeat it with --answer-logprobs")
    return np.array(continued)


def fit(rows: Numbers, correct: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Return mean and scale of the features, and the weights of a logistic regression with a ridge penalty."""
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-9
    inputs = np.column_stack([np.ones(len(rows)), (rows - mean) / scale])
    signs = 2 * correct - 1

    def loss(weights: Numbers) -> float:
        penalty = RIDGE / 2 * float((weights[1:] ** 2).sum())
        return float(np.logaddexp(0, -signs * (inputs @ weights)).sum()) + penalty

    return mean, scale, minimize(loss, np.zeros(inputs.shape[1]), method="BFGS").x


def score(model: tuple[Numbers, Numbers, Numbers], answers: Sequence[Example]) -> Numbers:
    """Return the score of each answer; infinite for a complete answer of the teacher, which is not escalated."""
    mean, scale, weights = model
    scores = weights[0] + ((features(answers) - mean) / scale) @ weights[1:]
    return np.where(is_continued(answers), scores, np.inf)


def below(share: float, calibration: Sequence[Example], answers: Sequence[Example]) -> NDArray[np.bool_]:
    """Return which answers are escalated, by a score and a threshold that the calibration answers determine."""
    continued = is_continued(calibration)
    correct = np.array([one.correct for one in calibration], float)
    model = fit(features(calibration)[continued], correct[continued])
    threshold = np.quantile(score(model, calibration), share, method="lower")
    scores = score(model, answers)
    return (scores <= threshold) & np.isfinite(scores)


def second_call_usd(first: Example, second: Example, sheet: TeacherPrice) -> float:
    """Return the cost of the teacher's second call: it reads its prompt and guidance, and writes the rest.

    After longer guidance, the student writes again.
    """
    read = second.teacher_input_tokens + first.kept_tokens
    cached = read if read >= sheet.min_cached_tokens else 0
    written = max(1, second.teacher_output_tokens - first.kept_tokens)
    return float(cost_usd(sheet.price(), read, written, cached, 0) + second.cost_usd - second.teacher_usd)


def escalate(
    guided: SettingSummary,
    then: SettingSummary,
    calibration: Sequence[Example] | None,
    sheet: TeacherPrice,
    share: float,
) -> Escalation:
    """Return the answers of guidance, escalated to the teacher alone or to longer guidance (`then`)."""
    answers = guided.examples
    chosen = np.zeros(len(answers), bool)
    if calibration is not None:
        chosen = below(share, calibration, answers)
    else:
        fold = np.arange(len(answers)) % FOLDS
        for number in range(FOLDS):
            others = [one for one, of in zip(answers, fold, strict=True) if of != number]
            chosen[fold == number] = below(share, others, answers)[fold == number]
    pairs = list(zip(answers, then.examples, chosen, strict=True))
    correct = np.array([(second if up else one).correct for one, second, up in pairs], float)
    usd = [float(one.cost_usd) + up * second_call_usd(one, second, sheet) for one, second, up in pairs]
    return Escalation(correct, np.array(usd), float(chosen.mean()))


def over_strongest_mixture(evidence: Evidence, found: Escalation) -> tuple[Contrast, str]:
    """Return the advantage over the most accurate mixture of two fixed settings at the same cost, and its name.

    A setting that costs at most as much is a mixture, too.
    """
    panel = AnswerPanel.of(evidence)
    own = panel.correct.shape[1]
    panel = panel._replace(
        correct=np.column_stack([panel.correct, found.correct]), cost=np.column_stack([panel.cost, found.usd])
    )
    cost = panel.cost.mean(axis=0)
    over = {}
    for one, two in combinations(sorted(range(own), key=lambda at: float(cost[at])), 2):
        if cost[one] <= cost[own]:
            names = f"{evidence.candidates[one].name} | {evidence.candidates[two].name}"
            over[names] = panel._replace(student=one).over_mixture(own, two)
    strongest = min(over, key=lambda names: over[names].point)
    return over[strongest], strongest


def primed(evidence: Evidence, tokens: int) -> SettingSummary:
    for one in evidence.candidates:
        if one.guided and one.setting["projection"] == "primed" and one.setting["tokens"] == tokens:
            return one
    raise click.ClickException(f"the run has no guidance `primed` with m = {tokens}")


def evidence_at(folder: Path, sheets: PriceSheets, sheet: TeacherPrice) -> Evidence:
    """Return the settings of a folder at a sheet's prices."""
    prices = {"teacher": sheet.price(), "student": (sheet.student or sheets.student).price()}
    return evidence_of(read_run(folder), "chat", prices, PromptCaching(_CACHE_HITS, sheet.min_cached_tokens))


@click.command(help=__doc__)
@click.argument("records", type=click.Path(path_type=Path))
@click.option("--calibration", type=click.Path(path_type=Path), help="Other questions, for scores and thresholds.")
def main(records: Path, calibration: Path | None) -> None:
    sheets = read_price_sheets(None)
    rows: list[Row] = []
    for name in SHEETS:
        sheet = next(one for one in sheets.teachers if one.model == name)
        evidence = evidence_at(records, sheets, sheet)
        other = None if calibration is None else evidence_at(calibration, sheets, sheet)
        alone = max((evidence.candidates[at] for at in evidence.teachers), key=lambda one: one.setting["shots"])
        for tokens in LENGTHS:
            known = None if other is None else primed(other, tokens).examples
            targets = {"the teacher": alone}
            if tokens + CHUNK in LENGTHS:
                targets[f"m={tokens + CHUNK}"] = primed(evidence, tokens + CHUNK)
            for (target, then), share in product(targets.items(), SHARES):
                found = escalate(primed(evidence, tokens), then, known, sheet, share)
                contrast, mixture = over_strongest_mixture(evidence, found)
                cost = float(found.usd.mean()) / float(alone.cost_per_answer)
                rows.append(Row(name, tokens, target, share, found, cost, contrast, mixture))
    secondary = [row for row in rows if (row.tokens, row.target, row.share) != PRIMARY]
    corrected = dict(zip(map(id, secondary), holm([_p(row.contrast) for row in secondary]), strict=True))
    click.echo(f"{len(rows[0].found.correct)} questions")
    for row in rows:
        name, tokens, target, share, found, cost, contrast, mixture = row
        low, high = claims([contrast], CONFIDENCE, 0)[0].bound, -claims([-contrast], CONFIDENCE, 0)[0].bound
        verdict = "wins" if low > 0 else "loses" if high < 0 else "undecided"
        p = f"Holm p {corrected[id(row)]:.2f}" if id(row) in corrected else "PRIMARY"
        click.echo(
            f"{name}: m={tokens}, {share:.0%} of the calibration answers to {target}: {found.escalated:.0%} escalated; "
            f"{found.correct.mean():.1%} at {cost:.0%} of the teacher's cost; {contrast.point * 100:+.1f} points "
            f"({low * 100:+.1f} to {high * 100:+.1f}) over {mixture}: {verdict}; {p}"
        )


def _p(contrast: Contrast) -> float:
    """Return the two-sided p-value of the contrast's mean (normal approximation)."""
    return 2 * NormalDist().cdf(-abs(contrast.mean) / contrast.error) if contrast.error else 1.0


if __name__ == "__main__":
    main()
