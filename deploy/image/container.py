"""Run an unpacked image in runc with the restrictions of the Helm chart."""

from __future__ import annotations

import json
import signal
import subprocess
import uuid
from typing import TYPE_CHECKING, Any, Self

from deploy.image.build import CheckFailed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploy.image.build import ImageConfig

_STOP_LIMIT_S = 60
_EXEC_LIMIT_S = 120
_NAMESPACES = ("pid", "ipc", "uts", "mount")  # and the network of this machine, to reach engines on loopback
_SYSTEM_MOUNTS: tuple[dict[str, Any], ...] = (
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "size=64m"]},
    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "size=64m"]},
)


class Container:
    """A container as a context manager. The block runs while its process may run."""

    def __init__(
        self,
        root: Path,
        folder: Path,
        config: ImageConfig,
        *,
        environ: Mapping[str, str],
        read_only: Mapping[str, Path],
        writable: Mapping[str, Path],
    ) -> None:
        """Write the bundle.

        Args:
            root: unpacked image.
            folder: of the bundle, runc's state and the log.
            environ: further environment variables.
            read_only: folders of this machine by the path of their mount.
            writable: folders that the container may write to, by the path of their mount.
        """
        self._id = f"gkt-image-{uuid.uuid4().hex[:12]}"
        self._folder = folder
        self._log = folder / "container.log"
        self.health_check = config.health_check
        binds = [(path, there, "ro") for path, there in read_only.items()]
        binds += [(path, there, "rw") for path, there in writable.items()]
        mounts = [
            {"destination": path, "type": "bind", "source": str(there), "options": ["rbind", access]}
            for path, there, access in binds
        ]
        user = int(config.user)
        spec = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": user, "gid": user},
                "args": config.command,
                "env": [f"{name}={value}" for name, value in {**config.environ, **environ}.items()],
                "cwd": "/",
                "capabilities": {},
                "noNewPrivileges": True,
            },
            "root": {"path": str(root), "readonly": True},
            "hostname": "gateway",
            "mounts": [*_SYSTEM_MOUNTS, *mounts],
            "linux": {"namespaces": [{"type": name} for name in _NAMESPACES]},
        }
        (folder / "config.json").write_text(json.dumps(spec, indent=1), "utf-8")

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._runc("run", "--bundle", str(self._folder), self._id),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(self._runc("delete", "--force", self._id), capture_output=True, check=False)
        self.process.wait(_STOP_LIMIT_S)

    def _runc(self, *arguments: str) -> list[str]:
        return ["runc", "--root", str(self._folder / "runc"), *arguments]

    def log_text(self) -> str:
        """Return the messages of the container."""
        return self._log.read_text(errors="replace")

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, with the user and environment of the container."""
        return subprocess.run(
            self._runc("exec", self._id, *command),
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_EXEC_LIMIT_S, check=False,
        )  # fmt: skip

    def expect(self, what: str, *command: str, fails: bool = False) -> str:
        """Run a command inside and return its output. Raises CheckFailed if it fails, or does not with `fails`."""
        done = self.execute(*command)
        if (done.returncode != 0) != fails:
            raise CheckFailed(f"{what}: exit status {done.returncode}: {(done.stdout + done.stderr).strip()}")
        return done.stdout.strip()

    def stop(self) -> int:
        """Send SIGTERM, as a supervisor does, and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_LIMIT_S)
