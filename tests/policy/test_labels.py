"""Labels: declared in policies, read from sources in order of trust."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gateway.config.yaml_source import parse
from gateway.errors import InvalidRequest
from gateway.policy.book import Caller
from gateway.policy.labels import NONE, OTHER, ReadLabel, clean_value, read_labels, read_request_labels
from gateway.policy.routing import choose
from gateway.policy.schema import TenantPolicy
from gateway.protocol.anthropic.request import parse_messages
from gateway.protocol.chat import parse_chat
from gateway.protocol.embeddings import parse_embeddings
from gateway.protocol.responses.request import parse_responses
from gateway.protocol.text import parse_text_completion

if TYPE_CHECKING:
    from collections.abc import Callable

ROUTE = {"model": "chat", "mode": "student", "student": "small"}


def policy(labels: dict[str, Any], key: dict[str, str] | None = None, **more: Any) -> TenantPolicy:
    keys = [{"id": "web", "sha256": "a" * 64, "labels": key or {}}]
    return TenantPolicy.model_validate({"tenant": "acme", "keys": keys, "routes": [ROUTE], "labels": labels, **more})


def caller(
    labels: dict[str, Any], key: dict[str, str] | None = None, claims: dict[str, object] | None = None, **more: Any
) -> Caller:
    held = policy(labels, key, **more)
    return Caller(held, held.keys[0], claims or {})


def one(
    rule: dict[str, Any],
    *,
    key: str | None = None,
    claims: dict[str, object] | None = None,
    header: str | None = None,
    metadata: object = None,
    user: object = None,
) -> ReadLabel:
    who = caller({"team": rule}, None if key is None else {"team": key}, claims)
    return read_labels(who, {} if header is None else {"x-team": header}, metadata, user)["team"]


ALL = {"claim": "department", "header": "x-team", "metadata": "team", "user": True}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"claims": {"department": "c"}, "key": "k", "header": "h"}, ("c", "claim")),
        ({"claims": {"other": "c"}, "key": "k", "header": "h", "metadata": {"team": "m"}}, ("k", "key")),
        ({"header": "h", "metadata": {"team": "m"}, "user": "u"}, ("h", "header")),
        ({"header": " ", "metadata": {"team": "m"}, "user": "u"}, ("m", "metadata")),
        ({"metadata": {"team": ""}, "user": "u"}, ("u", "user")),
        ({"metadata": "no object"}, (NONE, "none")),
        # The most trusted source decides even if its value is not valid.
        ({"claims": {"department": ["a", "b"]}, "header": "h"}, (OTHER, "claim")),
        ({"header": "x" * 65, "metadata": {"team": "m"}}, (OTHER, "header")),
    ],
)
def test_the_most_trusted_source_decides(given: dict[str, Any], expected: tuple[str, str]) -> None:
    assert tuple(one(ALL, **given)) == expected


@pytest.mark.parametrize(
    ("claims", "path", "value"),
    [
        ({"org": {"unit": {"name": "search"}}}, "org.unit.name", "search"),
        ({"https://example.com/team": "a.b"}, "https://example.com/team", "a.b"),
        ({"org": "flat"}, "org.unit", NONE),
        ({"number": 7}, "number", "7"),
        ({"number": 10**5000}, "number", OTHER),
        ({"flag": True}, "flag", OTHER),
        ({"empty": ""}, "empty", NONE),
        ({"nothing": None}, "nothing", NONE),
    ],
)
def test_a_claim_may_be_nested(claims: dict[str, object], path: str, value: str) -> None:
    assert one({"claim": path}, claims=claims).value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("research", "research"),
        ("  R&D, Berlin ", "R&D, Berlin"),
        ("Bu\u0308ro", "B\u00fcro"),  # normal form C, so that both spellings are one value
        ("\u7814\u7a76", "\u7814\u7a76"),
        ("x" * 64, "x" * 64),
        ("x" * 65, None),
        ("", None),
        ("(other)", None),
        ("(none)", None),
        ("a\nb", None),
        ("a\0b", None),
        ("a\u202eb", None),  # text direction
        ("a\u200bb", None),  # no width
        ("\udcff", None),
        ("\u0308" * 1_000_000, None),
    ],
)
def test_a_value_is_short_and_printable(text: str, value: str | None) -> None:
    assert clean_value(text) == value


@pytest.mark.parametrize("value", [["a"], {"a": 1}, 1.5, True, "x" * 1_001, "a\nb"])
def test_a_value_of_another_type_is_invalid(value: object) -> None:
    assert one({"metadata": "team"}, metadata={"team": value}).value == OTHER
    rule = {"metadata": "team", "invalid": "reject"}
    with pytest.raises(InvalidRequest, match=r"'metadata\.team': expected 1 to 64 printable") as wrong:
        one(rule, metadata={"team": value})
    assert wrong.value.param == "metadata.team"


def test_only_listed_values_are_allowed() -> None:
    rule = {"header": "X-Team", "values": ["prod", "staging"]}
    assert one(rule, header="prod").value == "prod"
    assert one(rule, header="Prod").value == OTHER
    assert one(rule, key="dev").value == "dev"  # a key is the operator's
    with pytest.raises(InvalidRequest, match="'x-team': expected one of prod, staging, for the label 'team'") as wrong:
        one({**rule, "invalid": "reject"}, header="secret value")
    assert "secret" not in str(wrong.value)


@pytest.mark.parametrize(
    ("rule", "message", "param"),
    [
        ({"header": "x-team", "metadata": "team"}, "Send it in the header x-team or metadata.team.", "x-team"),
        ({"metadata": "team"}, "Send it in metadata.team.", "metadata.team"),
        ({"user": True}, "Send it in safety_identifier or user.", "user"),
        ({"claim": "team"}, "Ask the operator of this gateway for a key or token with it.", None),
    ],
)
def test_a_missing_label_names_its_sources(rule: dict[str, Any], message: str, param: str | None) -> None:
    assert one(rule).value == NONE
    with pytest.raises(InvalidRequest, match=f"This tenant requires the label 'team'. {message}") as wrong:
        one({**rule, "required": True})
    assert wrong.value.param == param
    who = caller({"team": {**rule, "required": True}})
    assert read_labels(who, {}, None, None, strict=False)["team"].value == NONE


def test_a_hashed_value_may_be_long() -> None:
    rule = {"user": True, "hash": True}
    assert one(rule, user=" (user)\n" + "x" * 500).value == "(user)\n" + "x" * 500
    assert one(rule, user="x" * 1001).value == OTHER
    assert one(rule, user="   ").value == OTHER


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (parse_chat, {"messages": [{"role": "user", "content": "Hi"}], "user": "u", "metadata": {"team": "m"}}),
        (parse_text_completion, {"prompt": "Hi", "user": "u", "metadata": {"team": "m"}}),
        (parse_embeddings, {"input": "Hi", "user": "u", "metadata": {"team": "m"}}),
        (lambda raw: parse_responses(raw).chat(), {"input": "Hi", "user": "u", "metadata": {"team": "m"}}),
        (
            lambda raw: parse_messages(raw).chat,
            {"max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}],
             "metadata": {"user_id": "u", "team": "m"}},
        ),
    ],
)  # fmt: skip
def test_each_api_has_metadata_and_a_user(read: Callable[[bytes], Any], body: dict[str, Any]) -> None:
    request = read(json.dumps({"model": "chat", **body}).encode())
    who = caller({"team": {"metadata": "team"}, "end_user": {"user": True}})
    assert {name: label.value for name, label in read_request_labels(who, {}, request).items()} == {
        "team": "m", "end_user": "u"
    }  # fmt: skip


def test_the_safety_identifier_precedes_the_user() -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "user": "u", "safety_identifier": "s"}
    found = read_request_labels(caller({"end_user": {"user": True}}), {}, parse_chat(json.dumps(body).encode()))
    assert found["end_user"].value == "s"


def test_a_route_may_depend_on_labels() -> None:
    routes = [{**ROUTE, "when": {"labels": {"team": ["a", "b"], "app": "web"}}}, {**ROUTE, "model": "chat"}]
    who = caller({"team": {"header": "x-team"}, "app": {}}, {"app": "web"}, routes=routes)
    chat = parse_chat(json.dumps({"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}).encode())
    assert [choose(who, chat, {"x-team": team}).index for team in ("a", "b", "c")] == [0, 0, 1]
    assert choose(who, chat).passed == ((0, "labels: team has another value"),)


KEYS = 'keys:\n  - {{id: web, sha256: "{hash}", labels: {{{labels}}}}}\n'
ROUTES = "routes:\n  - {model: chat, mode: student, student: small%s}\n"


@pytest.mark.parametrize(
    ("labels", "more", "issue"),
    [
        ("{Team: {}}", "", "labels: a label's name is 1 to 32 of a-z, 0-9 and _"),
        ("{team: {header: cookie}}", "", "labels.team.header: cookie may contain a secret and cannot be a label"),
        ("{team: {values: ['(none)']}}", "", "labels.team.values[0]: must be 1 to 64 printable characters"),
        ("{team: {hash: true, values: [a]}}", "", "labels.team: has both hash and values"),
        ("{team: {hash: true, exceptions: {a: {}}}}", "", "names values of a hashed label"),
        ("{team: {values: [a], exceptions: {b: {}}}}", "", "names 'b', which is not among values"),
        (
            "{team: {budget: {max_budget: 9, soft_budget: 5}, exceptions: {a: {budget: {max_budget: 3}}}}}", "",
            "the label's soft_budget 5 is not below max_budget 3: set soft_budget",
        ),
        ("{team: {}}", KEYS.format(hash="a" * 64, labels="app: web"), "key web has the label app: declare it"),
        ("{team: {}}", "condition", "a condition names the label app, which is hashed or not declared"),
        ("{" + ", ".join(f"l{n}: {{}}" for n in range(9)) + "}", "", "labels: "),
    ],
)  # fmt: skip
def test_an_invalid_declaration_is_an_issue(labels: str, more: str, issue: str) -> None:
    when = ", when: {not: {labels: {app: a}}}" if more == "condition" else ""
    text = f"tenant: acme\nlabels: {labels}\n{'' if when else more}{ROUTES % when}"
    source, issues = parse(text.encode(), "acme.yaml")
    assert source is not None
    _, wrong = source.check(TenantPolicy)
    found = [str(one) for one in (*issues, *wrong)]
    assert len(found) == 1
    assert issue in found[0]


def test_an_exception_has_the_omitted_fields_of_the_budget_of_the_label() -> None:
    general = {"max_budget": 50, "budget_duration": "30d", "on_hard": "student_only"}
    exceptions = {"research": {"budget": {"max_budget": 500}}, "(none)": {"limits": {"rpm_limit": 1}}}
    rule = policy({"team": {"budget": general, "limits": {"rpm_limit": 9}, "exceptions": exceptions}}).labels["team"]
    limits, budget = rule.limits_of("research")
    assert limits is not None
    assert budget is not None
    assert (limits.rpm_limit, budget.max_budget, str(budget.budget_duration)) == (9, 500, "30d")
    assert budget.on_hard == "student_only"
    limits, budget = rule.limits_of("(none)")
    assert limits is not None
    assert budget is not None
    assert (limits.rpm_limit, budget.max_budget) == (1, 50)
