"""Files with learned length models in the policies folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.config.yaml_source import display_path
from gateway.errors import ConfigIssue
from gateway.policy.length_model import MAX_FILE_BYTES, FittedLengths, lengths_of
from gateway.policy.named_files import NamedFiles, ParsedFile

if TYPE_CHECKING:
    from pathlib import Path


def length_files() -> NamedFiles[FittedLengths]:
    """Return a reader of the `eval fit` files that policies name."""
    return NamedFiles("lengths/chat.json", frozenset({".json"}), MAX_FILE_BYTES, _parsed)


def _parsed(raw: bytes, file: Path) -> ParsedFile[FittedLengths]:
    try:
        return ParsedFile(lengths_of(raw))
    except ValueError as error:
        return ParsedFile(None, (ConfigIssue(display_path(file), 0, 0, "", str(error)),))
