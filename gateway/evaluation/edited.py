"""Files that a setting reads, its projection's and its model's, and that were edited since a run: not measured so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import StartupError
from gateway.evaluation.advice.policy_files import files_of
from gateway.evaluation.auto_length import AutoLength
from gateway.evaluation.folder import shown
from gateway.evaluation.questions.exemplars_file import exemplars
from gateway.evaluation.run_library import RunLibrary
from gateway.evaluation.setting import Setting
from gateway.policy.length_model import lengths_of
from gateway.policy.length_rules import AutoRule

if TYPE_CHECKING:
    from collections.abc import Mapping


def edited_since(setting: Mapping[str, Any]) -> tuple[Path, ...]:
    """The files of a guided setting, if they say something else than the run has shown; else none.

    The hash is of all that was shown together, so of two files nobody knows which one it is. A file that cannot be
    used any more has been edited too. Blocks.

    Nothing is said of a setting without a hash, as older folders and routes of a running gateway have them; of one
    whose projection has no files; and of a few-shot prompt with a projection of a policies folder: the hash is of the
    prompt's exemplars too, and the folder does not say which those were. Where `primed` shows the file of --exemplars,
    that file has them.

    Args:
        setting: as `Setting.as_dict`, with `shown`.
    """
    files = tuple(file for file, _ in files_of(setting))
    own = setting.get("exemplars")
    if not files or "shown" not in setting or "projection" not in setting or (setting["shots"] and own is None):
        return ()
    try:
        now = _shown_now(setting, None if own is None else Path(own))
    except (StartupError, OSError, ValueError):
        return files
    return () if now == setting["shown"] else files


def _shown_now(setting: Mapping[str, Any], own: Path | None) -> str:
    listed = () if own is None else exemplars(own)
    policies = setting.get("policies")
    library = RunLibrary.read(None if policies is None else Path(policies), own, listed)
    guided = Setting(
        mode="guided", shots=setting["shots"], projection=library.find(setting["projection"]), auto=_auto(setting)
    )
    return shown(guided, listed)


def _auto(setting: Mapping[str, Any]) -> AutoLength | None:
    """The rule is the run's own; what its model's file says may be new."""
    said = setting.get("auto")
    if said is None:
        return None
    learned = None
    if (model := said.get("model")) is not None and "auto_file" in setting:
        learned = lengths_of((Path(setting["auto_file"]).parent / model).read_bytes())
    return AutoLength(AutoRule(), said, learned=learned)
