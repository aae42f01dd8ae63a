"""An address of Redis is refused where it would be read otherwise than it is meant, and no refusal shows any of it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from redis.asyncio.connection import parse_url

from gateway.config.redis_url import check_redis_url, redis_address
from gateway.config.scalars import InvalidValue
from gateway.config.settings import OVERRIDES, check_settings
from gateway.errors import StartupError
from gateway.redis.client import RedisClient
from gateway.telemetry.metrics import Metrics
from tests.gateway_process import STUDENT_ONLY, GatewayProcess, model

if TYPE_CHECKING:
    from pathlib import Path

CANARY = "c4nary"

HALF_READ = [
    f"redis://:{CANARY}/Part2@127.0.0.1:6379",
    f"redis://:1{CANARY}#2@127.0.0.1:6379",
    f"redis://user:12#{CANARY}@127.0.0.1",
    f"redis://user:12/{CANARY}@127.0.0.1",
    f"redis://user:12/34{CANARY}",
    f"redis://user:12?{CANARY}@127.0.0.1",
    f"redis://user:12?{CANARY}=34@127.0.0.1",
    f"redis://:{CANARY}@h:abc",
    f"redis://:{CANARY}@h:99999",
    f"redis://:{CANARY}@h:0",
    f"redis://:{CANARY}@h/1/2",
    f"redis://:{CANARY}@[::1",
    f"redis://:{CANARY}@h?zzz=1",
    f"redis+sentinel://:{CANARY}@h:26379",
    f"redis+sentinel://:{CANARY}@h:26379/",
    f"redis+sentinel://:{CANARY}@h:26379/main/0/1",
    f"redis+sentinel://:{CANARY}@h:26379/main/{CANARY}",
    f"redis+sentinel://:{CANARY}@h:26379/ma in/0",
    f"redis+sentinel://:{CANARY}/Part2@h:26379/main",
    f"redis+sentinel://:{CANARY}@h:26379,/main",
    f"redis+sentinel://:{CANARY}@h:26379,i:0/main",
    f"redis+sentinel://:{CANARY}@h:26379,i:99999/main",
    f"redis+sentinel://:{CANARY}@h:26379/main?sentinel=1",
    f"redis+sentinel://:{CANARY}@h:26379/main#2",
    f"redis+sentinel://:{CANARY}@h/main?ssl_cert_reqs=none",
    f"redis+cluster://:{CANARY}@h/1",
    f"redis+cluster://:{CANARY}@h?db=1",
    f"redis+cluster://:{CANARY}@h,i:x",
    f"redis+cluster://:{CANARY}@h?sentinel_password=x",
    f"redis+cluster://:{CANARY}/Part2@h",
    "redis+cluster://",
    f"redis://:{CANARY}@h?socket_timeout=abc",
    f"redis://:{CANARY}@h?decode_responses=yes",
    f"redis://:{CANARY}@h?db={CANARY}",
    f"redis://:{CANARY}@h?ssl_cert_reqs=none",
    f"rediss://:{CANARY}@h?ssl_cert_reqs={CANARY}",
    f"redis://:{CANARY}@h?password={CANARY}&",
    f"redis://:{CANARY}@",
    f"redis://:{CANARY} @h",
    "redis://",
    "unix://",
    f"unix://:{CANARY}@",
    f"unix://:{CANARY}/x@/run/redis.sock",
    "unix://run/redis.sock",
]


@pytest.mark.parametrize("url", HALF_READ)
def test_ambiguous_urls_are_rejected_without_being_shown(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in OVERRIDES:
        monkeypatch.delenv(variable, raising=False)
    file = tmp_path / "config.yaml"
    file.write_text(
        f'redis: {{url: "{url}"}}\n'
        "models: [{name: a, protocol: tgi, api_base: http://t, price: {input_per_1m: 1, output_per_1m: 1}}]\n"
    )
    _, _, (issue,) = check_settings(file)
    line = str(issue)
    assert "redis.url: " in line
    assert "percent-encode" in line
    assert CANARY not in line
    assert "\n" not in line
    _, _, (issue,) = check_settings(file, {"GKT_REDIS_URL": url})
    assert "GKT_REDIS_URL: " in str(issue)
    assert CANARY not in str(issue)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:6379/",
        "redis://user:p%2Fw%23@h:1/3",
        "redis://:a@b@h",
        "redis://[::1]:6379/0?db=2&client_name=gateway",
        "rediss://h?ssl_cert_reqs=none&ssl_ca_certs=/etc/ca.pem",
        "unix:///run/redis.sock?db=1&password=x",
        "unix://user:p@/run/redis.sock",
        "redis+sentinel://h/main",
        "redis+sentinel://user:p%2Fw%23@h:26379,[::1]:26380,i/my-main_1/3?sentinel_password=a%20b&client_name=gateway",
        "rediss+sentinel://:a@b@h,i/main/?ssl_cert_reqs=none&sentinel_username=s&sentinel_password=x",
        "redis+cluster://h",
        "redis+cluster://user:p%2Fw%23@h:7000,[::1]:7001,i/0?max_connections=5",
        "rediss+cluster://:p@h/?ssl_ca_certs=/etc/ca.pem",
    ],
)
def test_urls_that_the_client_reads_are_accepted(url: str) -> None:
    check_redis_url(url)


def test_sentinels_and_master_have_their_own_credentials() -> None:
    url = (
        "rediss+sentinel://ann:p%2Fw@h,[::1]:1/main/3?sentinel_username=bob&sentinel_password=a%20b%2F&ssl_ca_certs=/c"
    )
    address = redis_address(url)
    assert address.master == "main"
    assert address.hosts == ("h:26379", "[::1]:1")
    assert parse_url(address.url) | {"connection_class": None} == {
        "connection_class": None,
        "host": "h",
        "port": 26379,
        "username": "ann",
        "password": "p/w",
        "db": 3,
        "ssl_ca_certs": "/c",
    }
    for sentinel, (host, port) in zip(address.sentinels, [("h", 26379), ("::1", 1)], strict=True):
        parsed = parse_url(sentinel)
        assert (parsed["host"], parsed["port"], parsed["username"], parsed["password"]) == (host, port, "bob", "a b/")
        assert parsed["ssl_ca_certs"] == "/c"
        assert "db" not in parsed


def test_a_host_that_is_named_twice_is_refused() -> None:
    with pytest.raises(InvalidValue, match="names a host twice"):
        check_redis_url(f"redis+cluster://:{CANARY}@h,h:6379")


def test_another_scheme_is_none() -> None:
    with pytest.raises(InvalidValue, match="redis://, rediss://, unix://, redis"):
        check_redis_url(f"http://:{CANARY}@h")


@pytest.mark.parametrize("url", [f"redis://:{CANARY}/Part2@h", f"redis://:{CANARY}@h?db={CANARY}", "redis://[::1"])
def test_errors_of_the_client_contain_no_part_of_the_url(url: str) -> None:
    with pytest.raises(StartupError, match=r"^redis\.url is invalid") as refused:
        RedisClient(url, timeout_s=0.1, metrics=Metrics())
    assert CANARY not in refused.value.message
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("command", ["check", "serve"])
def test_check_and_serve_reject_an_invalid_url_in_one_line(command: str, tmp_path: Path) -> None:
    models = [model("big", "tgi", "http://127.0.0.1:9"), model("small", "openai", "http://127.0.0.1:9/v1")]
    GatewayProcess(tmp_path, models=models, routes=[STUDENT_ONLY], redis_url=f"redis://:{CANARY}/Part2@127.0.0.1:6379")
    done = subprocess.run(
        [sys.executable, "-m", "gateway", command, "--config", str(tmp_path / "config.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 1
    assert len([line for line in output.splitlines() if "redis.url" in line]) == 1
    assert "Traceback" not in output
    assert CANARY not in output
    assert "Part2" not in output
