"""A running engine of the suite, and direct calls to it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from gateway.local import parent_watch
from load_tests.machine import processor
from tests.contracts.catalog import ROOT, Engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Json = dict[str, Any]

UNKNOWN = "unknown"
STOP_LIMIT_S = 20.0
CALL_LIMIT_S = 120.0
_BUSY_CORES = 0.2
_RUNNING_METRICS = {
    "vllm metrics": "vllm:num_requests_running",
    "sglang metrics": "sglang:num_running_reqs",
    "tgi metrics": "tgi_batch_current_size",
}
_CPU_WINDOW_S = 0.5
_LOG_TAIL_CHARS = 2000


class RunningEngine:
    """An engine process on 127.0.0.1, or with `url` a server that runs elsewhere.

    Attributes:
        model: the name of the model in requests.
        model_id: the name of the model in the results.
    """

    def __init__(self, engine: Engine, log_path: Path, *, url: str | None = None) -> None:
        self.engine = engine
        self.log_path = log_path
        self.is_external = url is not None
        self._port = _free_port()
        self.url = (url or f"http://127.0.0.1:{self._port}").rstrip("/")
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: dict[str, Json] = {}
        # TGI reads any other name as that of an adapter.
        self.model = "tgi" if engine.protocol == "tgi" else engine.model
        self.model_id = ""

    @property
    def api_base(self) -> str:
        """`api_base` in config.yaml."""
        return self.url if self.engine.protocol == "tgi" else f"{self.url}/v1"

    def start(self) -> None:
        """Start the engine and wait until it serves its model. Raises AssertionError with the end of its log."""
        if not self.is_external:
            self._start_process()
        elif self.engine.protocol == "openai":
            self.model = self._served_models()[0]
        self.model_id = self.model
        if self.engine.protocol == "tgi":
            self.model_id = str(httpx.get(f"{self.url}/info", timeout=5).json()["model_id"])

    def _start_process(self) -> None:
        assert self.engine.command is not None
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                # The engine ends with this process, also after SIGKILL.
                [sys.executable, "-I", "-S", parent_watch.__file__, *self.engine.command(self._port)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.engine.environ},
                start_new_session=True,
            )
        give_up = time.monotonic() + self.engine.ready_s
        while not self._is_ready():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > give_up:
                self.stop()
                what = "ended" if ended else f"was not ready after {self.engine.ready_s:g} s"
                tail = self.log_path.read_text(errors="replace")[-_LOG_TAIL_CHARS:]
                raise AssertionError(f"{self.engine.title} {what}; {self.log_path} ends:\n{tail}")
            time.sleep(0.5)  # each check costs CPU time, which the starting engine needs

    def kill(self) -> None:
        """End the engine's processes with SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Terminate the engine; kill what does not end."""
        self._end(signal.SIGTERM, signal.SIGKILL)

    def _end(self, *signals: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in signals:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_LIMIT_S)
        assert process.stdin is not None
        process.stdin.close()

    def unobservable(self) -> str | None:
        """Return why the suite cannot observe whether the engine generates; None if it can."""
        if self.is_external and self.engine.load == "cpu":
            return "the suite cannot observe a server that runs elsewhere"
        try:
            self.is_generating()
        except (AssertionError, httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            return f"the server does not report its running requests ({error})"
        return None

    def is_generating(self) -> bool:
        """Return whether a request is in decoding."""
        load = self.engine.load
        if load == "llama.cpp slots":
            return any(slot["is_processing"] for slot in httpx.get(f"{self.url}/slots").json())
        if load == "cpu":
            return self._cores() > _BUSY_CORES
        name = _RUNNING_METRICS[load]
        lines = re.findall(rf"^{name}\b\S* (\S+)$", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        assert lines, f"{self.engine.title} has no metric {name}"
        return sum(map(float, lines)) > 0

    def direct(self, **body: Any) -> Json:
        """Return the engine's own reply to a chat, greedy. Equal calls are sent once."""
        key = json.dumps(body, sort_keys=True)
        if key not in self._replies:
            reply = httpx.post(
                f"{self.url}/v1/chat/completions",
                json={"model": self.model, "temperature": 0, **body},
                timeout=CALL_LIMIT_S,
            )
            assert reply.status_code == 200, reply.text
            self._replies[key] = reply.json()
            if self.engine.protocol == "tgi":
                _end_as_openai(self._replies[key]["choices"][0], body.get("stop", ()))
        return self._replies[key]

    def version(self) -> str:
        """Return the version of the installation, or that which the engine reports."""
        if not self.is_external and (installed := self.engine.version()):
            return installed
        path, name = self.engine.reports_version
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            return str(httpx.get(f"{self.url}{path}", timeout=5).json()[name])
        return UNKNOWN

    def settings(self) -> str:
        """Return hardware and settings of the engine. Those of a server that runs elsewhere are in the environment."""
        if self.is_external:
            return os.environ.get("GKT_ENGINE_SETTINGS") or UNKNOWN
        return ", ".join(filter(None, (processor(), self.engine.settings)))

    def _is_ready(self) -> bool:
        try:
            if self.engine.protocol == "openai":
                return any(name.startswith(self.model) for name in self._served_models())
            return httpx.get(f"{self.url}{self.engine.health}", timeout=5).status_code == 200
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return False

    def _served_models(self) -> list[str]:
        entries = httpx.get(f"{self.url}/v1/models", timeout=5).json()["data"]
        return [str(entry["id"]) for entry in entries]

    def _cores(self) -> float:
        """Return the CPU use of the process group, in cores."""
        before, began = self._cpu_s(), time.monotonic()
        time.sleep(_CPU_WINDOW_S)
        return (self._cpu_s() - before) / (time.monotonic() - began)

    def _cpu_s(self) -> float:
        assert self._process is not None, "the CPU time of a server that runs elsewhere is unknown"
        return sum(_cpu_s_of_group(self._process.pid))


def _end_as_openai(choice: Json, stops: Sequence[str]) -> None:
    """Remove TGI's stop string from a choice, and use OpenAI's finish reason, in place."""
    text = choice["message"].get("content") or ""
    if found := [at for stop in stops if (at := text.find(stop)) >= 0]:
        choice["message"]["content"] = text[: min(found)]
    if found or choice["finish_reason"] in {"eos_token", "stop_sequence"}:
        choice["finish_reason"] = "stop"


def _cpu_s_of_group(group: int) -> Iterator[float]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            yield (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
