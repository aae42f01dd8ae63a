"""Named data sets from the Hugging Face hub, stored there as Parquet."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gateway.errors import StartupError
from gateway.local import WeightsUnavailable, hub
from gateway.local.weights import cache_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class HubSet:
    """A split of a data set: its repository on the hub, and the file in it."""

    repo: str
    file: str
    split: str


HUB_SETS: Mapping[str, HubSet] = MappingProxyType(
    {
        "gsm8k": HubSet("openai/gsm8k", "main/test-00000-of-00001.parquet", "test"),
        "csqa": HubSet("tau/commonsense_qa", "data/validation-00000-of-00001.parquet", "validation"),
    }
)
"""Data sets by name (paper, appendix A). CSQA's test split has no answers, so its validation split is used."""


def rows(name: str, *, endpoint: str | None = None, folder: Path | None = None) -> list[dict[str, Any]]:
    """Return the rows of a data set in order, downloading its file once.

    Args:
        name: The name.
        endpoint: Address of the hub; None: the default.
        folder: Folder of downloaded files; None: next to the cache of weights.

    Raises:
        StartupError: The hub cannot be reached, or the file cannot be read.
    """
    hub_set = HUB_SETS[name]
    staging = (folder or cache_folder().parent / "datasets") / name
    path = staging / hub_set.file
    if not path.exists():
        try:
            path = hub.download(
                hub_set.repo, hub_set.file, staging, report=lambda _: None, endpoint=endpoint, kind="dataset"
            )
        except WeightsUnavailable as error:
            raise StartupError(
                f"data set '{name}': {error.message}. Name a copy with --data FILE (JSON lines), "
                "or use --data generated, which needs no download"
            ) from error
    return _read(path, name)


def _read(path: Path, name: str) -> list[dict[str, Any]]:
    try:
        # Imported here, because it belongs to an extra and takes long.
        import pyarrow as arrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise StartupError(
            f"data set '{name}': reading it needs {error.name}: pip install 'gkt-gateway[eval]'"
        ) from error
    try:
        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise StartupError(f"data set '{name}': {path} is not Parquet: delete it to download it again") from error
    return found
