"""`gkt-gateway docs`: the documentation of the installed version."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import gateway
from gateway.config.yaml_messages import suggestion
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PACKAGE = Path(gateway.__file__).parent
_SHIPPED = _PACKAGE / "documentation"
_FENCE = re.compile(r" *(```|~~~)")
_HEADING = re.compile(r"(#{1,6}) (.+)")


def docs(
    page: Annotated[
        str | None,
        typer.Argument(
            help="A page (`policies`) or a section of one (`operations#readiness`). Default: list the pages."
        ),
    ] = None,
    *,
    path: Annotated[bool, typer.Option("--path", help="Print the path of the page's file instead.")] = False,
) -> None:
    """Print a page of the documentation of this version, or one section of a page.

    The pages are Markdown. Links to other pages are relative paths; links to code lead to files of the source.
    """
    files = pages()
    if page is None:
        width = max(map(len, files), default=0)
        for name, file in files.items():
            typer.echo(f"{name:<{width}}  {file if path else _title(file)}")
        return
    name, _, section = page.partition("#")
    if name not in files:
        hint = suggestion(name, files)
        raise StartupError(f"The documentation has no page '{name}'.{hint} `gkt-gateway docs` lists all pages.")
    text = files[name].read_text("utf-8")
    if section:
        parts = sections(text)
        if section not in parts:
            raise StartupError(f"The page '{name}' has no section '{section}'.{suggestion(section, parts)}")
        text = parts[section]
    if path:
        typer.echo(files[name])
    else:
        typer.echo(text, nl=False)


def pages() -> dict[str, Path]:
    """Return the files of all pages by name. Raises StartupError if the installation has none."""
    folder = _SHIPPED if _SHIPPED.is_dir() else _PACKAGE.parent / "docs"
    found = {file.stem: file for part in ("*.md", "*/*.md") for file in sorted(folder.glob(part))}
    if not found:
        raise StartupError("This installation has no documentation. Install the wheel of a release.")
    return found


def sections(text: str) -> dict[str, str]:
    """Return the sections of a page by anchor. A section includes the sections below its heading."""
    lines = text.splitlines(keepends=True)
    headings = list(_headings(lines))
    found: dict[str, str] = {}
    seen: dict[str, int] = {}
    for index, (first, level, title) in enumerate(headings):
        last = next((line for line, other, _ in headings[index + 1 :] if other <= level), len(lines))
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        count = seen[anchor] = seen.get(anchor, -1) + 1
        found[f"{anchor}-{count}" if count else anchor] = "".join(lines[first:last])
    return found


def _headings(lines: list[str]) -> Iterator[tuple[int, int, str]]:
    """Yield line, level and title of each heading outside code blocks."""
    fence = ""
    for number, line in enumerate(lines):
        if (mark := _FENCE.match(line)) is not None:
            fence = "" if fence == mark[1] else fence or mark[1]
        elif not fence and (heading := _HEADING.match(line)) is not None:
            yield number, len(heading[1]), heading[2].strip()


def _title(file: Path) -> str:
    return next((title for _, _, title in _headings(file.read_text("utf-8").splitlines())), "")
