"""A real PostgreSQL for tests, in a temporary folder and on a unix socket, run by an unprivileged user."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIMIT_S = 60


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


class Postgres:
    """A server. `url` is the value for config.yaml; `stop` ends it immediately, `start` starts it again."""

    def __init__(self, binaries: Path, folder: Path, primary: Postgres | None = None) -> None:
        self._binaries = binaries
        self.folder = folder
        self._user = None
        if os.getuid() == 0:  # it refuses to run as root
            names = {entry.pw_name for entry in pwd.getpwall()}
            self._user = "postgres" if "postgres" in names else "nobody"
            shutil.chown(folder, self._user)
        data = str(folder / "data")
        if primary is None:
            self._run("initdb", "-D", data, "-U", "gkt", "-A", "trust", "-E", "UTF8", "--no-sync")
        else:
            self._run(
                "pg_basebackup", "-D", data, "-R", "-c", "fast", "--no-sync", "-U", "gkt", "-h", str(primary.folder)
            )
        self.url = f"postgresql://gkt:a-password@/postgres?host={folder}"

    def replica(self, folder: Path) -> Postgres:
        """Start a streaming replica in another folder."""
        replica = Postgres(self._binaries, folder, self)
        replica.start()
        return replica

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off -c wal_level=logical"
        self._run(
            "pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-o", options
        )

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.folder / "data"))

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._binaries / name, *arguments],
            user=self._user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if name == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            timeout=_LIMIT_S,
            cwd=self.folder,
            check=False,
        )
        assert done.returncode == 0, (done.stdout or b"").decode()


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server, yield it and stop it. Without PostgreSQL the test is skipped; in CI it fails."""
    binaries = _binaries()
    if binaries is None:
        assert not os.environ.get("CI"), "CI needs PostgreSQL's server: scripts/system installs it"
        pytest.skip("no PostgreSQL server on this machine: scripts/system installs it")
    folder = Path(tempfile.mkdtemp(prefix="gkt-pg-"))
    try:
        server = Postgres(binaries, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: Postgres) -> str:
    """Return the URL of a user whose schema is empty. A whole database would take 0.2 s of CPU time."""
    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN SUPERUSER")  # type: ignore[arg-type]
        connection.execute(f"CREATE SCHEMA AUTHORIZATION {name}")  # type: ignore[arg-type]
    return server.url.replace("//gkt:", f"//{name}:")
