"""`gkt-gateway keys` against a real gateway, and without one."""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest

from gateway.policy.book import load_all
from tests.cli import in_process
from tests.cli.in_process import ADMIN_KEY
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

run = partial(in_process.run, "keys")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "admin.key").write_text(ADMIN_KEY)
    with running_gateway(
        folder,
        redis_url=redis_url,
        redis={"prefix": f"c{os.urandom(4).hex()}"},
        admin={"key": "file:admin.key"},
        models=[model("small", "openai", "http://127.0.0.1:1/v1", continuation="trailing", echo=False)],
        routes=[STUDENT_ONLY | {"baseline": "small"}],
    ) as process:
        yield process


def holds(gateway: GatewayProcess, token: str) -> bool:
    answer = httpx.get(f"{gateway.url}/v1/models", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code in {200, 401}
    return answer.status_code == 200


@pytest.mark.long
def test_a_key_is_made_listed_rotated_and_revoked(gateway: GatewayProcess) -> None:
    """The key alone is on standard output; no list shows it; who did it is in the trail."""
    at = ("--url", gateway.admin_url)
    limits = (
        "--rpm-limit",
        "600",
        "--max-budget",
        "2.50",
        "--soft-budget",
        "2",
        "--budget-duration",
        "1w",
        "--rolling",
    )
    made = run("create", "-t", "acme", "--id", "prod", "--models", "chat-student", "--expires", "90d", *limits, *at)
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert re.fullmatch(r"gk-[A-Za-z0-9_-]{43}", token)
    assert "Key prod of tenant acme; it expires 20" in made.stderr
    assert token not in made.stderr
    assert holds(gateway, token)

    listed = run("list", *at)
    assert listed.returncode == 0, listed.stderr
    assert token not in listed.stdout
    row = next(line for line in listed.stdout.splitlines() if " prod " in line)
    for cell in ("acme", token[:6] + "...", "active", "chat-student", "rpm 600", "2.50 USD / 1w"):
        assert cell in row
    assert "in its file" in listed.stdout
    key_list = json.loads(run("list", "--tenant", "acme", "--json", *at).stdout)["keys"]
    assert [key["id"] for key in key_list] == ["only", "prod"]
    assert key_list[1]["budget"] == {
        "max_budget": 2.5, "soft_budget": 2, "budget_duration": "1w", "calendar_aligned": False
    }  # fmt: skip

    rotated = run("rotate", "prod", "-t", "acme", "--grace", "1m", *at)
    assert rotated.returncode == 0, rotated.stderr
    assert "The old key is now called prod.1 and is valid until 20" in rotated.stderr
    new = rotated.stdout.strip()
    assert new != token
    assert holds(gateway, token)
    assert holds(gateway, new)

    revoked = run("revoke", "prod.1", "-t", "acme", *at)
    assert (revoked.returncode, revoked.stdout) == (0, "revoked: key prod.1 of tenant acme\n")
    assert not holds(gateway, token)
    assert holds(gateway, new)

    as_json = json.loads(run("rotate", "prod", "-t", "acme", "--grace", "0s", "--json", "--actor", "dave", *at).stdout)
    assert as_json["replaced"]["id"] == "prod.2"
    assert not holds(gateway, new)
    assert holds(gateway, as_json["key"])
    trail = httpx.get(f"{gateway.admin_url}/audit", headers={"Authorization": f"Bearer {ADMIN_KEY}"}).json()["entries"]
    assert [(one["actor"], one["action"]) for one in trail] == [
        ("dave", "key.rotate"), ("carol", "key.revoke"), ("carol", "key.rotate"), ("carol", "key.create")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "-t", "acmee", "--id", "x"], "no policy file defines tenant 'acmee'. Did you mean 'acme'?"),
        (["create", "-t", "acme", "--id", "only"], "The policy file of tenant 'acme' has a key 'only'"),
        (["create", "-t", "acme", "--id", "x", "--models", "chat-studnt"], "Did you mean 'chat-student'?"),
        (["create", "-t", "acme", "--id", "x", "--expires", "soon"], "'expires': must be a date like 2027-06-30"),
        (["revoke", "nope", "-t", "acme"], "Tenant 'acme' has no key 'nope'."),
        (["revoke", "a/../b", "-t", "acme"], "has no key 'a/../b'"),
        (["rotate", "only", "-t", "acme"], "is defined in the policy file of tenant 'acme'"),
        (["rotate", "only", "-t", "acme", "--grace", "1y"], "'grace': must be a duration"),
    ],
)
def test_errors_of_the_gateway_are_printed_verbatim(gateway: GatewayProcess, arguments: list[str], words: str) -> None:
    done = run(*arguments, "--url", gateway.admin_url)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert words in line


def test_a_wrong_admin_key_is_reported_without_the_key(gateway: GatewayProcess) -> None:
    done = run("list", "--url", gateway.admin_url, GKT_ADMIN_KEY="another-key-of-somebody")
    assert done.returncode == 1
    assert "The admin key is wrong" in done.stderr
    assert "another-key" not in done.stderr
    callers = run("list", "--url", gateway.url)
    assert "not the admin listener of a gateway" in callers.stderr


def test_the_admin_key_is_read_as_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it nothing is asked; of a configuration with other mistakes it is found all the same."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text("admin: {port: 1}\n")
    assert "Set the environment variable GKT_ADMIN_KEY" in run("list", GKT_ADMIN_KEY="").stderr
    config.write_text("admin: {port: 1, key: file:admin.key}\nmodels: 3\n")
    missing = run("list", GKT_ADMIN_KEY="")
    assert missing.returncode == 1
    assert "admin.key" in missing.stderr
    (tmp_path / "admin.key").write_text("sixteen-letters!\n")
    found = run("list", GKT_ADMIN_KEY="")
    assert "Cannot connect to http://127.0.0.1:1" in found.stderr
    short = run("list", GKT_ADMIN_KEY="short")
    assert "environment: admin.key: must have at least 16 characters" in short.stderr


def test_the_printed_policy_lines_are_valid(tmp_path: Path) -> None:
    """No gateway is asked, and the key is not among them."""
    options = ("--models", "chat,true,1:2", "--rpm-limit", "60", "--tpm-limit", "900", "--max-parallel-requests", "2")
    money = ("--max-budget", "10.50", "--budget-duration", "1d", "--rolling", "--on-hard", "student_only")
    made = [
        run("create", "-t", "acme", "--id", "prod", "--print-yaml", "--expires", "2099-06-30", *options, *money),
        run("create", "-t", "acme", "--id", "007", "--print-yaml", "--expires", "90d"),
        run("create", "-t", "acme", "--id", "null", "--print-yaml", GKT_ADMIN_KEY=""),
    ]
    assert {done.returncode for done in made} == {0}
    tokens = [done.stderr.strip().rpartition(" ")[2] for done in made]
    (tmp_path / "policies").mkdir()
    lines = "".join(done.stdout for done in made)
    (tmp_path / "policies" / "acme.yaml").write_text(
        f"tenant: acme\nkeys:\n{lines}routes:\n  - {{model: chat, mode: student, student: small}}\n"
    )
    (tmp_path / "config.yaml").write_text(
        "models:\n  - {name: small, protocol: openai, api_base: 'http://s:1', price: {input_per_1m: 1, "
        "output_per_1m: 1}}\n"
    )
    _, book, _ = load_all(tmp_path / "config.yaml")
    prod, number, null = (book.tenant_of_key(token) for token in tokens)
    assert prod is not None
    assert number is not None
    assert null is not None
    assert [one.key.id for one in (prod, number, null)] == ["prod", "007", "null"]
    assert prod.key.models == ("chat", "true", "1:2")
    assert prod.key.limits is not None
    assert prod.key.limits.tpm_limit == 900
    assert prod.key.budget is not None
    assert (str(prod.key.budget.max_budget), prod.key.budget.calendar_aligned) == ("10.50", False)
    assert prod.key.expires == 4_086_547_200.0
    assert number.key.expires is not None
    assert not any(token in lines for token in tokens)
    assert hashlib.sha256(tokens[0].encode()).hexdigest() in lines


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["create", "--id", "x"], 2, "--tenant"),
        (["create", "-t", "acme", "--id", "x", "--max-budget", "much"], 2, "must be an amount in USD"),
        (["create", "-t", "acme", "--id", "x", "--soft-budget", "1"], 2, "--max-budget"),
        (["create", "-t", "acme", "--id", "x", "--rpm-limit", "0"], 2, "--rpm-limit"),
        (["create", "-t", "acme", "--id", "a b", "--print-yaml"], 1, "--id: must be 1 to 64 letters"),
        (["create", "-t", "a", "--id", "x", "--models", "a b", "--print-yaml"], 1, "--models: must be 1 to 128"),
        (["create", "-t", "a", "--id", "x", "--max-budget", "1", "--soft-budget", "2", "--print-yaml"], 1,
         "--soft-budget: must be more than 0 and less than max_budget"),
        (["list", "--url", "127.0.0.1"], 2, "--url"),
        (["reboke"], 2, "No such command 'reboke'"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(arguments: list[str], code: int, words: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert words in re.sub(r"\s+", " ", done.stderr)
    assert KEY not in done.stderr


def test_help_teaches() -> None:
    for arguments in ([], ["-h"], ["create", "--help"], ["rotate", "-h"]):
        done = run(*arguments)
        assert "Usage: " in done.stdout + done.stderr
    assert "GKT_ADMIN_KEY" in run("--help").stdout
