"""A file of exemplars, as a policy's `exemplars:` and `--exemplars` name it: a YAML list of questions with answers."""

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
    """The file's text: comments that say where it comes from, one a line, then the exemplars, each with its own."""
    entries = CommentedSeq()
    for one in shown:
        entries.append(CommentedMap(question=_text(one.exemplar.question), answer=_text(one.exemplar.answer)))
    for at, one in enumerate(shown):
        entries.yaml_set_comment_before_after_key(at, before=_origin(one))
    yaml = YAML()
    yaml.width = _WIDTH
    yaml.allow_unicode = True
    written = StringIO()
    yaml.dump(entries, written)
    return "".join(f"# {_plain(line)}\n" for line in provenance) + "\n" + written.getvalue()


def write_file(path: Path, text: str, *, over: bool) -> None:
    """Write it. Raises StartupError where it is there and may not be written over, or cannot be written at all."""
    try:
        with path.open("w" if over else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise there_already(path) from None
    except OSError as error:
        raise StartupError(f"{path} cannot be written: {error.strerror}. Name another file with --out.") from error


def there_already(path: Path) -> StartupError:
    """What to say of a file that is there."""
    return StartupError(f"{path} is there already. Name another file with --out, or write over it with --force.")


_ORIGIN: Mapping[Style, str] = MappingProxyType(
    {
        "as it is": "the teacher's, as it is",
        "concise": "the teacher's, asked to be brief",
        "primed": "the teacher's, behind general exemplars",
        "result alone": "the result of the teacher's, alone",
        "result first": "the teacher's, put in order: its result first",
        "reasoning first": "the teacher's, put in order: its result last",
    }
)


def _origin(one: ExemplarCandidate) -> str:
    if one.style == "given":
        return f"Number {_plain(one.question)}, as it was given."
    return f"Question {_plain(one.question)} of the data; its answer is {_ORIGIN[one.style]}, {one.tokens} tokens."


def _text(text: str) -> str:
    """Several lines stay lines, where YAML can write them so: not with blanks before a line's end, or at its begin."""
    lines = text.split("\n")
    whole = all(line == line.rstrip() and line.isprintable() for line in lines)
    return LiteralScalarString(text) if len(lines) > 1 and whole and text[0].strip() and lines[-1] else text


def _plain(text: str) -> str:
    """One line that no reader takes for more than a comment."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
