"""The admin API's keys, over HTTP, on two gateway processes that share a Redis."""

from __future__ import annotations

import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ADMIN_KEY = "an-admin-key-for-tests"
REACHES_EVERYBODY_WITHIN_S = 2.0


def start(folder: Path, redis_url: str, engine_url: str, prefix: str) -> GatewayProcess:
    folder.mkdir()
    (folder / "admin.key").write_text(ADMIN_KEY + "\n")
    process = GatewayProcess(
        folder,
        redis_url=redis_url,
        redis={"prefix": prefix, "timeout": "2s"},
        admin={"key": "file:admin.key"},
        models=[model("small", "openai", f"{engine_url}/v1", continuation="trailing", echo=False)],
        routes=[STUDENT_ONLY | {"baseline": "small"}, {"model": "other", "mode": "student", "student": "small"}],
        tenants={"globex": {"redis_slices": 3}},
    )
    process.start()
    return process


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    """Run two processes that share only their Redis."""
    folder, prefix = tmp_path_factory.mktemp("two"), f"a{os.urandom(4).hex()}"
    with FakeEngine(says("Hello there.")).running() as engine:
        processes: list[GatewayProcess] = []
        try:
            processes.append(start(folder / "one", redis_url, engine.url, prefix))
            processes.append(start(folder / "other", redis_url, engine.url, prefix))
            yield processes[0], processes[1]
        finally:
            for process in processes:
                process.close()


def admin(process: GatewayProcess, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
    return httpx.request(
        method,
        process.admin_url + path,
        content=None if body is None else body if isinstance(body, bytes) else json.dumps(body),
        headers={"Authorization": f"Bearer {ADMIN_KEY}", **headers},
        timeout=20,
    )


def create(process: GatewayProcess, **body: Any) -> dict[str, Any]:
    answer = admin(process, "POST", "/keys", {"tenant": "acme", "id": f"k{os.urandom(4).hex()}", **body})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def ask(process: GatewayProcess, token: str, model_name: str = "chat-student") -> httpx.Response:
    body = {"model": model_name, "messages": [{"role": "user", "content": "Hello"}]}
    return httpx.post(f"{process.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {token}"})


def within(limit_s: float, holds: Callable[[], bool]) -> bool:
    """Return whether the condition becomes true in that time."""
    give_up = time.monotonic() + limit_s
    while time.monotonic() < give_up:
        if holds():
            return True
        time.sleep(0.02)
    return False


Two = tuple[GatewayProcess, GatewayProcess]


@pytest.mark.long
def test_a_key_made_at_one_process_holds_at_both_and_its_end_reaches_both_within_two_seconds(two: Two) -> None:
    one, other = two
    made = create(one, id="prod")
    token = made["key"]
    assert re.fullmatch(r"gk-[A-Za-z0-9_-]{43}", token)
    assert (made["tenant"], made["id"], made["status"], made["hint"]) == ("acme", "prod", "active", token[:6])
    assert ask(one, token).status_code == 200, "at once where it was made"
    assert within(REACHES_EVERYBODY_WITHIN_S, lambda: ask(other, token).status_code == 200)

    revoked = admin(other, "DELETE", "/keys/acme/prod")
    assert (revoked.status_code, revoked.json()["status"]) == (200, "revoked")
    assert ask(other, token).status_code == 401, "at once where it was revoked"
    started = time.monotonic()
    assert within(REACHES_EVERYBODY_WITHIN_S, lambda: ask(one, token).status_code == 401)
    print(f"revoked at one process, refused by the other after {time.monotonic() - started:.2f} s")
    error = ask(one, token).json()["error"]
    assert error["code"] == "invalid_api_key"
    assert "was revoked" in error["message"]
    assert token not in str(error)
    again = admin(one, "DELETE", "/keys/acme/prod")
    assert again.json()["revoked"] == revoked.json()["revoked"]


def test_a_key_has_only_its_permissions(two: Two) -> None:
    one, _ = two
    token = create(one, models=["other"])["key"]
    assert ask(one, token, "other").status_code == 200
    refused = ask(one, token)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    models = httpx.get(f"{one.url}/v1/models", headers={"Authorization": f"Bearer {token}"}).json()
    assert [found["id"] for found in models["data"]] == ["other"]


def test_a_keys_limits_apply_to_all_processes_and_survive_a_rotation(two: Two) -> None:
    one, other = two
    made = create(one, id="limited", limits={"rpm_limit": 3})
    assert within(REACHES_EVERYBODY_WITHIN_S, lambda: ask(other, made["key"]).status_code == 200)
    assert [ask(one, made["key"]).status_code for _ in range(2)] == [200, 200]
    assert [ask(process, made["key"]).status_code for process in two] == [429, 429]
    new = admin(one, "POST", "/keys/acme/limited/rotate", {"grace": "0s"}).json()
    refused = ask(one, new["key"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")


def test_a_key_expires_on_time(two: Two) -> None:
    one, other = two
    made = create(one, expires="5s")
    assert within(4, lambda: ask(other, made["key"]).status_code == 200)
    assert within(10, lambda: ask(one, made["key"]).status_code == ask(other, made["key"]).status_code == 401)
    assert "This API key expired on " in ask(one, made["key"]).json()["error"]["message"]
    dated = create(one, expires="2999-12-31")
    assert dated["expires"] == "3000-01-01T00:00:00Z"


def test_a_rotated_key_keeps_its_id_and_the_old_one_holds_for_its_grace_time(two: Two) -> None:
    one, other = two
    old = create(one, id="rotated", limits={"rpm_limit": 600}, budget={"max_budget": 2.5})
    answer = admin(one, "POST", "/keys/acme/rotated/rotate", {"grace": "5s"})
    assert answer.status_code == 201
    new = answer.json()
    assert (new["id"], new["replaces"], new["limits"]) == ("rotated", "rotated.1", {"rpm_limit": 600})
    assert answer.text.count('"max_budget":2.5') == 2
    assert (new["replaced"]["id"], new["replaced"]["status"]) == ("rotated.1", "grace")
    assert new["key"] != old["key"]
    for process in two:
        assert within(2, lambda process=process: ask(process, new["key"]).status_code == 200)  # type: ignore[misc]
    assert ask(one, old["key"]).status_code == ask(other, old["key"]).status_code == 200
    line = one.wait_for_log("request", key="rotated.1")
    assert line["tenant"] == "acme"
    assert within(10, lambda: ask(one, old["key"]).status_code == ask(other, old["key"]).status_code == 401)
    assert "was rotated" in ask(other, old["key"]).json()["error"]["message"]
    assert ask(other, new["key"]).status_code == 200
    at_once = admin(other, "POST", "/keys/acme/rotated/rotate", {"grace": "0s"}).json()
    assert at_once["replaced"] | {"id": "rotated.2", "status": "replaced"} == at_once["replaced"]
    assert ask(other, new["key"]).status_code == 401


def test_a_list_has_all_facts_except_for_the_key(two: Two) -> None:
    one, other = two
    made = create(one, id="listed", expires="90d", limits={"tpm_limit": 90000}, tenant="globex")
    assert ask(one, made["key"]).status_code == 200

    def listed() -> dict[str, Any]:
        answer = admin(other, "GET", "/keys?tenant=globex")
        assert made["key"] not in answer.text
        return {key["id"]: key for key in answer.json()["keys"]}

    assert within(8, lambda: listed()["listed"]["last_used"] is not None), "they are told every few seconds"
    found = listed()
    assert set(found) == {"only", "listed"}
    assert (found["only"]["source"], found["listed"]["source"]) == ("file", "redis")
    assert found["listed"]["limits"] == {"tpm_limit": 90000}
    assert found["listed"]["created_by"] == "admin"
    assert set(found["only"]) == set(found["listed"])


def test_a_list_supports_pages(two: Two) -> None:
    one, _ = two
    for number in range(5):
        create(one, id=f"page{number}")
    whole = admin(one, "GET", "/keys").json()
    assert whole["next"] is None
    seen, after = [], ""
    while after is not None:
        page = admin(one, "GET", f"/keys?limit=2&after={after}").json()
        assert len(page["keys"]) <= 2
        seen += [(key["tenant"], key["id"]) for key in page["keys"]]
        after = page["next"]
    assert seen == [(key["tenant"], key["id"]) for key in whole["keys"]]
    assert len(seen) >= 7


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"id": "x"}, 400, "tenant", "'tenant': missing: add it"),
        ({"tenant": "acmee", "id": "x"}, 400, "tenant", "no policy file defines tenant 'acmee'. Did you mean 'acme'?"),
        ({"tenant": "acme", "id": "a b"}, 400, "id", "'id': must be 1 to 64 letters"),
        ({"tenant": "acme", "id": "a" * 57}, 400, "id", "'id': must be at most 56 characters"),
        ({"tenant": "acme", "id": "only"}, 409, None, "The policy file of tenant 'acme' has a key 'only'"),
        ({"tenant": "acme", "id": "x", "expire": "1d"}, 400, "expire", "unknown key. Did you mean 'expires'?"),
        ({"tenant": "acme", "id": "x", "expires": "soon"}, 400, "expires", "must be a date like 2027-06-30"),
        ({"tenant": "acme", "id": "x", "expires": "2027-13-01"}, 400, "expires", "must be a date like"),
        ({"tenant": "acme", "id": "x", "expires": 5}, 400, "expires", "must be a date like"),
        ({"tenant": "acme", "id": "x", "expires": "2020-01-01"}, 409, None, "is in the past"),
        ({"tenant": "acme", "id": "x", "key_alias": "y"}, 400, "key_alias", "use id instead"),
        ({"tenant": "acme", "id": "x", "key": "gk-mine"}, 400, "key", "the gateway generates the key"),
        ({"tenant": "acme", "id": "x", "sha256": "f" * 64}, 400, "sha256", "put a key of your own into a policy file"),
        ({"tenant": "acme", "id": "x", "created_by": "me"}, 400, "created_by", "x-gkt-actor"),
        ({"tenant": "acme", "id": "x", "revoked": False}, 400, "revoked", "DELETE /keys/{tenant}/{id}"),
        ({"tenant": "acme", "id": "x", "admin": True}, 400, "admin", "'admin': unknown key; known here: tenant"),
        ({"tenant": "acme", "id": "x", "models": ["othr"]}, 400, "models", "no route 'othr'. Did you mean 'other'?"),
        ({"tenant": "acme", "id": "x", "models": []}, 400, "models", "must have at least 1 entry"),
        ({"tenant": "acme", "id": "x", "models": "chat"}, 400, "models", "must be a list"),
        ({"tenant": "acme", "id": "x", "limits": {"rpm_limt": 3}}, 400, "limits.rpm_limt", "Did you mean 'rpm_limit'?"),
        ({"tenant": "acme", "id": "x", "limits": {"rpm_limit": 0}}, 400, "limits.rpm_limit", "must be at least 1"),
        ({"tenant": "acme", "id": "x", "budget": {"max_budget": -1}}, 400, "budget.max_budget", "must be between 0"),
        ({"tenant": "acme", "id": "x", "budget": {"max_budget": "5"}}, 400, "budget.max_budget", "without quotes"),
        ({"tenant": "acme", "id": "x", "budget": {}}, 400, "budget.max_budget", "missing"),
        (["tenant"], 400, None, "must be a JSON object"),
        (b"{", 400, None, "not JSON"),
        (b'{"tenant": NaN}', 400, None, "not JSON"),
        (b"[" * 60_000, 400, None, "not JSON"),
        (b'{"tenant": "' + b"a" * 70_000 + b'"}', 413, None, "larger than the limit of 65536 bytes"),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_is_refused_by_its_field(
    two: Two, body: Any, status: int, param: str | None, words: str
) -> None:
    answer = admin(two[0], "POST", "/keys", body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["param"] == param
    assert "gk-mine" not in answer.text
    assert "f" * 64 not in answer.text


def test_a_key_of_a_tenant_with_slices_has_a_part_of_its_limit_in_each(two: Two) -> None:
    answer = admin(two[0], "POST", "/keys", {"tenant": "globex", "id": "x", "limits": {"rpm_limit": 2}})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "2 is below the number of slices of tenant 'globex'. Set at least 3" in error["message"]
    assert error["param"] == "limits.rpm_limit"
    create(two[0], tenant="globex", limits={"rpm_limit": 3})


def test_all_issues_of_a_body_are_reported_together(two: Two) -> None:
    body = {"tenant": "acme", "id": "a b", "limits": {"rpm_limit": -1}, "colour": 3}
    message = admin(two[0], "POST", "/keys", body).json()["error"]["message"]
    assert ["'id'" in message, "'limits.rpm_limit'" in message, "'colour'" in message] == [True] * 3


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("DELETE", "/keys/acme/nope", None, 404, "Tenant 'acme' has no key 'nope'."),
        ("DELETE", "/keys/nobody/only", None, 404, "has no key"),
        ("DELETE", "/keys/acme/only", None, 409, "is defined in the policy file of tenant 'acme'"),
        ("POST", "/keys/acme/only/rotate", None, 409, "is defined in the policy file"),
        ("POST", "/keys/acme/nope/rotate", None, 404, "has no key"),
        ("POST", "/keys/acme/nope/rotate", {"grace": "40d"}, 400, "'grace': must be between 0s and 30d"),
        ("POST", "/keys/acme/nope/rotate", {"grace": 5}, 400, "'grace': a duration needs its unit"),
        ("POST", "/keys/acme/nope/rotate", {"tenant": "globex"}, 400, "'tenant': unknown key; known here: grace"),
        ("POST", "/keys/acme/nope/rotate", {"models": ["x"]}, 400, "'models': unknown key"),
        ("GET", "/keys?tenants=acme", None, 400, "'tenants': unknown parameter; known parameters: tenant"),
        ("GET", "/keys?limit=0", None, 400, "'limit': expected a whole number from 1 to 500"),
        ("GET", "/audit?before=x", None, 400, "'before': expected the id of an entry"),
        ("GET", "/audit?tenant=acne", None, 404, "No policy file defines tenant 'acne'"),
        ("GET", "/audit?tenants=acme", None, 400, "'tenants': unknown parameter"),
        ("PATCH", "/keys/acme/only", None, 405, "not allowed"),
        ("PUT", "/keys", None, 405, "not allowed"),
    ],
)  # fmt: skip
def test_an_impossible_change_is_rejected_with_the_reason(
    two: Two, method: str, path: str, body: Any, status: int, words: str
) -> None:
    answer = admin(two[0], method, path, body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


def test_an_id_is_taken_once(two: Two) -> None:
    one, other = two
    create(one, id="twice")
    for process in two:
        answer = admin(process, "POST", "/keys", {"tenant": "acme", "id": "twice"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    create(other, id="twice", tenant="globex")


def test_callers_keys_have_no_access_to_the_admin_api(two: Two) -> None:
    """No caller's key opens the admin API, and the public listener has none of its routes."""
    one, _ = two
    made = create(one, id="holder")
    for token in (KEY, made["key"]):
        headers = {"Authorization": f"Bearer {token}"}
        for method, path in (
            ("GET", "/keys"),
            ("POST", "/keys"),
            ("POST", "/keys/acme/holder/rotate"),
            ("DELETE", "/keys/acme/holder"),
            ("GET", "/audit"),
        ):
            answer = httpx.request(method, one.admin_url + path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert httpx.request(method, one.url + path, headers=headers).status_code == 404
    assert ask(one, ADMIN_KEY).status_code == 401, "and the admin key is no caller's"
    assert ask(one, made["key"]).status_code == 200


def test_the_audit_trail_records_actions_with_operator_and_time(two: Two) -> None:
    one, other = two
    created = admin(one, "POST", "/keys", {"tenant": "acme", "id": "trail", "models": ["other"]},
                    **{"x-gkt-actor": "alice@example.com"}).json()  # fmt: skip
    rotated = admin(other, "POST", "/keys/acme/trail/rotate", {}, **{"x-gkt-actor": "bob"}).json()
    admin(one, "DELETE", "/keys/acme/trail.1")
    answer = admin(other, "GET", "/audit?limit=3")
    assert created["key"] not in answer.text
    assert rotated["key"] not in answer.text
    entries = answer.json()["entries"]
    assert [(one["actor"], one["action"], one["tenant"], one["subject"]) for one in entries] == [
        ("admin", "key.revoke", "acme", "trail.1"),
        ("bob", "key.rotate", "acme", "trail"),
        ("alice@example.com", "key.create", "acme", "trail"),
    ]
    assert entries[2]["before"] is None
    assert entries[2]["after"] == {
        "hint": created["hint"], "created_by": "alice@example.com", "models": ["other"], "id": "trail", "expires": None
    }  # fmt: skip
    assert entries[1]["before"]["hint"] == created["hint"]
    assert entries[1]["after"]["hint"] == rotated["hint"]
    older = admin(other, "GET", f"/audit?limit=1&before={entries[0]['id']}").json()
    assert older["entries"] == [entries[1]]
    assert older["next"] == entries[1]["id"]
    for name in ("a b", "x" * 65, "a/b", "<b>"):
        refused = admin(one, "GET", "/keys", **{"x-gkt-actor": name})
        assert refused.status_code == 200, "who only looks leaves no entry"
        refused = admin(one, "DELETE", "/keys/acme/trail", **{"x-gkt-actor": name})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-gkt-actor")


def test_the_audit_trail_of_a_tenant_has_its_actions_only(two: Two) -> None:
    one, other = two
    create(one, id="filtered")
    create(one, id="filtered", tenant="globex")
    admin(one, "DELETE", "/keys/acme/filtered")
    entries = admin(other, "GET", "/audit?tenant=acme&limit=2").json()["entries"]
    actions = [(entry["action"], entry["tenant"], entry["subject"]) for entry in entries]
    assert actions == [("key.revoke", "acme", "filtered"), ("key.create", "acme", "filtered")]
    (before,) = admin(other, "GET", f"/audit?tenant=globex&limit=1&before={entries[0]['id']}").json()["entries"]
    assert (before["tenant"], before["subject"]) == ("globex", "filtered")


def test_replies_that_may_contain_a_key_are_not_cacheable(two: Two) -> None:
    answer = admin(two[0], "POST", "/keys", {"tenant": "acme", "id": "uncached"})
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["x-request-id"].startswith("req_")


def test_no_log_metric_or_reply_contains_a_key(two: Two) -> None:
    """Valid, ended and misspelled keys, and keys in a path."""
    one, _ = two
    held, ended = create(one)["key"], create(one, id="canary")["key"]
    admin(one, "DELETE", "/keys/acme/canary")
    odd = "gk-" + "Canary" * 7
    for token in (held, ended, odd, ended[:20]):
        texts = [ask(one, token).text]
        texts.append(httpx.get(f"{one.url}/v1/models/{token}", headers={"Authorization": f"Bearer {held}"}).text)
        texts += [httpx.get(f"{one.admin_url}{path}").text for path in ("/metrics", "/readyz", "/queue")]
        texts += [admin(one, "GET", path).text for path in ("/keys", "/audit")]
        texts += [httpx.get(f"{one.admin_url}/keys", headers={"Authorization": f"Bearer {token}"}).text]
        texts[1] = texts[1].replace(f"'{token}'", "")  # a model's name is repeated, and this caller sent it as one
        assert not [text for text in texts if token in text]
    one.wait_for_log("request")
    for process in two:
        for token in (held, ended, odd, ADMIN_KEY):
            assert token not in process.raw_log
