"""The section `admin.oidc`: each mistake is an issue with its line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.config.settings import admin_key, admin_listener, check_settings

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.settings import Settings

FILE = """\
models: [{name: big, protocol: tgi, api_base: 'http://tgi:80', price: {input_per_1m: 1, output_per_1m: 2}}]
identity: {issuers: [{name: corp, issuer: 'https://login.example.com/realms/corp', audience: gkt}]}
admin:
  key: env:ADMIN_KEY
  oidc:
    issuer: corp
    client_id: gkt-dashboard
    client_secret: env:OIDC_SECRET
    public_url: https://gkt.example.com
    roles:
      admin: {groups: gkt-admins}
      viewer: {groups: [gkt-viewers, staff], realm_access.roles: viewer, email_verified: true}
"""
ENVIRON = {"ADMIN_KEY": "k" * 16, "OIDC_SECRET": "a-client-secret", "SESSION_SECRET": "s" * 32, "SHORT": "s" * 31}


def checked(folder: Path, text: str) -> tuple[Settings | None, list[str]]:
    (folder / "config.yaml").write_text(text)
    settings, _, issues = check_settings(folder / "config.yaml", ENVIRON)
    return settings, [str(issue).partition("config.yaml:")[2] for issue in issues]


def test_a_complete_section_is_accepted(tmp_path: Path) -> None:
    settings, issues = checked(tmp_path, FILE)
    assert issues == []
    assert settings is not None
    oidc = settings.admin.oidc
    assert oidc is not None
    assert oidc.scopes == ("openid", "profile", "email")
    assert oidc.roles.admin == {"groups": ("gkt-admins",)}
    assert oidc.roles.operator is None
    assert oidc.roles.viewer == {
        "groups": ("gkt-viewers", "staff"),
        "realm_access.roles": ("viewer",),
        "email_verified": (True,),
    }
    assert "a-client-secret" not in repr(settings)


def test_without_the_section_there_is_no_login_at_a_provider(tmp_path: Path) -> None:
    settings, issues = checked(tmp_path, FILE.partition("  oidc:")[0])
    assert issues == []
    assert settings is not None
    assert settings.admin.oidc is None


def test_a_session_secret_replaces_the_admin_key(tmp_path: Path) -> None:
    keyless = FILE.replace("  key: env:ADMIN_KEY\n", "")
    _, issues = checked(tmp_path, keyless)
    assert issues == [
        "4: admin.oidc: needs a secret that signs sessions: set oidc.session_secret, or admin.key",
    ]
    settings, issues = checked(tmp_path, keyless + "    session_secret: env:SESSION_SECRET\n")
    assert issues == []
    assert settings is not None
    assert settings.admin.key is None


@pytest.mark.parametrize("url", ["https://gkt.example.com", "https://gkt.example.com:8443/", "http://127.0.0.1:8081"])
def test_a_public_url_has_no_path(tmp_path: Path, url: str) -> None:
    settings, issues = checked(tmp_path, FILE.replace("https://gkt.example.com", url))
    assert issues == []
    assert settings is not None
    assert settings.admin.oidc is not None
    assert settings.admin.oidc.public_url == url.rstrip("/")


MISTAKES = [
    ("issuer: corp\n", "issuer: crop\n", "6: admin.oidc.issuer: there is no issuer 'crop' in identity.issuers"),
    ("https://gkt.example.com", "http://gkt.example.com", "9: admin.oidc.public_url: must begin with https://"),
    ("https://gkt.example.com", "https://gkt.example.com/x", "9: admin.oidc.public_url: must have no path"),
    ("env:OIDC_SECRET", "a-client-secret", "8: admin.oidc.client_secret: a secret must not be written in this file"),
    ("{groups: gkt-admins}", "{}", "11: admin.oidc.roles.admin: must have at least 1 entry"),
    ("admin: {groups", "admins: {groups", "11: admin.oidc.roles.admins: unknown key. Did you mean 'admin'?"),
    ("{groups: gkt-admins}", "{groups: 1.5}", "11: admin.oidc.roles.admin.groups[0]: must be text, a whole number"),
    ("    client_id", "    scopes: [profile]\n    client_id", "7: admin.oidc.scopes: must contain openid"),
    ("    client_id", "    scopes: ['a b', openid]\n    client_id", "7: admin.oidc.scopes[0]: must be the name"),
    (
        "    client_id",
        "    session_secret: env:SHORT\n    client_id",
        "7: admin.oidc.session_secret: must have at least",
    ),
    ("{groups: gkt-admins}", "{scope: a b}", "11: admin.oidc.roles.admin: matches no token: scope is a list of words"),
    ("    client_id", "    logout: everywhere\n    client_id", "7: admin.oidc.logout: must be local or provider"),
]


@pytest.mark.parametrize(("old", "new", "issue"), MISTAKES)
def test_a_mistake_is_an_issue_with_its_line(tmp_path: Path, old: str, new: str, issue: str) -> None:
    settings, issues = checked(tmp_path, FILE.replace(old, new))
    assert settings is None
    assert [one[: len(issue)] for one in issues] == [issue]


def test_some_role_is_needed(tmp_path: Path) -> None:
    text = FILE.partition("    roles:")[0] + "    roles: {}\n"
    assert checked(tmp_path, text)[1] == [
        "10: admin.oidc.roles: must have a rule for at least one of admin, operator and viewer"
    ]


def test_clients_need_no_secret_of_the_provider(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(FILE)
    environ = {"ADMIN_KEY": "k" * 16}
    assert admin_listener(tmp_path / "config.yaml", environ) == ("127.0.0.1", 8081)
    key = admin_key(tmp_path / "config.yaml", environ)
    assert key is not None
    assert key.get_secret_value() == "k" * 16
