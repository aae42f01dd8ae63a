"""The Helm chart with Helm itself: lint, rendered manifests, their configuration, and messages for invalid values."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from deploy.check import documents, issues_in
from gateway.cli.check import warnings_of
from gateway.config.settings import worker_settings
from gateway.policy.book import check_all
from gateway.version import __version__
from tests.deploy.chart import CHART, VALUE_FILES, VALUES
from tests.deploy.go_programs import go_program, run
from tests.deploy.written import DEPLOY, oidc_secrets
from tests.installed import program

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet

pytestmark = pytest.mark.long
# The oldest Kubernetes that the chart supports. Helm 3 built from its module otherwise assumes 1.20.
TEMPLATE = ("template", "prod", "--namespace", "gkt", "--kube-version", "1.30")
NAMES = ["default", *VALUE_FILES]
SYSTEM = ("registry.example/wait", "registry.example/database-proxy")
"""Images of the production example that are not the gateway's."""
SECRETS = {
    "redis_url": "redis://host:6379/0",
    "usage_url": "postgresql://user:word@host/name",
    "budget_webhook": "https://hooks.example.com/budgets",
}
"""Contents of secrets that must have a form."""


@pytest.fixture(scope="session")
def helm() -> Path:
    return go_program("helm")


def options(name: str) -> list[str | Path]:
    return [] if name == "default" else ["--values", VALUE_FILES[name]]


class Release:
    """The rendered manifests of a release."""

    def __init__(self, text: str) -> None:
        self.objects: list[dict[str, Any]] = [one for one in YAML(typ="safe").load_all(text) if one is not None]

    def one(self, kind: str, suffix: str = "") -> dict[str, Any]:
        (found,) = (one for one in self.objects if one["kind"] == kind and one["metadata"]["name"].endswith(suffix))
        return found

    def named(self, kind: str, name: str) -> dict[str, Any]:
        (found,) = (one for one in self.objects if one["kind"] == kind and one["metadata"]["name"] == name)
        return found

    def has(self, kind: str) -> bool:
        return any(one["kind"] == kind for one in self.objects)

    def gateway(self) -> dict[str, Any]:
        (found,) = (one for one in self.deployments() if part(one) == "gateway")
        return found

    def worker(self) -> dict[str, Any]:
        (found,) = (one for one in self.deployments() if part(one) == "usage-worker")
        return found

    def deployments(self) -> list[dict[str, Any]]:
        return [one for one in self.objects if one["kind"] == "Deployment"]


def part(workload: dict[str, Any]) -> str:
    name: str = workload["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]
    return name


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = workload["spec"]["template"]["spec"]
    return found


def container(workload: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod(workload)["containers"][0]
    return found


def rendered(helm: Path, *arguments: str | Path, chart: Path = CHART) -> Release:
    text, _ = run(helm, *TEMPLATE, chart, *arguments)
    return Release(text)


def written(release: Release, folder: Path) -> Path:
    """Write the files that the gateway's pod has in its volumes, with made-up secrets. Return config.yaml."""
    volumes = {one["name"]: one for one in pod(release.gateway())["volumes"]}
    secrets = folder / "secrets"
    (folder / "policies").mkdir(parents=True)
    secrets.mkdir()
    for source in volumes["secrets"]["projected"]["sources"]:
        for item in source["secret"]["items"]:
            (secrets / item["path"]).write_text(SECRETS.get(item["path"], "0123456789abcdef"), "utf-8")
    if (secrets / "issuer_ca").exists():
        oidc_secrets(secrets)
    config = release.named("ConfigMap", volumes["config"]["configMap"]["name"])["data"]["config.yaml"]
    (folder / "config.yaml").write_text(config.replace("/run/secrets", str(secrets)), "utf-8")
    data = folder / "policies" / "..data"  # as a kubelet writes volumes
    for source in volumes["policies"]["projected"]["sources"]:
        texts = release.named("ConfigMap", source["configMap"]["name"])["data"]
        items = source["configMap"].get("items") or [{"key": key, "path": key} for key in texts]
        for item in items:
            (data / item["path"]).parent.mkdir(parents=True, exist_ok=True)
            (data / item["path"]).write_text(texts[item["key"]], "utf-8")
    for path in data.iterdir():
        (folder / "policies" / path.name).symlink_to(f"..data/{path.name}")
    return folder / "config.yaml"


def read(release: Release, folder: Path) -> tuple[Settings, PolicySet]:
    settings, book, issues = check_all(written(release, folder))
    assert [str(issue) for issue in issues] == []
    assert settings is not None
    assert book is not None
    return settings, book


@pytest.mark.parametrize("name", NAMES)
def test_helm_lints_the_chart(name: str, helm: Path) -> None:
    output, _ = run(helm, "lint", "--strict", CHART, *options(name))
    assert "0 chart(s) failed" in output


@pytest.mark.parametrize("name", NAMES)
def test_rendered_manifests_have_no_issues(name: str, helm: Path, tmp_path: Path) -> None:
    text, _ = run(helm, *TEMPLATE, CHART, *options(name))
    path = tmp_path / "rendered.yaml"
    path.write_text(text, "utf-8")
    assert [str(issue) for issue in issues_in(path)] == []
    names = [(one["kind"], one["metadata"]["name"], one["metadata"]["namespace"]) for one in documents(path)]
    assert len(names) == len(set(names))
    assert {
        namespace for _, name, namespace in names if not re.search("batcher|cost|engines|latency|overview", name)
    } == {"gkt"}


@pytest.mark.parametrize("name", ["default", "production", "single", "oidc"])
def test_the_gateway_accepts_its_configuration(
    name: str, helm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_AUTHORIZATION", "placeholder")
    release = rendered(helm, *options(name))
    settings, book = read(release, tmp_path)
    keyless = ["no policy file has a key: create one with `gkt-gateway keys create`"] if name != "oidc" else []
    assert [warning.partition(": ")[2] for warning in warnings_of(settings, book)] == [
        *keyless,
        "listens on 0.0.0.0 and requires no key for probes, metrics and queues: keep it behind a firewall",
    ]
    assert {port["name"]: port["containerPort"] for port in container(release.gateway())["ports"]} == {
        "http": settings.server.port, "admin": settings.admin.port
    }  # fmt: skip
    if name == "production":
        assert [policy.tenant for policy in book.policies] == ["acme", "globex"]
        assert "plan" in book.projections
        assert settings.receipts.max_buffered == 10_000_000
        assert settings.tracing.sample == 0.1


@pytest.mark.parametrize(
    ("chosen", "hosts"),
    [
        (
            [],
            ["prod-gkt-gateway-admin", "prod-gkt-gateway-admin.gkt", "prod-gkt-gateway-admin.gkt.svc",
             "prod-gkt-gateway-admin.gkt.svc.cluster.local"],
        ),
        (["--set", "config.admin.hosts={gkt.example.com}"], ["gkt.example.com"]),
    ],
)  # fmt: skip
def test_the_admin_listener_accepts_the_names_of_its_service(
    chosen: list[str], hosts: list[str], helm: Path, tmp_path: Path
) -> None:
    release = rendered(helm, *chosen)
    release.named("Service", "prod-gkt-gateway-admin")
    settings, _ = read(release, tmp_path)
    assert list(settings.admin.hosts) == hosts


@pytest.mark.parametrize("name", ["default", "production"])
def test_the_usage_worker_reads_its_configuration_with_its_secrets_alone(name: str, helm: Path, tmp_path: Path) -> None:
    release = rendered(helm, *options(name))
    config = written(release, tmp_path)
    (volume,) = (one for one in pod(release.worker())["volumes"] if one["name"] == "secrets")
    handed = {item["path"] for source in volume["projected"]["sources"] for item in source["secret"]["items"]}
    assert handed == {"redis_url", "usage_url"}
    for secret in (tmp_path / "secrets").iterdir():
        if secret.name not in handed:
            secret.unlink()
    assert worker_settings(config).usage.run == "command"


def test_by_default_the_pods_have_minimal_privileges(helm: Path) -> None:
    """The pods meet Kubernetes' standard `restricted`, with a read-only root, writable folders and no API token."""
    release = rendered(helm)
    for workload in (release.gateway(), release.worker()):
        assert pod(workload)["automountServiceAccountToken"] is False
        assert pod(workload)["enableServiceLinks"] is False
        assert pod(workload)["securityContext"] == VALUES["podSecurityContext"]
        assert container(workload)["securityContext"] == VALUES["securityContext"]
        assert container(workload)["image"].endswith(f"/gkt-gateway:{__version__}")
        assert "/tmp" in {mount["mountPath"] for mount in container(workload)["volumeMounts"]}
    mounts = container(release.gateway())["volumeMounts"]
    assert "/var/lib/gkt" in {mount["mountPath"] for mount in mounts}
    assert not any("subPath" in mount for mount in mounts), "a kubelet updates folders alone"
    spread = pod(release.gateway())["topologySpreadConstraints"][0]
    assert spread["labelSelector"]["matchLabels"] == release.gateway()["spec"]["selector"]["matchLabels"]


@pytest.mark.parametrize("name", NAMES)
def test_selectors_match_one_workload_and_ports_exist(name: str, helm: Path) -> None:
    release = rendered(helm, *options(name))

    def selected(labels: dict[str, str]) -> list[dict[str, Any]]:
        pods = release.deployments()
        return [one for one in pods if labels.items() <= one["spec"]["template"]["metadata"]["labels"].items()]

    for service in (one for one in release.objects if one["kind"] == "Service"):
        assert selected(service["spec"]["selector"]) == [release.gateway()]
        ports = {port["name"] for port in container(release.gateway())["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for workload in release.deployments():
        assert selected(workload["spec"]["selector"]["matchLabels"]) == [workload]
    for one in release.objects:
        if one["kind"] == "PodDisruptionBudget":
            assert selected(one["spec"]["selector"]["matchLabels"]) == [release.gateway()]
        if one["kind"] == "NetworkPolicy":
            (workload,) = selected(one["spec"]["podSelector"]["matchLabels"])
            assert bool(one["spec"].get("ingress")) == (workload == release.gateway())
        if one["kind"] == "HorizontalPodAutoscaler":
            assert one["spec"]["scaleTargetRef"]["name"] == release.gateway()["metadata"]["name"]
            assert "replicas" not in release.gateway()["spec"]


def test_labels_of_values_replace_those_of_the_chart_but_not_selectors(helm: Path) -> None:
    """The parser rejects an object with a key twice. The name of the release is a word of YAML."""
    own = ("serviceMonitor", "prometheusRule", "dashboards")
    values = {
        "commonLabels": {"team": "a", "app.kubernetes.io/part-of": "it", "app.kubernetes.io/name": "other"},
        "service": {"labels": {"team": "b"}},
        "podLabels": {"team": "c", "app.kubernetes.io/component": "other"},
        **{part: {"enabled": True, "labels": {"team": "b"}} for part in own},
    }
    settings = [word for name, value in values.items() for word in ("--set-json", f"{name}={json.dumps(value)}")]
    release = Release(run(helm, "template", "true", CHART, "--kube-version", "1.30", *settings)[0])
    names = ("part-of", "name", "instance")
    for one in release.objects:
        labels = one["metadata"]["labels"]
        assert [labels[f"app.kubernetes.io/{name}"] for name in names] == ["it", "gkt-gateway", "true"]
    callers = release.named("Service", "true-gkt-gateway")
    for one in (callers, release.one("ServiceMonitor"), release.one("PrometheusRule")):
        assert one["metadata"]["labels"]["team"] == "b"
    assert release.one("Service", "-admin")["metadata"]["labels"]["team"] == "a"
    for workload, team in ((release.gateway(), "c"), (release.worker(), "a")):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert labels["team"] == team
        assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize(
    ("ports", "allowed"),
    [
        ([6379], [{"port": 6379}]),
        ([6379, 26379], [{"port": 6379}, {"port": 26379}]),  # with Sentinel
        ([7000, "7001-7005"], [{"port": 7000}, {"port": 7001, "endPort": 7005}]),  # nodes of a cluster
    ],
)
def test_gateway_and_worker_may_connect_to_the_ports_of_redis(
    ports: list[int | str], allowed: list[dict[str, int]], helm: Path
) -> None:
    peer = {"podSelector": {"matchLabels": {"app": "redis"}}}
    policy = {"enabled": True, "redis": {"to": [peer], "ports": ports}, "engines": [{"to": []}]}
    release = Release(run(helm, *TEMPLATE, CHART, "--set-json", f"networkPolicy={json.dumps(policy)}")[0])
    policies = [one for one in release.objects if one["kind"] == "NetworkPolicy"]
    assert len(policies) == 2
    for one in policies:
        (rule,) = [rule for rule in one["spec"]["egress"] if rule["to"] == [peer]]
        assert rule["ports"] == [{"protocol": "TCP", **port} for port in allowed]


def test_no_route_leads_to_the_admin_listener(helm: Path) -> None:
    release = rendered(helm, *options("production"))
    callers = next(
        one for one in release.objects if one["kind"] == "Service" and "admin" not in one["metadata"]["name"]
    )
    (path,) = release.one("Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": callers["metadata"]["name"], "port": {"name": "http"}}
    (backend,) = release.one("HTTPRoute")["spec"]["rules"][0]["backendRefs"]
    assert backend == {"name": callers["metadata"]["name"], "port": callers["spec"]["ports"][0]["port"]}
    assert [port["targetPort"] for port in callers["spec"]["ports"]] == ["http"]


def changed(helm: Path, *settings: str) -> tuple[bool, bool]:
    """Return whether a change of values restarts the gateways, and the usage worker."""
    kept = [setting for setting in settings if setting.startswith("restartOnConfigChange")]
    pairs = [[option for one in chosen for option in ("--set", one)] for chosen in (kept, settings)]
    before, after = (rendered(helm, *options) for options in pairs)
    return (
        before.gateway()["spec"]["template"] != after.gateway()["spec"]["template"],
        before.worker()["spec"]["template"] != after.worker()["spec"]["template"],
    )


def test_a_change_of_the_configuration_restarts_the_pods_that_read_it(helm: Path) -> None:
    assert changed(helm, "config.log.level=debug") == (True, True)
    assert changed(helm, "config.defaults.limits.rpm_limit=9") == (True, False)
    assert changed(helm, "policies.other\\.yaml.tenant=other") == (False, False)
    assert changed(helm, "policies.projections/mine\\.yaml.instruction=Hi") == (True, False), "a new mount"


@pytest.mark.parametrize(
    ("setting", "restarts"),
    [
        ("config.defaults.limits.rpm_limit=9", (False, False)),
        ("config.log.level=debug", (False, True)),
        ("config.server.max_in_flight=9", (False, False)),
        ("config.usage.keep=30d", (False, True)),
    ],
)
def test_a_change_that_gateways_apply_while_they_run_may_restart_none(
    setting: str, restarts: tuple[bool, bool], helm: Path
) -> None:
    assert changed(helm, "restartOnConfigChange=false", setting) == restarts


def test_existing_objects_are_used_and_none_is_created(helm: Path) -> None:
    release = rendered(helm, *options("existing"))
    assert {one["kind"] for one in release.objects} == {"Deployment", "PodDisruptionBudget", "Service"}
    for workload in release.deployments():
        volumes = {one["name"]: one for one in pod(workload)["volumes"]}
        assert volumes["config"]["configMap"] == {"name": "my-gkt-config"}
        assert pod(workload)["serviceAccountName"] == "my-account"
        assert "annotations" not in workload["spec"]["template"]["metadata"]
    (source,) = {one["name"]: one for one in pod(release.gateway())["volumes"]}["policies"]["projected"]["sources"]
    assert source["configMap"] == {"name": "my-gkt-policies"}
    names = {
        source["secret"]["name"]: source["secret"]["items"]
        for source in next(one for one in pod(release.gateway())["volumes"] if one["name"] == "secrets")["projected"][
            "sources"
        ]
    }
    assert names["my-engines"] == [{"key": "big", "path": "big_api_key"}]


def test_everything_of_the_production_example_is_in_the_pods(helm: Path) -> None:
    release = rendered(helm, *options("production"))
    assert release.has("HorizontalPodAutoscaler")
    for workload in release.deployments():
        spec = pod(workload)
        for key in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "topologySpreadConstraints",
                    "initContainers", "imagePullSecrets"):  # fmt: skip
            assert spec[key]
        assert [one["image"].partition(":")[0] for one in spec["containers"]][1:] == list(SYSTEM[1:])
        assert "/etc/ssl/company" in {mount["mountPath"] for mount in container(workload)["volumeMounts"]}
        assert "company-ca" in {one.get("configMap", {}).get("name") for one in spec["volumes"]}
        assert container(workload)["envFrom"]
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert labels["team"] == "inference"
        assert labels["tier"]
    zone, host = pod(release.gateway())["topologySpreadConstraints"]
    assert zone["labelSelector"]["matchLabels"] == release.gateway()["spec"]["selector"]["matchLabels"]
    assert host["labelSelector"] == {"matchLabels": {"tier": "gateway"}}
    environ = {one["name"]: one for one in container(release.gateway())["env"]}
    assert environ["OTEL_AUTHORIZATION"]["valueFrom"]["secretKeyRef"]["name"] == "collector"
    (data,) = (one for one in pod(release.gateway())["volumes"] if one["name"] == "data")
    assert set(data) == {"name", "ephemeral"}
    assert release.named("ConfigMap", "prod-company-ca")


def test_prometheus_and_grafana_get_the_rules_and_dashboards_of_deploy(helm: Path, tmp_path: Path) -> None:
    release = rendered(helm, *options("production"))
    groups = [
        group for name in ("recording", "alerts")
        for group in YAML(typ="safe").load(DEPLOY / f"prometheus/{name}.yml")["groups"]
    ]  # fmt: skip
    rule = release.one("PrometheusRule")
    assert rule["spec"] == {"groups": groups}
    YAML().dump(rule["spec"], tmp_path / "rules.yml")
    done = subprocess.run(
        [program("promtool"), "check", "rules", tmp_path / "rules.yml"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    boards = {one["metadata"]["name"]: one for one in release.objects if "grafana_dashboard" in labels_of(one)}
    assert len(boards) == len(list((DEPLOY / "grafana").glob("*.json")))
    for name, board in boards.items():
        ((file, text),) = board["data"].items()
        assert file == f"gkt-{name.rpartition('-')[2]}.json"
        original = DEPLOY / "grafana" / file.removeprefix("gkt-")
        assert json.loads(text) == json.loads(original.read_text("utf-8"))
        assert board["metadata"]["namespace"] == "monitoring"


def labels_of(one: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = one["metadata"].get("labels", {})
    return labels


def test_the_service_monitor_selects_the_admin_service_with_the_job_of_the_alerts(helm: Path) -> None:
    release = rendered(helm, *options("production"))
    monitor = release.one("ServiceMonitor")
    selector = monitor["spec"]["selector"]["matchLabels"].items()
    (service,) = (one for one in release.objects if one["kind"] == "Service" and selector <= labels_of(one).items())
    (endpoint,) = monitor["spec"]["endpoints"]
    (port,) = service["spec"]["ports"]
    assert (endpoint["port"], endpoint["path"], port["targetPort"]) == (port["name"], "/metrics", "admin")
    assert endpoint["relabelings"][0] == {"targetLabel": "job", "replacement": "gkt-gateway"}
    assert 'up{job="gkt-gateway"}' in (DEPLOY / "prometheus/alerts.yml").read_text("utf-8")


def test_a_package_contains_the_linked_files_and_renders_alike(helm: Path, tmp_path: Path) -> None:
    run(helm, "package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.glob("*.tgz")
    with tarfile.open(package) as archive:
        assert all(member.isfile() for member in archive.getmembers())
        names = set(archive.getnames())
    assert {f"gkt-gateway/files/{name}" for name in ("alerts.yml", "recording.yml", "dashboards/cost.json")} <= names
    assert not any("/ci/" in name for name in names)
    arguments = options("production")
    assert rendered(helm, *arguments, chart=package).objects == rendered(helm, *arguments).objects


def test_a_copy_without_its_links_is_reported(helm: Path, tmp_path: Path) -> None:
    """Flux leaves symbolic links out of a Git source."""
    subprocess.run(["cp", "-rL", CHART, tmp_path], check=True)
    (tmp_path / "gkt-gateway/files/alerts.yml").unlink()
    arguments = [*TEMPLATE, tmp_path / "gkt-gateway", *options("production")]
    _, message = run(helm, *arguments, fails=True)
    assert "files/alerts.yml is missing" in message
    assert "helm package" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replicas=two"], r"replicas.*got string, want integer"),
        (["service.port=80800"], r"service/port.*maximum"),
        (["replica=2"], r"additional properties 'replica' not allowed"),
        (["config.redis.url=embedded"], r"config\.redis\.url: the image has no embedded Redis"),
        (["config.usage.url=sqlite"], r"config\.usage\.url: sqlite is for one pod"),
        (["config.tracing.headers.key=file:/run/secrets/big"],
         r"secrets\.big is missing, and config refers to file:/run/secrets/big"),
        (["usageWorker.secrets={redis_url}"], r"usageWorker\.secrets: add usage_url, since the worker reads"),
        (["autoscaling.enabled=true", "autoscaling.minReplicas=9"],
         r"autoscaling\.minReplicas: 9 is above maxReplicas, which is 8"),
        (["preStopSeconds=60"], r"preStopSeconds: 60 is not below terminationGracePeriodSeconds, which is 50"),
        (["podDisruptionBudget.minAvailable=1"], r"podDisruptionBudget: set either maxUnavailable or minAvailable"),
        (["networkPolicy.enabled=true"], r"networkPolicy\.stores: add egress rules"),
        (["ingress.enabled=true"], r"ingress\.hosts: add at least one host"),
        (["httpRoute.enabled=true"], r"httpRoute\.parentRefs: add the Gateway"),
    ],
)  # fmt: skip
def test_an_invalid_value_is_named(arguments: Sequence[str], message: str, helm: Path) -> None:
    pairs = [option for argument in arguments for option in ("--set", argument)]
    _, text = run(helm, *TEMPLATE, CHART, *pairs, fails=True)
    assert re.search(message, text), text


def test_old_clusters_are_refused(helm: Path) -> None:
    _, text = run(helm, "template", "prod", CHART, "--kube-version", "1.29.0", fails=True)
    assert "1.30" in text


def test_the_notes_name_the_services(helm: Path) -> None:
    text, _ = run(helm, "install", "prod", CHART, "--namespace", "gkt", "--dry-run=client")
    assert "http://prod-gkt-gateway.gkt.svc:80/v1" in text
    assert "svc/prod-gkt-gateway-admin 8081:8081" in text
    assert "image.repository is an example" in text
    assert str(VALUES["service"]["port"]) in text
