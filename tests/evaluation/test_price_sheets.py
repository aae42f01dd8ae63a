"""Price sheets: the shipped file, costs with a prompt cache, and the break-even price ratio."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from gateway.errors import ConfigError, StartupError
from gateway.evaluation.advice.evidence import evidence_of
from gateway.evaluation.advice.price_sheets import PriceSheets, SheetResult, at_list_prices, read_price_sheets
from gateway.evaluation.advice.repricing import PromptCaching
from gateway.evaluation.record import EXAMPLES, Example, RunRecords, read_run, write_lines
from gateway.evaluation.statistics import MIN_QUESTIONS
from gateway.pricing import Price
from tests.evaluation.known_truth import ALONE, M20, M40, TEACHER, Truth, folder_of
from tests.evaluation.run_folders import read_lines

if TYPE_CHECKING:
    from pathlib import Path

GUIDED = Truth(M40, 0.7, 40, 120)
SHARED_TOKENS = 1000


def run_with_exemplars(path: Path, *truths: Truth) -> RunRecords:
    """Return a run whose teacher reads 10 tokens alone, and SHARED_TOKENS more for guidance."""
    folder_of(path, (*ALONE, *truths), 40, exactly=True)
    inputs = {"teacher": 10, "student": 0, "guided": 10 + SHARED_TOKENS}
    examples = read_lines(path / EXAMPLES, Example)
    write_lines(path / EXAMPLES, [structs.replace(one, teacher_input_tokens=inputs[one.mode]) for one in examples])
    return read_run(path)


def model(name: str = "m", **usd: str) -> dict[str, object]:
    return {"model": name, "source": "https://prices.example"} | {
        f"{way}_per_1m": Decimal(one) for way, one in usd.items()
    }


def sheets_of(teacher: dict[str, object], student: dict[str, object]) -> PriceSheets:
    return PriceSheets.model_validate({"date": date(2026, 11, 29), "student": student, "teachers": (teacher,)})


def only(run: RunRecords, sheets: PriceSheets) -> SheetResult:
    (result,) = at_list_prices(run, sheets, None, Decimal(1), 0.8, 0)
    return result


def test_the_shipped_sheets_are_dated_sourced_and_of_six_teachers() -> None:
    sheets = read_price_sheets(None)
    assert len({one.model for one in sheets.teachers}) == 6
    for one in (sheets.student, *sheets.teachers):
        assert one.source.startswith("https://")
        price = one.price()
        assert price.cached_input_usd < price.input_usd <= price.cache_write_usd < price.output_usd
        assert one.price("1h").cache_write_usd >= price.cache_write_usd


@pytest.mark.parametrize(
    ("caching", "input_usd"),
    [
        (PromptCaching(Decimal(1)), "0.11"),  # 10 tokens at 1 USD per 1000, 1000 tokens at 0.1 USD
        (PromptCaching(Decimal("0.95")), "0.205"),  # 950 tokens at 0.1 USD, 50 tokens at 2 USD
        (PromptCaching(Decimal("0.001")), "2.0081"),
        (PromptCaching(Decimal(0)), "1.01"),  # no cache
        (PromptCaching(Decimal(1), SHARED_TOKENS), "0.11"),
        (PromptCaching(Decimal(1), SHARED_TOKENS + 1), "1.01"),  # too short for the cache
    ],
)
def test_exemplars_are_read_from_the_prompt_cache_or_written_to_it(
    tmp_path: Path, caching: PromptCaching, input_usd: str
) -> None:
    run = run_with_exemplars(tmp_path, GUIDED)
    per_1000 = Price.of_tokens(Decimal(1000), Decimal(0), Decimal(100), Decimal(2000))
    found = evidence_of(run, prices={"teacher": per_1000, "student": per_1000}, caching=caching)
    assert [one.cost_per_answer for one in found.candidates] == [Decimal("0.01"), 0, Decimal(input_usd)]


PER_1000 = Price.of_tokens(Decimal(1000), Decimal(0), Decimal(100), Decimal(2000))


def test_measured_cache_reads_are_those_of_each_answer(tmp_path: Path) -> None:
    """The teacher alone found the repeated question in the cache, which the price of other traffic must not have."""
    run = run_with_exemplars(tmp_path, GUIDED, Truth(M20, 0.6, 20, 140))
    reads = {TEACHER.name: 9, M40.name: 600, M20.name: SHARED_TOKENS + 5}
    examples = [
        structs.replace(one, teacher_cached_tokens=reads.get(one.setting) if one.question > "q0000" else None)
        for one in run.examples
    ]
    run = replace(run, examples=tuple(examples))
    prices = {"teacher": PER_1000, "student": PER_1000}
    found = evidence_of(run, prices=prices, caching=PromptCaching(None))
    first, second = ({one.name: one.examples[index].cost_usd for one in found.candidates} for index in (0, 1))
    assert first[M40.name] == first[M20.name] == Decimal("2.01")
    # 10 tokens at 1 USD per 1000, 600 tokens at 0.1 USD, 400 tokens at 2 USD.
    assert second == {"teacher, chat, 300 tokens": Decimal("0.01"), "student, chat, 300 tokens": 0} | {
        M40.name: Decimal("0.87"), M20.name: Decimal("0.11")
    }  # fmt: skip
    assert found.notes == (
        "measured: the teacher read 78% of the exemplars' tokens, beyond the caller's prompt, from its prompt cache",
    )
    short = evidence_of(run, prices=prices, caching=PromptCaching(None, SHARED_TOKENS + 1))
    assert short.notes == found.notes, "the measured part does not depend on the prices"
    assert [one.cost_per_answer for one in short.candidates if one.guided] == [Decimal("1.01")] * 2


def test_no_input_counts_as_shared_if_the_teacher_alone_failed(tmp_path: Path) -> None:
    run = run_with_exemplars(tmp_path, GUIDED)
    failed = {"teacher_input_tokens": 0, "error": "engine_failed"}
    examples = [structs.replace(one, **failed) if one.setting == TEACHER.name else one for one in run.examples]
    prices = {"teacher": PER_1000, "student": PER_1000}
    found = evidence_of(replace(run, examples=tuple(examples)), prices=prices)
    assert [one.cost_per_answer for one in found.candidates] == [0, 0, Decimal("1.01")]


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_measured_cache_reads_need_an_engine_that_reports_them(tmp_path: Path, role: str) -> None:
    run = run_with_shots(tmp_path, plain=True)
    other = {"teacher": "student", "student": "teacher"}[role]
    run = replace(run, examples=tuple(structs.replace(one, **{f"{other}_cached_tokens": 0}) for one in run.examples))
    prices = {"teacher": PER_1000, "student": PER_1000}
    with pytest.raises(StartupError, match=f"the engine of the {role} reported no cache reads.* --cache-hits 95%"):
        evidence_of(run, "completion, 8 shots", prices, PromptCaching(None))
    if role == "student":  # nothing of its input is shared in this form
        assert evidence_of(run, "chat", prices, PromptCaching(None)).notes


SHORT = (
    "these are 1000 tokens: some providers cache no prompt of less than 1,024 or 4,096 tokens "
    "(the sheets of `eval recommend --sheets shipped` have such limits): then use --cache-hits 0%"
)


def run_with_shots(path: Path, *, plain: bool) -> RunRecords:
    """Return a run whose requests have exemplars of SHARED_TOKENS; `plain`: and chats without any."""
    shown = [replace(one, setting=replace(one.setting, form="completion", shots=8)) for one in (*ALONE, GUIDED)]
    folder_of(path, [*shown, *(ALONE if plain else ())], 40, exactly=True)
    examples = []
    for one in read_lines(path / EXAMPLES, Example):
        read = 10 + (SHARED_TOKENS if "8 shots" in one.setting else 0)
        inputs = {f"{role}_input_tokens": read for role in ("teacher", "student") if one.mode in {role, "guided"}}
        examples.append(structs.replace(one, **inputs))
    write_lines(path / EXAMPLES, examples)
    return read_run(path)


@pytest.mark.parametrize(
    ("plain", "input_usd", "notes"),
    [
        (True, "0.205", ["assumed: both models read 95% of the exemplars' tokens from their prompt caches", SHORT]),
        (
            False,
            "1.01",
            [
                (
                    "the exemplars of the requests are charged without a prompt cache, since the run has no teacher "
                    "alone without exemplars"
                ),
                (
                    "assumed: the teacher reads 95% of the exemplars' tokens, beyond the caller's prompt, from its "
                    "prompt cache"
                ),
            ],
        ),
    ],
)
def test_exemplars_of_the_requests_are_cached_if_their_tokens_are_known(
    tmp_path: Path, plain: bool, input_usd: str, notes: list[str]
) -> None:
    run = run_with_shots(tmp_path, plain=plain)
    caching, prices = PromptCaching(Decimal("0.95")), {"teacher": PER_1000, "student": PER_1000}
    found = evidence_of(run, "completion, 8 shots", prices, caching)
    costs = {one.mode: one.cost_per_answer for one in found.candidates if one.setting["shots"]}
    usd = Decimal(input_usd)
    assert costs == {"teacher": usd, "student": usd, "guided": 2 * usd}
    assert list(found.notes) == notes


def test_at_the_break_even_a_setting_costs_as_much_as_the_mixture_with_its_accuracy(tmp_path: Path) -> None:
    run = run_with_exemplars(tmp_path, Truth(M40, 0.6, 40, 190))
    teacher = model(input="1", output="10", cached_input="0.1")
    result = only(run, sheets_of(teacher, model(input="0", output="1")))
    assert result.price_ratio == 10
    (priced,) = result.settings
    ratio = priced.break_even
    assert ratio is not None
    # Half of the questions to the teacher are as accurate. In USD: 0.00051 + k 0.00019 = 0.5 x 0.00201 + 0.5 k 0.0002.
    assert ratio == pytest.approx(10 * (0.00019 - 0.5 * 0.0002) / (0.5 * 0.00201 - 0.00051))
    for factor, better in ((0.99, True), (1.01, False)):
        student = model(input="0", output=f"{10 / ratio * factor:.6f}")
        (priced,) = only(run, sheets_of(teacher, student)).settings
        assert (priced.pays.claim.point > 0) == better


@pytest.mark.parametrize(
    ("truth", "break_even"),
    [
        (replace(GUIDED, teacher=200), None),  # the teacher's part alone costs as much as the teacher alone
        (replace(GUIDED, student=0), 1.0),  # the student alone costs as much as the teacher alone
        (Truth(M20, 0.3, 20, 160), None),  # less accurate than the student
    ],
)
def test_a_setting_may_pay_at_no_ratio_or_at_any(tmp_path: Path, truth: Truth, break_even: float | None) -> None:
    folder_of(tmp_path, (*ALONE, truth), 40, exactly=True)
    sheets = sheets_of(model(input="0", output="10"), model(input="0", output="1"))
    result = only(read_run(tmp_path), sheets)
    assert [one.break_even for one in result.settings] == [break_even]


def test_a_setting_must_beat_each_configuration_of_the_teacher(tmp_path: Path) -> None:
    """With exemplars in the request, this teacher answers as well in half of the tokens."""
    with_shots = Truth(replace(TEACHER, form="completion", shots=8), 0.8, 100, 0)
    other_guided = Truth(replace(M40, form="completion", shots=8), 0.7, 40, 120)
    sampled = Truth(replace(TEACHER, temperature=1.0), 0.8, 1, 0)
    folder_of(tmp_path, (*ALONE, GUIDED, with_shots, other_guided, sampled), 40, exactly=True)
    sheets = sheets_of(model(input="0", output="10"), model(input="0", output="1"))
    (result,) = at_list_prices(read_run(tmp_path), sheets, "chat", Decimal(1), 0.8, 0)
    candidates = result.evidence.candidates
    assert [candidates[index].name for index in result.evidence.teachers] == [TEACHER.name, with_shots.setting.name]
    (priced,) = result.settings
    assert candidates[priced.setting].name == M40.name
    assert candidates[priced.pays.teacher].name == with_shots.setting.name
    # 0.00052 USD buy 40 % of the questions to the teacher in 0.0002 + 0.4 x 0.0008 USD: 0.4 + 0.4 x 0.4 right.
    assert priced.pays.claim.point == pytest.approx(0.7 - 0.56)


def test_a_few_questions_show_nothing(tmp_path: Path) -> None:
    folder_of(tmp_path, (*ALONE, Truth(M40, 0.8, 40, 120)), MIN_QUESTIONS - 1, exactly=True)
    sheets = sheets_of(model(input="0", output="10"), model(input="0", output="1"))
    (priced,) = only(read_run(tmp_path), sheets).settings
    assert priced.pays.claim.point > 0
    assert not priced.pays.shown


def test_a_teacher_may_have_a_student_of_its_own(tmp_path: Path) -> None:
    folder_of(tmp_path, (*ALONE, GUIDED), 40)
    own = model("other", input="0", output="2")
    result = only(
        read_run(tmp_path), sheets_of(model(input="0", output="10") | {"student": own}, model(input="0", output="1"))
    )
    assert (result.student.model, result.price_ratio) == ("other", 5)


def test_every_problem_of_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "sheets.yaml"
    file.write_text(
        "date: 2026-11-29\nstudent: {model: s, source: x, input_per_1m: x, output_per_1m: 1}\n"
        "teachers:\n  - {model: t, source: x, input_per_1m: 1, output_usd: 3}\n"
    )
    with pytest.raises(ConfigError) as raised:
        read_price_sheets(file)
    assert {(issue.line, issue.field) for issue in raised.value.issues} >= {
        (2, "student.input_per_1m"),
        (4, "teachers[0].output_usd"),
    }
