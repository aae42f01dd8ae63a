"""The figures of a run: what the paper's Figures 3 to 5 show, and accuracy against cost, which it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.evaluation.reporting import drawing as d
from gateway.evaluation.reporting import wording as w
from gateway.evaluation.reporting.figure_parts import (
    Figure,
    OmittedFigure,
    above_0,
    accuracy,
    curve,
    kind_of,
    looks_apart,
    looks_by_kind,
)
from gateway.evaluation.reporting.frontier import hull, pareto
from gateway.evaluation.reporting.placing_labels import place_labels
from gateway.evaluation.reporting.tables import ReportTable
from gateway.evaluation.statistics import Interval, wilson

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes

    from gateway.evaluation.record import Example
    from gateway.evaluation.reporting.report import ReportGroup, ReportRow, ReportSection
    from gateway.evaluation.summary import SettingSummary

FEWEST = 12
"""With fewer questions, parts of them by length tell nothing."""
_PARTS = 4
_MOST_LINES = 4
_ALL_NAMED = 12


def figures(section: ReportSection, prefix: str) -> Iterator[Figure | OmittedFigure]:
    """All of a run, for each way to ask; `prefix` keeps their names apart from another run's."""
    several = len(section.groups) > 1
    for number, group in enumerate(section.groups, 1):
        name, where = f"{prefix}-{number}" if several else prefix, f" ({group.title})" if several else ""
        yield frontier(group, f"{name}-frontier", f"Accuracy against cost{where}")
        yield by_guidance(group, f"{name}-guidance", f"Accuracy by length of guidance{where}")
        yield by_length(group, section, f"{name}-length", f"Accuracy by length of answer{where}")
        yield trace(group, f"{name}-trace", f"Where the time goes{where}")
    yield by_exemplars(section, f"{prefix}-exemplars", "Accuracy by number of exemplars")


def frontier(group: ReportGroup, name: str, title: str) -> Figure | OmittedFigure:
    """Each setting by what an answer cost and how often it was right, with the hull of those that none beats."""
    if len(group.comparable) < 2:
        return OmittedFigure(title, "it needs two settings that answered the same questions, asked the same")
    if not any(group.on_common(row).cost_usd for row in group.comparable):
        return OmittedFigure(title, "nothing cost anything: say prices")
    unbeaten, edge = pareto(group.points), hull(group.points)
    names = {one.name for one in unbeaten}
    best = group.best_row
    named = [
        row
        for row in group.comparable
        if row.summary.name in names
        or row.summary.mode != "guided"
        or row is best
        or len(group.comparable) <= _ALL_NAMED
    ]
    looks = looks_by_kind(group.rows)
    with d.style(name):
        sheet, axes = d.sheet(3.1)
        spans = [group.on_common(row).interval for row in group.comparable]
        d.percent_axis(axes, [*(span.low for span in spans), *(span.high for span in spans)])
        axes.set_xlabel("USD per 1,000 answers")
        axes.plot(
            [_per_thousand(one.cost_usd) for one in edge],
            [one.accuracy for one in edge],
            color=d.SOFT,
            linestyle="--",
            linewidth=1.2,
            label="reached by mixing",
        )
        told = set()
        for row in group.comparable:
            kind = kind_of(row, group.rows)
            colour, marker = looks[kind]
            _point(
                axes, group.on_common(row), colour, marker, label=kind if kind not in told else None, bar=row in named
            )
            told.add(kind)
        if best is not None:
            axes.plot(
                *_place(group.on_common(best)),
                "o",
                ms=15,
                mfc="none",
                mec=d.INK,
                mew=1.6,
                label="best",
                linestyle="none",
            )
        d.legend_below(sheet, axes)
        taken = [
            (_place(group.on_common(row))[0], y)
            for row in group.comparable
            for y in _along(group.on_common(row), bar=row in named)
        ]
        place_labels(axes, [(*_place(group.on_common(row)), _short(row)) for row in named], taken)
        svg = d.svg(sheet, name)
    table = ReportTable(
        title,
        ("setting", "USD per 1,000 answers", "accuracy", "95 %", "unbeaten", "best"),
        tuple(
            (
                row.who,
                w.per_thousand(group.on_common(row).cost_per_answer),
                w.percent(group.on_common(row).accuracy),
                w.percents(group.on_common(row).interval),
                "yes" if row.summary.name in names else "no",
                "yes" if row is best else "no",
            )
            for row in group.comparable
        ),
    )
    return Figure(name, title, _of_frontier(group), svg, table)


def by_guidance(group: ReportGroup, name: str, title: str) -> Figure | OmittedFigure:
    """Accuracy against m, a line for each kind of guidance; student and teacher as levels."""
    # A length that is chosen for each question has no place on the axis; it is in the table.
    guided = [
        row for row in group.comparable if row.summary.mode == "guided" and row.summary.setting["tokens"] != "auto"
    ]
    kinds: dict[str, list[ReportRow]] = {}
    for row in guided:
        kinds.setdefault(kind_of(row, group.rows), []).append(row)
    lengths = {row.summary.setting["tokens"] for row in guided}
    if len(lengths) < 2:
        return OmittedFigure(title, "it needs guidance of two lengths, on the same questions")
    looks = looks_by_kind(group.rows)
    with d.style(name):
        sheet, axes = d.sheet(2.8)
        spans = [group.on_common(row).interval for row in guided]
        alone = [row for row in group.comparable if row.summary.mode != "guided"]
        levels = [group.on_common(row).accuracy for row in alone]
        d.percent_axis(axes, [*levels, *(span.low for span in spans), *(span.high for span in spans)])
        for row in alone:
            colour = looks[kind_of(row, group.rows)][0]
            axes.axhline(group.on_common(row).accuracy, color=colour, linestyle="--", linewidth=1.4, label=row.who)
        shift = (max(lengths) - min(lengths)) * 0.012
        for place, (kind, some) in enumerate(kinds.items()):
            some.sort(key=lambda row: int(row.summary.setting["tokens"]))
            aside = (place - (len(kinds) - 1) / 2) * shift
            xs = [row.summary.setting["tokens"] + aside for row in some]
            curve(axes, xs, [group.on_common(row) for row in some], *looks[kind], kind, d.DASHES[place % len(d.DASHES)])
        axes.set_xticks(sorted(lengths))
        axes.set_xlabel("m, tokens of guidance")
        d.legend_below(sheet, axes)
        svg = d.svg(sheet, name)
    rows = sorted(group.comparable, key=lambda row: (row.summary.mode == "guided", row.who))
    table = ReportTable(
        title, ("setting", "accuracy", "95 %"), tuple(accuracy(row.who, group.on_common(row)) for row in rows)
    )
    caption = "The paper's Figure 5 for guidance. Bars are Wilson's 95 %; dashes are the teacher and the student alone."
    caption += _common(group)
    return Figure(name, title, caption, svg, table)


def by_length(group: ReportGroup, section: ReportSection, name: str, title: str) -> Figure | OmittedFigure:
    """Accuracy in parts of the questions, by how many tokens the teacher alone answers them in (paper, Fig. 4)."""
    teacher = group.one("teacher")
    if teacher is None:
        return OmittedFigure(title, "the length is that of the teacher's own answer, and no teacher was asked alone")
    answers = {
        question: one for question, one in section.answers[teacher.summary.name].items() if one.teacher_output_tokens
    }
    if len(answers) < FEWEST:
        return OmittedFigure(title, f"it needs {FEWEST} questions")
    parts = _by_quantile(answers)
    if len(parts) < 2:
        return OmittedFigure(title, "all answers of the teacher are of one length")
    rows = _chosen(group)
    looks = looks_apart(rows)
    names = [f"{low}\u2013{high}" for low, high, _ in parts]
    cells: list[tuple[str, ...]] = []
    with d.style(name):
        sheet, axes = d.sheet(2.8)
        bounds = [0.0]
        for place, row in enumerate(rows):
            own = section.answers[row.summary.name]
            aside = (place - (len(rows) - 1) / 2) * 0.09
            counts = [[own[one].correct for one in questions if one in own] for _, _, questions in parts]
            spans = [wilson(sum(right), len(right)) for right in counts]
            shares = [sum(right) / len(right) if right else float("nan") for right in counts]
            low = [max(0.0, share - span.low) for share, span in zip(shares, spans, strict=True)]
            high = [max(0.0, span.high - share) for share, span in zip(shares, spans, strict=True)]
            colour, marker = looks[row.who]
            dash = "-" if row.summary.mode == "guided" else "--"
            xs = [at + aside for at in range(len(parts))]
            axes.errorbar(
                xs, shares, yerr=(low, high), color=colour, marker=marker, linestyle=dash, elinewidth=0.9, label=row.who
            )
            bounds.extend(span.high for right, span in zip(counts, spans, strict=True) if right)
            cells.extend(
                (f"{row.who}, {part} tokens", f"{sum(right)} of {len(right)}", w.percent(sum(right) / len(right)))
                for part, right in zip(names, counts, strict=True)
                if right
            )
        d.percent_axis(axes, bounds)
        axes.set_xticks(range(len(parts)), names)
        axes.set_xlabel("tokens of the teacher's own answer")
        d.legend_below(sheet, axes)
        svg = d.svg(sheet, name)
    caption = (
        "The paper's Figure 4. The questions are parted into as many each, by how long the teacher's own answer is; "
        "bars are Wilson's 95 %." + (_SOME if len(rows) < len(group.rows) else "")
    )
    return Figure(
        name, title, caption, svg, ReportTable(title, ("setting and length", "right", "accuracy"), tuple(cells))
    )


def trace(group: ReportGroup, name: str, title: str) -> Figure | OmittedFigure:
    """Seconds of the teacher's and the student's stage, one above the other (paper, Fig. 3)."""
    rows = group.rows if len(group.rows) <= _ALL_NAMED else _chosen(group)
    timed = [(row, parts) for row in rows if (parts := row.times.parts) is not None]
    if not timed:
        return OmittedFigure(title, "nothing is known of how long the stages took, or how many were asked at once")
    with d.style(name):
        sheet, axes = d.sheet(0.6 + 0.46 * len(timed))
        for place, (row, (taught, told)) in enumerate(timed):
            named = place == 0
            at = -place
            axes.barh(at, taught, 0.42, color=d.TEACHER, label="teacher's stage" if named else None)
            axes.barh(
                at, told, 0.42, left=taught, color=d.STUDENT, hatch="//", edgecolor=d.GROUND, linewidth=0,
                label="student's stage" if named else None,
            )  # fmt: skip
            axes.text(0, at + 0.3, f"{row.who}: {w.seconds(taught + told)} s", va="bottom", ha="left")
        axes.set_ylim(-len(timed) + 0.6, 0.85)
        axes.set_xlim(left=0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds per answer")
        d.legend_below(sheet, axes)
        svg = d.svg(sheet, name)
    table = ReportTable(
        title,
        ("setting", "teacher's stage, s", "student's stage, s", "both, s"),
        tuple((row.who, w.seconds(taught), w.seconds(told), w.seconds(taught + told)) for row, (taught, told) in timed),
    )
    caption = (
        "The paper's Figure 3: for how long one answer keeps each engine. That is how long it waited, divided by how "
        f"many waited at once: {_at([row for row, _ in timed])}."
    )
    if timed[0][0].times.total_s is not None:
        caption = "The paper's Figure 3, as callers saw it: for how long one answer waited for each engine."
    caption += _SOME if len(rows) < len(group.rows) else ""
    return Figure(name, title, caption, svg, table)


def by_exemplars(section: ReportSection, name: str, title: str) -> Figure | OmittedFigure:
    """Accuracy against the number of exemplars in the prompt, a line for each setting that is otherwise the same."""
    same: dict[tuple[object, ...], list[ReportRow]] = {}
    for row in section.rows:
        rest = tuple(
            repr(value) for part, value in row.summary.setting.items() if part not in {"name", "shots", "shown"}
        )
        same.setdefault(rest, []).append(row)
    found = [some for some in same.values() if len({row.summary.setting["shots"] for row in some}) > 1]
    if not found:
        return OmittedFigure(title, "it needs one setting with two numbers of exemplars")
    rows = [row for some in found for row in some]
    with d.style(name):
        sheet, axes = d.sheet(2.8)
        spans = [row.summary.interval for row in rows]
        d.percent_axis(axes, [*(span.low for span in spans), *(span.high for span in spans)])
        kept = found[: _MOST_LINES + 2]
        looks = looks_apart([some[0] for some in kept])
        for place, some in enumerate(kept):
            some.sort(key=lambda row: int(row.summary.setting["shots"]))
            mode = some[0].summary.mode
            colour, marker = looks[some[0].who]
            xs = [row.summary.setting["shots"] + (place - (len(kept) - 1) / 2) * 0.08 for row in some]
            dash = "-" if mode == "guided" else "--"
            curve(axes, xs, [row.summary for row in some], colour, marker, some[0].who, dash)
        axes.set_xticks(sorted({row.summary.setting["shots"] for row in rows}))
        axes.set_xlabel("exemplars in the prompt")
        d.legend_below(sheet, axes)
        svg = d.svg(sheet, name)
    cells = tuple(accuracy(f"{row.who}, {row.summary.setting['shots']} exemplars", row.summary) for row in rows)
    caption = "The paper's Figure 5. Bars are Wilson's 95 %." + (_SOME if len(kept) < len(found) else "")
    return Figure(name, title, caption, svg, ReportTable(title, ("setting", "accuracy", "95 %"), cells))


_SOME = " Only some of the guided settings are drawn; the tables have all."


def _of_frontier(group: ReportGroup) -> str:
    said = (
        "Each point is a setting, with Wilson's 95 %. A point on the dashed line is beaten by none, and what lies "
        "between two of them is reached by sending each a share of the requests."
    )
    said += _common(group)
    if group.best is not None:
        return f"{said} The ring is the best guided policy: {group.best.why}."
    if group.one("teacher") is None:
        return f"{said} No teacher was asked alone, so no setting is marked as the best."
    return f"{said} No guided setting is both cheaper than the teacher and better than the student: none is marked."


def _common(group: ReportGroup) -> str:
    """On which questions, where settings have not all answered the same."""
    if all(row.summary.n == group.questions for row in group.rows):
        return ""
    return f" On the {group.questions:,} questions that all settings drawn here have answered."


def _chosen(group: ReportGroup) -> list[ReportRow]:
    """Those alone, the best, and the most accurate of the rest, as many as a figure can hold."""
    alone = [row for row in group.rows if row.summary.mode != "guided"]
    best = group.best_row
    ranked = sorted(group.guided, key=lambda row: (row is not best, -row.summary.accuracy))[:_MOST_LINES]
    return alone + [row for row in group.rows if row in ranked]


def _by_quantile(answers: Mapping[str, Example]) -> list[tuple[int, int, list[str]]]:
    """The questions in parts of about as many each, with their shortest and longest length; none lies in two."""
    ordered = sorted(answers, key=lambda question: (answers[question].teacher_output_tokens, question))
    lengths = [answers[question].teacher_output_tokens for question in ordered]
    bounds = sorted({lengths[min(len(lengths) - 1, len(lengths) * part // _PARTS)] for part in range(1, _PARTS)})
    parts: dict[int, list[str]] = {}
    for question, length in zip(ordered, lengths, strict=True):
        parts.setdefault(sum(length >= bound for bound in bounds), []).append(question)
    of = dict(zip(ordered, lengths, strict=True))
    return [(of[some[0]], of[some[-1]], some) for some in parts.values()]


def _point(axes: Axes, own: SettingSummary, colour: str, marker: str, *, label: str | None, bar: bool) -> None:
    """With its error bar, or without: the bars of many points hide them."""
    x, y = _place(own)
    span = own.interval if bar else Interval(y, y)
    size = 11 if marker == "*" else 8
    error = (above_0([y - span.low]), above_0([span.high - y]))
    axes.errorbar(
        [x], [y], yerr=error, color=colour, marker=marker, ms=size, linestyle="none", elinewidth=0.9, label=label
    )


def _along(own: SettingSummary, *, bar: bool) -> list[float]:
    """Its point, and places on its error bar."""
    span = own.interval
    return [own.accuracy, *(span.low + (span.high - span.low) * part / 8 for part in range(9) if bar)]


def _place(own: SettingSummary) -> tuple[float, float]:
    return _per_thousand(own.cost_per_answer), own.accuracy


def _per_thousand(cost: object) -> float:
    return float(str(cost)) * 1000


def _short(row: ReportRow) -> str:
    """The mark says which kind of guidance it is."""
    return f"m={row.summary.setting['tokens']}" if row.summary.mode == "guided" else row.summary.mode


def _at(rows: Sequence[ReportRow]) -> str:
    teacher = sorted({row.times.teacher_at for row in rows if row.times.teacher_at is not None})
    student = sorted({row.times.student_at for row in rows if row.times.student_at is not None})
    said = [
        f"{' or '.join(map(str, some))} at the {role}"
        for role, some in (("teacher", teacher), ("student", student))
        if some
    ]
    return ", ".join(said)
