"""The manifests: that they fit each other, the gateway and what its configuration says."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from gateway.api.routes import ROUTES
from gateway.cli.commands import COMMANDS
from gateway.config.settings import worker_settings
from gateway.telemetry.metrics import Metrics
from gateway.version import __version__
from tests.deploy.written import (
    AFTER_DRAIN_S,
    COMPOSE,
    DEPLOY,
    MANIFESTS,
    made_secrets,
    manifest,
    secrets_of,
    site,
)
from tests.installed import program

if TYPE_CHECKING:
    from pathlib import Path

WORKLOADS = [one for one in MANIFESTS if one["kind"] in {"Deployment", "StatefulSet"}]
POLICIES = [one for one in MANIFESTS if one["kind"] == "NetworkPolicy"]
SERVICES = [one for one in MANIFESTS if one["kind"] == "Service"]
DEPLOYMENT = manifest("Deployment")
WORKER = manifest("Deployment", "gkt-usage-worker")
POD: dict[str, Any] = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def name_of(one: dict[str, Any]) -> str:
    return f"{one['kind']}-{one['metadata']['name']}"


def pods(selector: dict[str, str]) -> list[dict[str, Any]]:
    """The workloads whose pods have these labels."""
    return [one for one in WORKLOADS if selector.items() <= one["spec"]["template"]["metadata"]["labels"].items()]


def ports_of(workload: dict[str, Any]) -> dict[str, int]:
    containers = workload["spec"]["template"]["spec"]["containers"]
    return {port["name"]: port["containerPort"] for one in containers for port in one.get("ports", ())}


def mounted(workload: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the volumes by mount path."""
    pod = workload["spec"]["template"]["spec"]
    volumes = {one["name"]: one for one in [*pod.get("volumes", ()), *_claims(workload)]}
    return {one["mountPath"]: volumes[one["name"]] for part in pod["containers"] for one in part["volumeMounts"]}


def _claims(workload: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": one["metadata"]["name"]} for one in workload["spec"].get("volumeClaimTemplates", ())]


def test_everything_is_in_one_namespace() -> None:
    assert {one["metadata"].get("namespace") for one in MANIFESTS if one["kind"] != "Namespace"} == {"gkt"}
    assert manifest("Namespace", "gkt")


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_the_probed_routes_exist(probe: str) -> None:
    """On the callers' port; /readyz takes it out of service, and never ends it."""
    http_get = CONTAINER[probe]["httpGet"]
    assert http_get["path"] in {route.path for route in ROUTES}
    assert http_get["port"] == "http"
    assert (http_get["path"] == "/readyz") == (probe == "readinessProbe")


def test_ports_are_those_that_the_configuration_opens(tmp_path: Path) -> None:
    settings, _ = site("gateway", tmp_path)
    assert ports_of(DEPLOYMENT) == {"http": settings.server.port, "admin": settings.admin.port}
    assert DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(settings.admin.port)


def test_the_grace_period_exceeds_the_drain_timeout(tmp_path: Path) -> None:
    """After the pause in which the cluster learns that it goes."""
    drain_s = site("gateway", tmp_path)[0].server.drain_timeout_s
    pause_s = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause_s > 0
    assert POD["terminationGracePeriodSeconds"] >= pause_s + drain_s + AFTER_DRAIN_S


def test_the_gateways_pod_has_minimal_privileges() -> None:
    """The pod meets Kubernetes' standard `restricted`, with a read-only root and the user of the image."""
    assert POD["serviceAccountName"] == manifest("ServiceAccount")["metadata"]["name"]
    assert POD["automountServiceAccountToken"] is False
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    user = re.findall(r"^USER (\d+)$", (DEPLOY.parent / "Dockerfile").read_text("utf-8"), re.MULTILINE)[-1]
    assert POD["securityContext"]["runAsUser"] == int(user)
    assert {"/tmp", "/var/lib/gkt"} <= mounted(DEPLOYMENT).keys()


def test_edits_of_configuration_and_policies_reach_the_gateway() -> None:
    """A kubelet updates mounted folders, and no mounts with `subPath`."""
    assert not any("subPath" in mount for mount in CONTAINER["volumeMounts"])
    paths = {path: volume["configMap"]["name"] for path, volume in mounted(DEPLOYMENT).items() if "configMap" in volume}
    assert paths == {"/etc/gkt": "gkt-config", "/etc/gkt-policies": "gkt-policies"}
    assert CONTAINER["args"][-1] == "/etc/gkt/config.yaml"
    assert {"name": "GKT_POLICIES", "value": "/etc/gkt-policies"} in CONTAINER["env"]


def test_every_secret_is_mounted_and_in_the_example(tmp_path: Path) -> None:
    example = {one["metadata"]["name"]: set(one["stringData"]) for one in MANIFESTS if one["kind"] == "Secret"}
    assert mounted(DEPLOYMENT)["/run/secrets"]["secret"]["secretName"] == "gkt-gateway"
    assert example["gkt-gateway"] == secrets_of("gateway")
    made = {line.removeprefix("made ") for line in made_secrets(tmp_path)}
    assert set().union(*example.values()) <= made
    for workload in WORKLOADS:
        http_get = {
            (ref["name"], ref["key"])
            for part in workload["spec"]["template"]["spec"]["containers"]
            for ref in (one.get("valueFrom", {}).get("secretKeyRef") for one in part.get("env", ()))
            if ref
        }
        for volume in mounted(workload).values():
            secret = volume.get("secret", {})
            http_get |= {(secret["secretName"], item["key"]) for item in secret.get("items", ())}
        for name, key in http_get:
            assert key in example[name]


def test_the_usage_worker_runs_as_the_gateway_does_with_fewer_secrets(tmp_path: Path) -> None:
    pod = WORKER["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == CONTAINER["image"]
    assert container["args"][0] in COMMANDS
    for key in ("serviceAccountName", "automountServiceAccountToken", "securityContext"):
        assert pod[key] == POD[key]
    assert container["securityContext"] == CONTAINER["securityContext"]
    site("gateway", tmp_path)
    handed = {item["path"] for item in mounted(WORKER)["/run/secrets"]["secret"]["items"]}
    for secret in secrets_of("gateway") - handed:
        (tmp_path / "secrets" / secret).unlink()
    assert worker_settings(tmp_path / "gateway" / "config.yaml").usage.run == "command"


def test_the_example_of_the_secrets_holds_none() -> None:
    for one in MANIFESTS:
        if one["kind"] == "Secret":
            assert "data" not in one
            assert set(one["stringData"].values()) == {""}


def test_files_read_from_a_secret_exist_in_it() -> None:
    for workload in WORKLOADS:
        text = str(workload["spec"]["template"]["spec"]["containers"])
        for config in (one["configMap"]["name"] for one in mounted(workload).values() if "configMap" in one):
            text += str(manifest("ConfigMap", config)["data"])
        there = mounted(workload).get("/run/secrets", {}).get("secret", {})
        has = {item["path"] for item in there.get("items", ())} or secrets_of("gateway")
        named = set(re.findall(r"/run/secrets/(\w+)", text))
        assert named - ({"admin_key"} if workload is WORKER else set()) <= has  # the worker reads no section admin


def test_the_autoscaler_uses_an_existing_metric(tmp_path: Path) -> None:
    """The adapter is configured to export the metric, which rises before guidance is late."""
    autoscaler = manifest("HorizontalPodAutoscaler")["spec"]
    assert autoscaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "gkt-gateway"}
    assert "replicas" not in DEPLOYMENT["spec"]
    (http_get,) = (one["external"] for one in autoscaler["metrics"] if one["type"] == "External")
    assert http_get["metric"]["name"] in {family.name for family in Metrics().registry.collect()}
    rules = YAML(typ="safe").load(manifest("ConfigMap", "gkt-metrics-adapter")["data"]["config.yaml"])
    (rule,) = rules["externalRules"]
    assert rule["name"]["as"] == http_get["metric"]["name"]
    assert http_get["metric"]["name"] in rule["metricsQuery"]
    deadlines_s = [
        route.guidance.max_deadline_s for policy in site("gateway", tmp_path)[1].policies for route in policy.routes
    ]
    assert int(http_get["target"]["value"].removesuffix("m")) / 1000 < min(deadlines_s)


def test_a_node_can_be_emptied_while_the_fewest_gateways_run() -> None:
    budget = manifest("PodDisruptionBudget")["spec"]
    assert pods(budget["selector"]["matchLabels"]) == [DEPLOYMENT]
    assert budget["maxUnavailable"] < manifest("HorizontalPodAutoscaler")["spec"]["minReplicas"]


@pytest.mark.parametrize("service", SERVICES, ids=name_of)
def test_the_port_of_a_service_exists(service: dict[str, Any]) -> None:
    (workload,) = pods(service["spec"]["selector"])
    for port in service["spec"]["ports"]:
        assert port["targetPort"] in ports_of(workload)


def test_no_callers_service_leads_to_the_admin_listener() -> None:
    assert [port["targetPort"] for port in manifest("Service")["spec"]["ports"]] == ["http"]


def _reached(source: dict[str, Any], target: dict[str, Any], port: int) -> bool:
    """Return whether the policies allow egress from the one to the other, and ingress there."""

    def lets(workload: dict[str, Any], way: str, peer: dict[str, Any]) -> bool:
        labels = peer["spec"]["template"]["metadata"]["labels"]
        return any(
            any(one["port"] == port for one in rule["ports"])
            and any(
                "podSelector" in who and who["podSelector"].get("matchLabels", {}).items() <= labels.items()
                for who in rule.get({"egress": "to", "ingress": "from"}[way], ())
                if "namespaceSelector" not in who
            )
            for policy in POLICIES
            if workload in pods(policy["spec"]["podSelector"].get("matchLabels", {}))
            for rule in policy["spec"].get(way, ())
        )

    return lets(source, "egress", target) and lets(target, "ingress", source)


def test_only_gateway_and_worker_have_egress_to_their_dependencies(tmp_path: Path) -> None:
    settings, _ = site("gateway", tmp_path)
    engines = [model.api_base or "" for model in settings.models]
    stores = [(tmp_path / "secrets" / name).read_text("utf-8").strip() for name in ("redis_url", "usage_url")]
    for address in [*engines, *stores]:
        callers = [DEPLOYMENT, WORKER] if address in stores else [DEPLOYMENT]
        found = re.search(r"(?:@|//)([a-z]+):(\d+)(?:/|$)", address)
        assert found is not None
        (service,) = (one for one in SERVICES if one["metadata"]["name"] == found[1])
        (target,) = pods(service["spec"]["selector"])
        (port,) = service["spec"]["ports"]
        assert port["port"] == int(found[2])
        assert [one for one in WORKLOADS if _reached(one, target, ports_of(target)[port["targetPort"]])] == callers


def test_traffic_without_a_policy_is_denied() -> None:
    everything = manifest("NetworkPolicy", "nobody")["spec"]
    assert everything == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in POLICIES:
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for rule in policy["spec"].get("ingress", ()):
            assert rule["from"]
            assert rule["ports"]


def test_engines_listen_on_their_declared_ports() -> None:
    for role in ("teacher", "student"):
        workload = manifest("Deployment", role)
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        (port,) = container["ports"]
        assert f"--port={port['containerPort']}" in container["args"]


def test_the_students_model_name_equals_the_configured_one(tmp_path: Path) -> None:
    (container,) = manifest("Deployment", "student")["spec"]["template"]["spec"]["containers"]
    assert f"--served-model-name={site('gateway', tmp_path)[0].models[1].model}" in container["args"]


def test_images_are_those_of_compose_and_the_gateways_of_this_version() -> None:
    images = [part["image"] for one in WORKLOADS for part in one["spec"]["template"]["spec"]["containers"]]
    known = {service["image"] for service in COMPOSE["services"].values()}
    assert {image.removeprefix("registry.example/") for image in images} <= known
    assert CONTAINER["image"].endswith(f"/gkt-gateway:{__version__}")


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_every_volume_is_there(workload: dict[str, Any]) -> None:
    for volume in mounted(workload).values():
        if "configMap" in volume:
            assert manifest("ConfigMap", volume["configMap"]["name"])
        if "persistentVolumeClaim" in volume:
            assert manifest("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])


def test_prometheus_finds_the_gateways_pods(tmp_path: Path) -> None:
    """Debian's promtool is built without Kubernetes: it reads the rest of the job."""
    text = (DEPLOY / "prometheus/kubernetes.yml").read_text("utf-8")
    (job,) = YAML(typ="safe").load(text)["scrape_configs"]
    assert job["job_name"] == "gkt-gateway"
    assert job["kubernetes_sd_configs"][0]["namespaces"]["names"] == ["gkt"]
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert job["relabel_configs"][0]["regex"] == f"{labels['app.kubernetes.io/name']};admin"
    found = re.sub(r"kubernetes_sd_configs:.*?(?=    relabel)", "static_configs: []\n", text, flags=re.DOTALL)
    for rules in ("recording.yml", "alerts.yml"):
        (tmp_path / rules).write_text((DEPLOY / "prometheus" / rules).read_text("utf-8"), "utf-8")
    (tmp_path / "it.yml").write_text(found, "utf-8")
    done = subprocess.run(
        [program("promtool"), "check", "config", tmp_path / "it.yml"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
