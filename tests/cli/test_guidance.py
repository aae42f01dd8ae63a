"""`gkt-gateway guidance` against a real gateway, and what it prints."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.cli import in_process
from tests.cli.in_process import ADMIN_KEY
from tests.gateway_process import GatewayProcess, guided, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

run = partial(in_process.run, "guidance")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("guidance")
    (folder / "admin.key").write_text(ADMIN_KEY)
    with running_gateway(
        folder,
        redis_url=redis_url,
        redis={"prefix": f"g{os.urandom(4).hex()}"},
        admin={"key": "file:admin.key"},
        models=[model(name, "openai", "http://127.0.0.1:1/v1", continuation="trailing") for name in ("big", "small")],
        routes=[guided("chat"), guided("org/code")],
    ) as process:
        yield process


def test_guidance_is_switched_off_listed_and_switched_on(gateway: GatewayProcess) -> None:
    at = ("--url", gateway.admin_url)
    assert run("list", *at).stdout == "Guidance is on for everything.\n"
    off = run("off", "--tenant", "acme", "--route", "org/code", "--reason", "new teacher", *at)
    assert (off.returncode, off.stdout, off.stderr) == (0, "guidance is off for tenant acme, route org/code\n", "")
    wider = run("off", "-t", "acme", "--answer-by", "teacher", *at).stdout
    assert wider.startswith("guidance is off for tenant acme\nParts of it keep their own switches:\n")
    assert wider.count(" UTC ") == 1
    assert "org/code" in wider
    everything = run("off", "--yes", "--actor", "dave", *at).stdout
    assert everything.startswith("guidance is off for everything\nParts of it keep their own switches:\n")
    assert everything.count(" UTC ") == 2
    all_off, tenant, route = (line for line in run("list", *at).stdout.splitlines() if " UTC " in line)
    for line, cells in (
        (all_off, (" all ", " dave ", " student ")),
        (tenant, (" acme ", " all ", " carol ", " teacher ")),
        (route, (" acme ", " org/code ", " carol ", " student ", " new teacher")),
    ):
        for cell in cells:
            assert cell in f" {line} "
    shown = json.loads(run("list", "--json", *at).stdout)["off"]
    assert [(one["tenant"], one["route"]) for one in shown] == [(None, None), ("acme", None), ("acme", "org/code")]

    on = run("on", *at).stdout
    assert on.startswith("guidance is on for everything\nOther switches are still off:\n")
    assert "org/code" in on
    assert json.loads(run("on", "-t", "acme", "--json", *at).stdout)["before"] == "off"
    done = run("on", "-t", "acme", "--route", "org/code", *at)
    assert done.stdout == "guidance is on for tenant acme, route org/code\n"
    done = run("on", "-t", "acme", "--route", "org/code", *at)
    assert done.stdout == "guidance is on already for tenant acme, route org/code\n"

    trail = httpx.get(f"{gateway.admin_url}/audit", headers={"Authorization": f"Bearer {ADMIN_KEY}"}).json()["entries"]
    assert [(one["actor"], one["action"]) for one in trail[-3:]] == [
        ("dave", "guidance.off"), ("carol", "guidance.off"), ("carol", "guidance.off")
    ]  # fmt: skip
    assert len(trail) == 6


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["off"], 1, "add --yes, or --tenant"),
        (["off", "--route", "chat"], 2, "needs --tenant"),
        (["on", "--route", "chat"], 2, "needs --tenant"),
        (["off", "--tenant", "acmee"], 1, "No policy file defines tenant 'acmee'. Did you mean 'acme'?"),
        (["off", "--tenant", "acme", "--route", "chatt"], 1, "no route 'chatt'. Did you mean 'chat'?"),
        (["on", "--tenant", "nobody"], 1, "No policy file defines tenant 'nobody'."),
        (["off", "--tenant", "acme", "--answer-by", "judge"], 2, "judge"),
    ],
)
def test_a_wrong_switch_changes_nothing(gateway: GatewayProcess, arguments: list[str], code: int, words: str) -> None:
    done = run(*arguments, "--url", gateway.admin_url)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert json.loads(run("list", "--json", "--url", gateway.admin_url).stdout)["off"] == []
