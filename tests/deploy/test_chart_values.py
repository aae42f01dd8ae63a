"""The values of the Helm chart, without Helm: schema, defaults and links."""

from __future__ import annotations

import io
import re
import subprocess
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from deploy.check import documents
from gateway.api.routes import ROUTES
from gateway.policy.book import check_all
from gateway.telemetry.metrics import Metrics
from gateway.version import __version__
from tests.deploy.chart import CHART, SCHEMA, VALUE_FILES, VALUES, merged
from tests.deploy.written import AFTER_DRAIN_S, DEPLOY, ROOT, made_secrets, oidc_secrets, seconds
from tests.installed import program

if TYPE_CHECKING:
    from pathlib import Path

GUIDE = (ROOT / "docs" / "deployment.md").read_text("utf-8")
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


def test_the_default_configuration_is_that_of_compose() -> None:
    """With the defaults of its variables."""
    text = (DEPLOY / "gateway/config.yaml").read_text("utf-8")
    config = YAML(typ="safe").load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))
    del config["admin"]["hosts"]  # a template of the chart sets the names of its own service
    teacher = config["models"][0]
    assert (teacher.pop("model"), teacher.pop("batch")) == ("tgi", {"low_water": 8}), "the defaults of the gateway"
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


def test_the_probed_routes_exist() -> None:
    """/readyz takes the pod out of service, and never ends it."""
    paths = {probe: VALUES["probes"][probe]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert set(paths.values()) <= {route.path for route in ROUTES}
    assert {probe["httpGet"]["port"] for probe in VALUES["probes"].values()} == {"http"}


def test_the_grace_period_exceeds_the_drain_timeout() -> None:
    """After the pause in which the cluster learns that the pod ends."""
    drain_s = seconds(VALUES["config"]["server"]["drain_timeout"])
    assert VALUES["preStopSeconds"] > 0
    assert VALUES["terminationGracePeriodSeconds"] >= VALUES["preStopSeconds"] + drain_s + AFTER_DRAIN_S


def test_by_default_the_container_has_no_privileges_and_the_user_of_the_image() -> None:
    user = int(re.findall(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)[-1])
    assert VALUES["podSecurityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert VALUES["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_autoscaler_of_the_production_example_uses_an_existing_metric() -> None:
    """The rule for prometheus-adapter exports the metric, which rises before guidance is late."""
    (own,) = documents(VALUE_FILES["production"])
    (metric,) = (entry["external"] for entry in own["autoscaling"]["metrics"])
    name = metric["metric"]["name"]
    assert name in {family.name for family in Metrics().registry.collect()}
    (block,) = re.findall(r"```yaml\n( *externalRules:\n.*?)```", GUIDE, re.DOTALL)
    (rule,) = YAML(typ="safe").load(block)["externalRules"]
    assert rule["name"]["as"] == name
    assert name in rule["metricsQuery"]
    (route,) = own["policies"]["acme.yaml"]["routes"]
    assert int(metric["target"]["value"].removesuffix("m")) / 1000 < seconds(route["guidance"]["deadline"])


def test_prometheus_without_an_operator_finds_the_pods(tmp_path: Path) -> None:
    """Debian's promtool is built without Kubernetes: it reads the rest of the job."""
    text = (DEPLOY / "prometheus/kubernetes.yml").read_text("utf-8")
    (job,) = YAML(typ="safe").load(text)["scrape_configs"]
    assert job["job_name"] == "gkt-gateway"
    (chart,) = documents(CHART / "Chart.yaml")
    assert job["relabel_configs"][0]["regex"] == f"{chart['name']};admin"
    found = re.sub(r"kubernetes_sd_configs:.*?(?=    relabel)", "static_configs: []\n", text, flags=re.DOTALL)
    for rules in ("recording.yml", "alerts.yml"):
        (tmp_path / rules).write_text((DEPLOY / "prometheus" / rules).read_text("utf-8"), "utf-8")
    (tmp_path / "it.yml").write_text(found, "utf-8")
    done = subprocess.run(
        [program("promtool"), "check", "config", tmp_path / "it.yml"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_dashboards_are_links_to_the_originals() -> None:
    originals = {path for path in (DEPLOY / "prometheus").glob("*.yml") if path.stem in {"alerts", "recording"}}
    originals |= set((DEPLOY / "grafana").glob("*.json"))
    assert all(link.is_symlink() and not link.readlink().is_absolute() for link in LINKS)
    assert {link.resolve() for link in LINKS} == originals
