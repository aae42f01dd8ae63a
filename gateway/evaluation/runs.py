"""Reads what a run left in its folder, for whoever only looks at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.errors import StartupError
from gateway.evaluation.record import EXAMPLES, MANIFEST, Example, Manifest, read_lines
from gateway.yaml_source import shown

if TYPE_CHECKING:
    from pathlib import Path


def read_run(folder: Path) -> tuple[Manifest, list[Example]]:
    """What was asked, and what came of it. Raises StartupError, which names the file."""
    file = folder / MANIFEST
    try:
        manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
        file = folder / EXAMPLES
        return manifest, list(read_lines(file, Example))
    except OSError as error:
        why = (error.strerror or "error").lower()
        raise StartupError(f"{shown(file)} cannot be read ({why}): name a folder that `eval run` has filled.") from None
    except msgspec.DecodeError as error:
        raise StartupError(f"{shown(file)} is not of this version's `eval run`: {error}.") from None
