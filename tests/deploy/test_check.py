"""The check of what is deployed names the file, the place and the fault."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.check import BALANCER, issues_in, main

if TYPE_CHECKING:
    from collections.abc import Callable

MANIFESTS = Path(__file__).parent / "manifests.yaml"
COMPOSE = Path(__file__).parents[2] / "deploy" / "compose.yaml"


@pytest.mark.parametrize("path", [MANIFESTS, COMPOSE], ids=lambda path: path.name)
def test_valid_files_have_no_issues(path: Path) -> None:
    assert [str(issue) for issue in issues_in(path)] == []


def _edited(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return edit


POD = "Deployment gkt-gateway.spec.template.spec"
NO_VERSION = "'registry.example/gkt-gateway:latest' has no version: add one, like registry.example/gkt-gateway:1.2.3"
HPA = "HorizontalPodAutoscaler gkt-gateway.spec"


@pytest.mark.parametrize(
    ("source", "edit", "message"),
    [
        (MANIFESTS, _edited("containerPort: 8080", "containerPort: 80800"),
         f"{POD}.containers[0].ports[0].containerPort: 80800 is out of range: 1 to 65535"),
        (MANIFESTS, _edited("minReadySeconds: 5", "minReadySeconds: five"),
         "Deployment gkt-gateway.spec.minReadySeconds: 'five' is not of type 'integer', 'null'"),
        (MANIFESTS, _edited("minReadySeconds: 5", "minReadySecond: 5"),
         "Deployment gkt-gateway.spec: Additional properties are not allowed ('minReadySecond' was unexpected)"),
        (MANIFESTS, _edited("periodSeconds: 10", "periodSeconds: 0"),
         f"{POD}.containers[0].livenessProbe.periodSeconds: 0 is out of range: 1 to 1800"),
        (MANIFESTS, _edited("terminationGracePeriodSeconds: 50", "terminationGracePeriodSeconds: -1"),
         f"{POD}.terminationGracePeriodSeconds: -1 is out of range: 1 to 1000000000"),
        (MANIFESTS, _edited("memory: 512Mi", "memory: 4Gi"),
         f"{POD}.containers[0].resources.requests.memory: 4Gi is above its limit, which is 2Gi"),
        (MANIFESTS, _edited("memory: 512Mi", "memory: much"),
         f"{POD}.containers[0].resources.requests.memory: 'much' is not a quantity: use a value like 500m, 2 or 512Mi"),
        (MANIFESTS, _edited("gkt-gateway:0.1.0", "gkt-gateway:latest"),
         f"{POD}.containers[0].image: {NO_VERSION}"),
        (MANIFESTS, _edited("apiVersion: apps/v1", "apiVersion: apps/v1beta1"),
         "Deployment gkt-gateway: Kubernetes 1.37 has no Deployment in apps/v1beta1"),
        (MANIFESTS, _edited("maxUnavailable: 0}", "maxUnavailable: -1}"),
         "Deployment gkt-gateway.spec.strategy.rollingUpdate.maxUnavailable: -1 is out of range: 0 to 1000"),
        (MANIFESTS, _edited("{maxSurge: 1,", "{maxSurge: 0%,"),
         ("Deployment gkt-gateway.spec.strategy.rollingUpdate: maxSurge and maxUnavailable are both 0: no pod could "
         "be replaced")),
        (MANIFESTS, _edited("  maxUnavailable: 1\n", "  maxUnavailable: 150%\n"),
         "PodDisruptionBudget gkt-gateway.spec.maxUnavailable: 150% is out of range: 0% to 100%"),
        (MANIFESTS, _edited("  maxUnavailable: 1\n", "  maxUnavailable: one\n"),
         "PodDisruptionBudget gkt-gateway.spec.maxUnavailable: 'one' is not a number of pods: use 1 or 25%"),
        (MANIFESTS, _edited("seconds: 5}", "seconds: -5}"),
         f"{POD}.containers[0].lifecycle.preStop.sleep.seconds: -5 is out of range: 1 to 1000000000"),
        (MANIFESTS, _edited("seconds: 5}", "seconds: 500}"),
         (f"{POD}.containers[0].lifecycle.preStop.sleep.seconds: 500 is above terminationGracePeriodSeconds, which is "
         "50")),
        (MANIFESTS, _edited("sizeLimit: 1Gi", "sizeLimit: -1Gi"),
         f"{POD}.volumes[3].emptyDir.sizeLimit: '-1Gi' is not a quantity: use a value like 500m, 2 or 512Mi"),
        (MANIFESTS, _edited("containerPort: 8080}", "containerPort: 8080, hostPort: 80800}"),
         f"{POD}.containers[0].ports[0].hostPort: 80800 is out of range: 1 to 65535"),
        (MANIFESTS, _edited('io/port: "8081"', 'io/port: "80810"'),
         ("Deployment gkt-gateway.spec.template.metadata.annotations.prometheus.io/port: 80810 is out of range: 1 to "
         "65535")),
        (MANIFESTS, _edited("gpu: 1}", "gpu: 0.5}"),
         (f"{POD}.containers[0].resources.limits.nvidia.com/gpu: 0.5 is out of range: it must be an integer")),
        (MANIFESTS, _edited("metadata: {name: gkt-gateway, namespace: gkt}", "metadata: [gateway]"),
         "PodDisruptionBudget ?.metadata: ['gateway'] is not of type 'object', 'null'"),
        (MANIFESTS, _edited("kind: Deployment", "sort: Deployment"), "? gkt-gateway: has no apiVersion or kind"),
        (MANIFESTS, _edited("minReplicas: 2", "minReplicas: 9"),
         f"{HPA}.minReplicas: 9 is above maxReplicas, which is 8"),
        (MANIFESTS, _edited("minReplicas: 2", "minReplicas: 0"), f"{HPA}.minReplicas: 0 is out of range: 1 to 1000"),
        (MANIFESTS, _edited("stabilizationWindowSeconds: 600", "stabilizationWindowSeconds: 6000"),
         f"{HPA}.behavior.scaleDown.stabilizationWindowSeconds: 6000 is out of range: 0 to 3600"),
        (MANIFESTS, _edited("value: 500m", "value: -500m"),
         f"{HPA}.metrics[1].external.target.value: '-500m' is not a quantity: use a value like 500m, 2 or 512Mi"),
        (MANIFESTS, _edited("value: 2,", "value: 0,"),
         f"{HPA}.behavior.scaleUp.policies[0].value: 0 is out of range: 1 to 1000000000"),
        (COMPOSE, _edited("replicas: 2 ", "replicas: -2 "),
         "services.gateway.deploy.replicas: -2 is out of range: 0 to 1000"),
        (COMPOSE, _edited("replicas: 2 ", 'replicas: "-2" '),
         "services.gateway.deploy.replicas: -2 is out of range: 0 to 1000"),
        (COMPOSE, _edited("replicas: 2 ", "replicas: 9 "),
         f"services.gateway.deploy.replicas: 9 is above the 8 slots in {BALANCER}"),
        (COMPOSE, _edited("replicas: 2 ", 'replicas: "9" '),
         f"services.gateway.deploy.replicas: 9 is above the 8 slots in {BALANCER}"),
        (COMPOSE, _edited("memory: 2g", "memory: -2g"),
         "services.gateway.deploy.resources.limits.memory: '-2g' is not a size: use a value like 512m or 2g"),
        (COMPOSE, _edited("replicas: 2 ", "replicas: [] "),
         "services.gateway.deploy.replicas: [] is not of type 'integer', 'string'"),
        (COMPOSE, _edited("stop_grace_period: 45s", "stop_grace_period: 45 sec"),
         "services.gateway.stop_grace_period: '45 sec' is not a duration: use a value like 45s or 1m30s"),
        (COMPOSE, _edited('"8080:8080"', '"80800:8080"'),
         "services.lb.ports[0]: 80800 is out of range: a port is from 1 to 65535"),
        (COMPOSE, _edited('"8080:8080"', '"8080-80800:8080"'),
         "services.lb.ports[0]: 80800 is out of range: a port is from 1 to 65535"),
        (COMPOSE, _edited('"8080:8080"', "{published: 8080, target: 80800}"),
         "services.lb.ports[0].target: 80800 is out of range: 1 to 65535"),
        (COMPOSE, _edited("valkey:9.1.2", "valkey"),
         "services.valkey.image: 'valkey/valkey' has no version: add one, like valkey/valkey:1.2.3"),
        (COMPOSE, _edited("    read_only: true", "    readonly: true"),
         "services.lb: Unevaluated properties are not allowed ('readonly' was unexpected)"),
    ],
)  # fmt: skip
def test_an_issue_is_named(source: Path, edit: Callable[[str], str], message: str, tmp_path: Path) -> None:
    """Alone: nothing else is said."""
    path = tmp_path / "edited.yaml"
    path.write_text(edit(source.read_text("utf-8")), "utf-8")
    assert [str(issue) for issue in issues_in(path)] == [f"{path}: {message}"]


def test_fields_omitted_for_an_autoscaler_are_no_issue(tmp_path: Path) -> None:
    path = tmp_path / "edited.yaml"
    path.write_text(MANIFESTS.read_text("utf-8").replace("minReplicas: 2", "minReplicas: null"), "utf-8")
    assert list(issues_in(path)) == []


def test_custom_resources_are_not_validated(tmp_path: Path) -> None:
    path = tmp_path / "monitor.yaml"
    path.write_text("apiVersion: monitoring.coreos.com/v1\nkind: ServiceMonitor\nmetadata: {name: it}\n", "utf-8")
    assert list(issues_in(path)) == []
    path.write_text("apiVersion: monitoring.example/v1\nkind: ServiceMonitor\nmetadata: {name: it}\n", "utf-8")
    (issue,) = issues_in(path)
    assert issue.what == "Kubernetes 1.37 has no ServiceMonitor in monitoring.example/v1"


def test_invalid_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("kind: [Service\n", "utf-8")
    (issue,) = issues_in(path)
    assert str(issue).startswith(f"{path}: whole file: cannot be read: ")
    assert "line 2" in str(issue)


def test_the_command_prints_the_number_of_issues_and_sets_the_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "service.yaml"
    service = "apiVersion: v1\nkind: Service\nmetadata: {{name: it}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    path.write_text(service.format(port=70_000), "utf-8")
    assert main([str(path)]) == 1
    assert capsys.readouterr() == (
        "Files: 1, issues: 1\n",
        f"{path}: Service it.spec.ports[0].port: 70000 is out of range: 1 to 65535\n",
    )
    path.write_text(service.format(port=80), "utf-8")
    assert main([str(path)]) == 0
    assert capsys.readouterr() == ("Files: 1, issues: 0\n", "")
    assert main([str(tmp_path / "none.yaml")]) == 1
