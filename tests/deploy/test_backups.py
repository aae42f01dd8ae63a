"""The guide's commands for backups: they find Redis and the database while no gateway runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from gateway.policy.book import check_all
from tests.deploy.written import COMPOSE, DEPLOY, ROOT, made_secrets

if TYPE_CHECKING:
    from pathlib import Path


GUIDE = (ROOT / "docs/deployment.md").read_text("utf-8")
SECTION = GUIDE.partition("\n## Backups\n")[2].partition("\n## ")[0]


def run(script: str, folder: Path) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", script], cwd=folder, capture_output=True, text=True, timeout=20, check=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout


def test_with_systemd_secrets_are_read_from_their_source(tmp_path: Path) -> None:
    """systemd's own folder for them is gone with the gateway."""
    shutil.copytree(DEPLOY / "gateway", tmp_path, dirs_exist_ok=True)
    made_secrets(tmp_path / "secrets")
    (first,) = re.findall(r"^sed -i '(\S+); .*/etc/gkt/config.yaml$", GUIDE, re.MULTILINE)
    (then,) = re.findall(r"^(sed .* /etc/gkt/config.yaml > /etc/gkt/as-root.yaml)$", SECTION, re.MULTILINE)
    run(f"sed -i '{first}' config.yaml", tmp_path)
    run(then.replace("/etc/gkt", str(tmp_path)), tmp_path)
    assert "/run/" not in (tmp_path / "as-root.yaml").read_text("utf-8")
    settings, _, issues = check_all(tmp_path / "as-root.yaml")
    assert list(issues) == []
    assert settings is not None
    assert settings.redis.url.get_secret_value() == (tmp_path / "secrets/redis_url").read_text("utf-8").strip()


def test_with_compose_the_commands_run_in_the_gateways_service() -> None:
    names = set(re.findall(r"run --rm --no-deps -v /backups:/backups (\w+) (?:keys|budgets)", SECTION))
    assert names == {"gateway"} <= COMPOSE["services"].keys()
    assert "user" not in COMPOSE["services"]["gateway"], "the image's, 10001"
    assert "install -d -o 10001" in SECTION
    assert re.search(r"^USER 10001$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
