"""Data sets by name, from the Hugging Face hub, where they lie as Parquet."""

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
    """One split of a data set: its repository on the hub, and the file in it."""

    repo: str
    file: str
    split: str


HUB_SETS: Mapping[str, HubSet] = MappingProxyType(
    {
        "gsm8k": HubSet("openai/gsm8k", "main/test-00000-of-00001.parquet", "test"),
        "csqa": HubSet("tau/commonsense_qa", "data/validation-00000-of-00001.parquet", "validation"),
    }
)
"""Those that can be asked for by name (paper, appendix A). CSQA's test split has no answers: its validation is used."""


def rows(name: str, *, endpoint: str | None = None, folder: Path | None = None) -> list[dict[str, Any]]:
    """The rows of a data set, in its order. A file that was fetched once is not fetched again.

    Args:
        endpoint: replaces the hub's own address.
        folder: where files are kept; beside the cache of weights unless given.

    Raises StartupError where the hub cannot be reached, or the file cannot be read.
    """
    wanted = HUB_SETS[name]
    staging = (folder or cache_folder().parent / "datasets") / name
    path = staging / wanted.file
    if not path.exists():
        try:
            path = hub.download(
                wanted.repo, wanted.file, staging, report=lambda _: None, endpoint=endpoint, kind="dataset"
            )
        except WeightsUnavailable as error:
            raise StartupError(
                f"data set '{name}': {error.message}. Name a copy with --data FILE (JSON lines), "
                "or take --data generated, which needs none"
            ) from error
    return _read(path, name)


def _read(path: Path, name: str) -> list[dict[str, Any]]:
    try:
        # Here, and not above: it belongs to an extra, and takes long.
        import pyarrow as arrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise StartupError(
            f"data set '{name}': reading it needs {error.name}: pip install 'gkt-gateway[eval]'"
        ) from error
    try:
        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise StartupError(f"data set '{name}': {path} is not Parquet: delete it, and it is fetched anew") from error
    return found
