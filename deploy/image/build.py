"""Build the Dockerfile with buildah, on a base image made of Debian packages if no registry can be reached."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
IMAGE = "localhost/gkt-gateway:check"
STAND_IN_SUITE = "trixie"
"""Release of Debian whose Python has the minor version of the base image."""
_PACKAGES = ("ca-certificates", "python-is-python3", "python3", "python3-pip", "python3-venv")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_TAIL_LINES = 40


class CheckFailed(Exception):
    """A step failed. The message says which, and how."""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The parts of an image's configuration that a container uses."""

    user: str
    command: list[str]
    environ: dict[str, str]
    health_check: list[str]

    @classmethod
    def of(cls, inspected: dict[str, Any]) -> ImageConfig:
        """Return the configuration from the output of `buildah inspect --type image`."""
        config = inspected["Docker"]["config"]
        return cls(
            user=config["User"],
            command=[*config["Entrypoint"], *config["Cmd"]],
            environ=dict(pair.split("=", 1) for pair in config["Env"]),
            health_check=config["Healthcheck"]["Test"],
        )


def base_image(dockerfile: str) -> str:
    """Return the name of the base image, `python:TAG`."""
    match = re.search(r"^ARG PYTHON=(\S+)$", dockerfile, re.MULTILINE)
    if match is None:
        raise CheckFailed(f"{DOCKERFILE}: has no line `ARG PYTHON=TAG`")
    return f"python:{match[1]}"


def missing_programs(*names: str) -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in names if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None]


class Buildah:
    """Run buildah with its storage in a folder, as root, without a daemon and without privileged mounts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "build.log"
        (folder / "registries.conf").write_text('unqualified-search-registries = ["docker.io"]\n', "utf-8")
        self._options = (
            *("--root", folder / "storage", "--runroot", folder / "run", "--storage-driver", "vfs"),
            *("--registries-conf", folder / "registries.conf"),
        )

    def __call__(self, *arguments: str | Path) -> str:
        """Run a command and return its output. Raises CheckFailed with the end of its messages."""
        return run_logged(["buildah", *self._options, *arguments], self._log)

    def make_stand_in(self, name: str) -> None:
        """Commit an image of Debian packages under the name of the base image.

        Python must have the same minor version as the base image, since it decides which wheels are installed.
        """
        archive = self._folder / "base.tar"
        certificates = [f"--customize-hook=upload {_CERTIFICATES} {_CERTIFICATES}"] if _CERTIFICATES.exists() else []
        run_logged(
            [
                *("mmdebstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", *certificates),
                *(STAND_IN_SUITE, archive),
            ],
            self._log,
        )
        container = self("from", "scratch").strip()
        self("add", container, archive, "/")
        archive.unlink()
        version = self("run", "--isolation", "chroot", container, "--", "python", "--version").split()[1]
        minor = ".".join(version.split(".")[:2])
        if not name.startswith(f"python:{minor}."):
            raise CheckFailed(
                f"Debian {STAND_IN_SUITE} has Python {version}, not that of {name}: change STAND_IN_SUITE"
            )
        self("commit", "--format", "docker", "--rm", container, f"docker.io/library/{name}")

    def build(self, *, pull: bool) -> None:
        """Build the last stage of the Dockerfile as IMAGE."""
        options = ("--isolation", "chroot", "--format", "docker", "--layers=false")
        policy = "--pull=true" if pull else "--pull=never"
        self("build", *options, policy, "--tag", IMAGE, "--file", DOCKERFILE, ROOT)

    def config(self) -> ImageConfig:
        return ImageConfig.of(json.loads(self("inspect", "--type", "image", IMAGE)))

    def mount(self) -> Path:
        """Return the root folder of a new container of IMAGE."""
        container = self("from", "--pull=never", IMAGE).strip()
        return Path(self("mount", container).strip())

    def compressed_bytes(self) -> int:
        """Return the size of the layers as a registry stores them."""
        target = self._folder / "oci"
        self("push", "--quiet", IMAGE, f"oci:{target}")
        size = sum(file.stat().st_size for file in (target / "blobs").rglob("*") if file.is_file())
        shutil.rmtree(target)
        return size


def run_logged(command: list[str | Path], log: Path) -> str:
    """Run a command, append its messages to a log, and return its output. Raises CheckFailed with their end."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-_TAIL_LINES:])
        raise CheckFailed(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{tail}")
    return done.stdout


def file_bytes(folder: Path) -> int:
    """Return the sum of the sizes of the files below a folder. A file with several links counts once."""
    seen: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            status = Path(parent, name).lstat()
            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())
