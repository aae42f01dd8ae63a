"""A gateway: the `serve` command in a process of its own, with a configuration written for the test."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from tests.forked_gateway import ForkedGateway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.local.stack import LocalStack

KEY = "gk-test-of-acme"
OTHER_KEY = "gk-test-of-globex"
COMMAND = ("-m", "gateway")
"""`entry` of a gateway that starts as users start it."""
START_LIMIT_S = 90.0  # on a busy machine LiteLLM alone takes 15 s to import


def beginning_with(code: str, folder: Path) -> dict[str, str]:
    """Return the environment in which each Python process of a gateway runs this code first. Set `entry` too."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(code, "utf-8")
    return {"PYTHONPATH": str(folder)}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def model(name: str, protocol: str, api_base: str, **more: Any) -> dict[str, Any]:
    """Return a model entry of config.yaml. The teacher costs ten times as much as the student."""
    usd = 1.0 if protocol == "tgi" else 0.1
    price = {"input_per_1m": usd, "output_per_1m": usd}
    return {"name": name, "protocol": protocol, "api_base": api_base, "price": price} | more


def local_models(engines: LocalStack, **teacher: Any) -> list[dict[str, Any]]:
    """Return the entries of the teacher `big`, with more settings, and of the student `small` on this machine."""
    price = {"input_per_1m": 1.0, "output_per_1m": 1.0}
    return [
        model("big", "openai", f"{engines.teacher.url}/v1", price=price, **teacher),
        model("small", "openai", f"{engines.student.url}/v1"),
    ]


def guided(name: str = "chat", *, teacher: str = "big", student: str = "small", **guidance: Any) -> dict[str, Any]:
    """Return a guided route with a deadline that a busy CPU can keep."""
    return {
        "model": name,
        "mode": "guided",
        "teacher": teacher,
        "student": student,
        "guidance": {"tokens": 12, "deadline": "60s", "max_wait": "10ms"} | guidance,
    }


def redis_prefix(folder: Path) -> str:
    """Return a prefix of Redis keys for the gateway of a folder: gateways of other tests share its Redis."""
    return "t" + hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()


def write_policy(file: Path, content: dict[str, Any]) -> None:
    """Replace the file atomically: write another file, then rename it."""
    new_file = file.with_name(f".{file.name}.new")
    YAML().dump(content, new_file)
    new_file.rename(file)


UNREACHED = {tenant: {"limits": {"rpm_limit": 1_000_000}} for tenant in ("acme", "globex")}
"""`tenants` with a limit: the intent of each request is stored before the request runs."""

STUDENT_ONLY = {"model": "chat-student", "mode": "student", "student": "small", "baseline": "big"}
TEACHER_ONLY = {"model": "chat-teacher", "mode": "teacher", "teacher": "big"}


class GatewayProcess:
    """A running `gkt-gateway serve`. `log` holds the JSON lines that it has logged so far."""

    def __init__(
        self,
        folder: Path,
        *,
        models: list[dict[str, Any]],
        routes: list[dict[str, Any]],
        redis_url: str,
        arguments: tuple[str, ...] = (),
        entry: tuple[str, ...] | None = None,
        environ: dict[str, str] | None = None,
        tenants: dict[str, dict[str, Any]] | None = None,
        **sections: Any,
    ) -> None:
        """Prepare a gateway.

        Args:
            entry: arguments of the Python that runs the command, as `COMMAND`. None: the command runs in a fork of a
                process that has imported the gateway.
            tenants: the fields of each policy file except the default key and routes.
        """
        self._arguments = arguments
        self._entry = entry
        self.process: subprocess.Popen[str] | ForkedGateway
        self._environ = environ or {}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "policies").mkdir(exist_ok=True)
        sections.setdefault("server", {})
        config = {
            **sections,
            "server": {"host": "127.0.0.1", "port": 0, **sections["server"]},
            "admin": {"port": 0, **sections.get("admin", {})},
            "redis": {"url": redis_url, "lease": "60s", "prefix": redis_prefix(folder), **sections.get("redis", {})},
            "log": {"format": "json", **sections.get("log", {})},
            # A usage worker takes a second of CPU to start: tests that read usage set `run: host`.
            "usage": {"run": "command", **sections.get("usage", {})},
            "models": models,
        }
        yaml = YAML()
        yaml.dump(config, folder / "config.yaml")
        keys = {"acme": KEY, "globex": OTHER_KEY}
        for tenant in {**keys, **(tenants or {})}:
            known = [{"id": "only", "sha256": sha256(keys[tenant])}] if tenant in keys else []
            policy = {"tenant": tenant, "keys": known, "routes": routes} | (tenants or {}).get(tenant, {})
            yaml.dump(policy, folder / "policies" / f"{tenant}.yaml")
        self.config = folder / "config.yaml"
        self.log: list[dict[str, Any]] = []
        self.raw_log = ""
        self.url = self.admin_url = ""

    def start(self) -> None:
        self.log, self.raw_log = [], ""
        arguments = ["serve", "--config", str(self.config), *self._arguments]
        environ = {**os.environ, "PYTHONUNBUFFERED": "1", **self._environ}
        if self._entry is None:
            assert "PYTHONPATH" not in self._environ, "a fork would run this version of the gateway"
            self.process = ForkedGateway(arguments, environ)
        else:
            self.process = subprocess.Popen(
                [sys.executable, *self._entry, *arguments],
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                env=environ,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        listening = self.wait_for_log("listening", START_LIMIT_S)
        self.url, self.admin_url = listening["public"], listening["admin"]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.raw_log += line
            try:
                self.log.append(json.loads(line))
            except json.JSONDecodeError:
                self.log.append({"event": "not json", "line": line})

    def wait_for_log(self, event: str, limit_s: float = 10.0, **fields: Any) -> dict[str, Any]:
        """Return the first log line with this event and these fields."""
        give_up = time.monotonic() + limit_s
        seen = 0
        while time.monotonic() < give_up:
            lines = self.log[seen:]
            seen += len(lines)
            for line in lines:
                if line.get("event") == event and all(line.get(key) == value for key, value in fields.items()):
                    return line
            if self.process.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.01)
        raise AssertionError(f"no log line {event!r} with {fields}; the log:\n{self.raw_log}")

    def terminate(self) -> int:
        """Send SIGTERM and wait; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=30)
        self._reader.join(timeout=5)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(timeout=5)
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def running_gateway(folder: Path, **config: Any) -> Iterator[GatewayProcess]:
    """Start a gateway, yield it and stop it."""
    process = GatewayProcess(folder, **config)
    try:
        process.start()
        yield process
    finally:
        process.close()
