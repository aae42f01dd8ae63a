"""The figures of a run: those of the paper's Figures 3 to 5, and accuracy against cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.evaluation.reporting import drawing as d
from gateway.evaluation.reporting import wording as w
from gateway.evaluation.reporting.comparison import hull, pareto
from gateway.evaluation.reporting.drawing import Figure, OmittedFigure
from gateway.evaluation.reporting.tables import ReportTable
from gateway.evaluation.statistics import Interval, wilson

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes

    from gateway.evaluation.record import Example
    from gateway.evaluation.reporting.report import ReportGroup, ReportRow, ReportSection
    from gateway.evaluation.summary import SettingSummary

MIN_QUESTIONS = 12
"""Fewer questions are not divided by length."""
_PARTS = 4
_MAX_LINES = 4
_MAX_LABELS = 12
_PARTIAL = " Only some of the guided settings are drawn; the tables have all."


def figures(section: ReportSection, prefix: str) -> Iterator[Figure | OmittedFigure]:
    """Yield all figures of a run, for each request form; `prefix` distinguishes their names from other runs."""
    has_groups = len(section.groups) > 1
    for number, group in enumerate(section.groups, 1):
        name, suffix = f"{prefix}-{number}" if has_groups else prefix, f" ({group.title})" if has_groups else ""
        if section.is_preference:
            yield OmittedFigure("Accuracy", "the scores are preferences over the teacher's answers")
            yield trace(group, f"{name}-trace", f"Time per stage{suffix}")
            continue
        yield frontier(group, f"{name}-frontier", f"Accuracy against cost{suffix}")
        yield by_guidance(group, f"{name}-guidance", f"Accuracy by length of guidance{suffix}")
        yield by_length(group, section, f"{name}-length", f"Accuracy by length of answer{suffix}")
        yield trace(group, f"{name}-trace", f"Time per stage{suffix}")
    if not section.is_preference:
        yield by_exemplars(section, f"{prefix}-exemplars", "Accuracy by number of exemplars")


def frontier(group: ReportGroup, name: str, title: str) -> Figure | OmittedFigure:
    """Plot the accuracy of each setting against the cost of an answer, with the hull of the unbeaten settings."""
    if len(group.comparable) < 2:
        return OmittedFigure(title, "it needs two settings with equal requests and common questions")
    if not any(group.on_common(row).cost_usd for row in group.comparable):
        return OmittedFigure(title, "all costs are zero: the run needs prices")
    unbeaten, edge = pareto(group.common.values()), hull(group.common.values())
    names = {one.name for one in unbeaten}
    best = group.best_row
    few = len(group.comparable) <= _MAX_LABELS
    named = [row for row in group.comparable if few or row is best or not row.guided or row.summary.name in names]
    styles = d.styles(d.kind_of(row, group.rows) for row in group.rows)
    with d.sheet(name, 3.1) as (sheet, axes):
        d.percent_axis(axes, (group.on_common(row).interval for row in group.comparable))
        axes.set_xlabel("USD per 1,000 answers")
        xs, ys = zip(*map(_position, edge), strict=True)
        axes.plot(xs, ys, color=d.SOFT, linestyle="--", linewidth=1.2, label="mixture")
        labeled = set()
        occupied = []
        for row in group.comparable:
            kind = d.kind_of(row, group.rows)
            (x, y), span = _position(group.on_common(row)), group.on_common(row).interval
            # The bars of many points would hide them.
            bar = span if row in named else Interval(y, y)
            size = 11 if styles[kind][1] == "*" else 8
            d.curve(axes, [x], [y], [bar], styles[kind], "none", None if kind in labeled else kind, size)
            labeled.add(kind)
            occupied.append((x, y))
            if bar is span:
                occupied += [(x, span.low + (span.high - span.low) * part / 8) for part in range(9)]
        if best is not None:
            x, y = _position(group.on_common(best))
            axes.plot(x, y, "o", ms=15, mfc="none", mec=d.INK, mew=1.6, label="best", linestyle="none")
        # The marker shows the kind of guidance.
        texts = (f"m={row.summary.setting['tokens']}" if row.guided else row.summary.mode for row in named)
        labels = [(*_position(group.on_common(row)), text) for row, text in zip(named, texts, strict=True)]
        svg = d.svg(sheet, axes, title, labels, occupied)
    columns = ("setting", "USD per 1,000 answers", "accuracy", "95 %", "unbeaten", "best")
    cells = []
    for row in group.comparable:
        label, *accuracy = d.accuracy(row.short_label, group.on_common(row))
        marks = ("yes" if marked else "no" for marked in (row.summary.name in names, row is best))
        cells.append((label, w.per_thousand(group.on_common(row).cost_per_answer), *accuracy, *marks))
    return Figure(name, title, _frontier_caption(group), svg, ReportTable(title, columns, tuple(cells)))


def by_guidance(group: ReportGroup, name: str, title: str) -> Figure | OmittedFigure:
    """Plot accuracy against m with a line for each kind of guidance, and the student and the teacher as levels."""
    guided = [row for row in group.comparable if row.guided]
    kinds: dict[str, list[ReportRow]] = {}
    for row in guided:
        kinds.setdefault(d.kind_of(row, group.rows), []).append(row)
    lengths = {row.summary.setting["tokens"] for row in guided}
    if len(lengths) < 2:
        return OmittedFigure(title, "it needs guidance of two lengths on common questions")
    styles = d.styles(d.kind_of(row, group.rows) for row in group.rows)
    with d.sheet(name, 2.8) as (sheet, axes):
        alone = [row for row in group.comparable if not row.guided]
        levels = {row.short_label: group.on_common(row).accuracy for row in alone}
        d.percent_axis(axes, [levels.values(), *(group.on_common(row).interval for row in guided)])
        for label, level in levels.items():
            axes.axhline(level, color=styles[label][0], linestyle="--", linewidth=1.4, label=label)
        shift = (max(lengths) - min(lengths)) * 0.012
        for index, (kind, some) in enumerate(kinds.items()):
            some.sort(key=lambda row: int(row.summary.setting["tokens"]))
            offset = (index - (len(kinds) - 1) / 2) * shift
            xs = [row.summary.setting["tokens"] + offset for row in some]
            summaries = [group.on_common(row) for row in some]
            dash = d.DASHES[index % len(d.DASHES)]
            _curve(axes, xs, summaries, styles[kind], dash, kind)
        axes.set_xticks(sorted(lengths))
        axes.set_xlabel("m, tokens of guidance")
        svg = d.svg(sheet, axes, title)
    rows = sorted(group.comparable, key=lambda row: (row.guided, row.short_label))
    cells = tuple(d.accuracy(row.short_label, group.on_common(row)) for row in rows)
    caption = (
        "Guidance as in the paper's Figure 5. Bars are Wilson's 95 %; dashes are the teacher and the student alone."
        + _common(group)
    )
    return Figure(name, title, caption, svg, ReportTable(title, ("setting", "accuracy", "95 %"), cells))


def by_length(group: ReportGroup, section: ReportSection, name: str, title: str) -> Figure | OmittedFigure:
    """Plot accuracy by the length of the teacher's own answer, in parts of the questions (paper, Fig. 4)."""
    teacher = group.alone("teacher")
    if teacher is None:
        return OmittedFigure(title, "it needs the teacher alone, whose answers define the length")
    own = section.run.by_setting[teacher.summary.name]
    answers = {question: one for question, one in own.items() if one.teacher_output_tokens}
    if len(answers) < MIN_QUESTIONS:
        return OmittedFigure(title, f"it needs {MIN_QUESTIONS} questions")
    parts = _by_quantile(answers)
    if len(parts) < 2:
        return OmittedFigure(title, "all answers of the teacher have one length")
    rows = _selected(group)
    styles = d.styles(row.short_label for row in rows)
    names = [f"{low}\u2013{high}" for low, high, _ in parts]
    cells: list[tuple[str, ...]] = []
    with d.sheet(name, 2.8) as (sheet, axes):
        bounds = [(0.0,)]
        for index, row in enumerate(rows):
            summary = section.run.by_setting[row.summary.name]
            offset = (index - (len(rows) - 1) / 2) * 0.09
            counts = [[summary[one].correct for one in questions if one in summary] for _, _, questions in parts]
            spans = [wilson(sum(right), len(right)) for right in counts]
            shares = [sum(right) / len(right) if right else float("nan") for right in counts]
            dash = "-" if row.guided else "--"
            xs = [at + offset for at in range(len(parts))]
            d.curve(axes, xs, shares, spans, styles[row.short_label], dash, row.short_label)
            for part, right, share, span in zip(names, counts, shares, spans, strict=True):
                if right:
                    bounds.append((span.high,))
                    label = f"{row.short_label}, {part} tokens"
                    cells.append((label, f"{sum(right)} of {len(right)}", w.percent(share)))
        d.percent_axis(axes, bounds)
        axes.set_xticks(range(len(parts)), names)
        axes.set_xlabel("tokens of the teacher's own answer")
        svg = d.svg(sheet, axes, title)
    caption = (
        "As the paper's Figure 4. The questions are divided into equal parts by the length of the teacher's own "
        "answer; bars are Wilson's 95 %." + (_PARTIAL if len(rows) < len(group.rows) else "")
    )
    columns = ("setting and length", "right", "accuracy")
    return Figure(name, title, caption, svg, ReportTable(title, columns, tuple(cells)))


def trace(group: ReportGroup, name: str, title: str) -> Figure | OmittedFigure:
    """Plot the seconds of the teacher's and the student's stage (paper, Fig. 3)."""
    rows = group.rows if len(group.rows) <= _MAX_LABELS else _selected(group)
    timed = [(row, parts) for row in rows if (parts := row.times.parts) is not None]
    if not timed:
        return OmittedFigure(title, "the durations or the concurrency of the stages are unknown")
    with d.sheet(name, 0.6 + 0.46 * len(timed)) as (sheet, axes):
        for index, (row, (teacher_s, student_s)) in enumerate(timed):
            first = index == 0
            y = -index
            axes.barh(y, teacher_s, 0.42, color=d.TEACHER, label="teacher's stage" if first else None)
            axes.barh(
                y, student_s, 0.42, left=teacher_s, color=d.STUDENT, hatch="//", edgecolor=d.GROUND, linewidth=0,
                label="student's stage" if first else None,
            )  # fmt: skip
            axes.text(0, y + 0.3, f"{row.short_label}: {w.seconds(teacher_s + student_s)} s", va="bottom", ha="left")
        axes.set_ylim(-len(timed) + 0.6, 0.85)
        axes.set_xlim(left=0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds per answer")
        svg = d.svg(sheet, axes, title)
    columns = ("setting", "teacher's stage, s", "student's stage, s", "both, s")
    cells = tuple(
        (row.short_label, w.seconds(teacher_s), w.seconds(student_s), w.seconds(teacher_s + student_s))
        for row, (teacher_s, student_s) in timed
    )
    caption = (
        "As the paper's Figure 3: the engine time of one answer, which is its wait divided by the number of concurrent "
        f"requests: {_concurrency([row for row, _ in timed])}."
    )
    if timed[0][0].times.total_s is not None:
        caption = "As the paper's Figure 3, measured by the client: the wait of one answer for each engine."
    caption += _PARTIAL if len(rows) < len(group.rows) else ""
    return Figure(name, title, caption, svg, ReportTable(title, columns, cells))


def by_exemplars(section: ReportSection, name: str, title: str) -> Figure | OmittedFigure:
    """Plot accuracy against the number of exemplars, a line for each setting that is otherwise equal.

    The exemplars are those of the caller's prompt, or the first ones of a projection (`exemplar_count`).
    """
    same: dict[tuple[object, ...], list[ReportRow]] = {}
    for row in section.rows:
        setting = row.summary.setting
        varied = {"name", "shown", "shots" if setting.get("exemplar_count") is None else "exemplar_count"}
        rest = tuple((part, repr(value)) for part, value in setting.items() if part not in varied)
        same.setdefault(rest, []).append(row)
    found = [some for some in same.values() if len({_exemplars(row) for row in some}) > 1]
    if not found:
        return OmittedFigure(title, "it needs a setting with two numbers of exemplars")
    rows = [row for some in found for row in some]
    with d.sheet(name, 2.8) as (sheet, axes):
        d.percent_axis(axes, (row.summary.interval for row in rows))
        kept = found[: _MAX_LINES + 2]
        labels = [w.without_exemplars(some[0].short_label) for some in kept]
        styles = d.styles(labels)
        for index, (label, some) in enumerate(zip(labels, kept, strict=True)):
            some.sort(key=_exemplars)
            xs = [_exemplars(row) + (index - (len(kept) - 1) / 2) * 0.08 for row in some]
            _curve(axes, xs, [row.summary for row in some], styles[label], "-" if some[0].guided else "--", label)
        axes.set_xticks(sorted({_exemplars(row) for row in rows}))
        axes.set_xlabel("exemplars in the prompt")
        svg = d.svg(sheet, axes, title)
    cells = tuple(
        (*d.accuracy(f"{w.without_exemplars(row.short_label)}, {_exemplars(row)} exemplars", row.summary), *_read(row))
        for row in rows
    )
    caption = "As the paper's Figure 5. Bars are Wilson's 95 %." + (_PARTIAL if len(kept) < len(found) else "")
    columns = ("setting", "accuracy", "95 %", "tokens that the teacher reads", "points / 1,000 of these tokens")
    return Figure(name, title, caption, svg, ReportTable(title, columns, cells))


def _exemplars(row: ReportRow) -> int:
    setting = row.summary.setting
    count = setting.get("exemplar_count")
    return int(setting["shots"] if count is None else count)


def _read(row: ReportRow) -> tuple[str, str]:
    """Return the tokens that the teacher reads for an answer, and the points of accuracy for 1,000 of them."""
    read = row.summary.teacher_input_tokens / row.summary.n
    return (f"{read:.0f}", f"{row.summary.accuracy * 100_000 / read:.1f}") if read else ("", "")


def _frontier_caption(group: ReportGroup) -> str:
    text = (
        "Each point is a setting, with Wilson's 95 %. No setting beats a point on the dashed line. Points between two "
        "of them are reached by dividing requests between the two."
    )
    text += _common(group)
    if group.best is not None:
        return f"{text} The ring is the best guided policy: {group.best.why}."
    if group.alone("teacher") is None:
        return f"{text} The run lacks the teacher alone, so no setting is marked as the best."
    return f"{text} No guided setting is both cheaper than the teacher and better than the student: none is marked."


def _common(group: ReportGroup) -> str:
    """Return a sentence on the common questions if some settings answered more."""
    if all(row.summary.n == group.questions for row in group.rows):
        return ""
    return f" For the {group.questions:,} questions that all drawn settings have answered."


def _selected(group: ReportGroup) -> list[ReportRow]:
    """Return the teacher and the student alone, the best setting, and the most accurate others up to the limit."""
    alone = [row for row in group.rows if not row.guided]
    best = group.best_row
    ranked = sorted(group.guided, key=lambda row: (row is not best, -row.summary.accuracy))[:_MAX_LINES]
    return alone + [row for row in group.rows if row in ranked]


def _by_quantile(answers: Mapping[str, Example]) -> list[tuple[int, int, list[str]]]:
    """Divide the questions into disjoint parts of similar size; return each with its minimum and maximum length."""
    tokens = {question: one.teacher_output_tokens for question, one in answers.items()}
    ordered = sorted(tokens, key=lambda question: (tokens[question], question))
    bounds = sorted({tokens[ordered[len(ordered) * part // _PARTS]] for part in range(1, _PARTS)})
    parts: dict[int, list[str]] = {}
    for question in ordered:
        parts.setdefault(sum(tokens[question] >= bound for bound in bounds), []).append(question)
    return [(tokens[some[0]], tokens[some[-1]], some) for some in parts.values()]


def _curve(
    axes: Axes, xs: Sequence[float], summaries: Sequence[SettingSummary], mark: tuple[str, str], dash: str, label: str
) -> None:
    d.curve(axes, xs, [one.accuracy for one in summaries], [one.interval for one in summaries], mark, dash, label)


def _position(summary: SettingSummary) -> tuple[float, float]:
    return float(summary.cost_per_answer) * 1000, summary.accuracy


def _concurrency(rows: Sequence[ReportRow]) -> str:
    teacher = sorted({one for row in rows if (one := row.times.teacher_concurrency) is not None})
    student = sorted({one for row in rows if (one := row.times.student_concurrency) is not None})
    sides = (("teacher", teacher), ("student", student))
    return ", ".join(f"{' or '.join(map(str, values))} at the {role}" for role, values in sides if values)
