"""`check --identity` shows which rule matches a token or its claims, and explains requests of that caller."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import typer
from structlog.testing import capture_logs
from typer.testing import CliRunner

from gateway.cli.check import check
from gateway.config.settings import OVERRIDES
from tests.identity_provider import TokenIssuer, published, token_issuer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

URL = "https://login.example.com/realms/corp"
CONFIG = """\
identity: {{issuers: [{{name: corp, issuer: '{url}', audience: gkt-gateway}}]}}
models:
  - {{name: small, protocol: openai, api_base: "http://s:1", price: {{input_per_1m: 1, output_per_1m: 1}}}}
"""
ROUTES = "routes: [{model: chat, mode: student, student: small}, {model: other, mode: student, student: small}]\n"
ACME = f"""\
tenant: acme
{ROUTES}identities:
  - {{id: admins, issuer: corp, when: {{roles: admin}}}}
  - {{id: staff, issuer: corp, when: {{groups: llm-users}}, key: sub, models: [chat], limits: {{rpm_limit: 7}}}}
"""
GLOBEX = f"tenant: globex\n{ROUTES}identities: [{{id: users, issuer: corp, when: {{groups: partners}}}}]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for variable in OVERRIDES:
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "config.yaml").write_text(CONFIG.format(url=URL))
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "acme.yaml").write_text(ACME)
    (tmp_path / "policies" / "globex.yaml").write_text(GLOBEX)
    return tmp_path


def run(*arguments: str, given: str = "") -> tuple[int, str, str]:
    """Return the exit code, stdout and stderr of `check`."""
    app = typer.Typer()
    app.command()(check)
    result = CliRunner().invoke(app, arguments, input=given)
    return result.exit_code, result.stdout, result.stderr


def match(**claims: Any) -> tuple[int, dict[str, Any]]:
    code, out, _ = run("--identity", "-", "--json", given=json.dumps({"iss": URL, **claims}))
    return code, json.loads(out)


@contextmanager
def issuer_in_thread() -> Iterator[TokenIssuer]:
    """Run an issuer in a thread, since the command blocks this one."""
    ready, found = threading.Event(), list[TokenIssuer]()
    loop, done = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with token_issuer() as issuer:
            found.append(issuer)
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


@pytest.mark.usefixtures("folder")
def test_the_matching_rule_is_shown_and_why_the_others_do_not_match() -> None:
    code, out, err = run("--identity", "-", given=json.dumps({"iss": URL, "sub": "ada", "groups": ["llm-users"]}))
    assert (code, err) == (0, "")
    first, *rows, last = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines() if line.strip(" ─")]
    assert first == ["-: claims, without a signature, an audience or times to check, of issuer corp"]
    assert rows[1:] == [
        ["acme", "admins", "policies/acme.yaml:4", "no: there is no claim roles"],
        ["acme", "staff", "policies/acme.yaml:5", "match"],
        ["globex", "users", "policies/globex.yaml:3", "no: the claim groups has another value"],
    ]
    assert last == ["tenant acme, key staff:ada"]


def test_one_name_for_callers_and_for_the_login_is_a_warning_and_rules_need_no_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_SECRET", "s" * 32)
    for client_id, count in (("gkt-dashboard", 0), ("gkt-gateway", 1)):
        oidc: dict[str, Any] = {"issuer": "corp", "client_id": client_id, "public_url": "https://gkt.example.com"}
        oidc |= {"session_secret": "env:SESSION_SECRET", "roles": {"viewer": {"groups": "staff"}}}
        admin = json.dumps({"oidc": oidc})
        (folder / "config.yaml").write_text(f"{CONFIG.format(url=URL)}admin: {admin}\n")
        code, _, err = run()
        assert code == 0, err
        assert err.count("warning: admin.oidc: its client_id is an audience of issuer corp, too") == count
        assert "no policy file has a key" not in err


@pytest.mark.usefixtures("folder")
def test_rejections_have_their_reason_and_exit_with_1() -> None:
    code, found = match(groups=["a"])
    assert (code, found["refused"]["status"], found["tenant"]) == (1, 401, None)
    assert found["refused"]["message"].endswith("They compare the claims groups, roles.")
    code, found = match(groups=["llm-users", "partners"], sub="ada")
    assert code == 1
    assert [one["takes"] for one in found["rules"]] == [False, True, True]
    assert "2 tenants" in found["refused"]["message"]
    code, found = match(groups=["llm-users"], roles="admin")
    assert (code, found["key"], [one["why"] for one in found["rules"]]) == (
        0,
        "admins:*",
        [None, None, "the claim groups has another value"],
    )


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ('{"iss": "https://other.example"}', f"iss is not the URL of an issuer of config.yaml; known: {URL}"),
        ("{}", "iss is not the URL of an issuer"),
        ("[]", "neither a token nor claims as a JSON object (not a JSON object)"),
        ('{"a": NaN}', "neither a token nor claims as a JSON object (unexpected character"),
        ("", "neither a token nor claims"),
    ],
)
def test_other_input_is_an_error(given: str, words: str) -> None:
    code, out, err = run("--identity", "-", given=given)
    assert (code, out) == (1, "")
    assert words in err


@pytest.mark.usefixtures("folder")
def test_a_missing_file_is_an_error() -> None:
    code, _, err = run("--identity", "none.json")
    assert (code, err) == (1, "gkt-gateway: none.json: cannot be read: no such file or directory\n")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("options", [("--tenant", "acme"), ("--key", "x"), ("--explain", "-")])
def test_options_that_contradict_it_are_rejected(options: tuple[str, str]) -> None:
    explain = () if options[0] == "--explain" else ("--explain", "request.json")
    code, _, err = run("--identity", "-", *options, *explain)
    assert code == 2
    assert "--identity" in err


def test_a_request_is_explained_for_the_caller(folder: Path) -> None:
    request = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}
    (folder / "request.json").write_text(json.dumps(request))
    claims = json.dumps({"iss": URL, "sub": "ada", "groups": ["llm-users"]})
    arguments = ("--identity", "-", "--explain", "request.json", "--json")
    code, out, _ = run(*arguments, given=claims)
    found = json.loads(out)
    assert (code, found["request"]["tenant"], found["request"]["key"]) == (0, "acme", "staff:ada")
    assert found["limits"]["key"] == {"rpm_limit": 7}
    (folder / "request.json").write_text(json.dumps({**request, "model": "other"}))
    code, out, _ = run(*arguments, given=claims)
    assert (code, json.loads(out)["refused"]["code"]) == (1, "model_not_found")
    code, out, _ = run(*arguments, given=json.dumps({"iss": URL}))
    assert (code, json.loads(out)["refused"]["status"]) == (1, 401)


def test_a_token_is_verified_with_the_keys_of_its_issuer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cli.identity_match.set_up_logs", lambda *_: None)
    with issuer_in_thread() as issuer, capture_logs():
        (folder / "config.yaml").write_text(CONFIG.format(url=issuer.url))
        (folder / "token").write_text(issuer.token(groups=["llm-users"]) + "\n")
        code, out, err = run("--identity", "token")
        assert (code, err) == (0, "")
        assert out.startswith("token: a verified token, of issuer corp\n")
        issuer.keys = [published("k2")]
        why = "The token of issuer 'corp' is signed with a key that the issuer does not publish."
        assert run("--identity", "token")[::2] == (1, f"gkt-gateway: token: rejected with 401: {why}\n")
        issuer.status = 503
        code, _, err = run("--identity", "token")
        assert (code, err) == (1, "gkt-gateway: the keys of issuer 'corp' cannot be read: the reply has status 503\n")


def test_check_warns_of_models_that_no_route_has(folder: Path) -> None:
    file = folder / "policies" / "acme.yaml"
    file.write_text(file.read_text().replace("models: [chat]", "models: [chta]"))
    assert "tenant acme: identity staff: no route of the tenant has model chta: correct or remove the name" in run()[2]
