"""`gkt-gateway usage show` against a real gateway, and what it prints."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import time
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.cli.usage_show import print_usage, usd
from tests.cli import in_process
from tests.cli.in_process import ADMIN_KEY
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, TEACHER_ONLY, GatewayProcess, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

run = partial(in_process.run, "usage", "show")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[GatewayProcess]:
    """acme has asked the student three times, whose baseline costs ten times as much, and the teacher once."""
    folder = tmp_path_factory.mktemp("usage")
    (folder / "admin.key").write_text(ADMIN_KEY)
    with (
        FakeEngine(says("Hello there.")).running() as engine,
        running_gateway(
            folder,
            redis_url=redis_url,
            usage={"run": "host"},
            redis={"prefix": f"c{os.urandom(4).hex()}", "timeout": "5s"},
            admin={"key": "file:admin.key"},
            models=[
                model("big", "tgi", engine.url),
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[STUDENT_ONLY, TEACHER_ONLY],
        ) as process,
    ):
        for route in ("chat-student", "chat-student", "chat-student", "chat-teacher"):
            body = {"model": route, "messages": [{"role": "user", "content": "Hello"}]}
            headers = {"Authorization": f"Bearer {KEY}"}
            assert httpx.post(f"{process.url}/v1/chat/completions", json=body, headers=headers).status_code == 200
        give_up = time.monotonic() + 60
        while requests_in_usage(process) < 4:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        yield process


def requests_in_usage(process: GatewayProcess) -> int:
    """Return the counted requests, or 0 while the gateway replies 503 because it imports its database library."""
    done = run("--format", "json", "--url", process.admin_url)
    return int(json.loads(done.stdout)["total"]["requests"]) if done.returncode == 0 else 0


def test_the_table_has_rows_and_a_total(gateway: GatewayProcess) -> None:
    done = run("--by", "tenant,model", "--since", "7d", "--url", gateway.admin_url)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.endswith(" UTC")
    student = next(line for line in lines if "chat-student" in line).split()
    assert student[:7] == ["acme", "chat-student", "3", "0", "0", "0", "0"]
    # 10 tokens read and 2 written, thrice: at a tenth of a millionth of a dollar, and at a millionth for the baseline.
    for cell in ("30 + 6", "0.000004", "0.000036", "about 0", "0 - 0.0 %"):
        assert cell in " ".join(student)
    exact = json.loads(run("--model", "chat-student", "--format", "json", "--url", gateway.admin_url).stdout)["total"]
    assert Decimal(exact["savings_error_usd"]) > 0, "the teacher read nothing: its count is an estimate"
    assert Decimal(exact["savings_usd"]) == Decimal("0.0000324") <= Decimal(exact["savings_error_usd"])
    assert f"about 0 {usd(exact['savings_error_usd'])}" in " ".join(student)
    # What the teacher's engine counted is not wrong.
    teacher = " ".join(next(line for line in lines if "chat-teacher" in line).split())
    assert "acme chat-teacher 1 0 0 0 0 10 + 2 0 + 0 0.000012 0.000000 0.000000 0.000012 0.000000 " in teacher
    assert " 0.000000 0 100.0 % 100.0 %" in teacher
    everything = next(line for line in lines if line.strip().startswith("all "))
    assert everything.split()[:6] == ["all", "4", "0", "0", "0", "0"]


def test_usage_is_available_as_csv_and_json(gateway: GatewayProcess) -> None:
    at = ("--url", gateway.admin_url)
    lines = list(csv.DictReader(io.StringIO(run("--by", "route", "--format", "csv", *at).stdout)))
    assert {(one["route"], one["requests"]) for one in lines} == {("chat-student", "3"), ("chat-teacher", "1")}
    report = json.loads(run("-b", "", "-g", "hour", "-t", "acme", "--model", "chat-student", "-f", "json", *at).stdout)
    assert (report["granularity"], report["by"], report["total"]["requests"]) == ("hour", [], 3)
    assert sum(row["requests"] for row in report["rows"]) == 3
    assert len(report["rows"]) >= 24


def test_the_pages_commands_run(gateway: GatewayProcess) -> None:
    """Run the commands of docs/cost.md#usage, without their redirection."""
    page = (Path(__file__).parents[2] / "docs" / "cost.md").read_text("utf-8")
    lines = re.findall(r"^\$ gkt-gateway usage show ([^>\n]*)", page, re.MULTILINE)
    assert len(lines) == 6
    for line in lines:
        done = run(*shlex.split(line), "--url", gateway.admin_url)
        assert (done.returncode, done.stderr) == (0, ""), line


def test_a_range_without_requests_is_reported(gateway: GatewayProcess) -> None:
    done = run("--since", "yesterday", "--until", "yesterday", "--url", gateway.admin_url)
    assert (done.returncode, "No requests in this time" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--by", "tennant"], "Did you mean 'tenant'?"),
        (["--since", "soon"], "'since' must be a time before now like 24h or 7d"),
        (["--since", "1h", "--until", "2h"], "must be before 'until'"),
        (["--since", "2000-01-01"], "older than the retained usage"),
        (["--granularity", "week"], "one of minute, hour, day"),
        (["--tenant", "acm"], "Did you mean 'acme'?"),
        (["--mode", "guide"], "Did you mean 'guided'?"),
    ],
)
def test_errors_of_the_gateway_are_printed_verbatim(gateway: GatewayProcess, arguments: list[str], words: str) -> None:
    done = run(*arguments, "--url", gateway.admin_url)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr


def test_a_wrong_format_is_a_wrong_call(gateway: GatewayProcess) -> None:
    assert run("--format", "xml", "--url", gateway.admin_url).returncode == 2


def report(saved: str, error: str = "0.0125") -> dict[str, Any]:
    times = {"count": 1, "mean": 1.0, "p50": 1234.5, "p95": None, "p99": 1.0}
    tokens = {"input": 1200, "cached": 30, "output": 5, "cache_write": 4}
    row = {
        "requests": 1,
        "answers": 0,
        "errors": {"engine_timeout": 1},
        "disconnected": 0,
        "shadows": 2,
        "unguided": {},
        "tokens": {"teacher": tokens, "student": tokens},
        "cost_usd": "0.5",
        "answers_usd": "0.3",
        "disconnected_usd": "0",
        "failed_usd": "0.169",
        "baseline_usd": "0.2",
        "savings_usd": saved,
        "savings_error_usd": error,
        "savings_about_zero": abs(float(saved)) <= float(error),
        "savings_classes": {"teacher_unavailable": {"requests": 7}},
        "measuring_usd": "0.031",
        "cost_share": 2.5,
        "teacher_token_share": None,
        "latency_ms": {"total": times},
    }
    span = {"since": "2026-11-24T18:00:00Z", "until": "2026-11-25T18:25:00Z"}
    return {**span, "granularity": None, "by": ["student"], "rows": [row | {"student": ""}], "total": row}


def test_negative_savings_have_a_minus(capsys: pytest.CaptureFixture[str]) -> None:
    print_usage(report("-0.3"))
    shown = capsys.readouterr().out
    assert "2026-11-24 18:00 to 2026-11-25 18:25 UTC" in shown
    for cell in ("(none)", "1,234 + 5", "0.012500", "-0.300000", "250.0 %", " - ", "1.234"):
        assert cell in shown


def test_negative_savings_are_red_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    print_usage(report("-0.3"))
    assert re.search(r"\x1b\[31m *-0\.30", capsys.readouterr().out)
    print_usage(report("0.3"))
    assert re.search(r"\x1b\[32m *0\.30", capsys.readouterr().out)
    print_usage(report("0.0007", "0.0025"))
    shown = capsys.readouterr().out
    assert "about 0" in shown
    assert "\x1b[32m" not in shown, "an error that large leaves nothing to be glad of"


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_a_narrow_terminal_omits_columns_and_names_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    """Rather than all of them in pieces; never without the money."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    print_usage(report("-0.3"))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    titles = next(line for line in lines if "requests" in line)
    assert all(title in titles for title in ("student", "cost USD", "baseline USD", "saved USD", "cost share"))
    assert any(line.startswith("Omitted: p50 s") for line in lines) == ("p50 s" not in titles)
    assert sum("(none)" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        ("0", "0.000000"),
        ("1234567.8", "1,234,567.800000"),
        ("-0.0000004", ">-0.000001"),
        ("0.0000004", "<0.000001"),
        ("12.345678901", "12.345679"),
    ],
)
def test_amounts_have_six_decimals(amount: str, shown: str) -> None:
    assert usd(amount) == shown
