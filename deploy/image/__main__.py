"""Build the container image without a Docker engine, run it, and ask for one guided answer."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from deploy.image.build import DOCKERFILE, Buildah, CheckFailed, base_image, file_bytes, missing_programs
from deploy.image.container import Container
from deploy.image.world import USER, World, guided_answer, is_ok, wait_for, world
from gateway.version import __version__
from load_tests.children import interruptible

DESCRIPTION = """\
Build the Dockerfile with buildah, run the image with runc, and ask for one guided answer.

Needs root on Debian, with: apt install buildah mmdebstrap runc. Takes some minutes and 3 GB below --folder.

Without --pull, the base image is a stand-in: Debian packages with the same minor version of Python, under the name of
the base image. The build then shows that the steps of the Dockerfile work and that the locked packages install and run.
It shows nothing about the official base image.

The container has the restrictions of the Helm chart: user 10001, no capabilities, no new privileges, a read-only
root file system. It has the network of this machine, where Redis and two fake engines run. Checks: version, health
check, /healthz, /readyz, a guided answer, optional packages, absence of pip, exit status after SIGTERM.
"""


def main() -> int:
    """Run the command. Return the exit status."""
    parser = argparse.ArgumentParser("scripts/image", None, DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pull", action="store_true", help="pull the base image of the Dockerfile: needs a registry")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="parent of the temporary folder")
    options = parser.parse_args()
    programs = ["buildah", "runc", *([] if options.pull else ["mmdebstrap"])]
    if missing := missing_programs(*programs):
        sys.stderr.write(f"image: missing: {' '.join(missing)} (Debian: apt install {' '.join(missing)})\n")
        return 2
    if os.geteuid() != 0:
        sys.stderr.write("image: run it as root: buildah and runc need it here\n")
        return 2
    try:
        with interruptible(), tempfile.TemporaryDirectory(prefix="gkt-image-", dir=options.folder) as folder:
            check(Path(folder), pull=options.pull)
    except CheckFailed as failure:
        sys.stderr.write(f"image: {failure}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def check(folder: Path, *, pull: bool) -> None:
    """Build, run and report. Raises CheckFailed at the first failure."""
    buildah = Buildah(folder)
    base = base_image(DOCKERFILE.read_text("utf-8"))
    if not pull:
        began = time.monotonic()
        buildah.make_stand_in(base)
        say(f"base      a stand-in for {base} of Debian packages, {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    buildah.build(pull=pull)
    say(f"build     {time.monotonic() - began:.0f} s")
    config = buildah.config()
    if config.user != str(USER):
        raise CheckFailed(f"the image runs as {config.user or 'root'}, not as {USER}")
    root = buildah.mount()
    total, own = file_bytes(root), file_bytes(root / "opt/gkt")
    compressed = buildah.compressed_bytes()
    say(f"size      {_mb(total)}: /opt/gkt {_mb(own)}, base {_mb(total - own)}; compressed {_mb(compressed)}")
    with world(folder) as found:
        container = Container(
            root, folder, config,
            environ={"GKT_PORT": str(found.port)},
            read_only={"/etc/gkt": found.site, "/run/secrets": found.secrets},
            writable={"/var/lib/gkt": found.data},
        )  # fmt: skip
        with container:
            _check_running(container, found)
            _check_stop(container, found)
    say("all checks passed")


def _check_running(container: Container, found: World) -> None:
    url = f"http://127.0.0.1:{found.port}"
    started_s = wait_for(container, "/healthz", lambda: is_ok(f"{url}/healthz"))
    wait_for(container, "/readyz", lambda: is_ok(f"{url}/readyz"))
    say(f"start     /healthz after {started_s:.1f} s; /readyz is ready")
    answer = guided_answer(found.port)
    say(f"answer    guided, {len(answer.split())} words")
    version = container.expect("version", "gkt-gateway", "--version")
    if __version__ not in version:
        raise CheckFailed(f"version: {version}, and the source is {__version__}")
    kind, *health_check = container.health_check
    if kind != "CMD":
        raise CheckFailed(f"HEALTHCHECK: {kind} is not the form without a shell")
    container.expect("HEALTHCHECK", *health_check)
    user = container.expect("user", "id", "-u")
    if user != str(USER):
        raise CheckFailed(f"the container runs as {user}, not as {USER}")
    container.expect("optional packages", "python", "-c", "import psycopg, opentelemetry.sdk.trace")
    container.expect("pip", "python", "-c", "import pip", fails=True)
    mounts = container.expect("mounts", "cat", "/proc/1/mounts").splitlines()
    if not any(line.split()[1] == "/" and "ro" in line.split()[3].split(",") for line in mounts):
        raise CheckFailed("the root file system is writable")
    status = dict(line.split(":", 1) for line in container.expect("status", "cat", "/proc/1/status").splitlines())
    if int(status["CapEff"], 16) or status["NoNewPrivs"].strip() != "1":
        raise CheckFailed(f"the process has privileges: CapEff {status['CapEff']}, NoNewPrivs {status['NoNewPrivs']}")
    say(f"inside    user {user}, no capabilities, / is read-only; {version}")
    say("          health check, psycopg and OpenTelemetry work; no pip")


def _check_stop(container: Container, found: World) -> None:
    wait_for(container, "usage.db of the usage worker in the volume", (found.data / "usage.db").exists)
    status = container.stop()
    if status != 0:
        raise CheckFailed(f"SIGTERM: exit status {status}; the log of the container:\n{container.log_text()[-4000:]}")
    say("stop      exit status 0 after SIGTERM; the usage database is in the volume")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
