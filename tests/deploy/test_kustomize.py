"""The Kustomize base and its production overlay, with Kustomize itself."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from deploy.check import documents, issues_in
from gateway.policy.book import check_all
from tests.deploy.go_programs import go_program, run
from tests.deploy.written import DEPLOY, MANIFESTS, made_secrets, oidc_secrets

if TYPE_CHECKING:
    from pathlib import Path

BASE = DEPLOY / "kubernetes"
OVERLAY = DEPLOY / "kustomize" / "production"
OIDC = DEPLOY / "kustomize" / "oidc"


@pytest.fixture(scope="session")
def kustomize() -> Path:
    return go_program("kustomize")


def built(kustomize: Path, source: Path, folder: Path) -> list[dict[str, Any]]:
    """Return the manifests of a kustomization. They have no issues."""
    text, _ = run(kustomize, "build", source)
    path = folder / "built.yaml"
    path.write_text(text, "utf-8")
    assert [str(issue) for issue in issues_in(path, compare_copies=False)] == []
    return documents(path)


def ids(manifests: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Return kinds and names, without the suffixes that depend on contents."""
    return {(one["kind"], re.sub(r"^(gkt-config)-\w{10}$", r"\1", one["metadata"]["name"])) for one in manifests}


def one(manifests: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (it for it in manifests if it["kind"] == kind and it["metadata"]["name"].startswith(name))
    return found


@pytest.mark.parametrize("overlay", [OVERLAY, OIDC], ids=lambda folder: folder.name)
def test_the_overlays_configuration_is_valid(overlay: Path, tmp_path: Path) -> None:
    shutil.copytree(OVERLAY, tmp_path / "site")
    shutil.copy(overlay / "config.yaml", tmp_path / "site")
    made_secrets(tmp_path / "secrets")
    oidc_secrets(tmp_path / "secrets")
    config = tmp_path / "site" / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("/run/secrets", str(tmp_path / "secrets")), "utf-8")
    _, _, issues = check_all(config)
    assert list(issues) == []


def test_the_overlay_with_a_login_adds_two_sections() -> None:
    (production,), (oidc,) = (documents(one / "config.yaml") for one in (OVERLAY, OIDC))
    (sections,) = documents(DEPLOY / "compose" / "oidc-config.yaml")
    assert oidc.pop("identity") == sections["identity"]
    assert oidc["admin"].pop("oidc") == sections["admin"]["oidc"]
    assert oidc == production


@pytest.mark.long
def test_the_overlay_with_a_login_lets_the_gateway_reach_the_provider(kustomize: Path, tmp_path: Path) -> None:
    production, manifests = built(kustomize, OVERLAY, tmp_path), built(kustomize, OIDC, tmp_path)
    assert ids(manifests) == ids(production)
    config = one(manifests, "ConfigMap", "gkt-config")["data"]["config.yaml"]
    assert config == (OIDC / "config.yaml").read_text("utf-8")
    for name, expected in (("gkt-gateway", True), ("gkt-usage-worker", False)):
        egress = one(manifests, "NetworkPolicy", name)["spec"]["egress"]
        assert ({"ipBlock": {"cidr": "10.30.0.0/24"}} in [to for rule in egress for to in rule["to"]]) is expected


def test_the_base_lists_every_manifest() -> None:
    (kustomization,) = documents(BASE / "kustomization.yaml")
    left_out = {"kustomization.yaml", "secrets.example.yaml", "metrics-adapter.yaml", "config.yaml"}
    assert set(kustomization["resources"]) == {path.name for path in BASE.glob("*.yaml")} - left_out | {"../gateway"}


@pytest.mark.long
def test_the_base_is_the_manifests_with_generated_names(kustomize: Path, tmp_path: Path) -> None:
    manifests = built(kustomize, BASE, tmp_path)
    left_out = {("Secret", "gkt-gateway"), ("Secret", "gkt-stores"), ("Secret", "gkt-engines")}
    left_out |= {("ConfigMap", "gkt-metrics-adapter")}
    assert ids(manifests) == ids(MANIFESTS) - left_out
    config = one(manifests, "ConfigMap", "gkt-config")
    assert config["data"]["config.yaml"] == (DEPLOY / "gateway/config.yaml").read_text("utf-8")
    for name in ("gkt-gateway", "gkt-usage-worker"):
        volumes = one(manifests, "Deployment", name)["spec"]["template"]["spec"]["volumes"]
        assert {"name": "config", "configMap": {"name": config["metadata"]["name"]}} in volumes


@pytest.mark.long
def test_the_overlay_has_its_own_configuration_and_no_stores(kustomize: Path, tmp_path: Path) -> None:
    base, manifests = built(kustomize, BASE, tmp_path), built(kustomize, OVERLAY, tmp_path)
    removed = ids(base) - ids(manifests)
    assert {kind for kind, _ in removed} == {"StatefulSet", "Service", "ConfigMap", "NetworkPolicy"}
    assert {name for _, name in removed} == {"valkey", "postgres", "stores"}
    assert ids(manifests) <= ids(base)
    names = [one(found, "ConfigMap", "gkt-config")["metadata"]["name"] for found in (base, manifests)]
    assert names[0] != names[1], "another content has another name"
    config = one(manifests, "ConfigMap", "gkt-config")["data"]["config.yaml"]
    assert config == (OVERLAY / "config.yaml").read_text("utf-8")
    assert one(manifests, "ConfigMap", "gkt-policies")["metadata"]["name"] == "gkt-policies"
    for name in ("gkt-gateway", "gkt-usage-worker"):
        pod = one(manifests, "Deployment", name)["spec"]["template"]["spec"]
        assert pod["containers"][0]["image"].startswith("registry.example/team/gkt-gateway:")
        egress = one(manifests, "NetworkPolicy", name)["spec"]["egress"]
        assert {"ipBlock": {"cidr": "10.20.0.0/24"}} in [to for rule in egress for to in rule["to"]]
    gateway = one(manifests, "Deployment", "gkt-gateway")["spec"]["template"]["spec"]
    assert gateway["tolerations"]
    spec = one(manifests, "HorizontalPodAutoscaler", "gkt-gateway")["spec"]
    assert (spec["minReplicas"], len(spec["metrics"])) == (3, 2)
