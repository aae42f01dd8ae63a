"""The values of the Helm chart, without Helm: schema, defaults and links."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from deploy.check import documents
from gateway.policy.book import check_all
from gateway.version import __version__
from tests.deploy.chart import CHART, SCHEMA, VALUE_FILES, VALUES, merged
from tests.deploy.written import DEPLOY, made_secrets, manifest, oidc_secrets

if TYPE_CHECKING:
    from pathlib import Path

VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
POLICY_NAMES: str = SCHEMA["properties"]["policies"]["propertyNames"]["pattern"]
LINKS = sorted(path for path in (CHART / "files").rglob("*") if not path.is_dir())


def issues(values: Any) -> list[str]:
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in VALIDATOR.iter_errors(values)]


def values_of(name: str) -> Any:
    (own,) = documents(VALUE_FILES[name])
    return merged(VALUES, own)


def test_the_charts_version_is_the_gateways() -> None:
    (chart,) = documents(CHART / "Chart.yaml")
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_the_schema_is_valid() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", ["default", *VALUE_FILES])
def test_the_schema_accepts_the_value_files(name: str) -> None:
    assert issues(VALUES if name == "default" else values_of(name)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replicas": "two"}, "replicas: 'two' is not of type 'integer'"),
        ({"replica": 2}, ": Additional properties are not allowed ('replica' was unexpected)"),
        ({"usageWorker": {"enable": True}},
         "usageWorker: Additional properties are not allowed ('enable' was unexpected)"),
        ({"service": {"port": 80800}}, "service.port: 80800 is greater than the maximum of 65535"),
        ({"service": {"type": "External"}},
         "service.type: 'External' is not one of ['ClusterIP', 'NodePort', 'LoadBalancer']"),
        ({"config": {"models": []}}, "config.models: [] should be non-empty"),
        ({"policies": {"acme.yml": {}}}, f"policies: 'acme.yml' does not match {POLICY_NAMES!r}"),
        ({"secrets": {"big_key": {"secret": "engines"}}}, "secrets.big_key: 'key' is a required property"),
        ({"env": [{"name": "GKT_WORKERS", "value": 2}]}, "env.0.value: 2 is not of type 'string'"),
        ({"networkPolicy": {"redis": {"ports": ["6379"]}}},
         "networkPolicy.redis.ports.0: '6379' is not valid under any of the given schemas"),
        ({"image": {"digest": "sha256:abc"}}, "image.digest: 'sha256:abc' does not match '^(sha256:[0-9a-f]{64})?$'"),
    ],
)  # fmt: skip
def test_the_schema_names_an_invalid_value(change: Any, message: str) -> None:
    assert issues(merged(VALUES, change)) == [message]


def test_the_default_configuration_is_that_of_compose_and_the_manifests() -> None:
    (config,) = documents(DEPLOY / "gateway/config.yaml")
    del config["admin"]["hosts"]  # a template of the chart sets the names of its own service
    assert VALUES["config"] == config
    assert [VALUES["policies"]["default.yaml"]] == documents(DEPLOY / "gateway/policies/default.yaml")
    assert list(VALUES["policies"]) == ["default.yaml"]


def test_the_schema_and_the_templates_know_the_same_values() -> None:
    """A misspelled value in a template is empty, and Helm reports nothing."""
    assert set(SCHEMA["properties"]) - {"global"} == set(VALUES)
    templates = "".join(path.read_text("utf-8") for path in sorted((CHART / "templates").iterdir()))
    used = set(re.findall(r"\.Values\.([a-zA-Z]+)", templates))
    workload = set(VALUES["usageWorker"]) & set(VALUES)
    assert used | workload == set(VALUES) | {"usageWorker"}
    for path in re.findall(r"\.Values((?:\.[a-zA-Z]+)+)", templates):
        node: Any = VALUES
        for key in path.strip(".").split("."):
            assert key in node, path
            node = node[key]


def test_the_production_example_uses_every_value() -> None:
    (own,) = documents(VALUE_FILES["production"])
    not_there = {"nameOverride", "fullnameOverride", "existingConfigMaps", "restartOnConfigChange"}
    as_by_default = {"replicas", "strategy", "minReadySeconds", "revisionHistoryLimit", "preStopSeconds", "probes",
                     "terminationGracePeriodSeconds", "resources", "podSecurityContext", "securityContext"}  # fmt: skip
    assert set(own) == set(VALUES) - not_there - as_by_default
    assert set(own["usageWorker"]) | {"enabled", "secrets", "terminationGracePeriodSeconds", "resources"} == set(
        VALUES["usageWorker"]
    )
    switches = [name for name, value in VALUES.items() if isinstance(value, dict) and "enabled" in value]
    assert [name for name in switches if not merged(VALUES, own)[name]["enabled"]] == []


def test_the_configuration_of_the_example_with_a_login_is_valid(tmp_path: Path) -> None:
    values = values_of("oidc")
    made_secrets(tmp_path / "secrets")
    oidc_secrets(tmp_path / "secrets")
    (tmp_path / "policies").mkdir()
    files = {"config.yaml": values["config"], "policies/default.yaml": values["policies"]["default.yaml"]}
    for name, content in files.items():
        text = io.StringIO()
        YAML().dump(content, text)
        (tmp_path / name).write_text(text.getvalue().replace("/run/secrets", str(tmp_path / "secrets")), "utf-8")
    assert {path.name for path in (tmp_path / "secrets").iterdir()} >= set(values["secrets"])
    settings, book, issues = check_all(tmp_path / "config.yaml")
    assert [str(issue) for issue in issues] == []
    assert settings is not None
    assert settings.admin.oidc is not None
    assert book is not None
    assert [rule.id for rule in book.policies[0].identities] == ["staff"]


def test_the_defaults_are_those_of_the_manifests() -> None:
    deployment, worker = manifest("Deployment"), manifest("Deployment", "gkt-usage-worker")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for key in ("strategy", "minReadySeconds", "revisionHistoryLimit"):
        assert VALUES[key] == deployment["spec"][key]
    for probe in ("startup", "liveness", "readiness"):
        assert VALUES["probes"][probe] == container[f"{probe}Probe"]
    assert VALUES["podSecurityContext"] == pod["securityContext"]
    assert VALUES["securityContext"] == container["securityContext"]
    assert VALUES["resources"] == container["resources"]
    assert VALUES["terminationGracePeriodSeconds"] == pod["terminationGracePeriodSeconds"]
    assert VALUES["preStopSeconds"] == container["lifecycle"]["preStop"]["sleep"]["seconds"]
    worker_pod = worker["spec"]["template"]["spec"]
    assert VALUES["usageWorker"]["resources"] == worker_pod["containers"][0]["resources"]
    assert VALUES["usageWorker"]["terminationGracePeriodSeconds"] == worker_pod["terminationGracePeriodSeconds"]
    assert VALUES["autoscaling"]["behavior"] == manifest("HorizontalPodAutoscaler")["spec"]["behavior"]
    assert VALUES["podDisruptionBudget"]["maxUnavailable"] == manifest("PodDisruptionBudget")["spec"]["maxUnavailable"]
    egress = manifest("NetworkPolicy", "gkt-usage-worker")["spec"]["egress"]
    assert VALUES["networkPolicy"]["dns"] == egress[:1]


def test_rules_and_dashboards_are_links_to_the_originals() -> None:
    originals = {path for path in (DEPLOY / "prometheus").glob("*.yml") if path.stem in {"alerts", "recording"}}
    originals |= set((DEPLOY / "grafana").glob("*.json"))
    assert all(link.is_symlink() and not link.readlink().is_absolute() for link in LINKS)
    assert {link.resolve() for link in LINKS} == originals
