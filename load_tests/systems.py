"""Start the systems of compare.py: the upstream, the bare pass-through and the gateway. peer_systems.py starts others.

Every system is one process with one worker, on the loopback interface, in front of the same nginx. Each system has two
targets, for JSON and for streams, because the upstream has a port for each.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis

from gateway.redis.keys import RedisKeys
from load_tests import proc
from load_tests.children import ChildProcess, free_ports, running
from load_tests.installs import PEERS
from load_tests.wrk import Api, Kind, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

UPSTREAM, BARE, STUDENT, GUIDED = "upstream", "bare", "ours, student only", "ours, guided"
RESPONSES, MESSAGES = f"{STUDENT}, /v1/responses", f"{STUDENT}, /v1/messages"
STUDENT_LIMITED, GUIDED_LIMITED = f"{STUDENT}, limits on", f"{GUIDED}, limits on"
STUDENT_TWO, GUIDED_TWO = f"{STUDENT}, 2 workers", f"{GUIDED}, 2 workers"
OTHER_APIS: Mapping[str, Api] = {RESPONSES: "responses", MESSAGES: "messages"}
OURS = (UPSTREAM, BARE, STUDENT, RESPONSES, MESSAGES, GUIDED, STUDENT_LIMITED, GUIDED_LIMITED, STUDENT_TWO, GUIDED_TWO)

_START_WITHIN_S = 90.0
_MAX_REQUESTS = 4096  # at once
_KEY, _LIMITED_KEY = "gk-bench", "gk-bench-limited"
_EXPECTED_TEXT = "and the rest of it follows here"
_LAST_EVENT: Mapping[Api, str] = {"chat": "[DONE]", "responses": "response.completed", "messages": "message_stop"}
_TEACHER_TEXT = "The teacher begins"
_PREFIX = "gkt"  # the default of redis.prefix


@dataclass(frozen=True)
class System:
    """A row of the table.

    Attributes:
        child: the measured process; None for the upstream itself.
        unguided: returns the number of guided requests that were answered without guidance; None without guided routes.
        backlog_s: returns the age of the oldest receipt that is not in the database, in seconds.
    """

    name: str
    note: str
    targets: Mapping[Kind, Target]
    children: tuple[ChildProcess, ...] = ()
    unguided: Callable[[], int] | None = None
    backlog_s: Callable[[], float] | None = None

    def cpu_s(self) -> float:
        return sum(child.cpu_s() for child in self.children)


@dataclass
class Site:
    """The folder of this run, and the ports of the upstream."""

    folder: Path
    stack: ExitStack
    ports: dict[str, int] = field(default_factory=dict)

    def start(self, name: str, *command: str | Path, env: Mapping[str, str] | None = None) -> ChildProcess:
        return self.stack.enter_context(running(name, command, self.folder, env))

    def base(self, kind: str) -> str:
        return f"http://127.0.0.1:{self.ports[kind]}"

    def fill(self, template: str, **values: object) -> Path:
        """Copy a file of peers/ to the folder of this run, with the values of its @placeholders@."""
        text = (PEERS / template).read_text()
        for key, value in {**self.ports, "folder": self.folder, **values}.items():
            text = text.replace(f"@{key}@", str(value))
        filled = self.folder / template
        filled.parent.mkdir(parents=True, exist_ok=True)
        filled.write_text(text)
        return filled


def start_upstream(site: Site) -> System:
    """Start nginx with four ports of fixed answers."""
    site.ports.update(zip(("json", "stream", "teacher", "teacher_stream"), free_ports(4), strict=True))
    names = ("student.json", "teacher.json", "student.sse", "teacher.sse")
    texts = {name: (PEERS / "nginx" / name).read_text() for name in names}
    config = site.fill(
        "nginx/nginx.conf",
        **{
            name: _nginx_events(text) if name.endswith(".sse") else nginx_word(_compact(text))
            for name, text in texts.items()
        },
    )
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    child = site.start("upstream", nginx, "-e", "stderr", "-p", site.folder, "-c", config)
    system = System(
        UPSTREAM, "nginx called directly, fixed answers", targets_of(site.base("json"), site.base("stream"), "static")
    )
    wait_for_answers(system, child)
    return system


@dataclass(frozen=True)
class BareProcess:
    """A running bare pass-through."""

    child: ChildProcess
    url: str


def run_bare(site: Site) -> BareProcess:
    """Run bare.py before the upstream's ports."""
    (port,) = free_ports(1)
    child = site.start(
        BARE, sys.executable, Path(__file__).with_name("bare.py"), "--port", str(port),
        "--json", site.base("json"), "--stream", site.base("stream"),
        *(("--slow", site.base("slow")) if "slow" in site.ports else ()),
    )  # fmt: skip
    child.wait_until(lambda: _listens(port), _START_WITHIN_S)
    return BareProcess(child, f"http://127.0.0.1:{port}")


def start_bare(site: Site) -> System:
    bare = run_bare(site)
    system = System(
        BARE,
        "load_tests/bare.py: aiohttp, uvloop and orjson, and nothing else; 1 process",
        targets_of(bare.url, bare.url, "static"),
        (bare.child,),
    )
    wait_for_answers(system, bare.child)
    return system


@dataclass(frozen=True)
class StartUp:
    """The start of a gateway: seconds until /readyz answers 200, and its worker's memory after the first probes."""

    ready_s: float
    rss_mb: float


@dataclass(frozen=True)
class GatewayProcess:
    """A running gateway."""

    child: ChildProcess
    url: str
    admin_url: str
    headers: Mapping[str, str]


def run_gateway(
    site: Site,
    more: str = "",
    *,
    workers: int = 1,
    env: Mapping[str, str] | None = None,
    max_requests: int = _MAX_REQUESTS,
) -> GatewayProcess:
    """Run `gkt-gateway serve` with the configuration in peers/gateway, followed by the sections in `more`."""
    gateway = _serve(site, more, workers, max_requests, env)
    gateway.child.wait_until(lambda: probed(gateway.admin_url), _START_WITHIN_S)
    return gateway


def start_up(site: Site) -> StartUp:
    """Start a gateway with an empty Redis, wait until it is ready, and end it."""
    with ExitStack() as stack:
        gateway = _serve(Site(site.folder, stack, site.ports), "", 1, _MAX_REQUESTS)
        began = time.monotonic()
        gateway.child.wait_until(lambda: _is_ready(gateway.admin_url), _START_WITHIN_S, every_s=0.01)
        ready_s = time.monotonic() - began
        gateway.child.wait_until(lambda: probed(gateway.admin_url), _START_WITHIN_S)
        return StartUp(ready_s, proc.rss_bytes(gateway.child.main_pid()) / 1e6)


def _serve(
    site: Site,
    more: str,
    workers: int,
    max_requests: int,
    env: Mapping[str, str] | None = None,
) -> GatewayProcess:
    port, admin = free_ports(2)
    # Each gateway has its own data, since each has its own Redis.
    site = replace(site, folder=site.folder / f"gateway-{port}")
    site.folder.mkdir()
    config = site.fill("gateway/config.yaml", port=port, admin=admin, max_requests=max_requests)
    config.write_text(f"{config.read_text()}\n{more}")
    for policy in ("bench", "limited"):
        site.fill(f"gateway/policies/{policy}.yaml")
    command = (sys.executable, "-m", "gateway", "serve", "--config", config, "--workers", str(workers))
    child = site.start("gateway" if workers == 1 else f"gateway {workers} workers", *command, env=env)
    url, admin_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"
    return GatewayProcess(child, url, admin_url, {"Authorization": f"Bearer {_KEY}"})


def start_gateway(site: Site) -> tuple[System, ...]:
    """Start one gateway process: student only and guided, without and with limits and budgets, and the other APIs."""
    ours = run_gateway(site)
    limited = replace(ours, headers={"Authorization": f"Bearer {_LIMITED_KEY}"})
    note = "keys, admission, receipts, a Redis and a usage worker of its own; 1 process"
    limits_note = "the same process; limits and budgets of the tenant and the key"
    return (
        *_rows(ours, STUDENT, GUIDED, note, "the same process"),
        *_rows(limited, STUDENT_LIMITED, GUIDED_LIMITED, limits_note, "the same process"),
        *(_other_api(ours, name, api) for name, api in OTHER_APIS.items()),
    )


def start_two_workers(site: Site) -> tuple[System, ...]:
    """Start a gateway of two processes on one port, with a row for student only and one for guided."""
    ours = run_gateway(site, workers=2)
    return _rows(ours, STUDENT_TWO, GUIDED_TWO, "`--workers 2`: 2 processes on one port", "the same processes")


def _rows(ours: GatewayProcess, student: str, guided: str, note: str, same: str) -> tuple[System, System]:
    redis = redis_of(ours.child)
    student_only = System(
        student,
        f"gkt-gateway serve: {note}",
        targets_of(ours.url, ours.url, "student-json", "student-stream", ours.headers),
        (ours.child,),
        backlog_s=lambda: backlog_s(redis),
    )
    with_guidance = System(
        guided,
        f"{same}: a teacher's and a student's call for each request",
        targets_of(ours.url, ours.url, "guided-json", "guided-stream", ours.headers),
        (ours.child,),
        lambda: unguided_so_far(ours.admin_url),
        lambda: backlog_s(redis),
    )
    wait_for_answers(student_only, ours.child)
    wait_for_answers(with_guidance, ours.child, _TEACHER_TEXT)
    return student_only, with_guidance


def _other_api(ours: GatewayProcess, name: str, api: Api) -> System:
    redis = redis_of(ours.child)
    targets: dict[Kind, Target] = {
        "json": Target(f"{ours.url}/v1/{api}", "student-json", ours.headers, api),
        "stream": Target(f"{ours.url}/v1/{api}", "student-stream", ours.headers, api),
    }
    system = System(
        name,
        f"the same process: requests to /v1/{api}",
        targets,
        (ours.child,),
        backlog_s=lambda: backlog_s(redis),
    )
    wait_for_answers(system, ours.child)
    return system


def targets_of(
    json_base: str,
    stream_base: str,
    model: str,
    stream_model: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> dict[Kind, Target]:
    path = "/v1/chat/completions"
    return {
        "json": Target(json_base + path, model, headers or {}),
        "stream": Target(stream_base + path, stream_model or model, headers or {}),
    }


def wait_for_answers(system: System, child: ChildProcess, *words: str) -> None:
    """Wait until both kinds of answer have the expected text, so that wrong answers are not measured."""

    def answers() -> bool:
        for kind, target in system.targets.items():
            answer = _ask(target, kind)
            whole = _EXPECTED_TEXT if kind == "json" else _LAST_EVENT[target.api]
            for expected in (whole, *words):
                if expected not in answer:
                    raise ValueError(f"a {kind} answer without {expected!r}: {answer[:300]}")
        return True

    child.wait_until(answers, _START_WITHIN_S)


def _ask(target: Target, kind: Kind) -> str:
    question = f"Are you there? {time.monotonic()}"
    body: dict[str, Any] = {"model": target.model, "stream": kind == "stream"}
    if target.api == "responses":
        body |= {"input": question, "max_output_tokens": 50}
    else:
        body |= {"messages": [{"role": "user", "content": question}], "max_tokens": 50}
    request = urllib.request.Request(
        target.url, json.dumps(body).encode(), {"Content-Type": "application/json", **target.headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            text: str = reply.read().decode()
            return text if kind == "json" or target.api != "chat" else _words(text)
    except urllib.error.HTTPError as error:
        raise ValueError(f"status {error.code}: {error.read()[:300].decode(errors='replace')}") from error


def _words(stream: str) -> str:
    """Return the joined text of a chat's stream, and its end."""
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    choices = (choice for event in events if event != "[DONE]" for choice in json.loads(event).get("choices", ()))
    return "".join([choice["delta"].get("content") or "" for choice in choices] + events[-1:])


def probed(admin_url: str) -> bool:
    """Return whether the gateway has probed each of its engines once."""
    with urllib.request.urlopen(f"{admin_url}/readyz", timeout=5) as reply:
        return all(engine["up"] is not None for engine in json.load(reply)["engines"].values())


def _listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def _is_ready(admin_url: str) -> bool:
    with urllib.request.urlopen(f"{admin_url}/readyz", timeout=5) as reply:
        return bool(reply.status == HTTPStatus.OK)


def unguided_so_far(admin_url: str) -> int:
    """Return the number of guided requests that a gateway has answered without guidance."""
    with urllib.request.urlopen(f"{admin_url}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    return sum(int(float(value)) for value in re.findall(r"^gkt_unguided_total\{.*\} (\S+)$", text, re.MULTILINE))


def redis_of(child: ChildProcess) -> Redis:
    """Return a client of the Redis that a gateway has embedded."""
    for pid in child.pids():
        found = re.search(rb"unixsocket[:\0]([^\0 ]+)", Path(f"/proc/{pid}/cmdline").read_bytes())
        if found is not None:
            return Redis(unix_socket_path=found[1].decode())
    raise LookupError("the gateway has no Redis of its own")


def backlog_s(redis: Redis) -> float:
    """Return the age of the oldest receipt in the outboxes, in seconds. Usage workers delete written receipts."""
    keys, oldest_ms = RedisKeys(_PREFIX), math.inf
    tenants: Any = redis.smembers(keys.ledger().tenants)
    for tenant in tenants:
        first: Any = redis.xrange(keys.outbox(tenant.decode()), count=1)
        if first:
            oldest_ms = min(oldest_ms, int(first[0][0].partition(b"-")[0]))
    seconds, micros = redis.time()
    return max(0.0, seconds + micros / 1e6 - oldest_ms / 1000)


def _nginx_events(text: str) -> str:
    """Return lines that set nginx's variable `$events` in parts, since an nginx word has at most 4096 bytes."""
    parts = (text[start : start + 2000] for start in range(0, len(text), 2000))
    return "\n".join(f"set $events {nginx_word('${events}' + part)};" for part in parts)


def nginx_word(text: str) -> str:
    """Return a text as a quoted word of nginx's configuration."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _compact(text: str) -> str:
    return json.dumps(json.loads(text), separators=(",", ":"))
