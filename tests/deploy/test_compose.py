"""compose.yaml and what it mounts: that the parts fit each other, and the gateway."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from ruamel.yaml import YAML

from deploy.check import documents, issues_in
from gateway.api.routes import ROUTES
from gateway.cli.check import warnings_of
from gateway.config.database_url import is_postgres
from gateway.config.settings import worker_settings
from gateway.local.redis import find_server
from gateway.policy.book import check_all
from gateway.version import __version__
from tests.deploy.written import (
    AFTER_DRAIN_S,
    COMPOSE,
    DEPLOY,
    ROOT,
    made_secrets,
    oidc_secrets,
    seconds,
    secrets_of_the_gateway,
    site,
    variables,
)
from tests.installed import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
TEXT = (DEPLOY / "compose.yaml").read_text("utf-8")
PROFILES = ("gpu", "vllm", "cpu")
HAPROXY = (DEPLOY / "compose" / "haproxy.cfg").read_text("utf-8")


def mounts(service: str) -> dict[str, str]:
    """Return the mounts by target: a path of the host or a volume."""
    parts = (text.rpartition(":/") for text in SERVICES[service].get("volumes", ()))
    return {"/" + where.removesuffix(":ro"): what for what, _, where in parts}


def engine(profile: str, role: str) -> dict[str, Any]:
    """The one service of a profile that answers to a role's name."""
    (found,) = (
        service
        for service in SERVICES.values()
        if profile in service.get("profiles", ()) and service["networks"]["engines"]["aliases"] == [role]
    )
    return found


def flags(service: dict[str, Any]) -> dict[str, str]:
    pairs = (argument.partition("=") for argument in service["command"] if argument.startswith("--"))
    return {name: value for name, _, value in pairs}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_gateways_configuration_is_right(profile: str, tmp_path: Path) -> None:
    """The expected warnings: keys are created at the running gateway, and Prometheus connects from another host."""
    settings, book = site(tmp_path, profile)
    assert [warning.partition(": ")[2] for warning in warnings_of(settings, book)] == [
        "no policy file has a key: create one with `gkt-gateway keys create`",
        "listens on 0.0.0.0 and requires no key for probes, metrics and queues: keep it behind a firewall",
    ]


def test_the_gateway_gets_each_variable_of_its_configuration() -> None:
    text = (DEPLOY / "gateway" / "config.yaml").read_text("utf-8")
    named = set(re.findall(r"\$\{(\w+):-[^}]+\}", text))
    assert text.count("${") == len(named), "each variable has a default"
    assert SERVICES["gateway"]["environment"] == {name: f"${{{name}:-}}" for name in named}


@pytest.mark.parametrize("profile", PROFILES)
def test_engines_listen_at_the_configured_addresses(profile: str, tmp_path: Path) -> None:
    settings, _ = site(tmp_path, profile)
    for role, model in zip(("teacher", "student"), settings.models, strict=True):
        assert model.api_base is not None
        options = flags(engine(profile, role))
        assert model.api_base.removesuffix("/v1") == f"http://{role}:{options['--port']}"
        if role == "student" or model.protocol == "openai":
            assert model.model == options.get("--served-model-name", options.get("--name"))
        assert model.api_base.endswith("/v1") == (model.protocol == "openai")


def test_no_teacher_gets_more_calls_than_its_limit(tmp_path: Path) -> None:
    gpu, vllm, cpu = (site(tmp_path / profile, profile)[0].models[0] for profile in PROFILES)
    assert vllm.max_concurrency <= int(flags(engine("vllm", "teacher"))["--max-num-seqs"])
    assert gpu.max_concurrency <= int(flags(engine("gpu", "teacher"))["--max-concurrent-requests"])
    assert cpu.max_concurrency == int(flags(engine("cpu", "teacher"))["--parallel"])


def test_the_stop_timeout_exceeds_the_drain_timeout(tmp_path: Path) -> None:
    drain_s = site(tmp_path)[0].server.drain_timeout_s
    assert seconds(SERVICES["gateway"]["stop_grace_period"]) >= drain_s + AFTER_DRAIN_S


def test_the_gateways_image_is_of_this_version() -> None:
    assert SERVICES["gateway"]["image"] == f"gkt-gateway:{__version__}"
    assert {engine("cpu", role)["image"] for role in ("teacher", "student")} == {f"gkt-local:{__version__}"}
    targets = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert engine("cpu", "teacher")["build"]["target"] in targets


def test_every_secret_is_created_declared_and_mounted(tmp_path: Path) -> None:
    made = {line.removeprefix("made ") for line in made_secrets(tmp_path)}
    assert COMPOSE["secrets"] == {name: {"file": f"./secrets/{name}"} for name in COMPOSE["secrets"]}
    assert set(COMPOSE["secrets"]) == made
    assert secrets_of_the_gateway() == set(SERVICES["gateway"]["secrets"])
    for service, service_config in SERVICES.items():
        files = [DEPLOY / what for what in mounts(service).values() if what.startswith("./compose/")]
        text = f"{service_config}" + "".join(file.read_text("utf-8") for file in files)
        if service not in {"gateway", "usage-worker"}:
            assert set(re.findall(r"/run/secrets/(\w+)", text)) == set(service_config.get("secrets", ()))


def test_the_usage_worker_runs_with_the_secrets_of_its_own_sections_alone(tmp_path: Path) -> None:
    settings, _ = site(tmp_path)
    assert settings.usage.run == "command"
    worker = SERVICES["usage-worker"]
    assert worker["image"] == SERVICES["gateway"]["image"]
    *command, _, config = worker["command"]
    assert command == ["usage", "worker"]
    assert config == "/etc/gkt/config.yaml"
    assert worker["healthcheck"] == {"disable": True}, "the image's asks for a port"
    assert mounts("usage-worker")[str(settings.data)] == "gateway-data"
    for secret in secrets_of_the_gateway() - set(worker["secrets"]):
        (tmp_path / "secrets" / secret).unlink()
    read = worker_settings(tmp_path / "gateway" / "config.yaml")
    assert read.usage == settings.usage
    assert read.redis.url == settings.redis.url


def test_the_login_at_a_provider_is_valid_with_its_secrets(tmp_path: Path) -> None:
    """Compose merges the second file into the first one; the sections are merged by hand."""
    (overlay,), (sections,) = (documents(DEPLOY / "compose" / name) for name in ("oidc.yaml", "oidc-config.yaml"))
    assert [str(issue) for issue in issues_in(DEPLOY / "compose" / "oidc.yaml")] == []
    assert overlay["secrets"] == {
        name: {"file": f"./secrets/{name}"} for name in overlay["services"]["gateway"]["secrets"]
    }
    assert overlay["secrets"].keys().isdisjoint(COMPOSE["secrets"])
    text = (DEPLOY / "compose" / "oidc-config.yaml").read_text("utf-8")
    assert set(re.findall(r"/run/secrets/(\w+)", text)) == set(overlay["secrets"])
    site(tmp_path)
    oidc_secrets(tmp_path / "secrets")
    config = tmp_path / "gateway" / "config.yaml"
    (before,) = documents(config)
    merged = before | {"identity": sections["identity"], "admin": before["admin"] | sections["admin"]}
    with config.open("w") as file:
        YAML().dump(merged, file)
    config.write_text(config.read_text("utf-8").replace("/run/secrets", str(tmp_path / "secrets")), "utf-8")
    settings, _, issues = check_all(config)
    assert [str(issue) for issue in issues] == []
    assert settings is not None
    assert settings.admin.oidc is not None
    assert settings.identity.issuers[0].ca == tmp_path / "secrets" / "issuer_ca"


def test_no_committed_file_contains_a_secret() -> None:
    """No environment contains a secret, which `docker inspect` would show."""
    for service in SERVICES.values():
        for name in service.get("environment", {}):
            assert "PASSWORD" not in name or name.endswith("_FILE")
    ignored = (DEPLOY / "secrets" / ".gitignore").read_text("utf-8").splitlines()
    assert "*" in ignored


def test_existing_secrets_are_kept_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    made = made_secrets(folder)
    assert len(made) == 7
    before = {path.name: path.read_text("utf-8") for path in folder.iterdir()}
    assert made_secrets(folder) == []
    assert {path.name: path.read_text("utf-8") for path in folder.iterdir()} == before
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not any(text.strip() and text.strip() in "\n".join(made) for text in before.values())
    assert before["redis_url"] == f"redis://:{before['valkey_auth'].split()[1]}@valkey:6379/0\n"
    assert before["usage_url"] == f"postgresql://gkt:{before['postgres_password'].strip()}@postgres:5432/gkt\n"


def test_an_incomplete_secret_is_reported_and_not_repaired(tmp_path: Path) -> None:
    """A new password in one place would lock the gateway out at the other."""
    made_secrets(tmp_path)
    (tmp_path / "redis_url").unlink()
    done = subprocess.run([DEPLOY / "make-secrets", tmp_path], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "redis_url is missing" in done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_all_mounted_files_exist(service: str) -> None:
    for where, what in mounts(service).items():
        if what.startswith("."):
            assert (DEPLOY / what).exists(), where
        elif what == "${GKT_SITE:-./gateway}":
            assert (DEPLOY / "gateway").is_dir()
        else:
            assert what in COMPOSE["volumes"]
    for network in SERVICES[service].get("networks", ()):
        assert network in COMPOSE["networks"]


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_sets_exactly_the_variables_of_its_engines(profile: str) -> None:
    """It may also set variables of the gateway's configuration."""
    given = variables(profile)
    assert given.pop("COMPOSE_PROFILES") == f"{profile},postgres,monitoring"
    options = {
        variable
        for service in SERVICES.values()
        if profile in service.get("profiles", ())
        for variable in re.findall(r"\$\{(\w+)", str(service))
    }
    assert set(given) - set(SERVICES["gateway"]["environment"]) == options


def test_without_profiles_the_gateway_runs_with_its_store_alone() -> None:
    """Own engines, SQLite and no monitoring: no required service has a profile, and no variable is required."""
    assert variables("gateway") == {"COMPOSE_PROFILES": "", "GKT_SITE": "./site"}
    always = {name: service for name, service in SERVICES.items() if "profiles" not in service}
    assert set(always) == {"lb", "gateway", "usage-worker", "valkey"}
    assert not any(re.search(r"\$\{\w+(?!\w*:-)", str(service)) for service in always.values())
    for service in always.values():
        for needed, condition in service.get("depends_on", {}).items():
            assert needed in always or condition["required"] is False
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
    assert profiles == {*PROFILES, "postgres", "monitoring"}


def test_the_secret_of_the_database_may_select_sqlite(tmp_path: Path) -> None:
    """Without the profile `postgres`. The worker has the volume of the file."""
    site(tmp_path)
    (tmp_path / "secrets" / "usage_url").write_text("sqlite\n", "utf-8")
    settings, _, issues = check_all(tmp_path / "gateway" / "config.yaml")
    assert list(issues) == []
    assert settings is not None
    assert not is_postgres(settings.usage.url.get_secret_value())


def test_the_load_balancer_has_slots_for_the_replicas_and_uses_the_health_route(tmp_path: Path) -> None:
    settings, _ = site(tmp_path)
    paths = {route.path for route in ROUTES}
    assert set(re.findall(r"http-check send meth GET uri (\S+)", HAPROXY)) <= paths
    places = re.findall(r"server-template gateway (\d+) gateway:(\d+)", HAPROXY)
    assert [int(port) for _, port in places] == [settings.server.port, settings.admin.port]
    assert min(int(count) for count, _ in places) >= SERVICES["gateway"]["deploy"]["replicas"]
    bound = set(re.findall(r"^    bind :(\d+)", HAPROXY, re.MULTILINE))
    assert bound == {port.rpartition(":")[2] for port in SERVICES["lb"]["ports"]}


def test_the_load_balancer_waits_longer_than_any_answer_takes(tmp_path: Path) -> None:
    settings, book = site(tmp_path)
    longest_s = max(model.timeouts.total_s for model in settings.models)
    deadline_s = max(route.guidance.max_deadline_s for policy in book.policies for route in policy.routes)
    for side in ("client", "server"):
        (waits,) = re.findall(rf"timeout {side} (\d+)s", HAPROXY)
        assert int(waits) >= longest_s + deadline_s


def test_admin_pages_are_published_only_on_this_machine() -> None:
    out = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert [port for port in out if not port.startswith("127.0.0.1:")] == ["8080:8080"]
    assert "ports" not in SERVICES["gateway"]


def test_prometheus_finds_the_gateway_and_its_rules(tmp_path: Path) -> None:
    settings, _ = site(tmp_path)
    for where, what in mounts("prometheus").items():
        if what.startswith("."):
            target = tmp_path / where.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(DEPLOY / what, target)
    config = tmp_path / "etc/prometheus/prometheus.yml"
    done = subprocess.run(
        [program("promtool"), "check", "config", config], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"port: {settings.admin.port}\n" in config.read_text("utf-8")
    assert "names: [gateway]" in config.read_text("utf-8")
    assert "job_name: gkt-gateway " in config.read_text("utf-8")
    assert "watch" in SERVICES["gateway"]["networks"]


def test_grafana_has_a_source_and_the_dashboards() -> None:
    there = mounts("grafana")
    source = (DEPLOY / there["/etc/grafana/provisioning/datasources/prometheus.yaml"]).read_text("utf-8")
    assert "url: http://prometheus:9090" in source
    provider = (DEPLOY / "grafana/provisioning/dashboards/gkt.yaml").read_text("utf-8")
    (path,) = re.findall(r"path: (\S+)", provider)
    assert list((DEPLOY / there[path]).glob("*.json"))


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[str]:
    """A server with the configuration that is delivered; its socket."""
    made_secrets(tmp_path / "secrets")
    text = (DEPLOY / "compose/valkey.conf").read_text("utf-8")
    text = text.replace("/run/secrets", str(tmp_path / "secrets")).replace("dir /data", f"dir {tmp_path}")
    config = tmp_path / "valkey.conf"
    config.write_text(f"{text}\nport 0\nunixsocket {tmp_path}/s\n", "utf-8")
    process = subprocess.Popen([find_server(), config], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert any("eady to accept connections" in line for line in process.stdout)
        yield f"{tmp_path}/s"
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.mark.long
async def test_valkey_wants_its_password_and_forgets_nothing(valkey: str, tmp_path: Path) -> None:
    password = (tmp_path / "secrets/valkey_auth").read_text("utf-8").split()[1]
    async with Redis(unix_socket_path=valkey, protocol=2) as stranger:
        with pytest.raises(RedisConnectionError, match="Authentication required"):
            await stranger.ping()
    async with Redis(unix_socket_path=valkey, password=password, decode_responses=True) as redis:
        for name, value in (("appendonly", "yes"), ("maxmemory-policy", "noeviction"), ("save", "")):
            assert (await redis.config_get(name))[name] == value


@pytest.mark.parametrize(("text", "token"), [("", "none"), ("hf_secret", "hf_secret")])
def test_an_engine_gets_the_hubs_token_where_there_is_one(text: str, token: str, tmp_path: Path) -> None:
    """An empty one would be sent as a wrong one."""
    (tmp_path / "hf_token").write_text(f"{text}\n", "utf-8")
    script = tmp_path / "with-token"
    script.write_text(
        (DEPLOY / "compose/with-token").read_text("utf-8").replace("/run/secrets", str(tmp_path)), "utf-8"
    )
    environ = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    done = subprocess.run(
        ["/bin/sh", script, "/bin/sh", "-c", 'echo "${HF_TOKEN-none} $1"', "sh", "a word"],
        capture_output=True, text=True, timeout=20, env=environ, check=True,
    )  # fmt: skip
    assert done.stdout == f"{token} a word\n"
