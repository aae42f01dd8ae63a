"""A gateway full of canaries: its keys, its callers' keys, its Redis password, all prompts and all answers."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from aiohttp import web
from redis import Redis
from redis.exceptions import RedisError

from tests.canaries.engine import engine
from tests.collector import Collector
from tests.fakes import FakeEngine, served
from tests.gateway_process import (
    COMMAND,
    STUDENT_ONLY,
    TEACHER_ONLY,
    GatewayProcess,
    beginning_with,
    guided,
    model,
    sha256,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.canaries.search import Canaries

# By name, policy fields other than keys and routes: one budget is too small, one is soon below its warning
# of, one may ask only once.
TENANTS: dict[str, dict[str, Any]] = {
    "acme": {},
    "globex": {},
    "poor": {"budget": {"max_budget": 0.000001}},
    "careful": {"budget": {"max_budget": 10, "soft_budget": 0.000001}},
    "hasty": {"limits": {"rpm_limit": 1}},
}

COMPARED = {"sample": 1, "max_budget": 100, "max_in_flight": 64}

# Two faults of the gateway's own that quote what they met, and no filter that hides what has the shape of a key: here
# it must not be needed.
FAULTS = """
import gateway.telemetry.logs
from gateway.api import completions
from gateway.pipeline.stream import StreamRelay

gateway.telemetry.logs.without_secrets = lambda line: line
parse, feed = completions.parse_chat, StreamRelay.feed

def parsed(raw):
    key, prompt = raw, raw.decode()
    if "PLAY:gateway-breaks" in prompt:
        raise RuntimeError(prompt)
    return parse(raw)

def fed(self, chunk):
    words = str(chunk)
    if "BREAKS-MIDWAY" in words:
        raise RuntimeError(words)
    return feed(self, chunk)

completions.parse_chat, StreamRelay.feed = parsed, fed
"""


class World:
    """The gateway and its surroundings, under a folder. `key` is the key that a tenant's callers send."""

    def __init__(self, folder: Path, redis_socket: str, canaries: Canaries) -> None:
        self.canaries = canaries
        self.folder = folder
        self.redis = Redis(
            unix_socket_path=redis_socket,
            password=canaries["redis-password"],
            decode_responses=True,
            encoding_errors="backslashreplace",  # rows of sums are binary
        )
        self.commands: list[str] = []  # all that Redis was told
        self.posted: list[str] = []  # all that came to the webhook
        self.collector = Collector()  # all that traces tell
        self.teacher = FakeEngine(engine(self._words, "teacher"))
        self.student = FakeEngine(engine(self._words, "student"))
        self._temporary = folder / "tmp"
        self._temporary.mkdir(parents=True)
        self.secrets = {
            "TEACHER_KEY": canaries["teacher-key"],
            "TRANSLATED_KEY": canaries["translated-key"],
            "ADMIN_KEY": canaries["admin-key"],
            "WEBHOOK_SECRET": canaries["webhook-secret"],
            "COLLECTOR_KEY": canaries["collector-key"],
            "REDIS_URL": f"unix://:{canaries['redis-password']}@{redis_socket}",
        }
        (folder / "student.key").write_text(canaries["student-key"], "utf-8")

    def _words(self, tenant: str, role: str) -> str:
        kind = "guidance" if role == "teacher" else "answer"
        return f"Well then, {self.canaries[f'{tenant}-{kind}']} it is"

    def key(self, tenant: str) -> str:
        return self.canaries[f"{tenant}-key"]

    def _expired(self, tenant: str) -> dict[str, Any]:
        return {"id": "old", "sha256": sha256(self.canaries[f"{tenant}-expired-key"]), "expires": date(2020, 1, 1)}

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Run both engines, the receiver of budget alerts and the receiver of traces."""

        async def hook(request: web.Request) -> web.Response:
            self.posted.append(f"{request.headers!r} {await request.text()}")
            return web.Response(status=204)

        app = web.Application()
        app.router.add_post(f"/{self.canaries['webhook-path']}", hook)
        with self.teacher.running(), self.student.running(), self.collector.running(), served(app) as url:
            self.secrets["WEBHOOK"] = f"{url}/{self.canaries['webhook-path']}"
            yield

    def build(self) -> GatewayProcess:
        """Create the gateway process without starting it. Its surroundings run already."""
        patient = {"breaker": {"failures": 1000}, "timeouts": {"first_token": "500ms", "idle": "500ms", "total": "2s"}}
        routes: list[dict[str, Any]] = [
            guided(deadline="5s"),
            guided("chat-context", placement="context", deadline="5s"),
            guided("chat-compared", deadline="5s") | {"quality": COMPARED},
            guided("chat-judged", deadline="5s") | {"quality": COMPARED | {"compare": "judge", "judge": "small"}},
            STUDENT_ONLY,
            TEACHER_ONLY,
            {"model": "chat-translated", "mode": "student", "student": "translated"},
            {"model": "chat-nobody", "mode": "student", "student": "nobody"},
            {"model": "embed", "mode": "embeddings", "student": "small"},
        ]
        for route in routes:
            if route["mode"] != "embeddings":
                route["retries"] = {"num_retries": 0}
        self.process = GatewayProcess(
            self.folder,
            redis_url="env:REDIS_URL",
            redis={"timeout": "300ms"},
            admin={"key": "env:ADMIN_KEY"},
            log={"level": "debug"},
            usage={"run": "host"},
            tracing={"endpoint": self.collector.url, "headers": {"x-key": "env:COLLECTOR_KEY"}},
            server={"drain_timeout": "1s", "max_body": "20kB"},
            models=[
                model("big", "tgi", self.teacher.url, api_key="env:TEACHER_KEY", **patient),
                model("small", "openai", f"{self.student.url}/v1", api_key="file:student.key",
                      continuation="trailing", echo=False, **patient),
                model("translated", "litellm", f"{self.student.url}/v1", model="openai/fake",
                      api_key="env:TRANSLATED_KEY", continuation="none", **patient),
                model("nobody", "openai", "http://127.0.0.1:9/v1", api_key="env:TEACHER_KEY", **patient),
            ],
            routes=routes,
            tenants={
                tenant: {"keys": [{"id": "only", "sha256": sha256(self.key(tenant))}, self._expired(tenant)], **rules}
                for tenant, rules in TENANTS.items()
            },
            alerts={"webhook": "env:WEBHOOK", "webhook_secret": "env:WEBHOOK_SECRET"},
            entry=COMMAND,
            environ={**self.secrets, "TMPDIR": str(self._temporary), **beginning_with(FAULTS, self.folder / "site")},
        )  # fmt: skip
        return self.process

    def monitor(self) -> None:
        """Record the commands that Redis receives until Redis stops."""
        begun = threading.Event()

        def listen() -> None:
            try:
                with self.redis.monitor() as watched:
                    begun.set()
                    for command in watched.listen():
                        self.commands.append(str(command["command"]))
            except (RedisError, OSError):
                pass

        threading.Thread(target=listen, daemon=True).start()
        assert begun.wait(10)

    def kept(self) -> Iterator[tuple[str, str]]:
        """Return every key of Redis with its content."""
        readers: dict[str, Any] = {
            "string": self.redis.get,
            "hash": self.redis.hgetall,
            "set": self.redis.smembers,
            "zset": lambda key: self.redis.zrange(key, 0, -1, withscores=True),
            "list": lambda key: self.redis.lrange(key, 0, -1),
            "stream": self.redis.xrange,
        }
        for key in self.redis.scan_iter():
            kind = self.redis.type(key)
            if kind != "none":
                yield key, f"{key} {readers[str(kind)](key)!r}"

    def admin(self, path: str, method: str = "GET", **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.canaries['admin-key']}"}
        url = self.process.admin_url + path
        return httpx.request(method, url, headers=headers, timeout=10, json=body if method == "POST" else None)

    def prompt(self, tenant: str, play: str) -> list[dict[str, Any]]:
        words = f"TENANT:{tenant} PLAY:{play} {self.canaries[f'{tenant}-prompt']}"
        return [
            {"role": "system", "content": self.canaries[f"{tenant}-system"]},
            {"role": "user", "content": words, "name": self.canaries[f"{tenant}-name"]},
        ]

    def files(self) -> Iterator[tuple[str, str]]:
        """Return the files that the gateway has written."""
        archive = self.folder / "data"
        assert any(archive.rglob("*.db"))
        for path in (*self._temporary.rglob("*"), *archive.rglob("*")):
            if path.is_file():
                yield str(path), path.read_bytes().decode("latin-1")


def arguments_of_all() -> Iterator[tuple[str, str]]:
    """Return the command line of every visible process."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield str(path), path.read_bytes().decode("latin-1")
        except OSError:
            continue


def said_in(body: str) -> str | None:
    """Return the code of the error in a reply or in a stream's last event."""
    for line in reversed(body.strip().splitlines()):
        text = line.removeprefix("data: ")
        if text.startswith("{") and "error" in (parsed := json.loads(text)):
            return str(parsed["error"]["code"] or parsed["error"]["type"])
    return None
