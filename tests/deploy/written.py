"""The files of deploy/, read once, with secrets from deploy/make-secrets."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.check import EVERYTHING, documents
from gateway.policy.book import check_all
from tests.certificates import Authority

if TYPE_CHECKING:
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
(COMPOSE,) = documents(DEPLOY / "compose.yaml")
MANIFESTS = [one for path in EVERYTHING[1:] for one in documents(path)]
SITES = ("gateway", "gateway-vllm", "gateway-cpu")
AFTER_DRAIN_S = 5
"""What a gateway may take beyond server.drain_timeout: handlers that are cut, receipts that are flushed."""


def manifest(kind: str, name: str = "gkt-gateway") -> dict[str, Any]:
    """The one of this kind and name."""
    (found,) = (one for one in MANIFESTS if one["kind"] == kind and one["metadata"]["name"] == name)
    return found


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


def site(name: str, folder: Path) -> tuple[Settings, PolicySet]:
    """A gateway's configuration as it is read in its container. No mistake is in it."""
    made_secrets(folder / "secrets")
    shutil.copytree(DEPLOY / name, folder / name)
    config = folder / name / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("/run/secrets", str(folder / "secrets")), "utf-8")
    settings, book, issues = check_all(config)
    assert list(issues) == []
    assert settings is not None
    assert book is not None
    return settings, book


def secrets_of(name: str) -> set[str]:
    """Return the files of the secrets in a gateway's configuration."""
    return set(re.findall(r"file:/run/secrets/(\w+)", (DEPLOY / name / "config.yaml").read_text("utf-8")))


def seconds(text: str) -> int:
    """ "45s", "1m30s" -> seconds."""
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", text)
    assert found is not None
    minutes, rest = found.groups()
    return 60 * int(minutes or 0) + int(rest or 0)
