"""A failed start prints one line and exits with a code other than 0."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.in_process import run
from tests.gateway_process import STUDENT_ONLY, GatewayProcess, model, running_gateway

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.in_process import Done

MODELS = [model("big", "tgi", "http://127.0.0.1:9"), model("small", "openai", "http://127.0.0.1:9/v1")]


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


def _config(folder: Path, **sections: Any) -> str:
    """Write a configuration; return its path."""
    GatewayProcess(folder, models=MODELS, routes=[STUDENT_ONLY], **({"redis_url": "redis://127.0.0.1:9"} | sections))
    return str(folder / "config.yaml")


def _one_line(done: subprocess.CompletedProcess[str] | Done) -> str:
    assert done.returncode == 1
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.parametrize("workers", ["1", "3"])
def test_no_redis(tmp_path: Path, workers: str) -> None:
    """The line names the setting; many workers say it once."""
    assert "redis.url" in _one_line(_run("serve", "--config", _config(tmp_path), "--workers", workers))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken(tmp_path: Path, redis_url: str, workers: str) -> None:
    """The line names the port and the setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = _config(tmp_path, redis_url=redis_url, server={"port": port})
        line = _one_line(_run("serve", "--config", config, "--workers", workers))
    assert f"127.0.0.1:{port} is already in use" in line
    assert line.endswith("or choose another port: server.port in config.yaml.")


@pytest.mark.parametrize(("workers", "option"), [("1", "--port"), ("2", "--port"), ("1", "--admin-port")])
def test_a_port_of_the_command_line_overrides_the_others(
    tmp_path: Path, redis_url: str, workers: str, option: str
) -> None:
    """The file and the environment have free ports, in the workers, too."""
    free = {"GKT_PORT": "0", "GKT_ADMIN_PORT": "0"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        config = _config(tmp_path, redis_url=redis_url, server={"port": 0}, admin={"port": 0})
        line = _one_line(_run("serve", "--config", config, "--workers", workers, option, port, **free))
    assert f"127.0.0.1:{port} is already in use" in line


def test_ports_of_the_command_line_are_checked_as_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("GKT_PORT", "GKT_ADMIN_PORT"):  # restored after the command, which sets them
        monkeypatch.setenv(variable, "0")
    done = run("serve", "--config", _config(tmp_path), "--port", "65536")
    assert done.returncode == 2
    assert "Invalid value for '--port'" in done.stderr
    done = run("serve", "--config", _config(tmp_path), "--port", "8080", "--admin-port", "8080")
    assert done.returncode == 1
    assert "GKT_ADMIN_PORT: server already listens on port 8080: use another port" in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.long
def test_a_port_that_another_gateways_workers_share(tmp_path: Path, redis_url: str, workers: str) -> None:
    """Sharing is for the workers of one gateway: a second one would take half of the first one's callers."""
    with running_gateway(
        tmp_path / "first", models=MODELS, routes=[STUDENT_ONLY], redis_url=redis_url, server={"workers": 2}
    ) as first:
        port = int(first.url.rsplit(":", 1)[1])
        config = _config(tmp_path / "second", redis_url=redis_url, server={"port": port})
        line = _one_line(_run("serve", "--config", config, "--workers", workers))
    assert f"127.0.0.1:{port} is already in use" in line


@pytest.mark.parametrize("workers", ["0", "-1", "257", "two"])
def test_a_number_of_workers_that_cannot_be(tmp_path: Path, workers: str) -> None:
    """The flag names itself and its bounds."""
    done = run("serve", "--config", _config(tmp_path), "--workers", workers)
    assert done.returncode == 2
    assert "Invalid value for '--workers'" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize(("workers", "why"), [(0, "at least 1"), (257, "at most 256"), ("two", "whole number")])
def test_workers_in_the_file_that_cannot_be(tmp_path: Path, workers: object, why: str) -> None:
    """`check` and `serve` name the line and the bound."""
    config = _config(tmp_path, server={"workers": workers})
    for command in ("check", "serve"):
        done = _run(command, "--config", config)
        assert done.returncode == 1
        assert "server.workers: must be" in done.stderr
        assert why in done.stderr


def test_invalid_yaml_is_reported_with_every_line(tmp_path: Path) -> None:
    """Errors of both files are reported at once, with a line for each."""
    config = _config(tmp_path)
    text = (tmp_path / "config.yaml").read_text().replace("api_base", "api_bse", 1)
    (tmp_path / "config.yaml").write_text(text)
    policy = tmp_path / "policies" / "acme.yaml"
    policy.write_text(policy.read_text().replace("student: small", "student: smal"))
    done = run("serve", "--config", config)
    assert done.returncode == 1
    assert "config.yaml:" in done.stderr
    assert "Did you mean 'api_base'" in done.stderr
    assert "acme.yaml:" in done.stderr
    assert "Did you mean 'small'" in done.stderr


def test_no_configuration_at_all(tmp_path: Path) -> None:
    """The line names the file."""
    assert "nowhere.yaml" in _one_line(_run("serve", "--config", str(tmp_path / "nowhere.yaml")))


def test_weights_that_are_not_to_be_had(tmp_path: Path) -> None:
    """demo with an unknown model lists the known ones, before it fetches the other."""
    assert "smollm2-135m-instruct" in _one_line(run("demo", "--student", "no-such-model", "--ask", "x"))


@pytest.mark.parametrize("command", [[], ["serve"], ["demo"], ["check"], ["queue"], ["usage"]])
def test_help_teaches(command: list[str]) -> None:
    """Every command has help."""
    done = run(*command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
