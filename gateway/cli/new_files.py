"""Files that a command creates: checks before it starts, and replacement of all files or none."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config.yaml_source import display_path
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping


def require_writable(folder: Path) -> None:
    """Raise StartupError if files cannot be written to the folder of --out, which may be missing."""
    lowest = next(one for one in (folder, *folder.parents) if one.exists())
    if not lowest.is_dir():
        raise StartupError(f"--out: {lowest} is not a folder")
    if not os.access(lowest, os.W_OK | os.X_OK):
        raise StartupError(f"--out: the folder {lowest} is not writable")


def require_new(targets: Iterable[Path], *, force: bool) -> None:
    """Raise StartupError if files exist. With `force`, `write_all` replaces them."""
    existing = [target for target in targets if target.exists()]
    if existing and not force:
        names = " and ".join(map(display_path, existing))
        verb = "exists" if len(existing) == 1 else "exist"
        raise StartupError(f"{names} {verb}: overwrite with --force, or choose another folder with --out")


def write_all(texts: Mapping[Path, str], private: Container[Path] = (), *, copy: bool = True) -> list[Path]:
    """Write all files, or none: each gets its content by a rename. Raises StartupError.

    Only their owner may read the files in `private`. Without `copy`, replaced files are neither kept nor restored.

    Return the copies of replaced files with another content: FILE.bak, or FILE.bak.2 if that exists.
    """
    token = secrets.token_hex(4)
    unfinished = {target: target.with_name(f".{target.name}.{token}") for target in texts}
    copies = []
    try:
        with ExitStack() as undo:
            for target, text in texts.items():
                missing = [parent for parent in (target.parent, *target.parent.parents) if not parent.exists()]
                for parent in reversed(missing):
                    parent.mkdir()
                    undo.callback(parent.rmdir)
                undo.callback(unfinished[target].unlink, missing_ok=True)
                unfinished[target].touch(mode=0o600 if target in private else 0o666)
                unfinished[target].write_text(text, encoding="utf-8")
            for target, text in texts.items():
                if not target.exists():
                    undo.callback(target.unlink, missing_ok=True)
                elif copy and (before := target.read_bytes()) != text.encode():
                    copies.append(kept := _reserved_copy(target))
                    undo.callback(kept.unlink)
                    shutil.copy2(target, kept)
                    undo.callback(target.write_bytes, before)
                unfinished[target].replace(target)
            undo.pop_all()
    except OSError as error:
        failed = Path(error.filename or next(iter(texts)))
        where = display_path(next((target for target, path in unfinished.items() if path == failed), failed))
        raise StartupError(f"{where} cannot be written: {(error.strerror or 'error').lower()}") from error
    return copies


def _reserved_copy(target: Path) -> Path:
    """Create an empty file for the copy of a file, under a name that is not in use. Raises OSError."""
    for number in count(1):
        copy = target.with_name(f"{target.name}.bak{'' if number == 1 else f'.{number}'}")
        try:
            copy.touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            continue
        return copy
    raise AssertionError
