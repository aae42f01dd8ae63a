"""The unit: systemd itself reads it, and what it starts is what there is."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gateway.cli.check import warnings_of
from gateway.cli.commands import COMMANDS
from gateway.config.settings import worker_settings
from gateway.policy.book import check_all
from tests.deploy.written import AFTER_DRAIN_S, DEPLOY, ROOT, made_secrets, secrets_of_the_gateway, site
from tests.installed import program

UNIT = DEPLOY / "systemd" / "gkt-gateway.service"
TEXT = UNIT.read_text("utf-8")
WORKER = DEPLOY / "systemd" / "gkt-usage-worker.service"
UNITS = Path("/usr/lib/systemd/system")


def values(key: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def verified(text: str, root: Path, unit: Path = UNIT) -> subprocess.CompletedProcess[str]:
    """Return the output of systemd for a unit, with fake files for all paths of the unit."""
    for command in ("opt/gkt/bin/gkt-gateway", "bin/kill"):
        path = root / command
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n", "utf-8")
        path.chmod(0o755)
    shutil.copytree(UNITS, root / "usr/lib/systemd/system", symlinks=True, dirs_exist_ok=True)
    (root / "lib").symlink_to("usr/lib")
    there = root / "etc/systemd/system" / unit.name
    there.parent.mkdir(parents=True)
    there.write_text(text, "utf-8")
    return subprocess.run(
        [program("systemd-analyze"), f"--root={root}", "verify", f"/etc/systemd/system/{unit.name}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("unit", [UNIT, WORKER], ids=lambda unit: unit.stem)
def test_systemd_accepts_the_units(unit: Path, tmp_path: Path) -> None:
    done = verified(unit.read_text("utf-8"), tmp_path, unit)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("TimeoutStopSec=45", "TimeoutStopSec=soon", "soon"),
        ("KillMode=mixed", "KilMode=mixed", "KilMode"),
        ("ExecStart=/opt/gkt/bin/", "ExecStart=/opt/gkt/", "/opt/gkt/gkt-gateway"),
    ],
)
def test_an_issue_in_a_unit_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in TEXT
    assert message in verified(TEXT.replace(old, new), tmp_path).stderr


@pytest.mark.parametrize("unit", [UNIT, WORKER], ids=lambda unit: unit.stem)
def test_the_units_exposure_level_is_low(unit: Path) -> None:
    """systemd's own count of what a service could do: from 0 to 10, here at most 1.5."""
    done = subprocess.run(
        [program("systemd-analyze"), "security", "--offline=yes", "--threshold=15", "--no-pager", unit],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:]


def test_the_stop_timeout_covers_the_drain_of_the_main_process(tmp_path: Path) -> None:
    drain_s = site(tmp_path)[0].server.drain_timeout_s
    assert int(values("TimeoutStopSec")[0]) >= drain_s + AFTER_DRAIN_S
    assert (values("KillMode"), values("KillSignal")) == (["mixed"], ["SIGTERM"])
    assert values("Restart") == ["on-failure"]


def test_the_unit_starts_existing_commands() -> None:
    for line in values("ExecStart(?:Pre)?"):
        assert line.split()[1] in COMMANDS
    assert values("ExecReload") == ["/bin/kill -HUP $MAINPID"]


def test_the_unit_loads_the_configured_secrets() -> None:
    assert {line.partition(":")[0] for line in values("LoadCredential")} == secrets_of_the_gateway()


def test_the_worker_shares_the_gateways_user_and_reads_credentials_of_its_own(tmp_path: Path) -> None:
    text = WORKER.read_text("utf-8")
    (start,) = values("ExecStart", text)
    assert start.split()[1:3] == ["usage", "worker"]
    for key in ("DynamicUser", "User", "StateDirectory"):
        assert values(key, text) == values(key)
    settings, _ = site(tmp_path)
    environ = dict(line.split("=", 1) for line in values("Environment", text))
    there = f"/run/credentials/{WORKER.name}"
    handed = {line.partition(":")[0] for line in values("LoadCredential", text)}
    assert {value for value in environ.values() if there in value} == {f"file:{there}/{name}" for name in handed}
    config = tmp_path / "gateway" / "config.yaml"
    config.write_text(config.read_text("utf-8").replace(str(tmp_path / "secrets"), "/run/credentials/of-another"))
    moved = {name: value.replace(there, str(tmp_path / "secrets")) for name, value in environ.items()}
    read = worker_settings(config, moved)
    assert read.redis.url == settings.redis.url
    assert read.usage.url == settings.usage.url


def test_both_units_let_the_worker_lower_its_priority() -> None:
    for unit in (UNIT, WORKER):
        assert values("SystemCallFilter", unit.read_text("utf-8"))[-1] == "setpriority"


def test_the_guides_edit_makes_a_configuration_that_fits(tmp_path: Path) -> None:
    """Secrets where systemd puts them, and an admin listener that nobody else reaches."""
    (edit,) = re.findall(
        r"^(sed -i .*) /etc/gkt/config.yaml$", (ROOT / "docs/deployment.md").read_text("utf-8"), re.MULTILINE
    )
    config = tmp_path / "config.yaml"
    shutil.copytree(DEPLOY / "gateway", tmp_path, dirs_exist_ok=True)
    subprocess.run(["/bin/sh", "-c", f"{edit} {config}"], timeout=20, check=True)
    text = config.read_text("utf-8")
    credentials = f"/run/credentials/{UNIT.name}"
    assert re.findall(r"file:(\S+)/\w+", text) == [credentials] * len(secrets_of_the_gateway())
    made_secrets(tmp_path / "secrets")
    config.write_text(text.replace(credentials, str(tmp_path / "secrets")), "utf-8")
    settings, book, issues = check_all(config)
    assert list(issues) == []
    assert settings is not None
    assert book is not None
    assert settings.admin.host == "127.0.0.1"
    assert not any(warning.startswith("admin:") for warning in warnings_of(settings, book))


def test_its_files_are_where_its_settings_point() -> None:
    unit = configparser.ConfigParser(strict=False, delimiters=("=",), interpolation=None)
    unit.optionxform = str
    unit.read_string(TEXT)
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    assert "GKT_DATA=/var/lib/gkt" in values("Environment")
    assert values("StateDirectory") == ["gkt"]
