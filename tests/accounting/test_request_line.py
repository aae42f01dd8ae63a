"""The console shows a short line for a request. JSON logs contain the whole receipt."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from ruamel.yaml import YAML

from gateway.accounting.receipt import Attempt
from gateway.accounting.request_log import shorten_request_event
from tests.accounting.receipt_builders import call, closed, guided
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, START_LIMIT_S, STUDENT_ONLY, model, running_gateway, sha256

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

import msgspec

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
ROUTE = STUDENT_ONLY | {"baseline": "small"}


def test_a_request_line_contains_the_main_facts() -> None:
    receipt = closed(guided())
    event = {"event": "request", "level": "info", **receipt.as_dict(), "client_request_id": "mine"}
    short = shorten_request_event(None, "info", event)
    assert list(short) == ["event", "level", "client_request_id", "id", "tenant", "route", "mode", "status", "tokens",
                           "cost", "saved", "total_ms"]  # fmt: skip
    assert (short["tokens"], short["cost"], short["saved"]) == ("100>40+150>160", "$0.00071", "$0.00149")
    assert short["client_request_id"] == "mine"


def test_the_share_of_a_warmup_is_not_in_the_line() -> None:
    receipt = closed(guided(warmup=call("small", 100, 1)))
    short = shorten_request_event(None, "info", {"event": "request", **receipt.as_dict()})
    assert short["mode"] == "guided"
    assert "warmup" not in short


def test_errors_are_kept_in_the_line() -> None:
    receipt = msgspec.structs.replace(
        closed(guided()), unguided="teacher_late", attempts=(Attempt("big", "engine_failed"),)
    )
    short = shorten_request_event(None, "info", {"event": "request", **receipt.as_dict()})
    assert (short["unguided"], short["failed"]) == ("teacher_late", 1)


def test_a_loss_is_shown_as_one() -> None:
    event = {"event": "request", **closed(guided()).as_dict(), "savings_usd": "-0.000012345678"}
    assert shorten_request_event(None, "info", event)["saved"] == "-$0.0000123457"


@pytest.mark.parametrize("event", [{"event": "listening", "public": "x"}, {"event": "request", "id": "not a receipt"}])
def test_other_events_are_unchanged(event: dict[str, str]) -> None:
    assert shorten_request_event(None, "info", dict(event)) == event


def ask(url: str) -> str:
    body = {"model": "chat-student", "messages": [{"role": "user", "content": "Write."}]}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
    assert reply.status_code == 200
    return reply.headers["x-request-id"]


def read_until(terminal: int, found: Callable[[str], bool], limit_s: float) -> str:
    """Return the console output, including colors."""
    give_up, seen = time.monotonic() + limit_s, ""
    while not found(seen):
        assert time.monotonic() < give_up, seen
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 65_536).decode()
    return seen


def test_a_terminal_shows_one_short_line_in_colours_for_each_request(tmp_path: Path, redis_url: str) -> None:
    """Run the command with a terminal as its standard error."""
    terminal, theirs = pty.openpty()
    with FakeEngine(says("A ship sails.")).running() as engine:
        config = {
            "server": {"host": "127.0.0.1", "port": 0},
            "admin": {"port": 0},
            "redis": {"url": redis_url, "prefix": "on-a-terminal"},
            "usage": {"run": "command"},
            "models": [model("small", "openai", f"{engine.url}/v1")],
        }
        (tmp_path / "policies").mkdir()
        YAML().dump(config, tmp_path / "config.yaml")
        policy = {"tenant": "acme", "keys": [{"id": "only", "sha256": sha256(KEY)}], "routes": [ROUTE]}
        YAML().dump(policy, tmp_path / "policies" / "acme.yaml")
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", tmp_path / "config.yaml"],
            stderr=theirs,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TERM": "xterm-256color", "NO_COLOR": "", "FORCE_COLOR": ""},
        )
        os.close(theirs)
        try:
            start = COLOURS.sub(
                "",
                read_until(
                    terminal, lambda seen: "listening" in seen and "\n" in seen.partition("listening")[2], START_LIMIT_S
                ),
            )
            address = re.search(r"public=(http://\S+)", start)
            assert address is not None, start
            request_id = ask(address[1])
            seen = read_until(terminal, lambda seen: "\n" in seen.partition(request_id)[2], 10)
        finally:
            process.terminate()
            process.wait(timeout=30)
            os.close(terminal)
    (line,) = [line for line in seen.splitlines() if request_id in line]
    assert COLOURS.search(line)
    plain = COLOURS.sub("", line).rstrip()
    assert re.fullmatch(
        rf"\S+Z \[info +\] request +worker=1 id={request_id} tenant=acme route=chat-student mode=student status=ok "
        r"tokens=\d+>\d+ cost=\$0\.\d+ saved=\$\d\S* total_ms=[\d.]+",
        plain,
    ), plain
    assert len(plain) < 230


def test_a_pipe_gets_the_whole_receipt_as_json(tmp_path: Path, redis_url: str) -> None:
    with (
        FakeEngine(says("A ship sails.")).running() as engine,
        running_gateway(
            tmp_path,
            models=[model("small", "openai", f"{engine.url}/v1")],
            routes=[ROUTE],
            redis_url=redis_url,
            redis={"prefix": "on-a-pipe"},
            log={"format": "auto", "requests": {"sample": 1, "slow": "1s"}},
        ) as gateway,
    ):
        request_id = ask(gateway.url)
        line = gateway.wait_for_log("request", id=request_id)
        headers = {"Authorization": f"Bearer {KEY}"}
        url = f"{gateway.url}/v1/receipts/{request_id}"
        while (reply := httpx.get(url, headers=headers)).status_code == 404:
            time.sleep(0.02)
        assert json.loads(reply.text).items() <= line.items()
