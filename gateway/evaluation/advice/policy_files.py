"""The files that a recommended policy needs, copied from the sources of the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.config.yaml_source import display_path, read
from gateway.errors import StartupError
from gateway.policy.exemplar_files import ENDINGS
from gateway.policy.named_files import PROJECTIONS_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

EXEMPLARS_FOLDER = "exemplars"


def exemplars_path(file: str) -> str:
    """Return the policy's path of a copied exemplars file, relative to the policies folder."""
    path = Path(file)
    return f"{EXEMPLARS_FOLDER}/{path.name if path.suffix in ENDINGS else path.name + '.yaml'}"


def files_of(setting: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield each file of the setting with its path in a policies folder.

    `setting`: as `Setting.as_dict`; without `projection` if the policy names another one.
    """
    auto, auto_file = setting.get("auto"), setting.get("auto_file")
    if auto is not None and auto_file is not None and (model := auto.get("model")) is not None:
        yield Path(auto_file).parent / model, model
    exemplars_file = setting.get("exemplars")
    if exemplars_file is not None and Path(exemplars_file).is_absolute():
        yield Path(exemplars_file), exemplars_path(exemplars_file)
    if (policies := setting.get("policies")) is not None and "projection" in setting:
        name = f"{PROJECTIONS_FOLDER}/{setting['projection']}.yaml"
        yield Path(policies) / name, name
        source, _ = read(Path(policies) / name)
        exemplars_name = source.get("exemplars") if source is not None else None
        if isinstance(exemplars_name, str) and exemplars_file is None:
            yield Path(policies) / exemplars_name, exemplars_name


def files_to_write(settings: Iterable[Mapping[str, Any]], folder: Path, *, force: bool = False) -> dict[Path, bytes]:
    """Return the contents to write into the policies `folder`, for settings as `Setting.as_dict`.

    Files with equal contents are left out.

    Raises:
        StartupError: A file of the run is missing, or another file exists at its path and `force` is not set.
    """
    found: dict[Path, bytes] = {}
    for file, name in (pair for setting in settings for pair in files_of(setting)):
        target = folder / name
        try:
            content = file.read_bytes()
            existing = target.read_bytes() if target.exists() else None
        except OSError as error:
            raise StartupError(
                f"{display_path(Path(error.filename))} cannot be read ({(error.strerror or 'error').lower()}): the run "
                "used it, so restore it, or name other exemplars with --guidance exemplars=FILE"
            ) from error
        if found.get(target, content) != content:
            raise StartupError(f"two routes need different files with the path {name}: rename one, and repeat its run")
        if existing is not None and existing != content and not force:
            raise StartupError(
                f"{display_path(target)} exists with other contents than {display_path(file)}: "
                "overwrite it with --force"
            )
        if existing != content:
            found[target] = content
    return found


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write the files. Raises StartupError if one cannot be written."""
    for file, content in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        except OSError as error:
            raise StartupError(
                f"{display_path(file)} cannot be written: {(error.strerror or 'error').lower()}"
            ) from error
