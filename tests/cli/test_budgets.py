"""`gkt-gateway budgets` against a real gateway, and what it prints."""

from __future__ import annotations

import json
import os
import re
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.cli.budgets import color_of, print_budgets
from tests.cli import in_process
from tests.cli.in_process import ADMIN_KEY
from tests.gateway_process import STUDENT_ONLY, GatewayProcess, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

run = partial(in_process.run, "budgets")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("budgets")
    (folder / "admin.key").write_text(ADMIN_KEY)
    with running_gateway(
        folder,
        redis_url=redis_url,
        redis={"prefix": f"d{os.urandom(4).hex()}"},
        admin={"key": "file:admin.key"},
        models=[model("small", "openai", "http://127.0.0.1:1/v1", continuation="trailing", echo=False)],
        routes=[STUDENT_ONLY | {"baseline": "small"}],
        tenants={
            "acme": {
                "budget": {"max_budget": 100, "soft_budget": 80},
                "key_budget": {"max_budget": 2.5, "budget_duration": "12h", "calendar_aligned": False},
            }
        },
    ) as process:
        yield process


def test_budgets_are_listed_and_raised(gateway: GatewayProcess) -> None:
    """On a pipe in plain letters; for programs as JSON. Who raised it, and why, is in the trail."""
    at = ("--url", gateway.admin_url)
    listed = run("list", *at)
    assert listed.returncode == 0, listed.stderr
    tenant, key = (line for line in listed.stdout.splitlines() if " acme " in line)
    for cell in ("all keys", "100 USD / 1mo", " 0.0% ", " 00:00:00 UTC", " - "):
        assert cell in tenant
    for cell in ("only", "2.5 USD / 12h", "rolling"):
        assert cell in key
    assert listed.stdout.isascii() or set(re.findall(r"[^ -~\n]", listed.stdout)) == {"─"}

    raised = run("raise", "acme", "--usd", "50.25", "--until", "2199-12-01", *at)
    assert raised.returncode == 1
    assert "at most 366 days away" in raised.stderr
    raised = run("raise", "acme", "--usd", "50.25", "--for", "7d", "--reason", "launch week", *at)
    assert (raised.returncode, raised.stderr) == (0, "")
    assert re.fullmatch(r"raised: tenant acme has 150.25 USD until [\d:. -]+ UTC; 150.25 USD are left\n", raised.stdout)
    assert "+50.25 until 20" in run("list", "-t", "acme", *at).stdout
    both = json.loads(run("list", "--json", *at).stdout, parse_float=Decimal)["budgets"]
    assert [one["raise"] and one["raise"]["usd"] for one in both] == [Decimal("50.25"), None]
    raise_view = json.loads(
        run("raise", "acme", "--key", "only", "--usd", "1", "--json", "--actor", "dave", *at).stdout
    )
    assert (raise_view["key"], raise_view["left_usd"]) == ("only", 3.5)
    one = run("list", "--tenant", "acme", "--key", "only", *at).stdout
    assert ("+1 until 20" in one, " all keys " in one) == (True, False)
    for wrong in (("--key", "only"), ("--label", "team"), ("-t", "acme", "--key", "only", "--label", "team")):
        assert run("list", *wrong, *at).returncode == 2
    ended = run("raise", "acme", "--usd", "0", *at)
    assert ended.stdout == "the raise has ended: tenant acme has 100 USD / 1mo; 100 USD are left\n"
    assert "There are no budgets." in run("list", "-t", "globex", *at).stdout

    trail = httpx.get(f"{gateway.admin_url}/audit", headers={"Authorization": f"Bearer {ADMIN_KEY}"}).json()["entries"]
    assert [(one["actor"], one["subject"], one["after"].get("reason")) for one in trail] == [
        ("carol", "", None), ("dave", "only", None), ("carol", "", "launch week")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["raise", "acmee", "--usd", "5"], "No policy file defines tenant 'acmee'. Did you mean 'acme'?"),
        (["raise", "globex", "--usd", "5"], "Tenant 'globex' has no budget."),
        (["raise", "acme", "--key", "a/../b", "--usd", "5"], "no valid key 'a/../b'"),
        (["raise", "acme", "--usd", "5", "--for", "1w"], "'for': must be a duration"),
        (["raise", "acme", "--usd", "5", "--for", "1d", "--until", "2099-01-01"], "'for' sets the end too"),
    ],
)
def test_errors_of_the_gateway_are_printed_verbatim(gateway: GatewayProcess, arguments: list[str], words: str) -> None:
    done = run(*arguments, "--url", gateway.admin_url)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["raise", "acme"], "--usd"),
        (["raise", "--usd", "5"], "Missing argument"),
        (["raise", "acme", "--usd", "much"], "must be an amount in USD"),
        (["rise", "acme"], "No such command 'rise'"),
    ],
)
def test_options_that_cannot_be(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in re.sub(r"\s+", " ", done.stderr)


@pytest.mark.parametrize(
    ("left", "soft", "color"),
    [("80", None, "green"), ("20", "81", "green"), ("20", "80", "yellow"), ("10", "80", "red"), ("0", None, "red")],
)
def test_the_color_of_the_rest_shows_the_soft_budget_and_the_end(left: str, soft: str | None, color: str) -> None:
    budget: dict[str, Any] = {
        "max_budget": Decimal(100),
        "soft_budget": soft and Decimal(soft),
        "spent_usd": Decimal(99) - Decimal(left),
        "reserved_usd": Decimal(1),
        "left_usd": Decimal(left),
        "raise": None,
    }
    assert color_of(budget) == color


def test_without_a_terminal_all_figures_are_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """The table is as wide as its figures, which have six decimal places of a dollar."""
    row = {
        "tenant": "acme", "key": None, "max_budget": Decimal(1000000), "soft_budget": None, "budget_duration": "366d",
        "spent_usd": Decimal("123456.654321"), "reserved_usd": Decimal("0.0000001"), "left_usd": Decimal("876543.3456"),
        "raise": {"usd": Decimal("1.50"), "until": "2026-11-30T12:00:00Z"}, "ends": "2026-12-01T00:00:00Z",
    }  # fmt: skip
    print_budgets([row])
    printed = capsys.readouterr().out
    figures = ("1000000 USD / 366d", "12.3%", "123456.654321", "<0.000001", "876543.3456", "2026-12-01 00:00:00 UTC")
    assert [figure for figure in (*figures, "+1.5 until 2026-11-30 12:00:00 UTC") if figure not in printed] == []


def test_help_teaches() -> None:
    for arguments in ([], ["-h"], ["list", "--help"], ["raise", "-h"]):
        done = run(*arguments)
        assert "Usage: " in done.stdout + done.stderr
    assert "GKT_ADMIN_KEY" in run("--help").stdout
    assert 'budgets raise acme --usd 50 --reason "launch week"' in run("raise", "--help").stdout
