"""The files of deploy/, read once, with secrets from deploy/make-secrets."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.check import documents
from gateway.policy.book import check_all
from tests.certificates import Authority

if TYPE_CHECKING:
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
(COMPOSE,) = documents(DEPLOY / "compose.yaml")
AFTER_DRAIN_S = 5
"""What a gateway may take beyond server.drain_timeout: handlers that are cut, receipts that are flushed."""


def made_secrets(folder: Path) -> list[str]:
    """Has them made there; what was printed, line by line."""
    done = subprocess.run(
        [DEPLOY / "make-secrets", folder],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def oidc_secrets(folder: Path) -> None:
    """Write the further secrets of the examples with an identity provider."""
    shutil.copy(Authority(folder).ca, folder / "issuer_ca")
    (folder / "oidc_client_secret").write_text("0123456789abcdef")


def variables(profile: str) -> dict[str, str]:
    """Return the variables of a profile's env file."""
    lines = (DEPLOY / "compose" / f"{profile}.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def site(folder: Path, profile: str = "gpu") -> tuple[Settings, PolicySet]:
    """Return the gateway's configuration as its container reads it with a profile. It has no issues."""
    made_secrets(folder / "secrets")
    shutil.copytree(DEPLOY / "gateway", folder / "gateway")
    config = folder / "gateway" / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("/run/secrets", str(folder / "secrets")), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(profile).items():
            patch.setenv(name, value)
        settings, book, issues = check_all(config)
    assert list(issues) == []
    assert settings is not None
    assert book is not None
    return settings, book


def secrets_of_the_gateway() -> set[str]:
    """Return the files of the secrets in the gateway's configuration."""
    return set(re.findall(r"file:/run/secrets/(\w+)", (DEPLOY / "gateway" / "config.yaml").read_text("utf-8")))


def seconds(text: str) -> int:
    """ "45s", "1m30s" -> seconds."""
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", text)
    assert found is not None
    minutes, rest = found.groups()
    return 60 * int(minutes or 0) + int(rest or 0)
