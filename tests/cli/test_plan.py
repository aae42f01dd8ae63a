"""`gkt-gateway plan`: as a table, as JSON, what it refuses; `plan measure` against engines in their own processes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.planning.curve import read_curve
from load_tests.engine_process import fake_engine
from tests.cli.in_process import Done, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
TEACHER = str(ROOT / "deploy" / "curves" / "llama-3.3-70b-fp8-2xh100.json")
LOAD = ("--rps", "200", "--prompt", "600", "--answer", "300", "--tokens", "40")
# Quick enough for a test, and slow enough that its steps are seen.
ENGINE = """\
model: fake-quick
dialect: openai
prefill: {fixed: 2ms, per_token: 1ms}
decode: {fixed: 15ms, per_sequence: 1ms}
"""


@pytest.fixture
def student(tmp_path: Path) -> str:
    measurement = {
        "model": "small",
        "gpu": "L4",
        "decode": [{"batch": 1, "seconds_per_step": 0.012}, {"batch": 128, "seconds_per_step": 0.029}],
        "prefill": {"tokens_per_s": 16000},
        "price": {"gpu_usd_per_hour": 0.8},
        "origin": {"kind": "measured", "source": "a test"},
    }
    (tmp_path / "small.json").write_text(json.dumps(measurement))
    return str(tmp_path / "small.json")


def in_json(*arguments: str) -> dict[str, Any]:
    done = run("plan", *LOAD, "--teacher", TEACHER, "--teacher-usd-per-hour", "2.50", "--json", *arguments)
    assert done.returncode in {0, 3}, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_table_has_both_modes_and_the_assumptions(student: str) -> None:
    done = run("plan", *LOAD, "--teacher", TEACHER, "--teacher-usd-per-hour", "2.50", "--student", student)
    assert done.returncode == 0, done.stderr
    head = next(line for line in done.stdout.splitlines() if line.strip())
    assert head.split() == ["teacher", "student", "together", "teacher", "alone"]
    for row in ("GPUs", "utilization", "USD per hour", "USD per 1000"):
        assert row in done.stdout
    for word in ("Saved: ", "Assumed", "equal share", "Headroom"):
        assert word in done.stdout


def test_json_has_the_contents_of_the_table_and_money_as_text(student: str) -> None:
    found = in_json("--student", student)
    guided, alone = found["guided"], found["teacher_alone"]
    assert found["met"] is True
    assert guided["teacher"]["gpus"] == 2 * guided["teacher"]["replicas"]
    hourly = [Decimal(one["usd_per_hour"]) for one in (guided["teacher"], guided["student"], alone)]
    assert Decimal(guided["usd_per_hour"]) == hourly[0] + hourly[1]
    assert Decimal(found["savings"]["usd_per_hour"]) == hourly[2] - hourly[0] - hourly[1]
    assert guided["teacher"]["utilization"] <= 0.7


def test_without_a_student_only_the_teacher_is_planned() -> None:
    guided = in_json()["guided"]
    assert guided["student"] is None
    assert guided["teacher"]["replicas"] > 1


def test_an_infeasible_plan_exits_with_3_and_the_reason() -> None:
    found = in_json("--teacher-replicas", "2")
    assert found["met"] is False
    assert found["guided"]["teacher"]["utilization"] > 1
    assert any("overloaded" in line for line in found["warnings"])
    priced = ("--teacher", TEACHER, "--teacher-usd-per-hour", "2.50")
    assert run("plan", *LOAD, *priced, "--teacher-replicas", "2").returncode == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rps", "1"), "needs --teacher, --prompt, --answer too"),
        ((*LOAD, "--teacher", TEACHER), "has no price: add price to the file, or set --teacher-usd-per-hour"),
        ((*LOAD, "--teacher", "none.json"), "none.json: cannot be read"),
        ((*LOAD[:6], "--tokens", "300", "--teacher", TEACHER), "--tokens 300 leaves no tokens for the student"),
        (("--rps", "0", *LOAD[2:], "--teacher", TEACHER), "must be more than 0"),
        ((*LOAD, "--teacher", TEACHER, "--teacher-usd-per-hour", "cheap"), "must be an amount in USD"),
        ((*LOAD, "--teacher", TEACHER, "--student-usd-per-hour", "0.80"), "need --student, the students' curve"),
        ((*LOAD, "--teacher", TEACHER, "--student-replicas", "4"), "need --student, the students' curve"),
    ],
)
def test_an_impossible_plan_is_rejected_with_a_remedy(arguments: tuple[str, ...], message: str) -> None:
    done = run("plan", *arguments)
    assert done.returncode in {1, 2}
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_an_issue_in_a_curve_names_file_line_and_field(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(Path(TEACHER).read_text().replace('"batch": 5,', '"batch": 5.5,'))
    done = run("plan", *LOAD, "--teacher", str(tmp_path / "bad.json"))
    assert done.returncode == 1
    assert "bad.json:9: decode[1].batch: must be a whole number, without quotes" in done.stderr


def test_the_rows_of_the_paper_have_their_bounds() -> None:
    done = run("plan", "paper", COLUMNS="250")
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("Llama2-70B")]
    assert ["12,224", "29,507", "13,440.71", "10.72", "10.72"] in [row[6:] for row in rows]
    assert "slower than without any gain from batches" in done.stdout


def measured(tmp_path: Path, dialect: Any, *arguments: str) -> Done:
    (tmp_path / "quick.yaml").write_text(ENGINE)
    with fake_engine(tmp_path / "quick.yaml", dialect=dialect) as url:
        address = url if dialect == "tgi" else f"{url}/v1"
        named = ("--protocol", dialect, "--model", "quick", "--out", str(tmp_path / "quick.json"))
        small = ("--batches", "1,3", "--tokens", "24", "--prompt", "80")
        return run("plan", "measure", address, *named, *small, *arguments)


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["openai", "tgi"])
def test_a_running_engine_becomes_a_curve_that_can_be_planned_with(dialect: str, tmp_path: Path) -> None:
    """The speed depends on this machine, so the test checks only the other facts."""
    done = measured(tmp_path, dialect, "--gpu", "L4", "--gpus-per-replica", "2", "--usd-per-hour", "0.80")
    assert done.returncode == 0, done.stderr
    curve = read_curve(tmp_path / "quick.json")
    assert [step.batch for step in curve.decode] == [1, 3]
    assert curve.decode[0].step_s >= 0.015  # an engine that sleeps is never quicker than that
    assert (curve.gpu, curve.gpus_per_replica, curve.origin.kind) == ("L4", 2, "measured")
    assert curve.price is not None
    assert curve.price.gpu_usd_per_hour == Decimal("0.80")
    done = run("plan", *LOAD, "--teacher", str(tmp_path / "quick.json"))
    assert done.returncode in {0, 3}, done.stderr


def test_an_engine_of_the_configuration_is_measured_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text(ENGINE)
    with fake_engine(tmp_path / "quick.yaml") as url:
        (tmp_path / "config.yaml").write_text(
            f"models:\n  - {{name: small, protocol: openai, api_base: '{url}/v1', "
            "price: {input_per_1m: 1, output_per_1m: 1}}\n"
        )
        named = ("--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "small.json"))
        done = run("plan", "measure", "small", *named, "--batches", "1", "--tokens", "16", "--prompt", "64")
        assert done.returncode == 0, done.stderr
        assert read_curve(tmp_path / "small.json").model == "small"
        done = run("plan", "measure", "smal", *named)
    assert done.returncode == 1
    assert "has no such model. It has: small." in done.stderr


class DisturbedEngine:
    """An engine whose step takes 10 ms, and 60 ms in the first `slow` batches of two. It counts batches by their size.

    With `apart`, the answers of a disturbed batch do not overlap.
    """

    def __init__(self, slow: int, *, apart: bool) -> None:
        self.batches: Counter[int] = Counter()
        self._slow, self._apart = slow, apart
        self._active = 0

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[list[dict[str, Any]]]:
        place, self._active = self._active, self._active + 1
        try:
            await asyncio.sleep(len(body["messages"][0]["content"]) / 100_000)
            size, tokens = self._active, body["max_tokens"]
            if tokens >= 16 and place == 0:
                self.batches[size] += 1
            slow = size == 2 and self.batches[2] <= self._slow
            if slow and self._apart:
                await asyncio.sleep(place * tokens / 100)
            for _ in range(tokens):
                await asyncio.sleep(0.06 if slow and not self._apart else 0.01)
                yield [{"choices": [{"delta": {"content": "x"}}]}]
            usage = {"prompt_tokens": len(body["messages"][0]["content"]), "completion_tokens": tokens}
            yield [{"choices": [], "usage": usage}]
        finally:
            self._active -= 1


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("slow", "sizes"), [(1, [1, 2]), (9, [1])])
def test_a_batch_size_is_left_out_only_after_repeated_measurements(
    slow: int, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, apart: bool
) -> None:
    """A disturbed measurement does not end the curve: both batch sizes are measured twice more."""
    engine = DisturbedEngine(slow, apart=apart)

    @asynccontextmanager
    async def built(_: object) -> AsyncIterator[DisturbedEngine]:
        yield engine

    monkeypatch.setattr("gateway.cli.plan_measure.built", built)
    out = tmp_path / "curve.json"
    small = ("--batches", "1,2", "--tokens", "20", "--prompt", "64", "--out", str(out))
    done = run("plan", "measure", "http://127.0.0.1:9/v1", *small)
    assert done.returncode == 0, done.stderr
    assert [step.batch for step in read_curve(out).decode] == sizes
    assert engine.batches == {1: 3, 2: 3}
    assert ("left out" in done.stderr or "too far apart" in done.stderr) == (sizes == [1])


@pytest.mark.parametrize(
    "url", ["http://198.51.100.7:8000/v1", "http://engines.example/v1", "http://127.0.0.1.example/v1"]
)
def test_an_address_elsewhere_is_not_called(url: str, tmp_path: Path) -> None:
    done = run("plan", "measure", url, "--out", str(tmp_path / "curve.json"))
    assert done.returncode == 1
    assert "is not this machine: add the engine to config.yaml" in done.stderr
    assert not (tmp_path / "curve.json").exists()


def test_an_unknown_engine_is_an_error(tmp_path: Path) -> None:
    done = run("plan", "measure", "http://127.0.0.1:9/v1", "--out", str(tmp_path / "curve.json"))
    assert done.returncode == 1
    assert "http://127.0.0.1:9/v1 was not measured: The connection to engine '127.0.0.1:9' " in done.stderr


@pytest.mark.parametrize("url", ["http://[::1]:9/v1", "http://localhost:9/v1"])
def test_each_address_of_this_machine_may_be_named(url: str, tmp_path: Path) -> None:
    done = run("plan", "measure", url, "--out", str(tmp_path / "curve.json"))
    assert f"{url} was not measured: The connection to engine '" in done.stderr


def test_how_many_at_once_is_bounded(tmp_path: Path) -> None:
    for batches in ("", "0", "a", "1025", ",".join(str(number) for number in range(1, 18))):
        done = run("plan", "measure", "http://127.0.0.1:9/v1", "--batches", batches)
        assert done.returncode == 2
