"""Rules for tokens: which claims match, which key id callers get, and which rules are mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gateway.config.claims import claim_of
from gateway.policy.book import check_book
from gateway.policy.identities import IdentityRule
from gateway.policy.schema import KeyEntry

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.policy.book import PolicySet

ROUTES = "routes: [{model: chat, mode: student, student: small}]\n"
ISSUERS = {"corp": "https://login.example.com/realms/corp", "partner": "https://partner.example.com"}


def rule(**fields: Any) -> IdentityRule:
    return IdentityRule.model_validate({"id": "staff", "issuer": "corp", **fields})


def checked(folder: Path, **tenants: list[str]) -> tuple[PolicySet | None, list[str]]:
    """Check a policy file for each tenant, with these identities. Return the issues from their lines on."""
    for tenant, rules in tenants.items():
        lines = "".join(f"  - {{{one}}}\n" for one in rules)
        (folder / f"{tenant}.yaml").write_text(f"tenant: {tenant}\n{ROUTES}identities:\n{lines}")
    book, issues = check_book(folder, ["small"], issuers=ISSUERS)
    prefix = f"{folder}/"
    return book, [str(issue).replace(prefix, "") for issue in issues]


@pytest.mark.parametrize(
    ("when", "claims", "why"),
    [
        ({}, {}, None),
        ({"groups": "llm-users"}, {"groups": ["a", "llm-users"]}, None),
        ({"groups": ["b", "llm-users"]}, {"groups": ["llm-users"]}, None),
        ({"groups": "llm-users"}, {"groups": "llm-users"}, None),
        ({"groups": "llm-users"}, {"groups": ["llm-users-2"]}, "the claim groups has another value"),
        ({"groups": "llm-users"}, {"groups": []}, "the claim groups has another value"),
        ({"groups": "llm-users"}, {"groups": {"llm-users": 1}}, "the claim groups has another value"),
        ({"groups": "llm"}, {"groups": "llm users"}, "the claim groups has another value"),
        ({"groups": "llm-users"}, {}, "there is no claim groups"),
        ({"groups": "llm-users"}, {"groups": None}, "there is no claim groups"),
        ({"scope": "llm"}, {"scope": "openid llm"}, None),
        ({"scp": "llm"}, {"scp": "openid llm"}, None),
        ({"scope": "llm"}, {"scope": "openid llm2"}, "the claim scope has another value"),
        ({"email_verified": True}, {"email_verified": True}, None),
        ({"email_verified": True}, {"email_verified": 1}, "the claim email_verified has another value"),
        ({"level": 1}, {"level": True}, "the claim level has another value"),
        ({"level": 1}, {"level": 1.0}, "the claim level has another value"),
        ({"realm_access.roles": "llm"}, {"realm_access": {"roles": ["llm"]}}, None),
        ({"realm_access.roles": "llm"}, {"realm_access": ["roles"]}, "there is no claim realm_access.roles"),
        ({"https://a.example/roles": "llm"}, {"https://a.example/roles": ["llm"]}, None),
        ({"azp": ["web", "cli"], "groups": "x"}, {"azp": "cli", "groups": ["x"]}, None),
        ({"azp": ["web", "cli"], "groups": "x"}, {"azp": "cli", "groups": []}, "the claim groups has another value"),
    ],
)
def test_all_claims_must_have_one_of_their_values(
    when: dict[str, Any], claims: dict[str, Any], why: str | None
) -> None:
    assert rule(when=when).mismatch(claims) == why


def test_a_claim_with_dots_comes_before_a_nested_one() -> None:
    claims = {"a.b": 1, "a": {"b": 2, "c.d": {"e": 3}}}
    assert [claim_of(claims, path) for path in ("a.b", "a.c.d.e", "a.x", "a.b.c", "a.")] == [1, 3, None, None, None]


@pytest.mark.parametrize(
    ("value", "key_id"),
    [
        ("ada", "staff:ada"),
        ("f47ac10b-58cc-4372-a567-0e02b2c3d479", "staff:f47ac10b-58cc-4372-a567-0e02b2c3d479"),
        ("ada@example.com", "staff:ada@example.com"),
        (7, "staff:7"),
        ("auth0|5f7c", "staff:~75cd8aa2ba2dd8dd3b9a2fbafd2e4d95"),
        ("x" * 58, "staff:" + "x" * 58),
        ("x" * 59, "staff:~8b4a3d4e"),
        ("a:b", "staff:~"),
        ("*", "staff:~"),
        ("~" + "0" * 32, "staff:~"),
        ("é", "staff:~"),
        ("a\nb", "staff:~"),
        ("", None),
        (None, None),
        (True, None),
        (1.5, None),
        (["ada"], None),
    ],
)
def test_a_key_id_is_short_and_safe(value: object, key_id: str | None) -> None:
    found = rule(key="sub").key_id({"sub": value})
    if key_id is None or found is None:
        assert found is key_id
    elif "~" in key_id:
        assert found.startswith("staff:~")
        assert len(found) == len("staff:~") + 32
    else:
        assert found == key_id


def test_hashed_key_ids_differ_and_are_no_values() -> None:
    one = rule(key="sub")
    hashed = one.key_id({"sub": "a|b"})
    assert hashed is not None
    assert len({hashed, one.key_id({"sub": "a|c"}), one.key_id({"sub": hashed.removeprefix("staff:")})}) == 3


def test_without_key_all_callers_have_one_id_and_no_value_is_equal_to_it() -> None:
    assert rule().key_id({"sub": "ada"}) == "staff:*"
    assert rule(key="sub").key_id({"sub": "*"}) != "staff:*"


def test_no_api_key_can_have_the_id_of_a_token() -> None:
    with pytest.raises(ValueError, match="must be 1 to 64 letters"):
        KeyEntry(id="staff:ada", sha256="f" * 64)


@pytest.mark.parametrize(
    ("one", "issue"),
    [
        ("id: 'a:b', issuer: corp", "identities[0].id: must be 1 to 30 letters"),
        ("id: playground, issuer: corp", "identities[0].id: is reserved for playground requests"),
        ("id: a", "identities[0].issuer: missing"),
        (
            "id: a, issuer: crop",
            "identities[0].issuer: no issuer in config.yaml is called 'crop'. Did you mean 'corp'?",
        ),
        ("id: a, issuer: zzz", "identities[0].issuer: no issuer in config.yaml is called 'zzz'; known: corp, partner"),
        ("id: a, issuer: corp, when: ", "identities[0].when: empty: add a claim"),
        ("id: a, issuer: corp, when: {groups: []}", "identities[0].when.groups: must have at least 1 entry"),
        ("id: a, issuer: corp, when: {groups: 1.5}", "identities[0].when.groups[0]: must be text, a whole number"),
        ("id: a, issuer: corp, when: {groups: {a: b}}", "identities[0].when.groups[0]: must be text, a whole number"),
        ("id: a, issuer: corp, wen: {a: b}", "identities[0].wen: unknown key. Did you mean 'when'?"),
        ("id: a, issuer: corp, key: ''", "identities[0].key: must not be empty"),
        ("id: a, issuer: corp, limits: {rpm: 5}", "identities[0].limits.rpm: unknown key"),
        (
            "id: a, issuer: corp, when: {iss: https://partner.example.com}",
            "identities[0].when.iss: matches no token: tokens of issuer 'corp' have the claim iss https://login",
        ),
        ("id: a, issuer: corp, when: {scope: read write}", "identities[0].when: matches no token: scope is a list of"),
        ("id: a, issuer: corp, when: {scp: ['', 7]}", "identities[0].when: matches no token: scp is a list of words"),
        (
            "id: a, issuer: corp, when: {email: ada@example.com, email_verified: false}",
            "identities[0].when: matches no token: an email that is not verified counts as absent",
        ),
    ],
)
def test_an_issue_has_its_line_and_field(tmp_path: Path, one: str, issue: str) -> None:
    book, issues = checked(tmp_path, acme=[one])
    assert book is None
    assert len(issues) == 1, issues
    assert issues[0].startswith(f"acme.yaml:4: {issue}"), issues


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("", ", when: {groups: a}"),
        (", when: {groups: a}", ", when: {groups: a}"),
        (", when: {groups: [a, b]}", ", when: {groups: a}"),
        (", when: {groups: [a, b]}", ", when: {groups: [b, a], azp: web}"),
    ],
)
def test_a_rule_that_an_earlier_one_hides_is_an_issue(tmp_path: Path, earlier: str, later: str) -> None:
    _, issues = checked(tmp_path, acme=[f"id: a, issuer: corp{earlier}", f"id: b, issuer: corp{later}"])
    assert issues == ["acme.yaml:5: identities[1].when: never used: identities[0] matches each of these tokens already"]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (", when: {groups: a}", ""),
        (", when: {groups: a}", ", when: {groups: [a, b]}"),
        (", when: {groups: a, azp: web}", ", when: {groups: a}"),
        (", when: {level: 1}", ", when: {level: true}"),
        (", when: {groups: a}", ", when: {roles: a}"),
        (", when: {scope: [read, read write]}", ", when: {email: a@b, email_verified: [true, false]}"),
        (", when: {iss: [https://other, https://login.example.com/realms/corp]}", ", when: {email_verified: false}"),
    ],
)
def test_a_rule_with_tokens_of_its_own_is_none(tmp_path: Path, earlier: str, later: str) -> None:
    book, issues = checked(tmp_path, acme=[f"id: a, issuer: corp{earlier}", f"id: b, issuer: corp{later}"])
    assert issues == []
    assert book is not None
    assert [one.place.rpartition("/")[2] for one in book.policies[0].identities] == ["acme.yaml:4", "acme.yaml:5"]


def test_an_empty_when_needs_an_issuer_of_its_own(tmp_path: Path) -> None:
    everyone, some = "id: all, issuer: corp", "id: some, issuer: corp, when: {groups: a}"
    _, issues = checked(tmp_path, acme=[everyone], globex=[some])
    message = "matches each of these tokens too, and a token of two tenants is rejected: that rule needs `when`"
    assert issues == [f"globex.yaml:4: identities[0].when: never used: identities[0] of acme.yaml {message}"]
    _, issues = checked(tmp_path, acme=[some], globex=[everyone])
    assert len(issues) == 1
    assert issues[0].startswith("acme.yaml:4: identities[0].when: never used: identities[0] of globex.yaml")
    _, issues = checked(tmp_path, acme=[everyone], globex=[everyone])
    assert len(issues) == 1
    assert issues[0].startswith("globex.yaml:4: identities[0].issuer: never used")
    book, issues = checked(tmp_path, acme=[everyone], globex=["id: all, issuer: partner"])
    assert issues == []
    assert book is not None
    assert {issuer: [one.tenant for one in found] for issuer, found in book.identities.items()} == {
        "corp": ["acme"],
        "partner": ["globex"],
    }


def test_ids_are_unique_within_a_tenant(tmp_path: Path) -> None:
    one, other = "id: a, issuer: corp, when: {groups: a}", "id: a, issuer: partner"
    _, issues = checked(tmp_path, acme=[one, other])
    assert issues == ["acme.yaml:5: identities[1].id: identities[0] has id a too: ids must be unique"]
    _, issues = checked(tmp_path, acme=[one], globex=[other])
    assert issues == []


def test_an_issuer_that_config_yaml_does_not_have_is_an_issue_of_the_policy(tmp_path: Path) -> None:
    (tmp_path / "acme.yaml").write_text(f"tenant: acme\n{ROUTES}identities: [{{id: a, issuer: corp}}]\n")
    assert check_book(tmp_path, ["small"])[1] == []
    (issue,) = check_book(tmp_path, ["small"], issuers={})[1]
    assert "known: none, add it under identity.issuers" in issue.message


def test_thousands_of_tenants_of_one_issuer_are_compared_by_their_rarest_claim(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gateway.policy.identity_checks import check_identities
    from gateway.policy.schema import TenantPolicy

    compared = 0
    includes = IdentityRule.includes

    def counted(one: IdentityRule, other: IdentityRule) -> bool:
        nonlocal compared
        compared += 1
        return includes(one, other)

    monkeypatch.setattr(IdentityRule, "includes", counted)
    policies = [
        TenantPolicy.model_validate(
            {
                "tenant": f"t{number}",
                "identities": [{"id": "a", "issuer": "corp", "when": {"azp": "web", "org": f"o{number}"}}],
                "routes": [{"model": "chat", "mode": "student", "student": "small"}],
            }
        )
        for number in range(2000)
    ]
    assert list(check_identities([(policy, None) for policy in policies], ISSUERS)) == []  # type: ignore[misc]
    assert compared < 10_000
