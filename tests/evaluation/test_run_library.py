"""The projections that a run may name: those of policies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gateway.errors import ConfigError, StartupError
from gateway.evaluation.setting import RunLibrary, Setting
from gateway.policy.projections import PRIMED, PROJECTIONS, Exemplar

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.policy.projections import Projection

OWN = (Exemplar("How many is 2 + 2?", "2 + 2 = 4."),)
PLAIN = RunLibrary.read(None, None, OWN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a policies folder."""
    (tmp_path / "projections").mkdir()
    (tmp_path / "projections" / "brisk.yaml").write_text("system: Be brisk.\nkeep: {skip: english}\n")
    return tmp_path


def guided(projection: Projection) -> Setting:
    return Setting(mode="guided", tokens=20, projection=projection)


def test_without_files_the_shipped_projections_are_used() -> None:
    assert {name: PLAIN.find(name) for name in PROJECTIONS} == PROJECTIONS
    assert "exemplars" not in PLAIN.with_source(guided(PRIMED)).as_dict()


def test_a_file_of_the_policy_folder_is_a_projection_with_its_path(folder: Path) -> None:
    library = RunLibrary.read(folder, None, ())
    brisk = library.find("brisk")
    assert brisk.system == "Be brisk."
    assert library.with_source(guided(brisk)).as_dict()["policies"] == str(folder)
    assert "policies" not in library.with_source(guided(PRIMED)).as_dict()
    assert library.with_source(Setting(mode="student")) == Setting(mode="student")


def test_primed_shows_the_exemplars_of_the_run_and_the_setting_notes_their_file(tmp_path: Path) -> None:
    library = RunLibrary.read(None, tmp_path / "own.yaml", OWN)
    primed = library.find("primed")
    assert primed == replace(PRIMED, exemplars=OWN)
    assert library.with_source(guided(primed)).as_dict()["exemplars"] == str(tmp_path / "own.yaml")


def test_more_than_a_policy_may_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StartupError, match=r"own\.yaml holds 65 exemplars with .*: the limits are 64 exemplars and 64,000"
    ):
        RunLibrary.read(None, tmp_path / "own.yaml", OWN * 65)


def test_a_missing_projection_is_an_error_with_the_searched_paths(folder: Path) -> None:
    with pytest.raises(StartupError, match=r"no projection 'brisk'; known: .*belong in --policies DIR"):
        PLAIN.find("brisk")
    with pytest.raises(StartupError, match=r"Did you mean 'brisk'\?"):
        RunLibrary.read(folder, None, ()).find("brusk")


def test_issues_of_a_file_are_reported_on_use(folder: Path) -> None:
    (folder / "projections" / "torn.yaml").write_text("sytem: x\n")
    library = RunLibrary.read(folder, None, ())
    assert library.find("brisk")
    with pytest.raises(ConfigError, match=r"torn.yaml:1: sytem: unknown key"):
        library.find("torn")
