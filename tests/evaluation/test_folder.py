"""Runs that a folder accepts and rejects."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from gateway.errors import StartupError
from gateway.evaluation.folder import RunFolder, shown_hash
from gateway.evaluation.pair import ConfiguredPair
from gateway.evaluation.record import EXAMPLES
from gateway.evaluation.run import failed_example
from gateway.policy.patterns import to_pattern
from gateway.policy.projections import CUTOFF, SkipRule
from tests.evaluation.run_world import EXEMPLARS, QUESTIONS, SETTINGS, manifest, settings_for

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.evaluation.record import Manifest
    from gateway.evaluation.setting import Setting
    from gateway.policy.projections import Exemplar

GUIDED = SETTINGS[2]
PAIR = ConfiguredPair(settings_for("http://teacher", "http://student"), "big", "small")
WAS = manifest(PAIR, SETTINGS[:2])


def begun(path: Path) -> None:
    with RunFolder(path) as folder:
        folder.begin(WAS, QUESTIONS)


def test_other_users_cannot_read_a_new_folder(tmp_path: Path) -> None:
    """Its questions may be requests of production."""
    begun(tmp_path / "run")
    assert (tmp_path / "run").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"teacher": "other"}, "the teacher was big and is now other"),
        ({"student": "other"}, "the student was small and is now other"),
        ({"live": True}, "the path was staged and is now live"),
        ({"data": "theirs"}, "the data set was ours and is now theirs"),
    ],
)
def test_an_incompatible_run_is_rejected_with_the_difference(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    begun(tmp_path)
    with RunFolder(tmp_path) as folder, pytest.raises(StartupError, match=message):
        folder.begin(manifest(PAIR, SETTINGS[:2], **changed), QUESTIONS)


def test_questions_may_be_appended_but_not_changed_or_removed(tmp_path: Path) -> None:
    begun(tmp_path)
    changed = (replace(QUESTIONS[0], answer="25"), *QUESTIONS[1:])
    more = (*QUESTIONS, replace(QUESTIONS[0], id="new", text="How many?"))
    with RunFolder(tmp_path) as folder:
        with pytest.raises(StartupError, match="the questions, their order or their answers differ"):
            folder.begin(manifest(PAIR, SETTINGS[:2], changed), changed)
        with pytest.raises(StartupError, match="raise --limit"):
            folder.begin(manifest(PAIR, SETTINGS[:2], QUESTIONS[:2]), QUESTIONS[:2])
        folder.begin(manifest(PAIR, SETTINGS[:2], more), more)
        assert folder.manifest is not None
        assert folder.manifest.questions == len(more)


def test_prices_may_change_if_every_setting_is_recomputed(tmp_path: Path) -> None:
    begun(tmp_path)
    prices = {"prices": {"teacher": (Decimal(9), Decimal(9)), "student": (Decimal(1), Decimal(1))}}
    with RunFolder(tmp_path) as folder:
        with pytest.raises(StartupError, match="prices differ"):
            folder.begin(manifest(PAIR, SETTINGS[:1], **prices), QUESTIONS)
        folder.begin(manifest(PAIR, SETTINGS[:2], **prices), QUESTIONS)


def test_other_exemplars_under_an_old_name_are_refused(tmp_path: Path) -> None:
    """Exemplars are shown by the caller's prompt, or by the projection."""
    few, primed, plain = SETTINGS[8], SETTINGS[6], SETTINGS[2]

    def new_manifest(settings: tuple[Setting, ...], exemplars: tuple[Exemplar, ...]) -> Manifest:
        plain_settings = [one.as_dict() | {"shown": shown_hash(one, exemplars)} for one in settings]
        return msgspec.structs.replace(WAS, settings=plain_settings)

    with RunFolder(tmp_path) as folder:
        folder.begin(new_manifest((few, primed, plain), EXEMPLARS), QUESTIONS)
        folder.begin(new_manifest((few, primed, plain), (*EXEMPLARS, EXEMPLARS[0])), QUESTIONS)
        with pytest.raises(StartupError, match=r"the prompt of 'guided, completion, 2 shots, .* differs"):
            folder.begin(new_manifest((few,), EXEMPLARS[::-1]), QUESTIONS)
        changed = replace(primed, projection=replace(primed.projection, exemplars=EXEMPLARS[:1]))
        with pytest.raises(StartupError, match="primed, prefix, m=8' differs"):
            folder.begin(new_manifest((changed,), EXEMPLARS), QUESTIONS)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom gateway.evaluation.folder import RunFolder\n"
        "RunFolder(pathlib.Path(sys.argv[1])).__enter__()"
    )
    with RunFolder(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"Another process runs in {tmp_path}" in done.stderr
    with RunFolder(tmp_path):
        pass


def test_a_line_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    begun(tmp_path)
    with RunFolder(tmp_path) as folder:
        folder.add(failed_example(SETTINGS[0].name, QUESTIONS[0], "engine_failed", "teacher", folder))
        folder.add(failed_example(SETTINGS[0].name, QUESTIONS[1], "engine_failed", "teacher", folder))
    file = tmp_path / EXAMPLES
    file.write_bytes(file.read_bytes()[:-9])
    with RunFolder(tmp_path) as folder:
        assert list(folder.examples) == [(SETTINGS[0].name, "q0")]
        folder.add(failed_example(SETTINGS[0].name, QUESTIONS[2], "engine_failed", "teacher", folder))
    with RunFolder(tmp_path) as folder:
        assert [question for _, question in folder.examples] == ["q0", "q2"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": "my-project"}')
    with pytest.raises(StartupError, match="is not a run's manifest"):
        RunFolder(tmp_path).__enter__()


def test_all_that_a_projection_does_is_in_its_hash() -> None:
    """The hash covers the teacher's prompt, the kept part and the end rule, but not file locations."""
    ours = replace(CUTOFF, name="ours")
    skip = SkipRule((to_pattern("Sure"),), 4)
    different = [
        ours,
        replace(ours, system="Be brisk."),
        replace(ours, instruction="Be brisk."),
        replace(ours, exemplars=EXEMPLARS),
        replace(ours, skip=skip),
        replace(ours, skip=skip._replace(tokens=5)),
        replace(ours, skip=skip._replace(patterns=(to_pattern("Well"),))),
        replace(ours, teacher_may_finish=False),
        replace(ours, introduction="Hm: {guidance}"),
    ]
    guided = [replace(GUIDED, projection=one) for one in different]
    assert len({shown_hash(one, ()) for one in guided}) == len(different)
    assert shown_hash(replace(guided[0], policies="/elsewhere"), ()) == shown_hash(guided[0], ())


def test_folders_of_a_time_when_projections_had_less_are_read() -> None:
    assert shown_hash(GUIDED, ()) == "92c1674013f86a11"
