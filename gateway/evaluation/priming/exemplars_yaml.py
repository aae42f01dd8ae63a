"""A file of exemplars for a policy's `exemplars:` and for `--exemplars`: a YAML list of questions with answers."""

from __future__ import annotations

from io import StringIO
from types import MappingProxyType
from typing import TYPE_CHECKING

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import LiteralScalarString

from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gateway.evaluation.priming.exemplars import ExemplarCandidate, Style

_WIDTH = 110


def exemplar_yaml(shown: Sequence[ExemplarCandidate], provenance: Sequence[str]) -> str:
    """Return the file's text: one comment line per line of `provenance`, then the exemplars with their sources."""
    entries = CommentedSeq()
    for one in shown:
        entries.append(CommentedMap(question=_text(one.exemplar.question), answer=_text(one.exemplar.answer)))
    for at, one in enumerate(shown):
        entries.yaml_set_comment_before_after_key(at, before=_origin(one))
    yaml = YAML()
    yaml.width = _WIDTH
    yaml.allow_unicode = True
    output = StringIO()
    yaml.dump(entries, output)
    return "".join(f"# {_plain(line)}\n" for line in provenance) + "\n" + output.getvalue()


def write_file(path: Path, text: str, *, overwrite: bool) -> None:
    """Write the file. Raises StartupError if it exists and may not be overwritten, or cannot be written."""
    try:
        with path.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise exists_error(path) from None
    except OSError as error:
        raise StartupError(f"{path} cannot be written: {error.strerror}. Name another file with --out.") from error


def exists_error(path: Path) -> StartupError:
    """Return the error for an existing file."""
    return StartupError(f"{path} exists. Name another file with --out, or overwrite it with --force.")


_ORIGIN: Mapping[Style, str] = MappingProxyType(
    {
        "as it is": "the teacher's, unchanged",
        "concise": "the teacher's, with the concise projection",
        "primed": "the teacher's, after general exemplars",
        "result alone": "the result of the teacher's",
        "result first": "the teacher's, with its result moved to the start",
        "reasoning first": "the teacher's, with its result moved to the end",
    }
)


def _origin(one: ExemplarCandidate) -> str:
    if one.style == "given":
        return f"Number {_plain(one.question)}, unchanged."
    return f"Question {_plain(one.question)} of the data; its answer is {_ORIGIN[one.style]}, {one.tokens} tokens."


def _text(text: str) -> str:
    """Keep several lines as a YAML literal if possible: without trailing blanks and leading white space."""
    lines = text.split("\n")
    is_literal = all(line == line.rstrip() and line.isprintable() for line in lines)
    return LiteralScalarString(text) if len(lines) > 1 and is_literal and text[0].strip() and lines[-1] else text


def _plain(text: str) -> str:
    """Return the text as one line, so that it stays within a comment."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
