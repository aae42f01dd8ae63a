"""No secret appears where it is forbidden: the test takes every path, then searches all places."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest
from redis import Redis

from gateway.local.redis import EmbeddedRedis
from gateway.redis.keys import LAYOUT
from tests.canaries.engine import PLAYS
from tests.canaries.search import Canaries
from tests.canaries.world import TENANTS, World, arguments_of_all, said_in

if TYPE_CHECKING:
    from pathlib import Path

# Values that only the caller's reply may contain, and values for no reply.
_OWN = (
    "{}-prompt",
    "{}-system",
    "{}-name",
    "{}-guidance",
    "{}-answer",
    "{}-model",
    "{}-extra",
    "{}-user",
    "{}-metadata",
    "{}-tool",
)
_GUIDANCE = tuple(f"{tenant}-guidance" for tenant in TENANTS)
# The codes of a student's failure, as JSON and then in a stream. None: it is no failure there.
# A 500 with a message is proven to be the request's own fault by then: the JSON call failed at the same request.
CODES: dict[str, tuple[str | None, str | None]] = {
    "key-refused": ("engine_rejected", "engine_rejected"),
    "forbidden": ("engine_rejected", "engine_rejected"),
    "no-such-model": ("engine_rejected", "engine_rejected"),
    "blames-400": ("invalid_request_error", "invalid_request_error"),
    "blames-422": ("invalid_request_error", "invalid_request_error"),
    "overloaded": ("engine_overloaded", "engine_overloaded"),
    "failed": ("engine_failed", "invalid_request_error"),
    "failed-in-words": ("engine_failed", "invalid_request_error"),
    "page": ("engine_failed", "engine_failed"),
    "page-200": ("engine_protocol_error", "engine_protocol_error"),
    "error-200": ("engine_failed", "engine_protocol_error"),
    "reason": ("engine_failed", "engine_failed"),
    "error-event": ("engine_protocol_error", "engine_failed"),
    "redirect": ("engine_protocol_error", "engine_protocol_error"),
    "not-json": ("engine_protocol_error", "engine_protocol_error"),
    "wrong-shape": ("engine_protocol_error", "engine_protocol_error"),
    "not-http": ("engine_unreachable", "engine_unreachable"),
    "bad-header": ("engine_unreachable", "engine_unreachable"),
    "bad-length": ("engine_unreachable", "engine_unreachable"),
    "reset": ("engine_unreachable", "engine_unreachable"),
    "reset-midway": ("engine_unreachable", "engine_unreachable"),
    "stalls": ("engine_timeout", "engine_timeout"),
}


class Callers:
    """Send the requests of callers; keep every reply with its tenant."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.replies: list[tuple[str, str]] = []  # (tenant, all of the reply)
        self.ids: list[tuple[str, str]] = []
        # Each on a connection of its own: some replies end theirs.
        once = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=world.process.url, timeout=20, limits=once)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def send(self, tenant: str, method: str, path: str, **more: Any) -> httpx.Response:
        canaries = self.world.canaries
        headers = {
            "Authorization": f"Bearer {self.world.key(tenant)}",
            "Cookie": f"session={canaries[f'{tenant}-cookie']}",
            "X-Custom": canaries[f"{tenant}-header"],
            "User-Agent": canaries[f"{tenant}-agent"],
            "X-Request-Id": canaries[f"{tenant}-request-id"],
        } | more.pop("headers", {})
        answer = self.client.request(method, path, headers=headers, **more)
        self.replies.append((tenant, f"{answer.status_code} {answer.headers!r} {answer.text}"))
        self.ids.append((tenant, answer.headers["x-request-id"]))
        return answer

    def ask(self, tenant: str, play: str, model: str, *, stream: bool = False, **fields: Any) -> httpx.Response:
        body = {
            "model": model,
            "messages": self.world.prompt(tenant, play),
            "user": self.world.canaries[f"{tenant}-user"],
            "metadata": {"note": self.world.canaries[f"{tenant}-metadata"]},
            "stream": stream,
            **fields,
        }
        if model == "chat-translated":
            del body["metadata"]
        return self.send(tenant, "POST", "/v1/chat/completions", json=body)

    def error_code(self, answer: httpx.Response) -> str | None:
        return said_in(answer.text)


@pytest.mark.timeout(180)
def test_no_secret_leaks_into_logs_metrics_replies_or_storage(tmp_path: Path) -> None:
    """Search keys, prompts and answers in logs, metrics, traces, readiness, queues, receipts, other replies, Redis and
    files.
    """
    canaries = Canaries()

    async def with_redis() -> None:
        async with EmbeddedRedis() as redis:
            _protect(str(redis.socket_path), canaries)
            world = World(tmp_path, str(redis.socket_path), canaries)
            with world.surroundings():
                process = world.build()
                try:
                    await asyncio.to_thread(process.start)
                    await asyncio.to_thread(_walk_and_look, world)
                    await redis.stop()
                    await asyncio.to_thread(_without_redis, world)
                    await redis.start()
                    _protect(str(redis.socket_path), canaries)
                    await asyncio.to_thread(_end, world)
                finally:
                    process.close()
            await asyncio.to_thread(_look_at_the_log, world)
            await asyncio.to_thread(_look_at_the_spans, world)
            world.redis.close()

    asyncio.run(with_redis())
    places = ", ".join(f"{count} x {place}" for place, count in sorted(canaries.places.items()))
    print(f"searched for {len(canaries.texts)} canaries in {places}")
    assert not canaries.found, _summary(canaries)


def _protect(path: str, canaries: Canaries) -> None:
    with Redis(unix_socket_path=path) as redis:
        redis.config_set("requirepass", canaries["redis-password"])


def _walk_and_look(world: World) -> None:
    for engine in ("big", "small", "translated"):
        world.process.wait_for_log("engine", engine=engine, up=True)
    world.monitor()
    with Callers(world) as callers:
        for step in (
            _succeed,
            _fail_by_engines,
            _fail_by_callers,
            _make_keys,
            _run_out,
            _break,
            _leave,
            _look_at_receipts,
            _search_everywhere,
        ):
            step(callers)


def _succeed(callers: Callers) -> None:
    """Take every path to an answer."""
    tool = {"type": "function", "function": {"name": "f", "description": callers.world.canaries["acme-tool"]}}
    for tenant in ("acme", "globex"):
        for model in (
            "chat",
            "chat-context",
            "chat-compared",
            "chat-judged",
            "chat-student",
            "chat-teacher",
            "chat-translated",
        ):
            for stream in (False, True):
                answer = callers.ask(tenant, "fine", model, stream=stream)
                assert answer.status_code == 200
                assert callers.error_code(answer) is None
                assert callers.world.canaries[f"{tenant}-answer"] in answer.text or model == "chat-teacher"
    give_up = time.monotonic() + 10
    while callers.ask("acme", "fine", "chat").headers.get("x-gkt-shared") != "cache":
        assert time.monotonic() < give_up, "guidance is kept, though not before it was answered"
    assert "x-gkt-unguided" in callers.ask("acme", "fine", "chat", tools=[tool]).headers
    assert callers.ask("acme", "fine", "chat", n=2).status_code == 200
    words = " ".join(message["content"] for message in callers.world.prompt("acme", "fine"))
    for stream in (False, True):
        text = {"model": "chat", "prompt": words, "max_tokens": 20, "stream": stream}
        assert callers.send("acme", "POST", "/v1/completions", json=text).status_code == 200
    embedded = callers.send("acme", "POST", "/v1/embeddings", json={"model": "embed", "input": words})
    assert embedded.status_code == 200
    for path in ("/v1/models", "/v1/models/chat", "/openapi.json", "/healthz", "/readyz"):
        assert callers.send("acme", "GET", path).status_code == 200


def _fail_by_engines(callers: Callers) -> None:
    """Play every fault of either engine, as JSON and as a stream. The other tenant must receive none of it."""
    assert CODES.keys() == PLAYS.keys()
    for play, codes in CODES.items():
        for stream, code in zip((False, True), codes, strict=True):
            answer = callers.ask("acme", f"student-{play}", "chat-student", stream=stream)
            assert callers.error_code(answer) == code, (play, stream, answer.text)
            if play == "stalls" and not stream:
                continue  # two seconds each
            translated = callers.ask("acme", f"student-{play}", "chat-translated", stream=stream)
            assert callers.error_code(translated) is not None, (play, stream, translated.text)
            guided = callers.ask("acme", f"teacher-{play}", "chat", stream=stream)
            assert guided.status_code == 200, guided.text
            assert callers.error_code(callers.ask("acme", f"teacher-{play}", "chat-teacher", stream=stream)) is not None
            callers.ask("globex", f"student-{play}", "chat", stream=stream)
        other = callers.ask("globex", "fine", "chat")
        assert other.status_code == 200
    assert callers.error_code(callers.ask("acme", "fine", "chat-nobody")) == "engine_unreachable"


def _fail_by_callers(callers: Callers) -> None:
    """Send every kind of invalid request, with secrets in all invalid parts."""
    canaries = callers.world.canaries
    key, secret = callers.world.key("acme"), canaries["acme-extra"]
    post = "/v1/chat/completions"

    def refused(status: int, method: str, path: str, **more: Any) -> None:
        assert callers.send("acme", method, path, **more).status_code == status

    refused(400, "POST", post, content=f'{{"model": "chat", "messages": [{{"content": "{canaries["acme-prompt"]}')
    refused(400, "POST", post, json={"model": canaries["acme-model"], "messages": canaries["acme-prompt"]})
    refused(400, "POST", post, json={"model": "chat", "messages": [{"role": secret, "content": secret}]})
    refused(400, "POST", post, json={"model": "chat", "messages": [], "stream": secret})
    refused(400, "POST", post, json={"model": "chat", "messages": callers.world.prompt("acme", "fine"), "api_key": key})
    refused(400, "POST", post, content=secret.encode(), headers={"Content-Encoding": "gzip"})
    refused(404, "POST", post, json={"model": canaries["acme-model"], "messages": [{"role": "user", "content": "x"}]})
    refused(413, "POST", post, content=secret.encode() * 2000)
    refused(404, "GET", f"/v1/{secret}?api_key={secret}")
    refused(404, "GET", f"/v1/models/{secret}")
    refused(404, "GET", f"/v1/receipts/{secret}")
    refused(405, "DELETE", f"/v1/models/{secret}")
    refused(401, "GET", f"/v1/models?api_key={key}", headers={"Authorization": ""})
    refused(401, "GET", "/v1/models", headers={"Authorization": f"Basic {key}"})
    refused(401, "GET", "/v1/models", headers={"Authorization": f"Bearer {canaries['wrong-key']}"})
    refused(401, "POST", post, content=canaries["acme-prompt"], headers={"Authorization": f"Bearer {key}x"})
    refused(400, "GET", "/v1/models", headers={"X-Client-Request-Id": secret * 30})
    for head, status in (
        (f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\x01\r\n\r\n", b"400"),
        (f"GET /{key}\x01 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (f"{key} / HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (f"GET / HTTP/1.1\r\nHost: x\r\n{key}\r\n\r\n", b"400"),
        (f"GET / HTTP/1.1\r\nHost: x\r\nX: {key * 300}\r\n\r\n", b"431"),
        (f"GET / HTTP/1.1\r\nHost: x\r\nExpect: {key}\r\n\r\n", b"417"),
        (f"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: {key}\r\n\r\n", b"400"),
    ):
        for url in (callers.world.process.url, callers.world.process.admin_url):
            reply = _raw(url, head)
            assert reply.split(b" ", 2)[1] == status, reply
            callers.replies.append(("nobody", reply.decode("latin-1")))
    for path in (f"/{secret}", f"/metrics/{secret}?key={secret}"):
        reply = callers.world.admin(path)
        assert reply.status_code in {401, 403, 404}
        callers.replies.append(("acme", reply.text))


def _raw(url: str, sent: str) -> bytes:
    host, _, port = url.removeprefix("http://").partition(":")
    with closing(socket.create_connection((host, int(port)), timeout=10)) as connection:
        connection.sendall(sent.encode())
        return connection.recv(65_536)


def _make_keys(callers: Callers) -> None:
    """Create, rotate and revoke keys while the gateway runs; use each kind of key where it is not valid."""
    world, canaries = callers.world, callers.world.canaries

    def holds(key: str, status: int) -> None:
        give_up = time.monotonic() + 10
        while (
            seen := callers.send("acme", "GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        ).status_code:
            if seen.status_code == status:
                break
            assert time.monotonic() < give_up, seen.text
            time.sleep(0.05)

    made = world.admin("/keys", "POST", tenant="acme", id="made")
    assert made.status_code == 201, made.text
    rotated = world.admin("/keys/acme/made/rotate", "POST", grace="0s")
    assert rotated.status_code == 201, rotated.text
    for name, reply in (("made-key", made), ("rotated-key", rotated)):
        canaries.texts[name] = reply.json()["key"].removeprefix("gk-")
    holds(f"gk-{canaries['rotated-key']}", 200)
    holds(f"gk-{canaries['made-key']}", 401)
    assert world.admin("/keys/acme/made", "DELETE").status_code == 200
    holds(f"gk-{canaries['rotated-key']}", 401)
    for path in ("/keys", "/audit"):
        listed = world.admin(path)
        assert (listed.status_code, "made" in listed.text) == (200, True)
        canaries.search("admin page", listed.text)
    refused = world.admin("/keys", "POST", tenant="acme", id=canaries["acme-extra"], key=callers.world.key("acme"))
    assert refused.status_code == 400
    for key in (canaries["admin-key"], canaries["acme-expired-key"]):
        answer = callers.send("acme", "GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 401
    for key in (world.key("acme"), canaries["wrong-key"]):
        turned_away = httpx.get(world.process.admin_url + "/keys", headers={"Authorization": f"Bearer {key}"})
        assert turned_away.status_code == 401
        callers.replies.append(("nobody", turned_away.text))


def _run_out(callers: Callers) -> None:
    """Exceed the requests per minute and the budget; the webhook receives the budget alert."""
    assert [callers.ask("hasty", "fine", "chat").status_code for _ in range(2)] == [200, 429]
    assert [callers.ask("careful", "fine", "chat").status_code for _ in range(2)] == [200, 200]
    refused = callers.ask("poor", "fine", "chat")
    assert (refused.status_code, callers.error_code(refused)) == (429, "insufficient_quota")
    give_up = time.monotonic() + 10
    while len(callers.world.posted) < 2:
        assert time.monotonic() < give_up, "of the soft line and the hard one"
        time.sleep(0.02)
    callers.world.canaries.search("post to the webhook", *callers.world.posted)


def _break(callers: Callers) -> None:
    """Provoke errors of the gateway itself, with a traceback."""
    broken = callers.ask("acme", "gateway-breaks", "chat")
    assert (broken.status_code, callers.error_code(broken)) == (500, "server_error")
    callers.world.process.wait_for_log("request_broke")
    midway = callers.ask("acme", "fine BREAKS-MIDWAY", "chat-student", stream=True)
    assert midway.status_code in {200, 500}


def _leave(callers: Callers) -> None:
    """Disconnect before the answer and in the middle of it."""
    world = callers.world
    host, _, port = world.process.url.removeprefix("http://").partition(":")
    for stream in (False, True):
        payload = {"model": "chat-student", "stream": stream, "messages": world.prompt("acme", "student-stalls")}
        body = json.dumps(payload)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.key('acme')}\r\n"
        connection = socket.create_connection((host, int(port)), timeout=10)
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        time.sleep(0.2)
        connection.close()
    world.process.wait_for_log("request", status="client_gone")


def _look_at_receipts(callers: Callers) -> None:
    found = 0
    for tenant, name in callers.ids[:]:
        answer = callers.client.get(
            f"/v1/receipts/{name}", headers={"Authorization": f"Bearer {callers.world.key(tenant)}"}
        )
        callers.world.canaries.search("receipt", answer.text)
        found += answer.status_code == 200
    assert found > 100


def _search_everywhere(callers: Callers) -> None:
    world, canaries = callers.world, callers.world.canaries
    for tenant, reply in callers.replies:
        canaries.search("reply", reply, allowed=tuple(name.format(tenant) for name in _OWN))
    _wait_for_comparisons(world)
    for path in ("/metrics", "/readyz", "/queue", "/healthz", "/quality"):
        answer = world.admin(path)
        assert answer.status_code == 200
        canaries.search("admin page", answer.text)
    cached = 0
    for key, text in world.kept():
        is_cache = key.endswith(f":v{LAYOUT}:cache")
        canaries.search("key in Redis", text, allowed=_GUIDANCE if is_cache else ())
        cached += is_cache and canaries["acme-guidance"] in text
    assert cached == 1, "guidance is kept"
    _check_that_the_cache_ends(world)
    assert len(world.commands) > 300
    canaries.search("command to Redis", *world.commands, allowed=_GUIDANCE)
    for place, text in arguments_of_all():
        if place != f"/proc/{os.getpid()}/cmdline":
            canaries.search("command line", text)
    for _, text in world.files():
        canaries.search("file", text)


def _wait_for_comparisons(world: World) -> None:
    """Wait for sampled runs of both engines and a judge that replies with its whole request instead of a grade."""
    give_up = time.monotonic() + 10
    while True:
        metrics = world.admin("/metrics").text
        ended = dict(re.findall(r'gkt_quality_samples_total\{result="(\w+)"\} (\S+)', metrics))
        if min(float(ended["made"]), float(ended["unscored"])) >= 4:
            break
        assert time.monotonic() < give_up, ended
        time.sleep(0.05)
    assert world.admin("/quality").json()["rows"]


def _check_that_the_cache_ends(world: World) -> None:
    """Check that each cached text expires, no later than the policy allows."""
    seconds, microseconds = world.redis.time()
    now = seconds + microseconds / 1e6
    for key in world.redis.scan_iter(f"*:v{LAYOUT}:cache"):
        ends = dict(world.redis.zrange(f"{key}_ends", 0, -1, withscores=True))
        assert world.redis.hkeys(key)
        assert ends.keys() == set(world.redis.hkeys(key))
        assert all(now < float(end) / 1e6 <= now + 3600 for end in ends.values())


def _without_redis(world: World) -> None:
    """Send requests while Redis is away, or has another password."""
    with Callers(world) as callers:
        for stream in (False, True):
            assert callers.ask("acme", "fine", "chat", stream=stream).status_code == 200
            for play, code in (("failed", "invalid_request_error"), ("page", "engine_failed")):
                failed = callers.ask("acme", f"student-{play}", "chat-student", stream=stream)
                assert callers.error_code(failed) == code, (play, stream, failed.text)
        assert callers.send("acme", "GET", "/v1/receipts/req_0123456789abcdef01234567").status_code == 503
    for tenant, reply in callers.replies:
        world.canaries.search("reply", reply, allowed=tuple(name.format(tenant) for name in _OWN))
    world.canaries.search("admin page", world.admin("/readyz").text)
    assert world.admin("/readyz").json()["redis"] == {"up": False, "problems": [], "clock_skew_s": 0.0}


def _end(world: World) -> None:
    """Send SIGTERM while a request is in flight that does not end by itself."""

    def ask() -> None:
        with suppress(httpx.HTTPError), Callers(world) as callers:
            callers.ask("acme", "student-stalls", "chat-student")

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.2)
    assert world.process.terminate() == 0
    asking.join(10)
    for _, text in world.kept():
        world.canaries.search("key in Redis", text, allowed=_GUIDANCE)
    checked = subprocess.run(
        [sys.executable, "-m", "gateway", "check", "--config", str(world.folder / "config.yaml")],
        capture_output=True, text=True, timeout=30, env={**os.environ, **world.secrets}, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    world.canaries.search("output of check", checked.stdout + checked.stderr)


def _look_at_the_log(world: World) -> None:
    events = {line.get("event") for line in world.process.log}
    assert {"listening", "request", "engine_error", "request_broke", "draining", "stopped"} <= events
    labels = {line.get("label") for line in world.process.log if line.get("event") == "engine_error"}
    assert labels >= {
        f"engine_{kind}" for kind in ("unreachable", "timeout", "overloaded", "rejected", "failed", "protocol_error")
    }
    world.canaries.search("line of the log", *world.process.raw_log.splitlines())


def _look_at_the_spans(world: World) -> None:
    assert {headers["x-key"] for headers in world.collector.headers} == {world.canaries["collector-key"]}
    names = {one.name for one in world.collector.spans}
    assert {"chat tgi", "chat small", "chat fake", "embeddings small", "GET /v1/receipts/{id}"} <= names
    world.canaries.search("export of spans", *(raw.decode("latin-1") for raw in world.collector.raw))


def _summary(canaries: Canaries) -> str:
    """Return one finding of each kind, and the number of its kind."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for one in canaries.found:
        kinds.setdefault((one.canary, one.place), []).append(one.around)
    return "\n".join(f"{len(all_of_it)} x {kind}: {all_of_it[0]}" for kind, all_of_it in kinds.items())
