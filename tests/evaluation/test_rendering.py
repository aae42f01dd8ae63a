"""Reports as files."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import orjson
import pytest

from gateway.evaluation.record import read_run
from gateway.evaluation.reporting.markdown import markdown
from gateway.evaluation.reporting.rendering import write_report
from gateway.evaluation.reporting.report import section
from gateway.evaluation.summary import COST_NOTE
from gateway.policy.projections import CONCISE
from tests.evaluation.known_truth import Truth, folder_of
from tests.evaluation.run_folders import GUIDED, STUDENT, TEACHER, run_folder, with_shots

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.evaluation.record import Example

HOSTILE = (
    "</td><script>alert(1)</script><img src=x onerror=alert(2)> | [a](javascript:alert(3)) ![b](http://c) `d` \u202e"
)
PAPERS = "gsm8k"


def hostile(example: Example) -> Example:
    return msgspec.structs.replace(
        example, question=f"<i>{example.question}</i>|", text=HOSTILE, found="<b>1</b>", unguided="<u>none</u>"
    )


def written(*folders: Path, out: Path) -> Path:
    write_report([section(read_run(folder), seed=1) for folder in folders], out, seed=1)
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of a run like the paper's."""
    folder = run_folder(tmp_path_factory.mktemp("whole"), data=PAPERS)
    return written(folder, out=folder / "report")


@pytest.mark.parametrize(("wrong_of_ten", "pays"), [(0, "less"), (5, "no less")])
def test_the_headline_states_whether_the_mixture_yields_less(tmp_path: Path, wrong_of_ten: int, pays: str) -> None:
    """Teacher alone answers nine of ten, the student alone two of ten."""
    wrong = {TEACHER.name: 1, STUDENT.name: 8, GUIDED.name: wrong_of_ten}

    def scored(example: Example) -> Example:
        right = int(example.question[1:]) % 10 >= wrong[example.setting]
        return msgspec.structs.replace(example, score=float(right))

    folder = run_folder(tmp_path, (TEACHER, STUDENT, GUIDED), change=scored)
    text = (written(folder, out=tmp_path / "report") / "report.md").read_text("utf-8")
    found = re.search(r"m=40 with ([\d.]+)\s%.*cost yields ([\d.]+)\s%.*alone: (less|no less) than with it", text)
    assert found is not None
    assert found[3] == pays
    assert (float(found[1]) > float(found[2])) == (pays == "less")


def test_nothing_a_model_wrote_is_markdown(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, data="<s>sums</s>", teacher="<a href=x>", change=hostile)
    out = written(folder, out=tmp_path / "report")
    text = (out / "report.md").read_text("utf-8")
    assert not re.search(r"<\w", text)
    assert "&lt;script&gt;" in text
    assert "\u202e" not in text
    for drawn in (out / "figures").iterdir():
        assert "<script" not in drawn.read_text("utf-8")
    assert {found[1] for found in re.finditer(r"(?<!\\)\]\((\w+)", text)} == {"figures"}
    for row in re.findall(r"^\| .*\|\s*$", text, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", row)) > 2


def test_markdown_shows_text_as_it_is() -> None:
    assert markdown("a|b\n*c* <d> & [e](f) `g`") == r"a\|b \*c\* &lt;d&gt; &amp; \[e\](f) \`g\`"


def test_the_same_run_makes_the_same_report(whole: Path, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / whole.parent.name, data=PAPERS)
    again = written(folder, out=tmp_path / "report")
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.*"))
    assert len(files) == 6
    for file in files:
        assert (again / file).read_bytes() == (whole / file).read_bytes(), file


def test_every_figure_has_its_numbers_in_words(whole: Path) -> None:
    data = re.findall(r"^!\[(.*)\]\(", (whole / "report.md").read_text("utf-8"), re.MULTILINE)
    drawn = sorted(path.stem for path in (whole / "figures").iterdir())
    assert drawn == ["run1-frontier", "run1-guidance", "run1-length", "run1-trace"]
    assert len(data) == len(drawn)
    assert all(len(re.findall(r"\d+\.\d", words)) > 5 for words in data)


def test_figures_are_in_the_markdown_and_there(whole: Path) -> None:
    named = re.findall(r"!\[[^\n]*\]\(([^)]*)\)", (whole / "report.md").read_text("utf-8"))
    assert sorted(named) == sorted(str(path.relative_to(whole)) for path in (whole / "figures").iterdir())


def test_numbers_of_exemplars_are_held_against_each_other(tmp_path: Path) -> None:
    """The settings differ in the hash of shown texts, but are otherwise equal (paper, Figure 5)."""
    folder = run_folder(tmp_path, with_shots((TEACHER, STUDENT, GUIDED), 0, 4), n=20)
    text = (written(folder, out=tmp_path / "report") / "report.md").read_text("utf-8")
    assert "it needs a setting with two numbers of exemplars" not in text
    assert "(figures/run1-exemplars.svg)" in text


def test_a_better_teacher_with_other_requests_is_named(tmp_path: Path) -> None:
    chat = (Truth(TEACHER, 0.5, 200, 0), Truth(STUDENT, 0.2, 0, 200), Truth(GUIDED, 0.45, 40, 120))
    shots = Truth(replace(TEACHER, form="completion", shots=8), 0.6, 100, 0)
    folder_of(tmp_path, (*chat, shots), 40, exactly=True)
    headline = (written(tmp_path, out=tmp_path / "report") / "report.md").read_text("utf-8").partition("## Run")[0]
    (line,) = (line for line in headline.splitlines() if "Best guided" in line)
    assert "more accurate with other requests (raw prompt, 8 exemplars, at most 300 tokens, greedy): 60.0" in line
    assert headline.count("more accurate with other requests") == 1


def test_each_table_of_costs_states_that_prices_are_assigned(whole: Path, tmp_path: Path) -> None:
    text = (whole / "report.md").read_text("utf-8")
    assert COST_NOTE in text.partition("Cost in USD per 1,000 answers")[2].partition("##")[0]
    both = written(whole.parent, whole.parent, out=tmp_path)
    assert COST_NOTE in (both / "report.md").read_text("utf-8").partition("## Run")[0]


def test_numbers_of_a_projections_exemplars_are_a_figure(tmp_path: Path) -> None:
    few = [replace(GUIDED, projection=CONCISE, exemplar_count=count) for count in (1, 2, 4)]
    folder = run_folder(tmp_path, (TEACHER, STUDENT, *few, GUIDED), n=20)
    text = (written(folder, out=tmp_path / "report") / "report.md").read_text("utf-8")
    figure = text.partition("## Accuracy by number of exemplars")[2].partition("##")[0]
    for count in (1, 2, 4):
        assert re.search(
            rf"concise, m=40, {count} exemplars: accuracy [^;]*, points / 1,000 of these tokens \d", figure
        )


def test_omitted_parts_have_a_reason(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, (GUIDED,), n=8)
    (folder / "stages.jsonl").unlink()
    text = (written(folder, out=tmp_path / "report") / "report.md").read_text("utf-8")
    for why in (
        "Accuracy against cost: it needs two settings with equal requests and common questions.",
        "Accuracy by length of guidance: it needs guidance of two lengths on common questions.",
        "it needs the teacher alone, whose answers define the length.",
        "Time per stage: the durations or the concurrency of the stages are unknown",
        "Accuracy by number of exemplars: it needs a setting with two numbers of exemplars.",
        "stages.jsonl is missing",
    ):
        assert why in text, why
    assert "![" not in text


@pytest.mark.parametrize("settings", [(TEACHER,), (STUDENT,), (TEACHER, STUDENT), (TEACHER, GUIDED)])
def test_a_report_of_a_few_settings_is_one(settings: tuple[object, ...], tmp_path: Path) -> None:
    folder = run_folder(tmp_path, settings, n=1)  # type: ignore[arg-type]
    data = orjson.loads((written(folder, out=tmp_path / "report") / "report.json").read_bytes())
    assert len(data["runs"][0]["groups"][0]["settings"]) == len(settings)


def test_the_papers_figures_are_shown_only_for_its_data_sets(whole: Path, tmp_path: Path) -> None:
    comparison = (whole / "report.md").read_text("utf-8").partition("## Comparison with the paper")[2]
    assert "| paper, Table 2: Llama2-70B over Llama2-7B | 40 | cutoff | 300 | 14.40" in comparison
    assert "| measured: big over small | 40 | cutoff | 300 |" in comparison
    assert "Models, scale, prices and machines differ" in comparison
    assert "95.0\u00a0% (ChatGPT over Llama2-70B)" in comparison
    other = written(run_folder(tmp_path, n=5), out=tmp_path / "report") / "report.md"
    assert "The paper has no figures for this data set." in other.read_text("utf-8")


@pytest.mark.long
def test_several_runs_have_a_table_over_all(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, n=20, seed=seed) for name, seed in (("one", 1), ("two", 2))]
    text = (written(*folders, out=tmp_path / "report") / "report.md").read_text("utf-8")
    overview = text.partition("## All runs")[2].partition("\n## ")[0]
    assert [line.split("|")[1].strip() for line in overview.splitlines() if line.startswith("| sums")] == [
        f"sums ({name}): chat, no exemplars, at most 300 tokens, greedy" for name in ("one", "two")
    ]


def test_money_for_machines_has_every_digit(whole: Path) -> None:
    data = orjson.loads((whole / "report.json").read_bytes())
    guided = data["runs"][0]["groups"][0]["settings"][-1]
    for amount in (guided["cost_usd"], guided["measured"]["baseline_usd"], guided["on_this_answer"]["savings_usd"]):
        assert re.fullmatch(r"-?\d+(\.\d+)?", amount)


def test_excerpts_are_twenty_words_at_most(tmp_path: Path) -> None:
    def long(example: Example) -> Example:
        return msgspec.structs.replace(example, text=" ".join(f"word{number}" for number in range(50)))

    folder = run_folder(tmp_path, (STUDENT, GUIDED), n=20, change=long)
    data = orjson.loads((written(folder, out=tmp_path / "report") / "report.json").read_bytes())
    shown = [one["text"] for flips in data["runs"][0]["flips"] for one in flips["shown"]]
    assert shown
    assert {len(text.removeprefix("\u2026 ").split()) for text in shown} == {20}
    assert all(text.endswith("word49") for text in shown)


def test_the_log_probability_of_guidance_has_a_table_where_it_was_requested(whole: Path, tmp_path: Path) -> None:
    title = "Guidance under the student"
    assert title not in (whole / "report.md").read_text()

    def scored(example: Example) -> Example:
        known = example.setting == GUIDED.name and example.question != "q0"
        return msgspec.structs.replace(example, guidance_logprob=-0.5 if known else None)

    out = written(run_folder(tmp_path, (TEACHER, STUDENT, GUIDED), n=10, change=scored), out=tmp_path / "report")
    page = (out / "report.md").read_text()
    rows = [line for line in page[page.index(title) :].split("\n\n")[1].splitlines() if "0.500" in line]
    assert len(rows) == 1
    assert "1.65" in rows[0]
    figures = orjson.loads((out / "report.json").read_bytes())
    assert "-0.5" in str(figures)
