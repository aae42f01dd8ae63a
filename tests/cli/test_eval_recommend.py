"""`gkt-gateway eval recommend`: its table, its exit status, and a policy that the real check accepts."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer
from msgspec import structs
from typer.testing import CliRunner

from gateway.cli.eval_recommend import NONE_PAYS, TOO_FEW, recommend
from gateway.cli.lazy import SETTINGS
from gateway.errors import StartupError
from gateway.evaluation.questions.data import exemplars
from gateway.evaluation.record import EXAMPLES, Example, write_lines
from gateway.evaluation.setting import RunLibrary, with_first_exemplars
from gateway.evaluation.summary import COST_NOTE
from tests.cli import in_process
from tests.cli.in_process import Done
from tests.evaluation.known_truth import ALONE, CONCISE_40, M20, M40, M80, Truth, folder_of
from tests.evaluation.run_folders import read_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
PAYS = [
    *ALONE,
    Truth(M20, 0.5, 20, 160),
    Truth(M40, 0.8, 40, 120),
    Truth(M80, 0.8, 80, 80),
    Truth(CONCISE_40, 0.6, 40, 100),
]
WORSE = [*ALONE, Truth(M40, 0.3, 40, 160)]
CONFIG = "policies: policies/\nmodels:\n" + "".join(
    f"  - {{name: {name}, protocol: openai, api_base: 'http://{name}', price: {{input_per_1m: 1, output_per_1m: 1}}}}\n"
    for name in ("big", "small")
)


def run(*arguments: object) -> Done:
    app = typer.Typer(**SETTINGS)
    app.command("recommend")(recommend)
    done = CliRunner().invoke(app, [str(one) for one in arguments], env={"NO_COLOR": "1", "COLUMNS": "200"})
    if isinstance(done.exception, StartupError):
        return Done(1, done.stdout, done.stderr + done.exception.message)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("truths", "status", "mode"), [(PAYS, 0, "guided"), (WORSE, NONE_PAYS, "teacher")], ids=["pays", "none pays"]
)
def test_the_check_accepts_the_written_policy_without_a_warning(
    tmp_path: Path, truths: Sequence[Truth], status: int, mode: str
) -> None:
    folder_of(tmp_path / "run", truths, 400, exactly=True)
    (tmp_path / "config.yaml").write_text(CONFIG)
    policy = tmp_path / "policies" / "acme.yaml"
    options = ("--tenant", "acme", "--route", "maths")
    refused = run(tmp_path / "run", "--out", policy, *options)
    assert (refused.returncode, policy.exists()) == (1, False)
    assert f"policies may be read by a gateway (see {tmp_path / 'config.yaml'})" in refused.stderr
    done = run(tmp_path / "run", "--apply", "--out", policy, *options)
    assert done.returncode == status, done.stderr
    assert f"written: {policy}" in done.stdout
    assert f"mode: {mode}" in policy.read_text()
    checked = in_process.run("check", "--config", str(tmp_path / "config.yaml"))
    assert checked.returncode == 0, checked.stderr
    warned = [line for line in (checked.stdout + checked.stderr).splitlines() if "route maths" in line]
    assert warned == []
    again = run(tmp_path / "run", "--apply", "--out", policy)
    assert again.returncode == 1
    assert "--force" in again.stderr
    assert run(tmp_path / "run", "--apply", "--out", policy, "--force").returncode == status
    assert "tenant: default" in policy.read_text()


def test_a_folder_with_a_policy_needs_apply(tmp_path: Path) -> None:
    folder_of(tmp_path / "run", PAYS, 400, exactly=True)
    (tmp_path / "new" / "projections").mkdir(parents=True)
    (tmp_path / "new" / "notes.yaml").write_text("text: not a policy\n")
    policy = tmp_path / "new" / "acme.yaml"
    assert run(tmp_path / "run", "--out", policy).returncode == 0
    for target in (policy, policy.with_name("other.yaml")):
        refused = run(tmp_path / "run", "--out", target, "--force")
        assert refused.returncode == 1
        assert f"(see {policy})" in refused.stderr
        assert run(tmp_path / "run", "--apply", "--out", target, "--force").returncode == 0


@pytest.mark.parametrize(
    ("config", "policies"), [("gateway.yaml", "policies"), ("config.yml", "conf/policies"), ("config.yaml", "a/b/c")]
)
def test_an_empty_folder_that_a_configuration_names_needs_apply(tmp_path: Path, config: str, policies: str) -> None:
    """The configuration has any name, and lies in any folder above."""
    folder_of(tmp_path / "run", PAYS, 400, exactly=True)
    (tmp_path / config).write_text(CONFIG.replace("policies: policies/", f"policies: {policies}"))
    policy = tmp_path / policies / "acme.yaml"
    refused = run(tmp_path / "run", "--out", policy)
    assert (refused.returncode, policy.exists()) == (1, False)
    assert f"(see {tmp_path / config})" in refused.stderr
    assert run(tmp_path / "run", "--out", tmp_path / "elsewhere" / "acme.yaml").returncode == 0


def test_links_to_a_live_folder_need_apply(tmp_path: Path) -> None:
    folder_of(tmp_path / "run", PAYS, 400, exactly=True)
    for name in ("config", "volume/live", "scratch"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "config" / "config.yaml").write_text(CONFIG)
    (tmp_path / "config" / "policies").symlink_to(tmp_path / "volume" / "live")
    (tmp_path / "volume" / "live" / "old.yaml").write_text("tenant: acme\n  routes: [\n")
    (tmp_path / "scratch" / "acme.yaml").symlink_to(tmp_path / "volume" / "live" / "acme.yaml")
    for out, seen in (("config/policies", "config/config.yaml"), ("scratch", "volume/live/old.yaml")):
        refused = run(tmp_path / "run", "--out", tmp_path / out / "acme.yaml", "--force")
        assert refused.returncode == 1
        assert f"(see {tmp_path / seen})" in refused.stderr
    (tmp_path / "scratch" / "odd.yaml").write_text('models: [a]\npolicies: "a\\0b"\n')
    assert run(tmp_path / "run", "--out", tmp_path / "scratch" / "new" / "acme.yaml").returncode == 0


def test_the_folder_of_the_environment_needs_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "run", PAYS, 400, exactly=True)
    monkeypatch.setenv("GKT_POLICIES", str(tmp_path / "live"))
    refused = run(tmp_path / "run", "--out", tmp_path / "live" / "acme.yaml")
    assert refused.returncode == 1
    assert f"(see {tmp_path / 'live'})" in refused.stderr


def test_the_files_of_a_projection_are_written_to_the_policys_folder(tmp_path: Path) -> None:
    """A run records exemplars of --exemplars, and a projection of --policies with exemplars of its own."""
    theirs = tmp_path / "theirs"
    (theirs / "projections").mkdir(parents=True)
    (theirs / "shown").mkdir()
    list_of_one = "- {question: How many is 2 + 2?, answer: 2 + 2 = 4.}\n"
    (theirs / "projections" / "brisk.yaml").write_text("system: Be brisk.\nexemplars: shown/brisk.yaml\n")
    (theirs / "shown" / "brisk.yaml").write_text(list_of_one)
    (tmp_path / "mine.yaml").write_text(list_of_one)
    library = RunLibrary.read(theirs, tmp_path / "mine.yaml", exemplars(tmp_path / "mine.yaml"))
    for name in ("primed", "brisk"):
        guided = library.with_source(replace(M40, projection=library.find(name)))
        folder_of(tmp_path / name, [*ALONE, Truth(guided, 0.8, 40, 120)], 400, exactly=True)
    (tmp_path / "config.yaml").write_text(CONFIG)
    policy = tmp_path / "policies" / "acme.yaml"
    routes = ("--route", "one", "--route", "two", "--apply", "--out", policy)
    done = run(tmp_path / "primed", tmp_path / "brisk", *routes)
    assert done.returncode == 0, done.stderr
    files = ("exemplars/mine.yaml", "projections/brisk.yaml", "shown/brisk.yaml")
    assert all(f"written: {policy.parent / name}" in done.stdout for name in files)
    checked = in_process.run("check", "--config", str(tmp_path / "config.yaml"))
    assert checked.returncode == 0, checked.stderr
    assert "exemplars: exemplars/mine.yaml" in policy.read_text()
    (policy.parent / "shown" / "brisk.yaml").write_text("- {question: Else?, answer: Yes.}\n")
    policy.unlink()
    other = run(tmp_path / "primed", tmp_path / "brisk", *routes)
    assert "shown/brisk.yaml exists with other contents" in other.stderr
    assert not policy.exists(), "nothing is written by halves"
    (tmp_path / "mine.yaml").unlink()
    gone = run(tmp_path / "primed", "--apply", "--out", policy)
    assert "mine.yaml cannot be read (no such file or directory): the run used it" in gone.stderr
    named = run(tmp_path / "primed", "--apply", "--out", policy, "--guidance", "exemplars=exemplars/mine.yaml")
    assert named.returncode == 0, named.stderr


@pytest.mark.parametrize("own", [True, False], ids=["--exemplars", "shipped"])
def test_the_first_exemplars_of_a_setting_get_a_file_of_their_own(tmp_path: Path, own: bool) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "".join(f"- {{question: 'How many is {n} + 2?', answer: '{n} + 2 = {n + 2}.'}}\n" for n in range(3))
    )
    library = RunLibrary.read(None, *((file, exemplars(file)) if own else (None, ())))
    primed = with_first_exemplars(library.find("primed"), 2)
    guided = library.with_source(replace(M40, projection=primed, exemplar_count=2))
    folder_of(tmp_path / "run", [*ALONE, Truth(guided, 0.8, 40, 120)], 400, exactly=True)
    (tmp_path / "config.yaml").write_text(CONFIG)
    policy = tmp_path / "policies" / "acme.yaml"
    done = run(tmp_path / "run", "--apply", "--out", policy)
    assert done.returncode == 0, done.stderr
    name = f"exemplars/{'mine' if own else 'primed'}-first-2.yaml"
    assert f"exemplars: {name}" in policy.read_text()
    assert exemplars(policy.parent / name) == primed.exemplars
    assert [one.name for one in (policy.parent / "exemplars").iterdir()] == [Path(name).name]
    checked = in_process.run("check", "--config", str(tmp_path / "config.yaml"))
    assert checked.returncode == 0, checked.stderr
    policy.unlink()
    other = run(tmp_path / "run", "--apply", "--out", policy, "--guidance", "exemplars=exemplars/other.yaml")
    assert other.returncode == 0, other.stderr
    assert "exemplars: exemplars/other.yaml" in policy.read_text()


LIST_OF_ONE = "- {question: How many is 2 + 2?, answer: 2 + 2 = 4.}\n"


def guided_by_files(tmp_path: Path, projection: str) -> Path:
    """A run's folder that chose this projection: `primed` with exemplars of --exemplars, or `brisk` of --policies."""
    theirs = tmp_path / "theirs"
    (theirs / "projections").mkdir(parents=True)
    (theirs / "projections" / "brisk.yaml").write_text("system: Be brisk.\nexemplars: exemplars/brisk.yaml\n")
    (theirs / "exemplars").mkdir()
    for file in (theirs / "exemplars" / "brisk.yaml", tmp_path / "mine.yaml"):
        file.write_text(LIST_OF_ONE)
    library = RunLibrary.read(theirs, tmp_path / "mine.yaml", exemplars(tmp_path / "mine.yaml"))
    guided = library.with_source(replace(M40, projection=library.find(projection)))
    return folder_of(tmp_path / "run", [*ALONE, Truth(guided, 0.8, 40, 120)], 400, exactly=True)


@pytest.mark.parametrize(
    ("projection", "edited", "named"),
    [
        ("primed", "mine.yaml", r"mine\.yaml"),
        ("brisk", "theirs/exemplars/brisk.yaml", r"projections/brisk\.yaml or \S+/exemplars/brisk\.yaml"),
    ],
)
def test_a_file_edited_after_the_run_is_an_error(tmp_path: Path, projection: str, edited: str, named: str) -> None:
    folder, policy = guided_by_files(tmp_path, projection), tmp_path / "policies" / "acme.yaml"
    (tmp_path / edited).write_text("# The same.\n" + LIST_OF_ONE)
    assert run(folder, "--out", policy, "--force").stderr == ""
    before = policy.read_text()
    (tmp_path / edited).write_text("- {question: How many is 2 + 3?, answer: 5}\n")
    policy.unlink()
    (copy,) = (policy.parent / "exemplars").iterdir()
    copy.unlink()
    done = run(folder, "--out", policy)
    assert done.returncode == 1
    assert re.search(named + " was edited since the run: restore the file", done.stderr)
    assert not policy.exists(), "nothing is written by halves"
    assert not copy.exists()
    forced = run(folder, "--out", policy, "--force")
    assert forced.returncode == 0
    assert "the policy uses the edited file" in forced.stderr
    assert policy.read_text() == before
    assert copy.read_text() == (tmp_path / edited).read_text()


def test_unused_files_of_a_projection_are_not_copied(tmp_path: Path) -> None:
    folder, policy = guided_by_files(tmp_path, "brisk"), tmp_path / "policies" / "acme.yaml"
    (tmp_path / "theirs" / "projections" / "brisk.yaml").write_text("system: Be long.\n")
    done = run(folder, "--out", policy, "--guidance", "projection=concise")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in policy.parent.iterdir()] == ["acme.yaml"]


def test_the_table_has_each_setting_by_its_cost_and_marks_the_one(tmp_path: Path) -> None:
    folder_of(tmp_path, PAYS, 400, exactly=True)
    done = run(tmp_path)
    assert done.returncode == 0
    rows = [row[0] for line in done.stdout.splitlines() if (row := re.findall(r"(teacher|student|m=\d+) .* to ", line))]
    assert rows == ["student", "m=20", "m=40", "m=40", "m=80", "teacher"]
    (marked,) = [line for line in done.stdout.splitlines() if line.lstrip().startswith(">")]
    assert "cutoff, prefix, m=40" in marked
    assert "guidance pays: guided, chat, 300 tokens, cutoff, prefix, m=40" in done.stdout
    assert "Chosen in 5 folds: 5 x guided, chat, 300 tokens, cutoff, prefix, m=40." in done.stdout


def test_json_has_the_exact_figures(tmp_path: Path) -> None:
    folder_of(tmp_path, PAYS, 400, exactly=True)
    done = run(tmp_path, "--json", "--loss", "2 points", "--price", "teacher=0,2")
    (route,) = json.loads(done.stdout)["routes"]
    assert route["verdict"] == "guided"
    assert route["target"] == {"kind": "loss", "amount": "0.02"}
    assert len(route["settings"]) == 6
    assert Decimal(route["settings"][0]["cost_usd"]) == Decimal("0.0004")
    assert route["held_out"]["questions"] == 400
    assert route["settings"][0]["pays"] is None
    answers = route["best_guided"]
    assert answers["setting"] == route["chosen"]
    teacher = "teacher, chat, 300 tokens"
    assert {answers[name]["against"] for name in ("beats_mixture", "loss", "savings")} == {teacher}
    assert answers["beats_mixture"]["answer"] == "shown"
    assert answers["loss"]["value"] == 0
    assert answers["loss"]["interval"][0] < 0 < answers["loss"]["interval"][1]
    # 40 instead of 200 teacher tokens at 2 USD per 1M, and 120 student tokens at 0.1 USD.
    assert Decimal(answers["savings"]["usd"]) == Decimal("0.000308")
    assert answers["savings"]["share"]["value"] == pytest.approx(0.77)


def test_a_baseline_that_no_policy_can_have_is_named(tmp_path: Path) -> None:
    shots = Truth(replace(ALONE[0].setting, form="completion", shots=8), 0.82, 190, 0)
    done = run(folder_of(tmp_path, [*PAYS, shots], 400, exactly=True), "--asked", "chat")
    assert done.returncode == 0
    assert "Teacher alone (completion, 8 shots; a baseline only): 82.0 % right" in done.stdout
    assert "teacher, completion, 8 shots, 300 tokens is a baseline only: a policy does not choose" in done.stdout
    assert "Loss of accuracy with this setting: 2.0 points" in done.stdout
    assert COST_NOTE in done.stdout


def test_exemplars_are_written_to_the_prompt_cache_in_the_other_calls(tmp_path: Path) -> None:
    folder_of(tmp_path, PAYS, 30, exactly=True)
    examples = list(read_lines(tmp_path / EXAMPLES, Example))
    write_lines(
        tmp_path / EXAMPLES,
        [structs.replace(one, teacher_input_tokens=1000 * (one.mode == "guided")) for one in examples],
    )
    done = run(tmp_path, "--json", "--price", "teacher=1,0,0.1,2", "--price", "student=0,0", "--cache-hits", "75%")
    (route,) = json.loads(done.stdout)["routes"]
    # 750 tokens at 0.1 USD and 250 tokens at 2 USD per 1M.
    assert {Decimal(one["cost_usd"]) for one in route["settings"]} == {0, Decimal("0.000575")}
    assert (
        "assumed: the teacher reads 75% of the exemplars' tokens, beyond the caller's prompt, from its prompt cache"
    ) in route["notes"]


def test_too_few_questions_leave_with_a_status_of_their_own(tmp_path: Path) -> None:
    done = run(folder_of(tmp_path, PAYS, 12, exactly=True))
    assert done.returncode == TOO_FEW
    assert "too few questions: teacher, chat, 300 tokens" in done.stdout
    assert re.search(r"about [\d,]+ questions in addition to these 12 would show it", done.stdout)


def test_several_folders_become_several_routes(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", PAYS, 400, exactly=True)
    folder_of(tmp_path / "b", WORSE, 400, exactly=True, data="riddles")
    policy = tmp_path / "p.yaml"
    done = run(tmp_path / "a", tmp_path / "b", "--out", policy)
    assert done.returncode == NONE_PAYS, "of one of them"
    assert re.findall(r"model: (\w+)\n +mode: (\w+)", policy.read_text()) == [
        ("sums", "guided"),
        ("riddles", "teacher"),
    ]
    both = run(tmp_path / "a", tmp_path / "b", "--one", "--route", "all")
    assert "800 questions" in both.stdout
    assert "left out, because some folders lack them" in both.stdout
    same = run(tmp_path / "a", tmp_path / "a")
    assert same.returncode == 2
    assert "names must be unique" in same.stderr


def test_without_a_setting_above_the_target_nothing_is_written(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", PAYS, 400, exactly=True)
    done = run(tmp_path / "a", "--budget-usd-per-1k", "0.001", "--out", tmp_path / "p.yaml")
    assert done.returncode == NONE_PAYS
    assert "p.yaml is not written: no setting reaches the target" in done.stdout
    assert not (tmp_path / "p.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--keep", "95%", "--loss", "2"), "cannot be combined: keep one"),
        (("--keep", "195%"), "more than 0 and at most 100%, like 95% or 0.95"),
        (("--keep", "0"), "more than 0 and at most 100%"),
        (("--loss", "-2"), "must be a number of 0 or more"),
        (("--budget-usd-per-1k", "cheap"), "like 0.50"),
        (("--cost-share", "a"), "at most 100%"),
        (("--confidence", "40%"), "more than 50% and less than 100%"),
        (("--price", "tutor=1,2"), "teacher=IN,OUT"),
        (("--price", "student=1,2,3"), "teacher=IN,OUT,CACHED,WRITE or student=IN,OUT"),
        (("--price", "teacher=1,2,3,4,5"), "teacher=IN,OUT,CACHED,WRITE"),
        (
            ("--price", "teacher=1,1", "--cache-hits", "101%"),
            "0% (no prompt cache) to 100%, like 95% or 0.95, or measured",
        ),
        (("--cache-hits", "95%"), "needs --price"),
        (("--guidance", "deadline"), "NAME=VALUE"),
        (("--route", "a", "--route", "b"), "needs 1 names, one for each route"),
    ],
)
def test_invalid_options_are_errors_with_the_valid_values(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    folder_of(tmp_path, WORSE, 30)
    done = run(tmp_path, *arguments, "--out", tmp_path / "p.yaml")
    assert done.returncode == 2
    assert says in re.sub(r"[\s│]+", " ", done.stderr)


def test_without_the_extra_the_error_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gateway.evaluation.advice.recommend", raising=False)
    monkeypatch.setitem(sys.modules, "numpy", None)
    done = run(tmp_path)
    assert done.returncode == 1
    assert "This needs numpy, which is not installed: pip install 'gkt-gateway[eval]'" in done.stderr


def test_no_share_of_a_teacher_that_is_worse_than_the_student(tmp_path: Path) -> None:
    teacher, student = ALONE
    truths = [replace(teacher, accuracy=0.3), replace(student, accuracy=0.5), Truth(M40, 0.45, 40, 120)]
    done = run(folder_of(tmp_path, truths, 400, exactly=True))
    assert "less accurate than the student alone: 30.0 % and 50.0 % right. There is no accuracy to keep." in done.stdout
    assert "Selected and measured on different questions" in done.stdout
    assert "is kept" not in done.stdout


def test_truncated_and_failed_answers_are_in_the_headline(tmp_path: Path) -> None:
    folder_of(tmp_path, PAYS, 100, exactly=True)
    lines = list(read_lines(tmp_path / EXAMPLES, Example))
    changed = [
        structs.replace(one, finish="length", error="engine_timeout" if one.question < "q0002" else None)
        if one.mode == "teacher" and one.question < "q0009"
        else one
        for one in lines
    ]
    write_lines(tmp_path / EXAMPLES, changed)
    assert "9 of 100 answers truncated at 300 tokens, 2 failed\n" in run(tmp_path).stdout


def test_a_run_without_prices_requires_the_options(tmp_path: Path) -> None:
    free = [Truth(one.setting, one.accuracy, 0, 0) for one in PAYS]
    done = run(folder_of(tmp_path, free, 30))
    assert done.returncode == 1
    assert "--price teacher=IN,OUT" in done.stderr


def test_the_example_in_the_documentation_is_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    folder_of(Path("runs/sums"), PAYS, 400, seed=6)
    command = re.search(r"\$ gkt-gateway eval recommend (.*)\n", page)
    assert command is not None
    done = run(*command[1].split())
    printed = "\n".join(line.rstrip() for line in done.stdout.splitlines() if line.strip())
    rest = page.partition(command[0])[2]
    shown = rest.partition("```")[0]
    assert "\n".join(line.rstrip() for line in shown.splitlines() if line.strip()) == printed
    written = re.search(r"```yaml\n(.*?)```", rest, re.DOTALL)
    assert written is not None
    assert Path("sums.yaml").read_text("utf-8") == written[1]
