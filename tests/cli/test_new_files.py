"""Files that a command creates: all or none, with copies of those that they replace."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.cli.new_files import require_writable, write_all
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOBODY = 65_534


def content(folder: Path) -> dict[str, str]:
    """Return the text of each file by its path, and an empty text for each folder."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else "" for path in found}


def texts(folder: Path) -> dict[Path, str]:
    return {folder / "config.yaml": "a new one", folder / "policies" / "default.yaml": "another new one"}


def test_replaced_files_are_kept_under_the_next_free_name(tmp_path: Path) -> None:
    target = tmp_path / "config.yaml"
    target.write_text("mine")
    target.chmod(0o600)
    assert write_all({target: "first"}) == [tmp_path / "config.yaml.bak"]
    assert (tmp_path / "config.yaml.bak").stat().st_mode & 0o777 == 0o600
    assert write_all({target: "second"}) == [tmp_path / "config.yaml.bak.2"]
    assert content(tmp_path) == {"config.yaml": "second", "config.yaml.bak": "mine", "config.yaml.bak.2": "first"}


def test_a_file_with_the_same_content_needs_no_copy(tmp_path: Path) -> None:
    assert write_all(texts(tmp_path)) == []
    before = content(tmp_path)
    assert write_all(texts(tmp_path)) == []
    assert content(tmp_path) == before


@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_while_files_are_replaced_restores_the_folder(
    existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "folder"
    if existing:
        (folder / "policies").mkdir(parents=True)
        (folder / "config.yaml").write_text("mine")
    before = content(tmp_path)
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if "default" in target.name:
            raise PermissionError(13, "Permission denied", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(StartupError, match=r"default\.yaml cannot be written: permission denied"):
        write_all(texts(folder))
    assert content(tmp_path) == before


def test_a_folder_in_place_of_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "policies" / "default.yaml").mkdir(parents=True)
    with pytest.raises(StartupError, match=r"policies/default\.yaml cannot be written: is a directory"):
        write_all(texts(tmp_path))
    assert content(tmp_path) == {"policies": "", "policies/default.yaml": ""}


@pytest.mark.parametrize("missing", ["", "new/folder"])
def test_a_folder_that_is_not_writable_is_reported(missing: str) -> None:
    # Root alone may enter the folders of pytest.
    with tempfile.TemporaryDirectory() as name, _ordinary_user():
        folder = Path(name)
        folder.chmod(0o777)
        require_writable(folder / missing)
        folder.chmod(0o555)
        with pytest.raises(StartupError, match=f"--out: the folder {folder} is not writable"):
            require_writable(folder / missing)
        folder.chmod(0o700)


@contextmanager
def _ordinary_user() -> Iterator[None]:
    """Let permissions apply to root, too: they are checked for the real user of the process."""
    before = os.getuid()
    if before != 0:
        yield
        return
    os.setreuid(_NOBODY, -1)
    try:
        yield
    finally:
        os.setreuid(before, -1)
