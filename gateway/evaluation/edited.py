"""Detection of changes since a run in the files of a setting: the projection's file and the length model's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import StartupError
from gateway.evaluation.advice.policy_files import files_of
from gateway.evaluation.auto_length import AutoLength
from gateway.evaluation.folder import shown_hash
from gateway.evaluation.questions.exemplars_file import exemplars
from gateway.evaluation.run_library import RunLibrary
from gateway.evaluation.setting import Setting
from gateway.policy.length_model import lengths_of
from gateway.policy.length_rules import AutoRule

if TYPE_CHECKING:
    from collections.abc import Mapping


def edited_files(setting: Mapping[str, Any]) -> tuple[Path, ...]:
    """Return the files of a guided setting if they have changed since the run, else an empty tuple.

    The hash covers all shown texts together, so of two files it is unknown which one changed. An unusable file has
    changed too. Blocks.

    Some settings cannot be checked and yield an empty tuple:

    - Settings without a hash, as in older folders and for routes of a remote gateway.
    - Settings whose projection has no files.
    - Few-shot prompts with a projection of a policies folder: the hash covers the prompt's exemplars, and the folder
      does not name them. With a file of --exemplars for `primed`, that file has them.

    Args:
        setting: The result of `Setting.as_dict`, with `shown_hash`.
    """
    files = tuple(file for file, _ in files_of(setting))
    exemplars_file = setting.get("exemplars")
    if (
        not files
        or "shown" not in setting
        or "projection" not in setting
        or (setting["shots"] and exemplars_file is None)
    ):
        return ()
    try:
        current_hash = _current_hash(setting, None if exemplars_file is None else Path(exemplars_file))
    except (StartupError, OSError, ValueError):
        return files
    return () if current_hash == setting["shown"] else files


def _current_hash(setting: Mapping[str, Any], exemplars_file: Path | None) -> str:
    listed = () if exemplars_file is None else exemplars(exemplars_file)
    policies = setting.get("policies")
    library = RunLibrary.read(None if policies is None else Path(policies), exemplars_file, listed)
    guided = Setting(
        mode="guided", shots=setting["shots"], projection=library.find(setting["projection"]), auto=_auto(setting)
    )
    return shown_hash(guided, listed)


def _auto(setting: Mapping[str, Any]) -> AutoLength | None:
    """Return the rule of the run with the current contents of its model file."""
    block = setting.get("auto")
    if block is None:
        return None
    learned = None
    if (model := block.get("model")) is not None and "auto_file" in setting:
        learned = lengths_of((Path(setting["auto_file"]).parent / model).read_bytes())
    return AutoLength(AutoRule(), block, learned=learned)
