"""Surround the container with Redis, two fake engines and a configuration with secrets as files, and send requests."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
from ruamel.yaml import YAML

from deploy.image.build import CheckFailed
from gateway.local.redis import find_server
from load_tests.children import free_ports, running
from load_tests.engine_process import fake_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from deploy.image.container import Container

KEY = "gk-check-of-the-image"
USER = 10001
_START_LIMIT_S = 180.0  # on a busy machine LiteLLM alone takes 15 s to import
_REQUEST_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class World:
    """Folders to mount, and the ports at which the container listens on loopback."""

    site: Path
    secrets: Path
    data: Path
    port: int
    admin_port: int


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """Run Redis and the engines, and write the configuration."""
    with ExitStack() as stack:
        teacher = stack.enter_context(fake_engine("instant", dialect="tgi", for_s=1800))
        student = stack.enter_context(fake_engine("instant", dialect="openai", for_s=1800))
        redis_port, port, admin_port = free_ports(3)
        command = [
            str(find_server()),
            "--port",
            str(redis_port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(folder),
        ]
        stack.enter_context(running("redis", command, folder))
        found = World(folder / "site", folder / "secrets", folder / "data", port, admin_port)
        for one in (found.site, found.site / "policies", found.secrets, found.data):
            one.mkdir()
        os.chown(found.data, USER, USER)
        (found.secrets / "redis_url").write_text(f"redis://127.0.0.1:{redis_port}/0\n", "utf-8")
        (found.secrets / "admin_key").write_text("check-of-the-image\n", "utf-8")
        _write_site(found, teacher, student)
        yield found


def _write_site(found: World, teacher: str, student: str) -> None:
    yaml = YAML()
    price = {"input_per_1m": 1, "output_per_1m": 1}
    config = {
        "server": {"host": "127.0.0.1", "port": found.port},
        "admin": {"port": found.admin_port, "key": "file:/run/secrets/admin_key"},
        "redis": {"url": "file:/run/secrets/redis_url"},
        "usage": {"url": "sqlite", "run": "host"},
        "models": [
            {"name": "big", "protocol": "tgi", "api_base": teacher, "price": price},
            {
                "name": "small",
                "protocol": "openai",
                "api_base": f"{student}/v1",
                "continuation": "trailing",
                "price": price,
            },
        ],
    }
    guidance = {"tokens": 12, "deadline": "60s"}
    policy = {
        "tenant": "check",
        "keys": [{"id": "check", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}],
        "routes": [{"model": "chat", "mode": "guided", "teacher": "big", "student": "small", "guidance": guidance}],
    }
    yaml.dump(config, found.site / "config.yaml")
    yaml.dump(policy, found.site / "policies" / "check.yaml")


def wait_for(container: Container, what: str, condition: Callable[[], bool]) -> float:
    """Wait for a condition. Return the seconds. Raise CheckFailed with the log on timeout, or if the container ends."""
    began = time.monotonic()
    while not condition():
        if container.process.poll() is not None or time.monotonic() - began > _START_LIMIT_S:
            raise CheckFailed(f"{what}: not there; the log of the container:\n{container.log_text()[-4000:]}")
        time.sleep(0.1)
    return time.monotonic() - began


def is_ok(url: str) -> bool:
    """Return whether a GET returns 200."""
    try:
        return httpx.get(url, timeout=_REQUEST_LIMIT_S, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def guided_answer(port: int) -> str:
    """Request an answer and return it. Raises CheckFailed if it is not a guided one."""
    reply = httpx.post(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json={"model": "chat", "messages": [{"role": "user", "content": "Why is the sky blue?"}]},
        headers={"Authorization": f"Bearer {KEY}"}, timeout=_REQUEST_LIMIT_S, trust_env=False,
    )  # fmt: skip
    if reply.status_code != 200 or reply.headers["x-gkt-mode"] != "guided":
        raise CheckFailed(f"the answer: status {reply.status_code}, {dict(reply.headers)}: {reply.text}")
    text: str = reply.json()["choices"][0]["message"]["content"]
    if not text:
        raise CheckFailed("the answer: it has no text")
    return text
