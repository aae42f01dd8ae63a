"""Settings from options and grid files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.errors import ConfigError, StartupError
from gateway.evaluation.setting import read_grid, settings_of
from gateway.policy.library import ProjectionRegistry
from gateway.policy.projections import PROJECTIONS, Projection
from tests.evaluation.run_world import PRIMED

ROOT = Path(__file__).parents[2]
GRIDS = ROOT / "docs" / "evaluation" / "grids"
FIND = (dict(PROJECTIONS) | {"primed": PRIMED}).__getitem__


def test_all_three_modes_are_compared_by_default() -> None:
    found = settings_of(read_grid(None, {}), FIND)
    assert [(one.mode, one.tokens) for one in found] == [
        ("teacher", 0),
        ("student", 0),
        ("guided", 20),
        ("guided", 40),
        ("guided", 80),
    ]


def test_every_combination_is_a_setting_and_none_comes_twice() -> None:
    options = {"tokens": [20, 20, 40], "projection": ["cutoff", "hint"], "form": ["chat", "completion"]}
    found = settings_of(read_grid(None, options), FIND)
    assert len(found) == len({one.name for one in found}) == 2 * (2 + 2 * 2)
    assert {one.placement for one in found if one.projection.name == "hint"} == {"context"}


def test_exemplars_for_the_teacher_alone_have_no_place_in_a_raw_prompt() -> None:
    options = {"projection": ["cutoff", "primed"], "form": ["completion"], "mode": ["guided"], "tokens": [20]}
    assert [one.projection.name for one in settings_of(read_grid(None, options), FIND)] == ["cutoff"]


def test_numbers_of_exemplars_are_settings_of_projections_with_exemplars(tmp_path: Path) -> None:
    options = {"projection": ["cutoff", "primed"], "mode": ["guided"], "tokens": [20], "exemplar_count": [1, 2]}
    cutoff, *primed = settings_of(read_grid(None, options), FIND)
    assert (cutoff.projection, cutoff.exemplar_count) == (PROJECTIONS["cutoff"], None)
    assert [one.projection.exemplars for one in primed] == [PRIMED.exemplars[:1], PRIMED.exemplars]
    assert [one.name for one in primed] == [
        f"guided, chat, 300 tokens, primed, exemplars={count}, prefix, m=20" for count in (1, 2)
    ]
    assert [one.as_dict()["exemplar_count"] for one in primed] == [1, 2]
    file = tmp_path / "grid.yaml"
    file.write_text("projection: primed\ntokens: 20\nexemplar_count: 3\n")
    with pytest.raises(StartupError, match="exemplar_count 3: projection primed has 2 exemplars"):
        settings_of(read_grid(file, {}), FIND)


def test_samples_have_a_seed_each_and_need_a_temperature() -> None:
    options = {"mode": ["student"], "temperature": 0.7, "seed": 5, "samples": 3}
    assert [one.seed for one in settings_of(read_grid(None, options), FIND)] == [5, 6, 7]
    with pytest.raises(ConfigError, match="samples: needs a temperature above 0"):
        read_grid(None, {"samples": 3})


def test_guidance_longer_than_the_answer_is_refused() -> None:
    with pytest.raises(StartupError, match="tokens 80 is more than max_tokens 50"):
        settings_of(read_grid(None, {"max_tokens": [50]}), FIND)


def test_a_file_may_contain_several_grids_with_common_values(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        "tokens: [20, 40]\n"
        "grids:\n"
        "  - {form: completion, shots: 8}\n"
        "  - {mode: guided, projection: primed, tokens: 60}\n"
    )
    found = settings_of(read_grid(file, {}), FIND)
    assert [(one.mode, one.form, one.shots, one.tokens, one.projection.name) for one in found] == [
        ("teacher", "completion", 8, 0, "cutoff"),
        ("student", "completion", 8, 0, "cutoff"),
        ("guided", "completion", 8, 20, "cutoff"),
        ("guided", "completion", 8, 40, "cutoff"),
        ("guided", "chat", 0, 60, "primed"),
    ]


def test_options_win_over_the_file_in_all_its_grids(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("max_tokens: 100\ngrids:\n  - {mode: student, max_tokens: 200}\n  - {mode: teacher}\n")
    found = settings_of(read_grid(file, {"max_tokens": [90]}), FIND)
    assert [(one.mode, one.max_tokens) for one in found] == [("teacher", 90), ("student", 90)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokens: [20, many]\n", "grid.yaml:1: tokens[1]: "),
        ("mode: guided\ntoken: 20\n", "grid.yaml:2: token: unknown key. Did you mean 'tokens'?"),
        ("grids:\n  - form: poem\n", "grid.yaml:2: grids[0].form[0]: "),
        ("tokens: []\n", "grid.yaml:1: tokens: "),
        ("tokens: 0\n", "grid.yaml:1: tokens[0]: "),
        ("temperature: 3\n", "grid.yaml:1: temperature: "),
    ],
)
def test_an_issue_in_the_file_has_its_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_grid(file, {})
    assert message in caught.value.message


def test_an_issue_in_the_options_is_distinguished_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("tokens: 20\n")
    with pytest.raises(ConfigError, match=r"^the command line: mode\[0\]: "):
        read_grid(file, {"mode": ["nobody"]})
    with pytest.raises(ConfigError, match="cannot be read: no such file"):
        read_grid(Path(tmp_path, "none.yaml"), {})


@pytest.mark.parametrize(("name", "settings"), [("csqa", 7 + 7 + 3 + 2 * 2 + 1), ("gsm8k", 2 * 5 + 4 + 2 + 1)])
def test_the_grids_that_were_measured_can_be_run(name: str, settings: int) -> None:
    known: dict[str, Projection] = {}
    for folder in (ROOT / "policies", GRIDS):
        library = ProjectionRegistry()
        assert library.read(folder) == []
        known |= library.projections
    found = settings_of(read_grid(GRIDS / f"{name}.yaml", {}), known.__getitem__)
    assert len({one.name for one in found}) == len(found) == settings


def test_the_measured_general_primer_is_the_shipped_one() -> None:
    library = ProjectionRegistry()
    library.read(GRIDS)
    measured = library.projections["primed-general"]
    assert measured.exemplars == PROJECTIONS["primed"].exemplars != ()
    assert replace(measured, name="primed") == PROJECTIONS["primed"]
