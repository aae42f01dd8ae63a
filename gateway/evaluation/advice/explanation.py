"""A recommendation in sentences: expected results, their source and risk, and cautions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.evaluation.advice.target import percent
from gateway.evaluation.summary import COST_NOTE
from gateway.policy.projections import PROJECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from gateway.evaluation.advice.recommend import Benefit, HeldOutResult, Loss, Recommendation
    from gateway.evaluation.summary import SettingSummary

_ROUNDING = 1e-9  # of differences of accuracies
# Default deadline of guidance in a policy.
_DEADLINE_S = 2.0
_SLOW = 0.95


def comments(recommendation: Recommendation) -> Iterator[str]:
    """Yield the expected results, their source, risk and cautions, in a sentence or two each."""
    evidence, benefit = recommendation.evidence, recommendation.benefit
    yield f"Target: {recommendation.target}. Result: {recommendation.reason}."
    for source, manifest in zip(evidence.sources, evidence.manifests, strict=True):
        when = datetime.fromtimestamp(manifest.created, UTC)
        yield (
            f"Source: {source} of {when:%Y-%m-%d}: {manifest.data}, {manifest.teacher} and {manifest.student}, "
            f"requests as {evidence.request_form}. {COST_NOTE}"
        )
    teacher, student = evidence.candidates[recommendation.best_teacher], evidence.candidates[evidence.student]
    is_better = teacher.accuracy >= student.accuracy
    if not is_better:
        yield (
            f"The teacher alone is less accurate than the student alone: {percent(teacher.accuracy)} and "
            f"{percent(student.accuracy)} right. There is no accuracy to keep."
        )
    if recommendation.setting is not None:
        yield f"Expected from {recommendation.setting.n} questions: {_figures(recommendation.setting)}."
    if benefit is not None:
        if benefit.setting != recommendation.chosen:
            best = evidence.candidates[benefit.setting]
            yield f"Nearest guided setting: {best.name}: {_figures(best)}."
        yield from _answers(recommendation, benefit)
    chosen = recommendation.chosen
    if chosen is not None and not evidence.candidates[chosen].guided and chosen != recommendation.best_teacher:
        yield f"{_loss(recommendation.losses[chosen], 'the chosen setting', teacher)}."
    for index in evidence.teachers:
        if not evidence.is_selectable(index):
            yield (
                f"{evidence.candidates[index].name} is a baseline only: a policy does not choose the form and the "
                "exemplars of requests."
            )
    if recommendation.held_out is not None:
        yield _held_out(recommendation.held_out, recommendation, with_ratio=is_better)
    yield from evidence.notes
    yield from cautions(recommendation)


def cautions(recommendation: Recommendation) -> Iterator[str]:
    """Yield the limits of the figures."""
    if recommendation.setting is None or not recommendation.setting.guided:
        return
    times = sorted(one.teacher_s for one in recommendation.setting.examples if one.teacher_s is not None)
    slow = times[int(_SLOW * (len(times) - 1))] if times else 0.0
    if slow > _DEADLINE_S:
        yield (
            f"In the run the teacher took up to {slow:.1f} s for guidance, with concurrent requests; a gateway waits "
            f"{_DEADLINE_S:g} s unless guidance.deadline is set."
        )
    setting = recommendation.setting.setting
    name = setting["projection"]
    if "route" in setting and (name not in PROJECTIONS or PROJECTIONS[name].exemplars):
        yield (
            f"The measured gateway used its own files for projection {name}: copy its projection, or its exemplars "
            "(guidance.exemplars), next to this policy."
        )
    if not all(manifest.live for manifest in recommendation.evidence.manifests):
        yield "Measured in two stages, not through a gateway: late or missing guidance is not included in the figures."


def _figures(one: SettingSummary) -> str:
    return (
        f"{percent(one.accuracy)} right{_interval(one.interval)}; {usd_per_1k(one.cost_per_answer)} USD per 1000 "
        f"answers; each answer has {one.teacher_output_tokens / one.n:.0f} teacher tokens and "
        f"{one.student_output_tokens / one.n:.0f} student tokens"
    )


def _answers(recommendation: Recommendation, benefit: Benefit) -> Iterator[str]:
    """Yield three answers about a guided setting: advantage over the mixture, loss of accuracy, and savings.

    Each names the setting if another one is chosen.
    """
    candidates, advantage = recommendation.evidence.candidates, benefit.advantage
    against, best = candidates[advantage.teacher], candidates[benefit.best_teacher]
    point, bound = (f"{one * 100:+.1f}" for one in (advantage.claim.point, advantage.claim.bound))
    its = "this setting" if benefit.setting == recommendation.chosen else "that guided setting"
    yield (
        f"Advantage of {its} over a student-teacher mixture at its cost: {advantage.answer} with "
        f"{percent(recommendation.confidence, 0)} confidence, {point} points (at least {bound}). The teacher of the "
        f"mixture is {against.name}."
    )
    yield f"{_loss(benefit.loss, its, best)}. {_risk(recommendation, benefit)}"
    share = benefit.saved_share
    saved = "" if share is None else f"{percent(share.value, 0)}{_interval(share.interval)}, "
    yield (
        f"Savings with {its}: {saved}{usd_per_1k(benefit.saved_usd)} USD per 1000 answers, compared with "
        f"{against.name}."
    )


def _loss(loss: Loss, its: str, best: SettingSummary) -> str:
    low, high = (f"{one * 100:.1f}" for one in loss.interval)
    return (
        f"Loss of accuracy with {its}: {loss.value * 100:.1f} points (95 %: {low} to {high}) compared with "
        f"{best.name}, which has {percent(best.accuracy)} right"
    )


def _risk(recommendation: Recommendation, benefit: Benefit) -> str:
    n, (_, high) = len(recommendation.evidence.questions), benefit.loss.interval
    accuracy = recommendation.evidence.candidates[benefit.best_teacher].accuracy
    allowed = recommendation.target.allowed_loss(accuracy)
    limit = "" if allowed is None else f", and the target allows {allowed * 100:.1f}"
    if allowed is not None and not recommendation.results[benefit.setting].reaches:
        return f"The target allows {allowed * 100:.1f}."
    risk = f"The loss may be up to {high * 100:.1f} points{limit}"
    if allowed is not None and high <= allowed:
        return f"{risk}."
    narrowed = (benefit.loss.value + high) / 2  # four times as many questions halve the interval
    return f"{risk}; {3 * n:,} questions in addition to these {n:,} would narrow it to {narrowed * 100:.1f}."


def incomplete(one: SettingSummary) -> str:
    """Return how many answers of a setting were truncated or failed."""
    failed = sum(one.errors.values())
    return f"{one.cut} of {one.n} answers truncated at {one.setting['max_tokens']} tokens, {failed} failed"


def _held_out(held: HeldOutResult, recommendation: Recommendation, *, with_ratio: bool) -> str:
    ratio = held.accuracy / held.teacher_accuracy if held.teacher_accuracy and with_ratio else None
    kept = "" if ratio is None else f", of which {percent(ratio)} is kept"
    allowed = recommendation.target.allowed_loss(held.teacher_accuracy)
    missed = allowed is not None and held.teacher_accuracy - held.accuracy > allowed + _ROUNDING
    advice = f" Expect this result{', which misses the target' if missed else ''}: the best of many settings looks "
    advice += "better on the questions that selected it."
    return (
        f"Selected and measured on different questions ({held.folds} folds): {percent(held.accuracy)} right"
        f"{_interval(held.interval)} at {usd_per_1k(held.cost_usd)} USD per 1000 answers; the teacher alone "
        f"{percent(held.teacher_accuracy)}{kept}.{advice if recommendation.verdict == 'guided' else ''}"
    )


def usd_per_1k(usd: Decimal) -> str:
    """Return the cost of 1000 answers with four significant digits."""
    amount = usd * 1000
    return f"{amount:.{max(2, 3 - amount.adjusted())}f}" if amount else "0"


def _interval(found: tuple[float, float] | None) -> str:
    return "" if found is None else f" (95 %: {percent(found[0])} to {percent(found[1])})"
