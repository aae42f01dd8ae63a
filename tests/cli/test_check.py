"""`check` tells every mistake and exits with 1, or counts what it read and warns of what to mend before production."""

from __future__ import annotations

import re
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gateway.cli.check import DEVELOPMENT_KEY, check, is_private
from gateway.config.settings import OVERRIDES
from gateway.pipeline.guidance_deadlines import MeasuredTime, write_times
from gateway.policy.book import check_all

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sample configuration in a folder of its own, in an environment that sets nothing."""
    monkeypatch.chdir(tmp_path)
    for variable in OVERRIDES:
        monkeypatch.delenv(variable, raising=False)
    shutil.copy(REPOSITORY / "config.yaml", tmp_path)
    shutil.copytree(REPOSITORY / "policies", tmp_path / "policies")
    return tmp_path


def run(*args: str) -> tuple[int, list[str], list[str]]:
    """(exit code, lines of stdout, lines of stderr)"""
    app = typer.Typer()
    app.command()(check)
    result = CliRunner().invoke(app, args)
    return result.exit_code, result.stdout.splitlines(), result.stderr.splitlines()


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_the_sample_passes_and_its_key_is_warned_of(folder: Path) -> None:
    assert run() == (
        0,
        ["ok: 2 models, 1 tenant, 3 routes, 1 key, 1 warning"],
        ["warning: tenant default: key development is the development key 'gk-dev': remove it before production"],
    )


def test_a_key_past_its_date_is_a_warning_and_no_error(folder: Path) -> None:
    edit(folder / "policies" / "default.yaml", "id: development", "id: development\n    expires: 2020-01-31")
    code, _, warnings = run()
    assert code == 0
    assert (
        "warning: tenant default: key development expired on 2020-02-01 00:00:00 UTC: "
        "remove it, or set a later date in expires"
    ) in warnings


def test_a_key_with_a_model_that_no_route_has_is_a_warning(folder: Path) -> None:
    before = run()[2]
    edit(folder / "policies" / "default.yaml", "id: development", "id: development\n    models: [chat, chta]")
    assert [line for line in run()[2] if line not in before] == [
        "warning: tenant default: key development: no route of the tenant has model chta: correct or remove the name"
    ]


@pytest.mark.parametrize(
    ("price", "is_marked"),
    [
        ("{input_per_1m: 0, output_per_1m: 0}", False),
        ("{gpu_usd_per_hour: 0, input_tokens_per_s: 1, output_tokens_per_s: 1}", False),
        ("{free: true}", True),
    ],
)
def test_a_price_of_0_beside_a_paid_engine_is_a_warning_unless_it_is_marked(
    folder: Path, price: str, is_marked: bool
) -> None:
    before = run()[2]
    config = folder / "config.yaml"
    config.write_text(
        re.sub(r"    price:  .*per hour\n(      .*\n)+", f"    price: {price}\n", config.read_text()), encoding="utf-8"
    )
    expected = (
        "warning: model small: its price is 0, so that savings are too high if it is not free: set price, or write "
        "price: {free: true}"
    )
    assert [line for line in run()[2] if line not in before] == ([] if is_marked else [expected])


def test_the_sample_contains_every_default(folder: Path) -> None:
    settings, book, _ = check_all(folder / "config.yaml")
    assert settings is not None
    assert book is not None
    (folder / "config.yaml").write_text(
        "models:\n"
        "  - name: big\n    protocol: tgi\n    api_base: http://127.0.0.1:8090\n"
        "    price: {input_per_1m: 0.90, cached_input_per_1m: 0.45, cache_write_per_1m: 0.90, output_per_1m: 0.90,\n"
        "            cache_write_1h_per_1m: 0.90}\n"
        "  - name: small\n    protocol: openai\n    api_base: http://127.0.0.1:8091/v1\n"
        "    price: {gpu_usd_per_hour: 1.20, input_tokens_per_s: 9000, output_tokens_per_s: 1500, gpus: 1}\n"
    )
    (folder / "policies" / "default.yaml").write_text(
        f"tenant: default\nkeys: [{{id: development, sha256: {sha256(DEVELOPMENT_KEY.encode()).hexdigest()}}}]\n"
        "routes:\n"
        "  - {model: chat, mode: guided, teacher: big, student: small}\n"
        "  - {model: chat-student, mode: student, student: small, baseline: big}\n"
        "  - {model: chat-teacher, mode: teacher, teacher: big}\n"
    )
    bare_settings, bare_book, issues = check_all(folder / "config.yaml")
    assert not issues
    assert bare_settings == settings
    assert bare_book is not None
    assert bare_book.policies == book.policies


def test_commented_examples_of_the_sample_are_valid(folder: Path) -> None:
    """Conditions, and what callers may ask for."""
    file = folder / "policies" / "default.yaml"
    text = re.sub(r"(?m)^    # (when|overrides|quality):", r"    \1:", file.read_text())
    file.write_text(
        re.sub(r"(?m)^    #   (?=\w)", "      ", text)
        .replace("# overrides: {", "overrides: {")
        .replace("# labels", "labels")
    )
    _, book, issues = check_all(folder / "config.yaml")
    assert issues == []
    assert book is not None
    (policy,) = book.policies
    when, rule = policy.routes[0].when, policy.routes[0].overrides
    assert when is not None
    assert rule is not None
    assert [name for name in type(when).model_fields if getattr(when, name) is None] == []
    assert (bool(policy.overrides), rule.modes, rule.guidance_tokens) == (True, ("student", "teacher"), 80)


def test_every_issue_has_its_line_and_the_exit_code_is_1(folder: Path) -> None:
    edit(folder / "config.yaml", "protocol: tgi", "protocl: tgi")
    edit(folder / "policies" / "default.yaml", "teacher: big", "teacher: bgi")
    code, out, err = run("--config", "config.yaml")
    assert (code, out) == (1, [])
    assert [line.split(": ", 1)[1] for line in err[:-1]] == [
        "models[0].protocl: unknown key. Did you mean 'protocol'?",
        "routes[0].teacher: no model in config.yaml is called 'bgi'. Did you mean 'big'?",
        "routes[2].teacher: no model in config.yaml is called 'bgi'. Did you mean 'big'?",
    ]
    assert err[-1] == "3 issues found"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("policies/default.yaml", "max_wait: 10ms", "max_wait: 0ms", "max_wait: must be between 1ms and 1s"),
        ("policies/default.yaml", "weight: 1 ", "weight: 0 ", "weight: must be at least 0.01"),
        ("config.yaml", "max_size: 32", "max_size: 0", "models[0].batch.max_size: must be at least 1"),
        ("config.yaml", "max_concurrency: 96", "max_concurrency: 0", "models[0].max_concurrency: must be at least 1"),
        (
            "config.yaml",
            "max_queue: 1000",
            "max_queue: 31",
            "models[0].batch.max_queue: must be at least batch.max_size, which is 32: otherwise no batch",
        ),
        (
            "policies/default.yaml",
            "deadline: 2s",
            "deadline: 5ms",
            "routes[0].guidance.deadline: must be longer than max_wait, which is part of it",
        ),
    ],
)
def test_a_batch_that_could_never_open_or_end_is_an_issue(
    folder: Path, file: str, old: str, new: str, message: str
) -> None:
    edit(folder / file, old, new)
    code, out, err = run()
    assert (code, out, err[1:]) == (1, [], ["1 issue found"])
    assert message in err[0]
    number = int(err[0].split(":")[1])
    assert new in (folder / file).read_text().splitlines()[number - 1]


def test_a_deadline_below_the_measured_times_is_a_warning_with_a_proposal(folder: Path) -> None:
    """The gateway wrote the times to its data folder when it last ran there."""
    write_times(folder / "data", (MeasuredTime("big", 63, 3.5, 40),))
    edit(folder / "policies" / "default.yaml", "deadline: 2s", "deadline: 2s ")
    _, _, warnings = run()
    assert (
        "warning: tenant default: route chat: guidance.deadline is 2s, but the last measured 95th percentile of "
        "big's guidance is 3.5s: set guidance.deadline to 4.4s"
    ) in warnings
    edit(folder / "policies" / "default.yaml", "deadline: 2s ", "deadline: auto")
    assert not any("guidance.deadline" in one or "auto_deadline" in one for one in run()[2])


def test_another_file_may_be_checked(folder: Path) -> None:
    assert run("-c", "none.yaml") == (
        1,
        [],
        ["none.yaml: cannot be read: no such file or directory", "1 issue found"],
    )


@pytest.mark.parametrize(
    ("file", "old", "new", "warning"),
    [
        (
            "config.yaml",
            "api_base: http://127.0.0.1:8090 ",
            "api_key: env:A_KEY\n    api_base: http://api.example.com ",
            "model big: its api_key is sent unencrypted to api.example.com: use https",
        ),
        (
            "config.yaml",
            "  host: 127.0.0.1",
            "  host: 0.0.0.0",
            "admin: listens on 0.0.0.0 and requires no key: set admin.key, and keep it behind a firewall",
        ),
        (
            "config.yaml",
            "  host: 127.0.0.1",
            "  key: env:A_KEY\n  host: 0.0.0.0",
            ("admin: listens on 0.0.0.0 and requires no key for probes, metrics and queues: keep it behind a firewall"),
        ),
        (
            "config.yaml",
            "  host: 127.0.0.1",
            "  host: 10.0.0.7",
            "admin: listens on 10.0.0.7 without a key: set admin.key",
        ),
        (
            "config.yaml",
            "cached_input_per_1m: 0.45",
            "cached_input_per_1m: 0.91",
            "model big: cached_input_per_1m is above input_per_1m: a cached token would cost more than an uncached one",
        ),
        (
            "config.yaml",
            "max_concurrency: 96",
            "max_concurrency: 7",
            "model big: batch.low_water 8 is above max_concurrency 7: requests never wait for a batch",
        ),
        (
            "config.yaml",
            "continuation: auto",
            "continuation: none",
            (
                "tenant default: route chat: small has continuation none: it gets its guidance as context, not as a "
                "prefix"
            ),
        ),
        (
            "policies/default.yaml",
            "teacher: big           #",
            "teacher: small #",
            "tenant default: route chat: small is its own teacher",
        ),
        (
            "policies/default.yaml",
            "mode: guided           #",
            "mode: student          #",
            "tenant default: route chat: mode student leaves its teacher and its guidance unused",
        ),
    ],
)
def test_settings_unfit_for_production_are_warnings(
    folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, warning: str
) -> None:
    monkeypatch.setenv("A_KEY", "s3cret-of-many-letters")
    edit(folder / file, old, new)
    code, out, err = run()
    assert (code, out) == (0, ["ok: 2 models, 1 tenant, 3 routes, 1 key, 2 warnings"])
    assert f"warning: {warning}" in err
    assert "s3cret" not in "".join(err)


@pytest.mark.parametrize(
    ("edits", "warning"),
    [
        ([("    student: small", "    students: [small, big] #")], "big is a TGI server, which caches no prefix"),
        ([("placement: prefix ", "placement: context ")], "has no effect with placement context"),
    ],
)
def test_a_warmup_without_effect_is_a_warning(folder: Path, edits: list[tuple[str, str]], warning: str) -> None:
    policy = folder / "policies" / "default.yaml"
    edit(policy, "warm_student: false", "warm_student: true")
    before = run()[2]
    assert len(before) == 1
    for old, new in edits:
        edit(policy, old, new)
    (found,) = [line for line in run()[2] if line not in before]
    assert found.startswith("warning: tenant default: route chat: guidance.warm_student")
    assert warning in found


def test_the_last_student_may_be_the_teacher(folder: Path) -> None:
    """Drawn by weight it would guide itself."""
    before = run()[2]
    edit(folder / "policies" / "default.yaml", "    student: small", "    students: [small, big] #")
    assert run()[2] == before
    weighed = "[{model: small, weight: 3}, {model: big, weight: 1}]"
    edit(folder / "policies" / "default.yaml", "[small, big]", weighed)
    assert "warning: tenant default: route chat: big is its own teacher" in run()[2]


def test_routes_without_a_limit_of_answers_under_a_budget_are_warnings(folder: Path) -> None:
    policy = folder / "policies" / "default.yaml"
    edit(policy, "    # default_max_tokens: 512 ", "    default_max_tokens: 512 ")
    assert not [one for one in run()[2] if "default_max_tokens" in one]
    edit(policy, "# key_budget:", "key_budget:")
    assert [one for one in run()[2] if "default_max_tokens" in one] == [
        f"warning: tenant default: route {route}: there is a budget and no default_max_tokens: requests without "
        "max_tokens are limited to 1024 tokens"
        for route in ("chat-student", "chat-teacher")
    ]


def test_a_tenants_limit_that_its_keys_cannot_come_to_is_a_warning(folder: Path) -> None:
    """Unless the file itself says what a key may do."""
    before = run()[2]
    policy = folder / "policies" / "default.yaml"
    edit(folder / "config.yaml", "key_limits: {}", "key_limits: {rpm_limit: 60}")
    text = policy.read_text() + "limits: {rpm_limit: 600, tpm_limit: 1000}\n"
    policy.write_text(text)
    assert [line for line in run()[2] if line not in before] == [
        (
            "warning: tenant default: limits.rpm_limit is 600, but defaults.key_limits in config.yaml "
            "limits all keys of the file together to 60: set key_limits in the file too"
        )
    ]
    for enough in (text.replace("600", "60"), text + "key_limits: {tpm_limit: 5}\n"):
        policy.write_text(enough)
        assert run()[2] == before


EXTRAS = [
    ("opentelemetry.sdk", "  # endpoint: http:", "  endpoint: http:", "tracing.endpoint is set", "otel"),
    (
        "opentelemetry.exporter.otlp.proto.http",
        "  # endpoint: http:",
        "  endpoint: http:",
        "tracing.endpoint is set",
        "otel",
    ),
    ("psycopg", "  url: sqlite ", "  url: postgresql://me:s3cret@db/gkt ", "usage.url is PostgreSQL", "postgres"),
]


@pytest.mark.parametrize(("module", "old", "new", "what", "extra"), EXTRAS)
def test_an_extra_that_is_wanted_and_not_there_is_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, old: str, new: str, what: str, extra: str
) -> None:
    """The test hides the modules of the extra. With the extra, or where no setting needs it, there is no warning."""
    sample = run()[2]
    edit(folder / "config.yaml", old, new)
    assert run()[2] == sample
    for known in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setattr(sys, "meta_path", [_Lacks(module), *sys.meta_path])
    code, out, err = run()
    assert (code, out) == (0, ["ok: 2 models, 1 tenant, 3 routes, 1 key, 2 warnings"])
    assert err[1].startswith(f"warning: {what}, and ")
    assert err[1].endswith(f"(pip install 'gkt-gateway[{extra}]')")
    assert "s3cret" not in err[1]
    edit(folder / "config.yaml", new, old)
    assert run()[2] == sample


class _Lacks:
    """A finder before all others, to which a module is not installed."""

    def __init__(self, module: str) -> None:
        self._module = module

    def find_spec(self, name: str, *_: object) -> None:
        if name == self._module or name.startswith(f"{self._module}."):
            raise ModuleNotFoundError(name=name)


def test_a_model_that_no_route_uses_is_a_warning(folder: Path) -> None:
    with (folder / "config.yaml").open("a") as file:
        file.write("  - {name: spare, protocol: openai, api_base: https://h, model: gpt-4o}\n")
    assert "warning: model spare: no route uses it" in run()[2]


@pytest.mark.parametrize("name", ["acme.YAML", "acme.Yml", "acme.json"])
def test_a_policy_that_is_not_read_for_its_ending_is_a_warning(folder: Path, name: str) -> None:
    for other in (name, "README.md", "old.yaml.bak", ".hidden.json"):
        (folder / "policies" / other).write_text("{}")
    code, out, err = run()
    assert (code, out) == (0, ["ok: 2 models, 1 tenant, 3 routes, 1 key, 2 warnings"])
    assert err[1:] == [f"warning: policies/{name}: not read: rename it to end in .yaml"]


def test_a_private_host_is_one_that_strangers_do_not_pass() -> None:
    assert all(map(is_private, ("127.0.0.1", "::1", "10.1.2.3", "192.168.1.1", "localhost", "tgi", "tgi.ns.svc")))
    assert not any(map(is_private, ("8.8.8.8", "api.example.com", "0.0.0.0", "::")))


def test_the_size_of_a_projection_is_printed_once(folder: Path) -> None:
    """The note has the number of exemplars, their file, the tokens per request, and the tokens that it may skip."""
    file = folder / "policies" / "default.yaml"
    edit(file, "projection: cutoff ", "projection: primed ")
    edit(file, "# exemplars: exemplars/arithmetic.yaml", "exemplars: exemplars/arithmetic.yaml")
    code, out, _ = run()
    note = "projection primed: adds 3 exemplars of exemplars/arithmetic.yaml, about 168 tokens, to each teacher "
    assert (code, out[:-1]) == (0, [f"note: {note}request; receipts include these tokens"])
    edit(file, "exemplars: exemplars/arithmetic.yaml", "exemplars: exemplars/choices.yaml")
    assert run()[1][0].startswith("note: projection primed: adds 8 exemplars of exemplars/choices.yaml, about ")
    edit(file, "      exemplars: ", "      # exemplars: ")
    assert run()[1][0].startswith("note: projection primed: adds 5 exemplars, about ")
    edit(file, "projection: primed ", "projection: direct ")
    assert run()[1][0] == (
        "note: projection direct: requests 24 tokens more than guidance.tokens from the teacher, since skipped text is "
        "dropped; receipts include these tokens"
    )


def test_json_exemplars_in_the_policy_folder_cause_no_warning(folder: Path) -> None:
    (folder / "policies" / "it.json").write_text('[{"question": "One?", "answer": "1."}]')
    assert "warning: policies/it.json: not read: rename it to end in .yaml" in run()[2]
    edit(folder / "policies" / "default.yaml", "projection: cutoff ", "projection: primed\n      exemplars: it.json #")
    assert not [line for line in run()[2] if "it.json" in line]


def test_a_limit_by_a_label_that_callers_choose_is_a_note(folder: Path) -> None:
    policy = folder / "policies" / "default.yaml"
    rule = "{header: x-team, metadata: team, claim: team, budget: {max_budget: 5}}"
    edit(
        policy,
        "log_content: false",
        f"labels: {{team: {rule}, app: {{limits: {{rpm_limit: 5}}}}, env: {{header: x-env}}}}\nlog_content: false",
    )
    code, out, _ = run()
    assert (code, len(out)) == (0, 2)
    assert out[0].startswith(
        "note: tenant default: label team: callers choose its value in the header x-team and metadata.team: a hostile"
    )


def test_a_hashed_label_without_a_secret_is_a_warning(folder: Path) -> None:
    edit(
        folder / "policies" / "default.yaml", "log_content", "labels: {end_user: {user: true, hash: true}}\nlog_content"
    )
    warning = (
        "warning: tenant default: label end_user: its hashes are guessable without a secret: set labels.hash_key in "
        "config.yaml"
    )
    assert warning in run()[2]
    (folder / "secret").write_text("a secret")
    edit(folder / "config.yaml", "# labels: {hash_key: env:GKT_LABEL_KEY}", "labels: {hash_key: file:secret}")
    assert warning not in run()[2]
