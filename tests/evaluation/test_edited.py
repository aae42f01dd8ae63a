"""Files of a setting's projection that changed since its run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gateway.evaluation.advice.policy_file import edited_files
from gateway.evaluation.folder import shown_hash
from gateway.evaluation.questions.data import exemplars
from gateway.evaluation.setting import RunLibrary, Setting

if TYPE_CHECKING:
    from pathlib import Path

BRISK = "system: Be brisk.\nkeep: {skip: english}\n"
TWO = "- {question: How many is 2 + 2?, answer: 2 + 2 = 4.}\n- {question: And 3 + 3?, answer: 3 + 3 = 6.}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a policies folder with exemplars."""
    (tmp_path / "projections").mkdir()
    (tmp_path / "projections" / "brisk.yaml").write_text(BRISK)
    (tmp_path / "mine.yaml").write_text(TWO)
    return tmp_path


def setting_dict(folder: Path, projection: str, shots: int = 0) -> dict[str, Any]:
    """Return a setting as in a manifest, whose prompts show exemplars of --exemplars."""
    listed = exemplars(folder / "mine.yaml")
    library = RunLibrary.read(folder, folder / "mine.yaml", listed)
    setting = Setting(mode="guided", tokens=20, shots=shots, projection=library.find(projection))
    return library.with_source(setting).as_dict() | {"shown": shown_hash(setting, listed)}


def test_an_equivalent_file_is_not_edited(folder: Path) -> None:
    setting = setting_dict(folder, "brisk")
    (folder / "projections" / "brisk.yaml").write_text("# Ours.\n" + BRISK)
    assert edited_files(setting) == ()


@pytest.mark.parametrize("says", ["system: Be quick.\n", "system: Be brisk.\n", "sytem: Be brisk.\n", "{", ""])
def test_a_changed_or_invalid_file_is_edited(folder: Path, says: str) -> None:
    setting = setting_dict(folder, "brisk")
    file = folder / "projections" / "brisk.yaml"
    file.write_text(says)
    assert edited_files(setting) == (file,)


def test_issues_in_other_files_have_no_effect(folder: Path) -> None:
    setting = setting_dict(folder, "brisk")
    (folder / "projections" / "other.yaml").write_text("{")
    assert edited_files(setting) == ()


@pytest.mark.parametrize("shots", [0, 1])
@pytest.mark.parametrize("says", [TWO.replace("4", "5"), TWO.splitlines()[0], "[]", "- {question: Why?}"])
def test_a_file_of_exemplars_is_compared_with_the_recorded_prompts(folder: Path, shots: int, says: str) -> None:
    setting = setting_dict(folder, "primed", shots)
    assert edited_files(setting) == ()
    (folder / "mine.yaml").write_text(says)
    assert edited_files(setting) == (folder / "mine.yaml",)


def test_unknown_changes_are_not_reported(folder: Path) -> None:
    """No hash, no files, a projection of the policy, or a prompt with unrecorded exemplars."""
    settings = [setting_dict(folder, "brisk"), setting_dict(folder, "brisk", 2), setting_dict(folder, "concise")]
    (folder / "projections" / "brisk.yaml").write_text("system: Be quick.\n")
    old, few_shot, shipped = settings
    unnamed = {name: value for name, value in old.items() if name != "projection"}
    hashless = {name: value for name, value in old.items() if name != "shown"}
    shipped = shipped | {"shown": "0" * 16}
    assert [edited_files(one) for one in (hashless, few_shot, shipped, unnamed)] == [()] * 4
    assert edited_files(old)
