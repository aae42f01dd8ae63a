"""Conditions of `when`: each condition, all together, and each invalid form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from multidict import CIMultiDict
from pydantic import ValidationError

from gateway.config.yaml_source import load
from gateway.errors import InvalidRequest
from gateway.policy.conditions import MAX_TEXT_CHARS, RequestFacts, RouteCondition
from gateway.policy.schema import TenantPolicy
from gateway.protocol.chat import parse_chat
from gateway.protocol.embeddings import parse_embeddings
from gateway.protocol.text import parse_text_completion

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.protocol.requests import AnyRequest

TOOL = {"type": "function", "function": {"name": "f"}}


def chat(*contents: Any, **more: Any) -> AnyRequest:
    messages = [{"role": "user", "content": one} for one in contents or ("Why is the sky blue?",)]
    return parse_chat(orjson.dumps({"model": "chat", "messages": messages, **more}))


def prompt(given: object, **more: Any) -> AnyRequest:
    return parse_text_completion(orjson.dumps({"model": "chat", "prompt": given, **more}))


def mismatch(when: dict[str, Any], request: AnyRequest, default: int | None = None, **headers: str) -> str | None:
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return RouteCondition.model_validate(when).mismatch(RequestFacts(request, named), default)


def holds(when: dict[str, Any], request: AnyRequest, default: int | None = None, **headers: str) -> bool:
    return mismatch(when, request, default, **headers) is None


def test_a_tag_of_the_header_or_the_metadata_matches() -> None:
    request = chat(metadata={"tags": "a,b"})
    assert [holds({"tags": tags}, request) for tags in ("a", ["x", "b"], ["x"], "A")] == [True, True, False, False]
    assert holds({"tags": "team:x"}, request, x_gkt_tags="other, team:x")
    assert mismatch({"tags": "x"}, request) == "tags: it does not have it"
    assert mismatch({"tags": ["x", "y"]}, chat()) == "tags: it has none of them"
    with pytest.raises(InvalidRequest, match="'x-gkt-tags'"):
        holds({"tags": "a"}, request, x_gkt_tags="not a tag")


@pytest.mark.parametrize("tags", ["", "a b", ["a", "b,c"], "x" * 65])
def test_a_condition_on_something_else_than_a_tag_is_invalid(tags: object) -> None:
    with pytest.raises(ValidationError, match="must be 1 to 64 letters, digits or any of"):
        RouteCondition.model_validate({"tags": tags})


@pytest.mark.parametrize(
    ("bounds", "fits"),
    [
        ({"gte": 80}, {80, 81}),
        ({"lt": 80}, {79}),
        (80, {80}),
        ({"gte": 80, "lt": 81}, {80}),
    ],
)
def test_numbers_are_compared(bounds: Any, fits: set[int]) -> None:
    assert {one for one in (79, 80, 81) if holds({"max_tokens": bounds}, chat(max_tokens=one))} == fits


def test_a_prompt_is_as_large_as_its_body() -> None:
    request = chat("é")
    size = request.size_bytes
    assert holds({"prompt_bytes": size}, request)
    assert mismatch({"prompt_bytes": {"lt": size}}, request) == f"prompt_bytes is {size}, not less than {size}"


def test_no_limit_is_neither_small_nor_large() -> None:
    """The route's default applies without a caller's limit; max_completion_tokens counts as a limit."""
    for bounds in ({"gte": 1}, {"lt": 10**9}):
        assert mismatch({"max_tokens": bounds}, chat()) == "max_tokens is not set"
    assert holds({"max_tokens": {"gte": 80}}, chat(), 80)
    assert not holds({"max_tokens": {"gte": 80}}, chat(max_completion_tokens=79), 80)


def test_tools_and_stream_are_boolean_conditions() -> None:
    with_tools, with_functions = chat(tools=[TOOL]), chat(functions=[{"name": "f"}])
    for request, offered in ((with_tools, True), (with_functions, True), (chat(tools=[]), False), (prompt("x"), False)):
        assert holds({"tools": offered}, request)
        assert not holds({"tools": not offered}, request)
    for request, streamed in ((chat(stream=True), True), (chat(stream=False), False), (prompt("x", stream=True), True)):
        assert holds({"stream": streamed}, request)
        assert not holds({"stream": not streamed}, request)


def test_header_values_are_compared_unchanged() -> None:
    """Header names are case-insensitive, values are not."""
    assert holds({"header": {"X-Team": "blue"}}, chat(), x_team="blue")
    for sent in ("Blue", "blue ", "blues"):
        assert mismatch({"header": {"x-team": "blue"}}, chat(), X_Team=sent) == "header x-team has another value"
    assert mismatch({"header": {"x-team": "blue"}}, chat()) == "header x-team is not sent"
    assert holds({"header": {"x-team": {"matches": "^(blue|red)$"}}}, chat(), x_team="red")
    assert mismatch({"header": {"x-team": {"matches": "^r"}}}, chat(), x_team="blue") == "header x-team does not match"
    assert holds({"header": {"x-team": {"present": True}}}, chat(), x_team="")
    assert holds({"header": {"x-team": {"present": False}}}, chat())
    assert mismatch({"header": {"x-team": {"present": False}}}, chat(), x_team="") == "header x-team is sent"
    both = {"header": {"x-team": "blue", "x-tier": "gold"}}
    assert holds(both, chat(), x_team="blue", x_tier="gold")
    assert not holds(both, chat(), x_team="blue")


def test_words_are_found_in_any_message_and_any_capitals() -> None:
    request = chat("The REFUND policy", [{"type": "text", "text": "in Straße"}, {"type": "image_url", "image_url": {}}])
    for words in ("refund", ["nothing", "Policy"], "STRASSE"):
        assert holds({"contains": words}, request)
    assert mismatch({"contains": ["a-b", "c-d"]}, request) == "contains: none of it is there"


def test_patterns_match_any_message_literally() -> None:
    request = chat("first", "The refund of é12")
    assert holds({"matches": r"\brefund\b.*[0-9]{2}$"}, request)
    assert holds({"matches": "(?i)REFUND"}, request)
    assert holds({"matches": "é1"}, request)
    assert mismatch({"matches": "REFUND"}, request) == "matches: nothing does"


def test_raw_prompts_and_embeddings_have_words_too() -> None:
    """Token ids are no text."""
    assert holds({"contains": "b"}, prompt(["a", "b"]))
    assert holds({"contains": "b"}, prompt("abc"))
    assert holds({"contains": "b"}, parse_embeddings(orjson.dumps({"model": "v", "input": ["a", "b"]})))
    for request in (prompt([1, 2]), parse_embeddings(orjson.dumps({"model": "v", "input": [[1], [2]]}))):
        assert not holds({"matches": "."}, request)


def test_only_the_beginning_of_a_long_chat_is_searched() -> None:
    """Text across the limit is not matched, whichever messages it is in."""
    long = "x" * (MAX_TEXT_CHARS - 6)
    for request in (chat(long + "needle"), chat(long[:-1], "needle"), prompt(long + "needle")):
        assert holds({"contains": "needle"}, request)
        assert holds({"matches": "needle"}, request)
    for request in (chat(long + "xneedle"), chat(long, "needle"), chat("x" * MAX_TEXT_CHARS, "needle")):
        assert not holds({"contains": "needle"}, request)
        assert not holds({"matches": "needle"}, request)
        assert len(RequestFacts(request, {}).text) <= MAX_TEXT_CHARS


def test_all_that_is_named_must_hold() -> None:
    when = {"max_tokens": {"gte": 80}, "tools": False, "contains": "sky"}
    assert holds(when, chat(max_tokens=80))
    for more in ({"max_tokens": 79}, {"max_tokens": 80, "tools": [TOOL]}):
        assert not holds(when, chat(**more))
    assert not holds(when, chat("Why?", max_tokens=80))


def test_any_and_not_combine_conditions() -> None:
    when = {"any": [{"tools": True}, {"stream": True, "max_tokens": 5}], "not": {"contains": "secret"}}
    assert holds(when, chat(tools=[TOOL]))
    assert holds(when, chat(stream=True, max_tokens=5))
    assert mismatch(when, chat(stream=True)) == "any: none holds (it offers no tools, max_tokens is not set)"
    assert mismatch(when, chat("Secret", tools=[TOOL])) == "not: it holds"
    assert RouteCondition.model_validate(when).reads_text
    assert RouteCondition.model_validate({"any": [{"any": [{"matches": "x"}]}]}).names("matches")
    assert not RouteCondition.model_validate({"any": [{"tools": True}]}).reads_text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def issues_of(folder: Path, when: str, mode: str = "student") -> list[str]:
    file = folder / "a.yaml"
    file.write_text(
        f"tenant: a\nroutes:\n  - model: x\n    mode: {mode}\n    student: s\n    when:{when}\n", encoding="utf-8"
    )
    policy, issues = load(file, TenantPolicy)
    assert (policy is None) == bool(issues)
    return [str(one).removeprefix("a.yaml:") for one in issues]


@pytest.mark.parametrize(
    ("when", "line"),
    [
        (
            "",
            (
                "6: routes[0].when: empty: add a condition, or remove the line: a route without `when` matches "
                "every request"
            ),
        ),
        (
            " {}",
            ("6: routes[0].when: empty: add a condition, or remove it: a route without `when` matches every request"),
        ),
        (" {tols: true}", "6: routes[0].when.tols: unknown key. Did you mean 'tools'?"),
        (" {tools: yes}", "6: routes[0].when.tools: must be true or false. Did you mean 'true'?"),
        ("\n      tools:\n      stream: true", "7: routes[0].when.tools: empty: write a value, or remove the line"),
        (" {max_tokens: '80'}", "6: routes[0].when.max_tokens: must hold keys, one per line, each as 'key: value'"),
        (" {max_tokens: -1}", "6: routes[0].when.max_tokens.gte: must be at least 0"),
        (" {max_tokens: {gteq: 80}}", "6: routes[0].when.max_tokens.gteq: unknown key. Did you mean 'gte'?"),
        (
            " {max_tokens: {gte: 80, lt: 80}}",
            "6: routes[0].when.max_tokens: no number satisfies all bounds",
        ),
        (" {max_tokens: {lt: 0}}", "6: routes[0].when.max_tokens: no number satisfies all bounds"),
        (" {max_tokens: {}}", "6: routes[0].when.max_tokens: empty: write a number, or bounds: gte, lt or both"),
        (" {prompt_bytes: {lt: 8kB}}", "6: routes[0].when.prompt_bytes.lt: must be a whole number, without quotes"),
        (
            " {header: {x-team: 3}}",
            (
                "6: routes[0].when.header.x-team: must be the value in quotes, or {matches: ...}, {present: "
                "true}, {present: false}"
            ),
        ),
        (
            " {header: {x-team: {match: a}}}",
            "6: routes[0].when.header.x-team.match: unknown key. Did you mean 'matches'?",
        ),
        (
            " {header: {x-team: {equals: a, present: true}}}",
            (
                "6: routes[0].when.header.x-team: must be one of: the value itself, {matches: ...}, {present: "
                "true}, {present: false}"
            ),
        ),
        (" {header: {}}", "6: routes[0].when.header: must have at least 1 entry"),
        (
            " {header: {'x team': a}}",
            "6: routes[0].when.header: a header name consists of letters, digits and -, like x-team: correct the name",
        ),
        (
            " {header: {x-a: a, X-A: b}}",
            "6: routes[0].when.header: has a header twice: names are case-insensitive",
        ),
        (
            " {header: {Authorization: a}}",
            (
                "6: routes[0].when.header: authorization may contain a secret and cannot be a condition: use "
                "another header"
            ),
        ),
        (
            " {header: {cookie: {present: true}}}",
            ("6: routes[0].when.header: cookie may contain a secret and cannot be a condition: use another header"),
        ),
        (" {contains: []}", "6: routes[0].when.contains: must have at least 1 entry"),
        (" {contains: ['']}", "6: routes[0].when.contains[0]: must not be empty"),
        (" {any: []}", "6: routes[0].when.any: must have at least 1 entry"),
        (
            "\n      any:\n        - tools: true\n        - {steam: true}",
            "9: routes[0].when.any[1].steam: unknown key. Did you mean 'stream'?",
        ),
        (" {not: {not: {tools: 1}}}", "6: routes[0].when.not.not.tools: must be true or false. Did you mean 'true'?"),
        (" {matches: 3}", "6: routes[0].when.matches: must be a regular expression: put it in quotes"),
        (" {matches: '(ab'}", "6: routes[0].when.matches: is no regular expression: a '(' is never closed"),
        (
            " {matches: 'ab)'}",
            (
                "6: routes[0].when.matches: is no regular expression: a ')' closes nothing; for the character "
                "itself write \\)"
            ),
        ),
        (" {matches: '[ab'}", "6: routes[0].when.matches: is no regular expression: a '[' is never closed"),
        (
            " {matches: 'a|*b'}",
            (
                "6: routes[0].when.matches: is no regular expression: '*' at character 3 has nothing to repeat; "
                "for the character write \\*"
            ),
        ),
        (
            " {matches: 'ab**'}",
            ("6: routes[0].when.matches: is no regular expression of RE2: bad repetition operator '**' at character 3"),
        ),
        (
            " {matches: 'é(?=x)'}",
            (
                "6: routes[0].when.matches: has look-around at character 2, which takes more than linear time: "
                "RE2 has none"
            ),
        ),
        (
            " {matches: 'é(?<!x)'}",
            (
                "6: routes[0].when.matches: has look-around at character 2, which takes more than linear time: "
                "RE2 has none"
            ),
        ),
        (
            " {matches: '(a)\\1'}",
            (
                "6: routes[0].when.matches: has a back-reference at character 4, which takes more than linear "
                "time: RE2 has none"
            ),
        ),
        (
            " {matches: 'a{2000}'}",
            (
                "6: routes[0].when.matches: repeats too often, or backwards: '{2000}' at character 2; at most "
                "1000 times in all"
            ),
        ),
        (
            " {matches: 'a\\'}",
            (
                "6: routes[0].when.matches: is no regular expression: it ends in a single \\; for the character "
                "itself write \\\\"
            ),
        ),
        (
            " {matches: 'x.{0,900}y'}",
            (
                "6: routes[0].when.matches: would take too long: shorten its repetitions, like .{0,300}, or "
                "leave their upper bound open"
            ),
        ),
        (
            "\n      header:\n        x-team:\n          matches: '(a'",
            "9: routes[0].when.header.x-team.matches: is no regular expression: a '(' is never closed",
        ),
    ],
)
def test_an_impossible_or_unreadable_condition_is_an_issue(folder: Path, when: str, line: str) -> None:
    assert issues_of(folder, when) == [line]


@pytest.mark.parametrize("when", ["max_tokens: 1", "tools: true", "not: {stream: true}", "any: [{tools: true}]"])
def test_conditions_on_missing_fields_of_embeddings_are_rejected(folder: Path, when: str) -> None:
    (line,) = issues_of(folder, f" {{{when}}}", "embeddings")
    name = next(name for name in ("max_tokens", "tools", "stream") if name in when)
    assert line == f"6: routes[0].when: embeddings have no {name}: use prompt_bytes, header, contains or matches"


def test_an_evil_pattern_takes_no_longer_than_a_plain_one(folder: Path) -> None:
    """The pattern takes exponential time in a backtracking engine, and linear time here."""
    evil = RouteCondition.model_validate({"matches": "^(a+)+$"})
    assert evil.mismatch(RequestFacts(chat("a" * 60_000 + "b"), {}), None) == "matches: nothing does"
