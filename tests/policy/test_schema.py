"""Validation of policy files: modes and engines, deadlines, and keys."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from gateway.config.yaml_source import load
from gateway.policy.schema import GuidanceRule, KeyEntry, Route, TenantPolicy

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def issues_of(folder: Path, route: str, keys: str = "[]") -> list[str]:
    """Return the issues of a file with this route on line 4."""
    (folder / "a.yaml").write_text(f"tenant: a\nkeys: {keys}\nroutes:\n  - {{{route}}}\n")
    return [str(one).removeprefix("a.yaml:") for one in load(folder / "a.yaml", TenantPolicy)[1]]


def test_a_route_has_the_defaults_of_the_paper() -> None:
    route = Route(model="chat", mode="guided", teacher="big", student="small")
    assert (route.baseline, route.show_cost, route.default_max_tokens) == ("big", True, None)
    assert route.guidance == GuidanceRule(
        tokens=40, projection="cutoff", placement="prefix", temperature=0, max_wait_s=0.01, deadline=2.0
    )
    assert (route.guidance.top_p, route.guidance.seed, route.guidance.on_failure) == (None, None, "student")


@pytest.mark.parametrize(
    ("projection", "placement"), [("cutoff", "prefix"), ("concise", "prefix"), ("hint", "context")]
)
def test_the_placement_follows_from_the_projection(projection: str, placement: str) -> None:
    assert GuidanceRule.model_validate({"projection": projection}).placement == placement
    assert GuidanceRule.model_validate({"projection": projection, "placement": "prefix"}).placement == "prefix"


def test_savings_are_measured_against_the_teacher_and_without_one_against_the_student() -> None:
    assert Route(model="x", mode="teacher", teacher="big").baseline == "big"
    assert Route(model="x", mode="student", student="small").baseline == "small"
    assert Route(model="x", mode="student", student="small", teacher="big").baseline == "big"
    assert Route(model="x", mode="student", student="small", baseline="other").baseline == "other"


def test_a_route_knows_every_engine_it_names() -> None:
    assert Route(model="x", mode="student", student="small", baseline="other").engines == {"small", "other"}


@pytest.mark.parametrize(
    ("route", "lines"),
    [
        ("model: x, mode: guided, teacher: b", ["4: routes[0].student: missing: mode guided needs a student"]),
        ("model: x, mode: guided, student: b", ["4: routes[0].teacher: missing: mode guided needs a teacher"]),
        ("model: x, mode: student, teacher: b", ["4: routes[0].student: missing: mode student needs a student"]),
        ("model: x, mode: teacher, student: b", ["4: routes[0].teacher: missing: mode teacher needs a teacher"]),
        (
            "model: x, mode: embeddings, teacher: b",
            ["4: routes[0].student: missing: mode embeddings needs a student"],
        ),
        (
            "model: x, mode: guided",
            [
                "4: routes[0].teacher: missing: mode guided needs a teacher",
                "4: routes[0].student: missing: mode guided needs a student",
            ],
        ),
        ("model: x, mode: shadow, student: b", ["4: routes[0].teacher: missing: mode shadow needs a teacher"]),
        (
            "model: x, mode: shadowed, student: b",
            ["4: routes[0].mode: must be guided, student, teacher, shadow or embeddings. Did you mean 'shadow'?"],
        ),
        (
            "model: x, mode: shadow, teacher: a, student: b, shadow: {serves: guided}",
            ["4: routes[0].shadow.serves: must be teacher or student"],
        ),
        (
            "model: x, mode: shadow, teacher: a, student: b, shadow: {sample: 10}",
            ["4: routes[0].shadow.sample: must be at most 1, which is 100%"],
        ),
        (
            "model: x, mode: guided, teacher: a, student: b, shadow: 200%",
            ["4: routes[0].shadow: must be at most 1, which is 100%"],
        ),
        (
            "model: x, mode: guided, teacher: a, student: b, shadow: a lot",
            ["4: routes[0].shadow: must be a part of the requests: a number from 0 to 1, or a percentage like 1%"],
        ),
        (
            "model: x, mode: guided, teacher: a, student: b, quality: {sample: -1}",
            ["4: routes[0].quality.sample: must be at least 0"],
        ),
        (
            "model: x, mode: guided, teacher: a, student: b, quality: {compare: judge}",
            ["4: routes[0].quality.judge: missing: compare judge needs a model that grades"],
        ),
        (
            "model: x, mode: guided, teacher: a, student: b, quality: {compare: word}",
            ["4: routes[0].quality.compare: must be words, exact, numeric, choice or judge. Did you mean 'words'?"],
        ),
        (
            "model: x, mode: student, studen: b",
            ["4: routes[0].studen: unknown key. Did you mean 'student'?"],
        ),
        (
            "model: x, mode: student, students: [b], student: c",
            ["4: routes[0].student: is one student, and students are several: keep one of the two"],
        ),
        ("model: x, mode: student, students: []", ["4: routes[0].students: must have at least 1 entry"]),
        (
            "model: x, mode: student, students: [b, {model: c, weight: 1}]",
            ["4: routes[0].students: give each student a weight, or none: without weights the order counts"],
        ),
        (
            "model: x, mode: student, students: [b, b]",
            ["4: routes[0].students: names a student twice: set the number of retries under retries"],
        ),
        (
            "model: x, mode: student, student: b, retries: {num_retries: 11}",
            ["4: routes[0].retries.num_retries: must be at most 10"],
        ),
        ("mode: student, student: b", ["4: routes[0].model: missing: add it"]),
        (
            "model: 'a b', mode: student, student: b",
            ["4: routes[0].model: must be 1 to 128 letters, digits or any of . _ : / -, or '*' for every other model"],
        ),
        (
            "model: x, mode: student, student: b, show_cost: 1",
            ["4: routes[0].show_cost: must be true or false. Did you mean 'true'?"],
        ),
        (
            "model: x, mode: student, student: b, default_max_tokens: 0",
            ["4: routes[0].default_max_tokens: must be at least 1"],
        ),
        (
            "model: x, mode: student, student: b, default_max_tokens: 60, max_tokens_limit: 50",
            ["4: routes[0].max_tokens_limit: is below default_max_tokens, which is 60: raise it, or lower that"],
        ),
        (
            "model: x, mode: student, student: b, nonsense: {}",
            [
                (
                    "4: routes[0].nonsense: unknown key; known here: model, aliases, mode, when, teacher, students, "
                    "student, affinity, retries, baseline, show_cost, reply_model, default_max_tokens, "
                    "max_tokens_limit, guidance, shadow, quality, collect, split, overrides"
                ),
            ],
        ),
        (
            "model: x, mode: student, student: b, fallbacks: [c]",
            ["4: routes[0].fallbacks: unknown key: write students: each is called after those before it failed"],
        ),
        (
            "model: x, mode: student, student: b, overrides: {modes: [teacher]}",
            ["4: routes[0].overrides: modes: teacher needs a teacher, and this route names none"],
        ),
        (
            "model: x, mode: teacher, teacher: b, overrides: {modes: [guided]}",
            ["4: routes[0].overrides: modes: guided needs a student, and this route names none"],
        ),
        (
            "model: x, mode: student, student: b, overrides: {modes: [techer]}",
            ["4: routes[0].overrides.modes[0]: must be guided, student or teacher. Did you mean 'teacher'?"],
        ),
        (
            "model: x, mode: student, student: b, overrides: {guidance_tokens: 5000}",
            ["4: routes[0].overrides.guidance_tokens: must be at most 4096"],
        ),
        (
            "model: x, mode: embeddings, student: b, overrides: {modes: [student]}",
            ["4: routes[0].overrides: does not apply to mode embeddings: remove it"],
        ),
        (
            "model: x, mode: embeddings, student: b, collect: {}",
            ["4: routes[0].collect: does not apply to mode embeddings: remove it"],
        ),
        (
            "model: x, mode: student, student: b, collect: {max_total: 1kB, ttl: 1y}",
            [
                "4: routes[0].collect.max_total: must be between 200kB and 1GB",
                "4: routes[0].collect.ttl: must be a duration: a number with ms, s, m, h or d, like 250ms or 30s",
            ],
        ),
    ],
)
def test_an_impossible_route_is_an_issue(folder: Path, route: str, lines: list[str]) -> None:
    assert sorted(issues_of(folder, route)) == sorted(lines)


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("tokens: 0", "tokens: must be at least 1"),
        ("tokens: 4097", "tokens: must be at most 4096"),
        ("tokens: '40'", "tokens: must be a whole number, without quotes"),
        ("projection: 'my own'", "projection: must be 1 to 64 letters, digits or any of . _ -"),
        (
            "{projection: hint, exemplars: exemplars/a.yaml}",
            "exemplars: projection hint shows the teacher no exemplars: use projection: primed, or one of your own",
        ),
        ("placement: prefx", "placement: must be prefix, context or input. Did you mean 'prefix'?"),
        ("temperature: 2.1", "temperature: must be at most 2"),
        ("temperature: warm", "temperature: must be a number, without quotes"),
        ("boundary: line", "boundary: must be word, sentence or token"),
        ("top_p: 0", "top_p: must be more than 0"),
        ("top_p: 1.5", "top_p: must be at most 1"),
        ("seed: -1", "seed: must be at least 0"),
        ("max_wait: 2s", "max_wait: must be between 1ms and 1s"),
        ("max_wait: 0s", "max_wait: must be between 1ms and 1s"),
        ("max_wait: 10", "max_wait: a duration needs its unit (ms, s, m, h, d): write 10s if you mean seconds"),
        ("deadline: 10ms", "deadline: must be longer than max_wait, which is part of it"),
        ("{max_wait: 500ms, deadline: 400ms}", "deadline: must be longer than max_wait, which is part of it"),
        ("deadline: 1h", "deadline: must be between 1ms and 10m, or auto"),
        ("deadline: soon", "deadline: must be a duration: a number with ms, s, m, h or d, like 250ms or 30s, or auto"),
        (
            "{deadline: auto, max_wait: 600ms}",
            "deadline: auto_deadline.min must be longer than max_wait, which is part of it",
        ),
        ("{deadline: auto, auto_deadline: {min: 2s, max: 1s}}", "auto_deadline.max: must not be below min"),
        ("on_failure: teacher", "on_failure: must be student or reject"),
        ("on_queue_full: 429", "on_queue_full: must be student or reject"),
        ("cache_ttl: 31d", "cache_ttl: must be between 0s and 30d"),
        ("share: everybody", "share: must be tenant or all"),
        ("max_tokens: 40", "max_tokens: unknown key. Did you mean 'tokens'?"),
    ],
)
def test_impossible_guidance_is_an_issue(folder: Path, rule: str, line: str) -> None:
    rule = rule if rule.startswith("{") else f"{{{rule}}}"
    route = f"model: x, mode: guided, teacher: b, student: s, guidance: {rule}"
    assert issues_of(folder, route) == [f"4: routes[0].guidance.{line}"]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("key_alias: x", "key_alias: unknown key: here it is called id"),
        ("duration: 30d", "duration: unknown key: here it is called expires, and is a date or a time"),
    ],
)
def test_a_field_name_of_another_proxy_is_an_error_with_the_right_name(folder: Path, more: str, line: str) -> None:
    key = f"[{{id: a, sha256: {'f' * 64}, {more}}}]"
    assert issues_of(folder, "model: x, mode: student, student: b", key) == [f"2: keys[0].{line}"]


@pytest.mark.parametrize("key", ["gk-s3cret", "f" * 63, "g" * 64, "f" * 65, ""])
def test_a_plain_text_key_is_rejected_without_being_quoted(folder: Path, key: str) -> None:
    (line,) = issues_of(folder, "model: x, mode: student, student: b", f"[{{id: a, sha256: '{key}'}}]")
    assert line == (
        "2: keys[0].sha256: must be the key's SHA-256, 64 hex digits, never the key itself: "
        'printf %s "$KEY" | sha256sum (and if a real key stood here, replace it)'
    )
    with pytest.raises(ValidationError) as caught:
        KeyEntry(id="a", sha256=key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("hashed", [sha256(b"").hexdigest(), sha256(b"").hexdigest().upper()])
def test_the_hash_of_an_empty_key_is_refused(folder: Path, hashed: str) -> None:
    (line,) = issues_of(folder, "model: x, mode: student, student: b", f"[{{id: a, sha256: '{hashed}'}}]")
    assert line.startswith("2: keys[0].sha256: is the SHA-256 of an empty text")


def test_a_hash_is_kept_in_small_letters_and_out_of_sight() -> None:
    entry = KeyEntry(id="a", sha256="F" * 64)
    assert entry.sha256 == "f" * 64
    assert "ffff" not in repr(entry)


@pytest.mark.parametrize("name", ["", "a b", "a" * 65, "a/b", "é"])
def test_tenants_and_keys_have_plain_names(name: str) -> None:
    for make in (
        lambda: KeyEntry(id=name, sha256="f" * 64),
        lambda: TenantPolicy(tenant=name, routes=(Route(model="x", mode="student", student="s"),)),
    ):
        with pytest.raises(ValidationError, match="must be 1 to 64 letters"):
            make()


@pytest.mark.parametrize(
    ("weight", "line"),
    [("0", "2: weight: must be at least 0.01"), ("-1", "2: weight: must be at least 0.01"),
     ("101", "2: weight: must be at most 100"), ("heavy", "2: weight: must be a number, without quotes")],
)  # fmt: skip
def test_a_tenant_without_weight_would_never_be_served(folder: Path, weight: str, line: str) -> None:
    (folder / "a.yaml").write_text(
        f"tenant: a\nweight: {weight}\nroutes:\n  - {{model: x, mode: student, student: b}}\n"
    )
    assert [str(one) for one in load(folder / "a.yaml", TenantPolicy)[1]] == [f"a.yaml:{line}"]


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        ("limits: {rpm_limit: 3}", "limits.rpm_limit is 3"),
        ("key_limits: {rpm_limit: 9, max_parallel_requests: 2}", "key_limits.max_parallel_requests is 2"),
        (f"keys: [{{id: ci, sha256: {'a' * 64}, limits: {{tpm_limit: 1}}}}]", "keys[0].limits.tpm_limit is 1"),
        ("labels: {team: {header: x-team, limits: {rpm_limit: 2}}}", "labels.team.limits.rpm_limit is 2"),
        (
            "labels: {team: {header: x-team, exceptions: {blue: {limits: {rpm_limit: 1}}}}}",
            "labels.team.exceptions.blue.limits.rpm_limit is 1",
        ),
    ],
)
def test_each_slice_has_a_part_of_each_limit(folder: Path, limits: str, line: str) -> None:
    file = "tenant: a\nredis_slices: 4\nroutes:\n  - {model: x, mode: student, student: b}\n"
    (folder / "a.yaml").write_text(f"{file}{limits}\n")
    message = f"a.yaml:2: redis_slices: {line}, below the number of slices: raise it to at least 4, or set fewer slices"
    assert [str(one) for one in load(folder / "a.yaml", TenantPolicy)[1]] == [message]
    (folder / "a.yaml").write_text(f"{file}limits: {{rpm_limit: 4, tpm_limit: 4, max_parallel_requests: 4}}\n")
    assert load(folder / "a.yaml", TenantPolicy)[1] == []


@pytest.mark.parametrize(("slices", "line"), [("0", "must be at least 1"), ("17", "must be at most 16")])
def test_a_tenant_has_up_to_16_slices(folder: Path, slices: str, line: str) -> None:
    (folder / "a.yaml").write_text(
        f"tenant: a\nredis_slices: {slices}\nroutes:\n  - {{model: x, mode: student, student: b}}\n"
    )
    assert [str(one) for one in load(folder / "a.yaml", TenantPolicy)[1]] == [f"a.yaml:2: redis_slices: {line}"]


def test_a_tenant_without_routes_is_an_issue(folder: Path) -> None:
    (folder / "a.yaml").write_text("tenant: a\nroutes: []\n")
    assert [str(one) for one in load(folder / "a.yaml", TenantPolicy)[1]] == [
        "a.yaml:2: routes: must have at least 1 entry"
    ]
