"""The files that a recommended policy needs beside it, copied from where the run found them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.config.yaml_source import read, shown
from gateway.errors import StartupError
from gateway.policy.exemplar_files import ENDINGS
from gateway.policy.named_files import PROJECTIONS_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

EXEMPLARS_FOLDER = "exemplars"


def exemplars_beside(file: str) -> str:
    """What a policy calls the exemplars of this file, once they are copied: a path from the policies folder."""
    path = Path(file)
    return f"{EXEMPLARS_FOLDER}/{path.name if path.suffix in ENDINGS else path.name + '.yaml'}"


def files_of(setting: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Each file that the setting reads, with its path from a policies folder.

    setting: as `Setting.as_dict`; without `projection` where the policy names another one.
    """
    auto, auto_file = setting.get("auto"), setting.get("auto_file")
    if auto is not None and auto_file is not None and (model := auto.get("model")) is not None:
        yield Path(auto_file).parent / model, model
    own = setting.get("exemplars")
    if own is not None and Path(own).is_absolute():
        yield Path(own), exemplars_beside(own)
    if (policies := setting.get("policies")) is not None and "projection" in setting:
        name = f"{PROJECTIONS_FOLDER}/{setting['projection']}.yaml"
        yield Path(policies) / name, name
        source, _ = read(Path(policies) / name)
        named = source.get("exemplars") if source is not None else None
        if isinstance(named, str) and own is None:
            yield Path(policies) / named, named


def files_beside(settings: Iterable[Mapping[str, Any]], folder: Path, *, force: bool = False) -> dict[Path, bytes]:
    """What is to be written into `folder`, the policies', for settings as `Setting.as_dict`.

    A file that is there and says the same is none of them.

    Raises:
        StartupError: one is gone that the run has used; or another one has its place, and `force` does not say that
            it may go.
    """
    found: dict[Path, bytes] = {}
    for file, name in (pair for setting in settings for pair in files_of(setting)):
        place = folder / name
        try:
            says = file.read_bytes()
            there = place.read_bytes() if place.exists() else None
        except OSError as error:
            raise StartupError(
                f"{shown(Path(error.filename))} cannot be read ({(error.strerror or 'error').lower()}): the run has "
                "used it, so put it back, or name other exemplars with --guidance exemplars=FILE"
            ) from error
        if found.get(place, says) != says:
            raise StartupError(f"two routes need a {name} each, and they differ: rename one, and run again with it")
        if there is not None and there != says and not force:
            raise StartupError(
                f"{shown(place)} is there already, and says something else than {shown(file)}: --force writes over it"
            )
        if there != says:
            found[place] = says
    return found


def write_beside(files: Mapping[Path, bytes]) -> None:
    """Raises StartupError where one cannot be written."""
    for file, says in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(says)
        except OSError as error:
            raise StartupError(f"{shown(file)} cannot be written: {(error.strerror or 'error').lower()}") from error
