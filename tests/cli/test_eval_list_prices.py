"""`gkt-gateway eval recommend --sheets`: the committed records of GSM8K at the shipped list prices."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from gateway.cli.eval_recommend import recommend
from gateway.cli.lazy import SETTINGS
from gateway.errors import StartupError
from gateway.evaluation.record import read_run
from gateway.evaluation.summary import summaries
from tests.cli.in_process import Done
from tests.evaluation.known_truth import ALONE, folder_of
from tests.kit.records import records

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT_SHOTS = "teacher, chat, 300 tokens"
PRIMED = "guided, chat, 300 tokens, primed, prefix, m=120"


def run(*arguments: str, folder: Path | None = None) -> Done:
    app = typer.Typer(**SETTINGS)
    app.command("recommend")(recommend)
    done = CliRunner().invoke(
        app,
        [str(folder or records() / "gsm8k"), "--asked", "chat", "--sheets", "shipped", "--folds", "2", *arguments],
        env={"NO_COLOR": "1", "COLUMNS": "200"},
    )
    if isinstance(done.exception, StartupError):
        return Done(1, done.stdout, done.exception.message)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def listed(*arguments: str) -> dict[str, Any]:
    """Return the results at list prices."""
    (found,) = json.loads(run("--json", *arguments).stdout)["list_prices"]
    assert isinstance(found, dict)
    return found


def test_each_sheet_has_a_row_with_its_best_setting() -> None:
    """The teacher with exemplars is the stronger one on these records."""
    table = run().stdout.partition("at list prices of 2026-11-29")[2]
    rows = [line for line in table.splitlines() if "teacher, completion, 8 shots, 300 tokens  " in line]
    assert len(rows) == 6
    assert all("guided, chat, 300 tokens" in row for row in rows)


def test_json_has_every_setting_and_cached_exemplars_cost_less() -> None:
    costs = {}
    for hits in ("50%", "100%"):
        report = listed("--cache-hits", hits)
        assert float(report["cache_hits"]) == float(hits[:-1]) / 100
        opus, _, gpt = report["sheets"][:3]
        settings = {one["setting"]: one for one in opus["settings"]}
        costs[hits] = [_cost(sheet, PRIMED) for sheet in (opus, gpt)]
    assert (opus["teacher"]["model"], round(opus["price_ratio"], 1)) == ("Claude Opus 5.5", 33.3)
    assert settings[WITHOUT_SHOTS]["truncated"] == 90
    assert len(opus["guided"]) == 5
    assert {one["against"] for one in opus["guided"]} == {"teacher, completion, 8 shots, 300 tokens"}
    assert costs["100%"][0] < costs["50%"][0]
    # 750 tokens of exemplars are too few for the prompt cache of GPT-5.5.
    assert (gpt["teacher"]["model"], costs["100%"][1]) == ("GPT-5.5", costs["50%"][1])


def test_a_buyer_without_a_prompt_cache_pays_the_input_price() -> None:
    """Nothing is written to a cache, either, which costs more than input at the prices of Claude."""
    report = listed("--cache-hits", "0%")
    opus, student = report["sheets"][0], report["sheets"][0]["student"]
    (found,) = (one for one in summaries(read_run(records() / "gsm8k")) if one.name == PRIMED)
    tokens = [(opus["teacher"], found.teacher_input_tokens, found.teacher_output_tokens)]
    tokens.append((student, found.student_input_tokens, found.student_output_tokens))
    usd = sum(read * float(at["input_per_1m"]) + wrote * float(at["output_per_1m"]) for at, read, wrote in tokens)
    assert _cost(opus, PRIMED) == pytest.approx(usd / found.n / 1e6)
    assert "assumed: there is no prompt cache" in report["notes"]


def test_measured_cache_reads_of_a_run_without_them_are_an_error() -> None:
    """The teacher of these records is a TGI."""
    done = run("--cache-hits", "measured")
    assert done.returncode == 1
    assert "the engine of the teacher reported no cache reads" in done.stderr


def _cost(sheet: dict[str, Any], name: str) -> float:
    (usd,) = (float(one["cost_usd"]) for one in sheet["settings"] if one["setting"] == name)
    return usd


def test_cache_writes_for_one_hour_cost_more_where_a_sheet_has_their_price() -> None:
    costs = {}
    for ttl in ("5m", "1h"):
        report = listed("--cache-ttl", ttl)
        assert report["cache_ttl"] == ttl
        opus, _, gpt = report["sheets"][:3]
        costs[ttl] = [_cost(sheet, PRIMED) for sheet in (opus, gpt)]
    assert costs["1h"][0] > costs["5m"][0]
    assert costs["1h"][1] == costs["5m"][1]


def test_a_run_without_guidance_is_an_error(tmp_path: Path) -> None:
    done = run(folder=folder_of(tmp_path, ALONE, 30))
    assert done.returncode == 1
    assert "has no guided setting: add some to the grid" in done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--cache-hits", "101%"), ("--cache-hits", "most"), ("--cache-ttl", "2h")],
)
def test_an_invalid_value_is_rejected(option: str, value: str) -> None:
    done = run(option, value)
    assert done.returncode == 2
    assert option in done.stderr
