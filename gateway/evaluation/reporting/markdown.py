"""The Markdown page of a report. All texts are escaped: models wrote some of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from gateway.evaluation.reporting import wording as w
from gateway.evaluation.reporting.published import CAVEAT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gateway.evaluation.reporting.drawing import Figure, OmittedFigure
    from gateway.evaluation.reporting.published import PublishedComparison
    from gateway.evaluation.reporting.tables import Flips, ReportTable

FIGURES = "figures"
"""The folder of the figures, beside the page."""
_BLANKS = re.compile(r"[^\S\u00a0]+")
_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$!])")


class ReportChapter(NamedTuple):
    """The contents of a run's chapter. `paper` is None if the paper does not use the data set."""

    title: str
    headline: Sequence[str]
    remarks: Sequence[str]
    facts: Sequence[tuple[str, str]]
    figures: Sequence[Figure]
    omitted: Sequence[OmittedFigure]
    tables: Sequence[ReportTable]
    flips: Sequence[Flips]
    paper: PublishedComparison | None


def page(title: str, overview: ReportTable | None, chapters: Sequence[ReportChapter], closing: str) -> str:
    """Return the page. Several chapters have titles, and one has the page's title."""
    blocks = [f"# {markdown(title)}"]
    if overview is not None:
        blocks += _table(overview, "##")
    for chapter in chapters:
        if len(chapters) > 1:
            blocks += [f"## {markdown(chapter.title)}", *_chapter(chapter, "###")]
        else:
            blocks += _chapter(chapter, "##")
    return "\n\n".join([*blocks, closing]) + "\n"


def markdown(text: str) -> str:
    """Escape text for Markdown and HTML, in one line."""
    one_line = _BLANKS.sub(" ", text).strip()
    return _SPECIAL.sub(r"\\\1", one_line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _note(text: str) -> str:
    return markdown(w.unbroken(text))


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(table: ReportTable, heading: str) -> Iterator[str]:
    yield f"{heading} {markdown(table.title)}"
    head = " | ".join(_note(column) for column in table.columns)
    rule = "|".join(["---", *("---:" for _ in table.columns[1:])])
    rows = (" | ".join(map(markdown, row)) for row in table.rows)
    yield "\n".join([f"| {head} |", f"|{rule}|", *(f"| {row} |" for row in rows)])
    if table.note:
        yield _note(table.note)


def _chapter(chapter: ReportChapter, heading: str) -> Iterator[str]:
    yield _list(map(markdown, chapter.headline))
    if chapter.remarks:
        yield "Incomplete run:"
        yield _list(map(markdown, chapter.remarks))
    yield f"{heading} Run"
    yield _list(f"{markdown(name)}: {markdown(value)}" for name, value in chapter.facts)
    for figure in chapter.figures:
        yield f"{heading} {markdown(figure.title)}"
        yield f"![{markdown(figure.alt)}]({FIGURES}/{figure.name}.svg)"
        yield _note(figure.caption)
    if chapter.omitted:
        yield f"{heading} Omitted figures"
        yield _list(f"{markdown(one.title)}: {markdown(one.reason)}." for one in chapter.omitted)
    for table in chapter.tables:
        yield from _table(table, heading)
    if chapter.flips:
        yield f"{heading} Questions with different results"
        yield "The end of each answer, at most 20 words."
        for flips in chapter.flips:
            yield from _flips(flips)
    yield f"{heading} Comparison with the paper"
    yield from _paper(chapter.paper, heading)


def _flips(flips: Flips) -> Iterator[str]:
    if not flips.count:
        return
    own, others = ("right", "wrong") if flips.way == "won" else ("wrong", "right")
    yield f"**{markdown(flips.label)}: {own} on {flips.count} where the {flips.against} alone is {others}**"
    yield "\n".join(
        f"- {markdown(one.question)}: {markdown(one.found or 'no result')} against "
        f"{markdown(one.reference_found or 'no result')}\n"
        f"  - guided: \u201c{markdown(one.text)}\u201d\n"
        f"  - {flips.against}: \u201c{markdown(one.reference_text)}\u201d"
        for one in flips.shown
    )


def _paper(paper: PublishedComparison | None, heading: str) -> Iterator[str]:
    if paper is None:
        yield "The paper has no figures for this data set."
        return
    yield _note(CAVEAT)
    yield from _table(paper.pairs, f"{heading}#")
    yield from _table(paper.claims, f"{heading}#")
    yield "Inconsistencies of the paper, and remarks:"
    yield _list(map(_note, paper.notes))
