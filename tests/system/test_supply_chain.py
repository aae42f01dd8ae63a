"""Every installed package is pinned: each package of a lock file has a version and hashes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted([*ROOT.glob("*.lock"), *ROOT.glob("scripts/*.lock"), *ROOT.glob("tests/clients/*.lock")])
_PINNED = re.compile(
    r"[a-z0-9][a-z0-9._-]*(?:\[[a-z0-9,_-]+\])?==[^\s;]+(?: ; [^\\]+)?(?: --hash=sha256:[0-9a-f]{64})+"
)


def entries(lock: Path) -> list[str]:
    """Return each package's entry on one line."""
    lines = [line.split("#")[0].strip() for line in lock.read_text("utf-8").replace("\\\n", " ").splitlines()]
    return [" ".join(line.split()) for line in lines if line]


def version(name: str) -> tuple[int, ...]:
    found = [one for one in entries(ROOT / "requirements.lock") if one.startswith(f"{name}==")]
    assert len(found) == 1
    return tuple(int(part) for part in re.split(r"[.]", found[0].partition("==")[2].split()[0]))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_package_of_a_lock_has_a_version_and_hashes(lock: Path) -> None:
    """Locks hold no address, branch, range or other index, so a stolen package name gets nobody in."""
    found = entries(lock)
    assert found
    assert [one for one in found if not _PINNED.fullmatch(one)] == []


def test_no_locked_package_has_a_known_vulnerability() -> None:
    """LiteLLM below 1.84 has known holes, and 1.82.7 and 1.82.8 were malicious; aiohttp's CVE-2026-69244."""
    assert version("litellm") >= (1, 84, 0)
    assert version("aiohttp") >= (3, 14, 3)


@pytest.mark.parametrize("path", ["Dockerfile", "scripts/env"])
def test_every_installation_requires_hashes(path: str) -> None:
    """Installers accept no source distribution, whose setup would run."""
    text = (ROOT / path).read_text("utf-8").replace("\\\n", " ")
    installs = [line for line in text.splitlines() if re.search(r"\bpip\b.* (install|sync)\b", line)]
    assert installs
    for line in installs:
        assert "--require-hashes" in line or "--no-index" in line or "--no-deps" in line, line
        if "--require-hashes" in line:
            assert "--only-binary :all:" in line or "--no-build" in line, line


def test_the_image_runs_unprivileged_without_secrets() -> None:
    """The image's user owns no file in it; a key is supplied at run time."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER (\d+)$", last, re.MULTILINE)
    assert int(re.findall(r"^USER (\d+)$", last, re.MULTILINE)[-1]) >= 1000
    assert not re.search(r"^(?:ARG|ENV)\b.*(?:KEY|TOKEN|SECRET|PASSWORD)", text, re.MULTILINE)
    assert "config.yaml" not in "".join(line for line in text.splitlines() if line.startswith("COPY"))
    assert "chown" not in last


def test_every_lock_has_wheels_for_every_platform_and_python_version() -> None:
    """`scripts/lock` looks for the wheels, and records the locks for which it found them."""
    lines = (ROOT / "scripts/platforms.txt").read_text("utf-8").splitlines()
    _, platforms, pythons, *recorded = lines
    assert dict(line.split()[::-1] for line in recorded) == {
        str(lock.relative_to(ROOT)): hashlib.sha256(lock.read_bytes()).hexdigest() for lock in LOCKS
    }, "run scripts/lock"
    assert platforms.split()[1:] == ["x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin"]
    for project in ("pyproject.toml", "edge/pyproject.toml"):
        text = (ROOT / project).read_text("utf-8")
        assert pythons.split()[1:] == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
        assert pythons.split()[1:] == ["3.11", "3.12", "3.13", "3.14"]
        assert 'requires-python = ">=3.11,<3.15"' in text
