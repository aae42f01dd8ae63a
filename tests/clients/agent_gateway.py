"""A gateway for agents: command-line programs that work on a task in a folder of their own."""

from __future__ import annotations

import os
import signal
import socketserver
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from tests.clients.fault_gateway import NEVER_RESTS
from tests.clients.tap import Call, Tap
from tests.clients.task_engine import TaskEngine
from tests.fakes import FakeEngine
from tests.gateway_process import GatewayProcess, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.clients.task_engine import TaskScript

LIMIT_S = 120.0
NAMES = ("agent", "gpt-5.5", "gpt-6.2-sol")
"""The routes. Codex knows the last two as models with other tools: `custom` ones, and `additional_tools` items."""


class _Refuse(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        line = self.rfile.readline().decode("latin-1").strip()
        assert isinstance(self.server, _Proxy)
        if line:
            self.server.requests.append(line)
        self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


class _Proxy(socketserver.ThreadingTCPServer):
    """A proxy that refuses each request and keeps its first line."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Refuse)
        self.requests: list[str] = []

    @contextmanager
    def running(self) -> Iterator[_Proxy]:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        with self:
            yield self
            self.shutdown()


class AgentGateway:
    """A gateway whose routes share one engine, which plays scripts.

    Programs that `run` starts have an empty home and a proxy that refuses all requests to other hosts.
    """

    def __init__(self, gateway: GatewayProcess, tap: Tap, engine: FakeEngine, tasks: TaskEngine) -> None:
        self.gateway = gateway
        self.tap = tap
        self.engine = engine
        self.tasks = tasks

    def script(self, task: str, *turns: Any, word_pause_s: float = 0) -> None:
        """Set the turns of a task: `Turn`, or a function that returns one for the request's body."""
        script: TaskScript = turns
        self.tasks.scripts[task] = script
        self.tasks.word_pause_s[task] = word_pause_s

    def calls(self, task: str) -> list[Call]:
        """Return the clients' calls whose body contains the task, in order."""
        return [call for call in list(self.tap.calls) if task.encode() in call.body]

    def requests(self, task: str) -> list[dict[str, Any]]:
        """Return the engine's requests that belong to the task, in order."""
        return [body for body in list(self.engine.requests) if task in str(body["messages"])]

    def receipts(self, task: str) -> list[dict[str, Any]]:
        """Return the receipts of the task's calls."""
        ids = [call.reply_headers["x-request-id"] for call in self.calls(task) if call.status is not None]
        return [self.gateway.wait_for_log("request", id=request_id) for request_id in ids]


class AgentRun:
    """A program that has ended: its exit status, output, and the requests that the proxy refused."""

    def __init__(self, process: subprocess.Popen[str], stdout: str, stderr: str, refused: list[str]) -> None:
        self.status = process.returncode
        self.stdout = stdout
        self.stderr = stderr
        self.refused = refused


def run_agent(
    command: list[str | Path], *, folder: Path, environment: dict[str, str], interrupt_when: Any = None
) -> AgentRun:
    """Run a program to its end in `folder/work` with the home `folder`.

    `interrupt_when` is a function. The program gets SIGINT as soon as the function returns true.
    """
    (folder / "work").mkdir(parents=True, exist_ok=True)
    with _Proxy().running() as proxy:
        address = f"http://127.0.0.1:{proxy.server_address[1]}"
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), address)
        basics = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8",
                  "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}  # fmt: skip
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=folder / "work", env=basics | proxies | environment, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                if interrupt_when is not None:
                    give_up = time.monotonic() + LIMIT_S
                    while not interrupt_when():
                        assert process.poll() is None, "the program ended by itself"
                        assert time.monotonic() < give_up
                        time.sleep(0.05)
                    process.send_signal(signal.SIGINT)
                stdout, stderr = process.communicate(timeout=LIMIT_S)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        return AgentRun(process, stdout, stderr, proxy.requests)


@contextmanager
def running_agent_gateway(folder: Path, redis_url: str) -> Iterator[AgentGateway]:
    """Start everything, yield the gateway, and stop everything."""
    tasks = TaskEngine()
    with ExitStack() as stack:
        engine = stack.enter_context(FakeEngine(tasks.handler(), owned_by="vllm").running())
        student = model("agent", "openai", f"{engine.url}/v1", model="fake", continuation="none", breaker=NEVER_RESTS)
        gateway = stack.enter_context(
            running_gateway(
                folder,
                redis_url=redis_url,
                redis={"prefix": "agents"},
                server={"max_body": "16MB"},
                models=[student],
                routes=[{"model": name, "mode": "student", "student": "agent", "baseline": "agent"} for name in NAMES],
            )
        )
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        tap = stack.enter_context(Tap((host, int(port))).running())
        give_up = time.monotonic() + 30
        while not httpx.get(f"{gateway.admin_url}/readyz").json()["engines"]["agent"]["up"]:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        yield AgentGateway(gateway, tap, engine, tasks)
