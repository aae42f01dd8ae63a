"""The policy set: the issues of all files together, and lookups of tenants and routes."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from gateway.config.settings import OVERRIDES
from gateway.errors import ConfigError
from gateway.policy.book import PolicySet, check_all, load_all

if TYPE_CHECKING:
    from pathlib import Path

MODELS = """\
models:
  - {name: big, protocol: tgi, api_base: "http://t:1", price: {input_per_1m: 1, output_per_1m: 1}}
  - {name: small, protocol: openai, api_base: "http://s:1", price: {input_per_1m: 1, output_per_1m: 1}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a valid config.yaml and no policy."""
    monkeypatch.chdir(tmp_path)
    for variable in OVERRIDES:
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "config.yaml").write_text(MODELS)
    (tmp_path / "policies").mkdir()
    return tmp_path


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def tenant(folder: Path, name: str, *, keys: tuple[str, ...] = (), routes: str = "") -> None:
    """Write a policy file, valid by default: five lines, then its keys."""
    routes = routes or "  - {model: chat, mode: guided, teacher: big, student: small}\n"
    lines = "".join(f"  - {{id: {key}, sha256: {digest(key)}}}\n" for key in keys)
    text = f"tenant: {name}\nroutes:\n{routes}" + (f"keys:\n{lines}" if keys else "")
    (folder / "policies" / f"{name}.yaml").write_text(text)


def book_of(folder: Path) -> PolicySet:
    return load_all(folder / "config.yaml")[1]


def issues_of(folder: Path) -> list[str]:
    """Return the issues, which are the same if collected or raised."""
    settings, policy_set, issues = check_all(folder / "config.yaml")
    assert policy_set is None
    if settings is not None:
        with pytest.raises(ConfigError) as caught:
            book_of(folder)
        assert list(caught.value.issues) == issues
    return [str(one) for one in issues]


def test_a_key_finds_its_tenant_and_its_own_name(folder: Path) -> None:
    tenant(folder, "a", keys=("k1", "k2"))
    tenant(folder, "b", keys=("k3",))
    policy_set = book_of(folder)
    found = [policy_set.tenant_of_key(key) for key in ("k1", "k2", "k3")]
    assert [(one.policy.tenant, one.key.id) for one in found if one] == [("a", "k1"), ("a", "k2"), ("b", "k3")]


@pytest.mark.parametrize("token", ["", "k", "k11", "K1", " k1", digest("k1"), "\udcff", "é" * 10_000])
def test_an_unknown_token_has_no_tenant(folder: Path, token: str) -> None:
    tenant(folder, "a", keys=("k1",))
    assert book_of(folder).tenant_of_key(token) is None


def test_a_book_shows_no_hash(folder: Path) -> None:
    tenant(folder, "a", keys=("k1",))
    assert digest("k1")[:8] not in repr(book_of(folder))


def test_a_second_route_with_the_same_name_is_never_reached(folder: Path) -> None:
    tenant(
        folder,
        "a",
        keys=("k1",),
        routes="  - {model: x, mode: teacher, teacher: big}\n  - {model: x, mode: student, student: small}\n",
    )
    assert issues_of(folder) == [
        "policies/a.yaml:4: routes[1].model: never reached: routes[0] takes every request for x"
    ]


@pytest.mark.parametrize(
    ("route", "message"),
    [
        ("teacher: bgi", "teacher: no model in config.yaml is called 'bgi'. Did you mean 'big'?"),
        ("teacher: zzz", "teacher: no model in config.yaml is called 'zzz'; known: big, small"),
        ("teacher: big, baseline: smal", "baseline: no model in config.yaml is called 'smal'. Did you mean 'small'?"),
        (
            "teacher: big, students: [small, smll]",
            "students[1]: no model in config.yaml is called 'smll'. Did you mean 'small'?",
        ),
        (
            "teacher: big, students: [{model: smll, weight: 1}]",
            "students[0].model: no model in config.yaml is called 'smll'. Did you mean 'small'?",
        ),
        (
            "teacher: big, student: small, quality: {judge: smll}",
            "quality.judge: no model in config.yaml is called 'smll'. Did you mean 'small'?",
        ),
        ("teacher: big, student: smll", "student: no model in config.yaml is called 'smll'. Did you mean 'small'?"),
    ],
)
def test_a_route_to_an_unknown_model_names_the_nearest(folder: Path, route: str, message: str) -> None:
    tenant(folder, "a", keys=("k1",), routes=f"  - {{model: x, mode: teacher, {route}}}\n")
    assert issues_of(folder) == [f"policies/a.yaml:3: routes[0].{message}"]


@pytest.mark.parametrize(
    ("students", "where"), [("student: big", "student"), ("students: [small, big]", "students[1]")]
)
def test_a_route_for_embeddings_needs_embedding_models(folder: Path, students: str, where: str) -> None:
    tenant(folder, "a", keys=("k1",), routes=f"  - {{model: x, mode: embeddings, {students}}}\n")
    line = f"policies/a.yaml:3: routes[0].{where}: big has protocol tgi, which makes no embeddings: name a model of "
    assert issues_of(folder) == [line + "protocol openai; text-embeddings-inference speaks that, at its /v1"]


def test_a_model_that_only_embeds_is_known(folder: Path) -> None:
    tenant(folder, "a", keys=("k1",), routes="  - {model: x, mode: embeddings, student: small}\n")
    policy_set = book_of(folder)
    assert (policy_set.only_embeds("small"), policy_set.only_embeds("big")) == (True, False)
    tenant(folder, "b", keys=("k2",))
    assert not book_of(folder).only_embeds("small")


def test_tenants_keys_and_key_names_differ(folder: Path) -> None:
    tenant(folder, "a", keys=("k1", "k1"))
    tenant(folder, "b", keys=("k1",))
    file = folder / "policies" / "b.yaml"
    file.write_text(file.read_text().replace("tenant: b", "tenant: a").replace(digest("k1"), digest("k1").upper()))
    assert issues_of(folder) == [
        "policies/a.yaml:6: keys[1].id: keys[0] has id k1 too: ids must be unique",
        "policies/a.yaml:6: keys[1].sha256: the same key as policies/a.yaml: keys[0]: remove one of the two",
        "policies/b.yaml:1: tenant: policies/a.yaml has tenant a too: merge the files",
        "policies/b.yaml:5: keys[0].sha256: the same key as policies/a.yaml: keys[0]: remove one of the two",
    ]


def test_there_must_be_a_tenant_but_its_keys_may_all_be_in_redis(folder: Path) -> None:
    assert issues_of(folder) == ["policies: no policy: add a file that ends in .yaml"]
    tenant(folder, "a")
    policy_set = book_of(folder)
    assert [policy.tenant for policy in policy_set.policies] == ["a"]
    assert policy_set.policy_of("a") is policy_set.policies[0]
    assert policy_set.policy_of("b") is None


def test_a_missing_folder_is_an_issue(folder: Path) -> None:
    (folder / "policies").rmdir()
    assert issues_of(folder) == ["policies: the policies folder cannot be read: no such file or directory"]


def test_only_yaml_files_are_policies_and_similar_names_are_reported(folder: Path) -> None:
    tenant(folder, "a", keys=("k1",))
    (folder / "policies" / ".hidden.yaml").write_text("{")
    (folder / "policies" / "README.md").write_text("{")
    (folder / "policies" / "old.yaml.bak").write_text("{")
    assert len(book_of(folder).policies) == 1
    (folder / "policies" / "b.yml").write_text("tenant: b\n")
    assert issues_of(folder) == ["policies/b.yml: not read: rename it to end in .yaml"]


def test_issues_of_all_files_are_reported_together(folder: Path) -> None:
    (folder / "config.yaml").write_text(MODELS + "log: {level: loud}\n")
    tenant(folder, "b", routes="  - {model: x, mode: teacher, teacher: bgi}\n")
    (folder / "policies" / "a.yaml").write_text("tenant: [\n")
    assert issues_of(folder) == [
        "config.yaml:4: log.level: must be debug, info, warning or error",
        "policies/a.yaml:2: not valid YAML: expected the node content, but found the end of the file",
        "policies/b.yaml:3: routes[0].teacher: no model in config.yaml is called 'bgi'. Did you mean 'big'?",
    ]


@pytest.mark.parametrize("route", ["mode: guided, teacher: big, studnet: small", "mode: student, studnet: small"])
def test_a_misspelled_role_is_one_issue(folder: Path, route: str) -> None:
    tenant(folder, "a", keys=("k1",), routes=f"  - {{model: x, {route}}}\n")
    (line,) = issues_of(folder)
    assert line.endswith(": unknown key. Did you mean 'student'?")


def test_a_known_model_is_listed_once(folder: Path) -> None:
    dead = '  - {name: big, protocol: tgi, api_base: "http://d:1", price: {input_per_1m: 1, output_per_1m: 1}}\n'
    (folder / "config.yaml").write_text(MODELS + dead)
    tenant(folder, "a", keys=("k1",), routes="  - {model: x, mode: teacher, teacher: zzz}\n")
    assert issues_of(folder)[1].endswith("no model in config.yaml is called 'zzz'; known: big, small")


def test_a_config_that_names_no_models_does_not_make_every_route_wrong(folder: Path) -> None:
    tenant(folder, "a", keys=("k1",))
    (folder / "config.yaml").write_text("modls: []\n")
    settings, policy_set, issues = check_all(folder / "config.yaml")
    assert settings is None
    assert policy_set is not None
    assert [str(one) for one in issues] == ["config.yaml:1: modls: unknown key. Did you mean 'models'?"]


def test_an_unreadable_config_is_one_issue(folder: Path) -> None:
    (folder / "config.yaml").write_text("a: [\n")
    assert len(issues_of(folder)) == 1
    (folder / "config.yaml").write_text(MODELS + "policies: 3\n")
    assert issues_of(folder) == ["config.yaml:4: policies: must be the path of a folder"]


WHEN = "  - {{model: x, mode: student, student: small, when: {}}}\n"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{max_tokens: 80}", "{max_tokens: {gte: 80, lt: 81}}"),
        ("{header: {X-Team: blue}, tools: true}", "{tools: true, header: {x-team: {equals: blue}}}"),
        ("{contains: a}", "{contains: [a]}"),
        ("{matches: 'a+'}", '{matches: "a+"}'),
        ("{not: {any: [{stream: true}]}}", "{not: {any: [{stream: true}]}}"),
    ],
)
def test_a_route_with_the_conditions_of_an_earlier_one_is_never_reached(folder: Path, first: str, second: str) -> None:
    """Equal conditions in different notations count as equal."""
    between = "  - {model: y, mode: student, student: small}\n" + WHEN.format("{stream: false}")
    tenant(folder, "a", keys=("k1",), routes=WHEN.format(first) + between + WHEN.format(second))
    assert issues_of(folder) == [
        "policies/a.yaml:6: routes[3].when: never reached: routes[0] takes these requests for x already"
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{max_tokens: 80}", "{max_tokens: 81}"),
        ("{max_tokens: 80}", "{max_tokens: 80}, default_max_tokens: 80"),
        ("{matches: a}", "{contains: a}"),
    ],
)
def test_routes_with_different_conditions_are_all_reachable(folder: Path, first: str, second: str) -> None:
    tenant(folder, "a", keys=("k1",), routes=WHEN.format(first) + WHEN.format(second))
    assert book_of(folder)


def test_a_route_after_one_without_conditions_is_never_reached(folder: Path) -> None:
    """A misspelled `when` is one issue, not an unreachable route too."""
    plain = "  - {model: x, mode: student, student: small}\n"
    tenant(folder, "a", keys=("k1",), routes=plain + WHEN.format("{tools: true}"))
    assert issues_of(folder) == [
        "policies/a.yaml:4: routes[1].model: never reached: routes[0] takes every request for x"
    ]
    tenant(folder, "a", keys=("k1",), routes=WHEN.format("{tools: true}").replace("when", "whne") + plain)
    assert issues_of(folder) == ["policies/a.yaml:3: routes[0].whne: unknown key. Did you mean 'when'?"]


def test_one_name_is_of_chats_or_of_embeddings(folder: Path) -> None:
    chats = WHEN.format("{prompt_bytes: {lt: 100}}")
    tenant(folder, "a", keys=("k1",), routes=chats + chats.replace("mode: student", "mode: embeddings"))
    (line,) = issues_of(folder)
    assert line.startswith("policies/a.yaml:4: routes[1].model: routes[0] has this name too, and only one of the two ")


def test_teachers_of_shadows_and_overrides_are_guidance_teachers(folder: Path) -> None:
    routes = "  - {model: x, mode: shadow, teacher: big, student: small}\n"
    tenant(folder, "a", keys=("k1",), routes=routes)
    assert book_of(folder).teachers() == {"big"}
    assert book_of(folder).max_guidance_tokens("small") == 0
    tenant(folder, "a", keys=("k1",), routes=routes.replace("shadow", "student"))
    assert book_of(folder).teachers() == set()
    (folder / "policies" / "a.yaml").write_text(
        (folder / "policies" / "a.yaml").read_text() + "overrides: {modes: [guided]}\n"
    )
    assert book_of(folder).teachers() == {"big"}


def test_a_teachers_most_guidance_tokens_are_those_of_any_tenant_and_route(folder: Path) -> None:
    route = "  - {{model: {}, mode: guided, teacher: big, student: small, guidance: {{tokens: {}}}}}\n".format
    tenant(folder, "a", keys=("k1",), routes=route("x", 30) + route("y", 20))
    tenant(folder, "b", keys=("k2",), routes=route("x", 50) + route("y", 40))
    book = book_of(folder)
    assert (book.max_guidance_tokens("big"), book.max_guidance_tokens("none")) == (50, 0)
