"""The section `identity`: issuers with https URLs, audiences and algorithms with a public key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from gateway.config.identity import DEFAULT_ALGORITHMS, IdentitySettings
from gateway.config.settings import check_settings
from tests.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.settings import Settings

MODEL = "models: [{name: big, protocol: tgi, api_base: 'http://tgi:80', price: {input_per_1m: 1, output_per_1m: 2}}]\n"
ISSUER = "name: corp, issuer: 'https://login.example.com/realms/corp', audience: gkt-gateway"


def checked(folder: Path, *issuers: str) -> tuple[Settings | None, list[str]]:
    lines = "".join(f"  - {{{issuer}}}\n" for issuer in issuers)
    (folder / "config.yaml").write_text(f"{MODEL}identity:\n  issuers:\n{lines}" if issuers else MODEL)
    settings, _, issues = check_settings(folder / "config.yaml", {})
    return settings, [str(issue).partition("config.yaml:")[2] for issue in issues]


def test_there_is_no_issuer_by_default(tmp_path: Path) -> None:
    settings, issues = checked(tmp_path)
    assert issues == []
    assert settings is not None
    assert settings.identity.issuers == ()


def test_an_issuer_has_safe_defaults(tmp_path: Path) -> None:
    settings, issues = checked(tmp_path, ISSUER)
    assert issues == []
    assert settings is not None
    (issuer,) = settings.identity.issuers
    assert (issuer.audience, issuer.algorithms) == (("gkt-gateway",), DEFAULT_ALGORITHMS)
    assert issuer.jwks_url is None
    assert settings.identity.named("corp") is issuer
    assert settings.identity.named("other") is None


@pytest.mark.parametrize(
    "url",
    [
        "https://login.example.com",
        "https://login.example.com/",
        "https://login.example.com:8443/realms/corp",
        "http://127.0.0.1:5556/dex",
        "http://localhost:5556/dex",
        "http://[::1]:5556",
    ],
)
def test_a_url_is_kept_as_written(tmp_path: Path, url: str) -> None:
    settings, issues = checked(tmp_path, f"name: corp, issuer: '{url}', audience: [a, b], jwks_url: '{url}'")
    assert issues == []
    assert settings is not None
    (issuer,) = settings.identity.issuers
    assert (issuer.issuer, issuer.jwks_url, issuer.audience) == (url, url, ("a", "b"))


@pytest.mark.parametrize(
    ("issuer", "issue"),
    [
        ("name: a, issuer: 'http://login.example.com', audience: x", "issuer: must begin with https://"),
        ("name: a, issuer: 'http://10.0.0.1', audience: x", "issuer: must begin with https://"),
        ("name: a, issuer: 'http://localhost.example.com', audience: x", "issuer: must begin with https://"),
        ("name: a, issuer: 'https://u:p@login.example.com', audience: x", "issuer: must not contain a user name"),
        ("name: a, issuer: 'https://login.example.com?x=1', audience: x", "issuer: must not contain '?'"),
        ("name: a, issuer: 'https://login.example.com#x', audience: x", "issuer: must not contain '#'"),
        ("name: a, issuer: 'https://login example.com', audience: x", "issuer: must be a URL like"),
        ("name: a, issuer: 'https://', audience: x", "issuer: must be a URL like"),
        ("name: a, issuer: 'https://h:0/', audience: x", "issuer: must be a URL like"),
        ("name: a, issuer: 'https://h:x/', audience: x", "issuer: must be a URL like"),
        ("name: a, issuer: 'file:///etc/passwd', audience: x", "issuer: must be a URL like"),
        ("name: a, issuer: login.example.com, audience: x", "issuer: must be a URL like"),
        ("name: a, issuer: 'https://h', audience: x, jwks_url: 'http://h/keys'", "jwks_url: must begin with https://"),
        ("name: a, issuer: 'https://h'", "audience: missing"),
        ("name: a, issuer: 'https://h', audience: []", "audience: must have at least 1 entry"),
        ("name: a, issuer: 'https://h', audience: ''", "audience[0]: must not be empty"),
        ("name: a, issuer: 'https://h', audience: {a: b}", "audience: must be a list"),
        ("name: '(unknown)', issuer: 'https://h', audience: x", "name: must be 1 to 64 letters"),
        ("name: a, issuer: 'https://h', audience: x, algorithms: [HS256]", "algorithms[0]: must be RS256"),
        ("name: a, issuer: 'https://h', audience: x, algorithms: [none]", "algorithms[0]: must be RS256"),
        ("name: a, issuer: 'https://h', audience: x, algorithms: []", "algorithms: must have at least 1 entry"),
        (
            "name: a, issuer: 'https://h', audience: x, algorithms: [RS256, RS256]",
            "algorithms: names an algorithm twice",
        ),
        ("name: a, issuer: 'https://h', audience: x, secret: y", "secret: unknown key"),
    ],
)
def test_an_issue_has_its_line_and_field(tmp_path: Path, issuer: str, issue: str) -> None:
    settings, issues = checked(tmp_path, ISSUER, issuer)
    assert settings is None
    assert len(issues) == 1, issues
    assert issues[0].startswith(f"5: identity.issuers[1].{issue}"), issues


def test_the_file_of_a_private_ca_is_relative_to_the_file_and_is_read(tmp_path: Path) -> None:
    (tmp_path / "certs").mkdir()
    authority = Authority(tmp_path / "certs")
    settings, issues = checked(tmp_path, f"{ISSUER}, ca: certs/ca.pem")
    assert issues == []
    assert settings is not None
    assert settings.identity.issuers[0].ca == authority.ca


@pytest.mark.parametrize(
    ("issuer", "issue"),
    [
        ("issuer: 'https://h', ca: missing.pem", "cannot read missing.pem: no such file or directory"),
        ("issuer: 'https://h', ca: empty.pem", "empty.pem has no certificate as PEM: use the file that begins with"),
        ("issuer: 'https://h', ca: key.pem", "key.pem has no certificate as PEM"),
        ("issuer: 'https://h', ca: 7", "must be the path of a file"),
        ("issuer: 'http://127.0.0.1:5556', ca: ca.pem", "has no effect without TLS"),
    ],
)
def test_an_unusable_ca_is_reported_with_its_line(tmp_path: Path, issuer: str, issue: str) -> None:
    Authority(tmp_path)
    (tmp_path / "empty.pem").write_text("")
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    settings, issues = checked(tmp_path, ISSUER, f"name: a, audience: x, {issuer}")
    assert settings is None
    assert len(issues) == 1, issues
    assert issues[0].startswith(f"5: identity.issuers[1].ca: {issue}"), issues


def test_names_and_urls_are_unique(tmp_path: Path) -> None:
    _, issues = checked(tmp_path, ISSUER, ISSUER)
    assert issues == [
        "5: identity.issuers[1].name: issuers[0] has this name too: merge the two",
        "5: identity.issuers[1].issuer: issuers[0] has this issuer too: merge the two",
    ]
    one = {"name": "a", "issuer": "https://h", "audience": "x"}
    with pytest.raises(ValidationError, match="must be unique"):
        IdentitySettings.model_validate({"issuers": [one, one]})
