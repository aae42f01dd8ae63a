"""Aliases of routes and the route `*`: which route a name has, who may use it, and what `check` reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from pydantic import ValidationError

from gateway.config.settings import OVERRIDES
from gateway.errors import ModelNotFound
from gateway.policy.book import Caller, check_all
from gateway.policy.routing import choose, first_route, models_of, require_route
from gateway.policy.schema import MAX_NAME_CHARS, KeyEntry, Route, TenantPolicy
from gateway.policy.split import assign
from gateway.protocol.chat import ChatRequest, parse_chat

if TYPE_CHECKING:
    from pathlib import Path

CHAT = {"model": "chat", "aliases": ["gpt-4o", "gpt-4o-mini"]}
OTHERS = {"model": "*"}


def caller(*routes: dict[str, Any], models: tuple[str, ...] | None = None) -> Caller:
    full = [{"mode": "student", "student": f"s{index}", **one} for index, one in enumerate(routes)]
    policy = TenantPolicy.model_validate({"tenant": "a", "routes": full})
    return Caller(policy, KeyEntry(id="k", sha256="f" * 64, models=models))


def chat(model: str, **more: Any) -> ChatRequest:
    return parse_chat(orjson.dumps({"model": model, "messages": [{"role": "user", "content": "Why?"}], **more}))


def route_of(one: Caller, model: str, **more: Any) -> str | None:
    route = choose(one, chat(model, **more)).route
    return None if route is None else f"{route.model} {route.student}"


def test_a_route_is_found_by_each_of_its_names() -> None:
    one = caller(CHAT, {"model": "other"})
    assert [route_of(one, name) for name in ("chat", "gpt-4o", "gpt-4o-mini", "other", "gpt-4")] == [
        "chat s0", "chat s0", "chat s0", "other s1", None
    ]  # fmt: skip
    assert models_of(one) == ["chat", "gpt-4o", "gpt-4o-mini", "other"]
    assert first_route(one, "gpt-4o") is one.policy.routes[0]


def test_any_other_name_has_the_route_for_all_names() -> None:
    """The place in the file does not matter, and the name `*` is not listed."""
    one = caller(OTHERS, CHAT)
    assert [route_of(one, name) for name in ("chat", "gpt-4o", "claude", "*", "a b")] == [
        "chat s1", "chat s1", "* s0", "* s0", "* s0"
    ]  # fmt: skip
    assert models_of(one) == ["chat", "gpt-4o", "gpt-4o-mini"]
    assert route_of(one, "x" * MAX_NAME_CHARS) == "* s0"
    assert route_of(one, "x" * (MAX_NAME_CHARS + 1)) is None


def test_a_named_route_whose_condition_fails_is_not_replaced_by_the_one_for_all_names() -> None:
    one = caller(CHAT | {"when": {"tools": True}}, OTHERS)
    assert route_of(one, "gpt-4o") is None
    assert route_of(one, "gpt-5") == "* s1"


def test_an_alias_may_be_all_other_names() -> None:
    one = caller({"model": "chat", "aliases": ["*"]})
    assert (route_of(one, "claude"), models_of(one)) == ("chat s0", ["chat"])


def test_routes_of_one_name_may_have_different_aliases() -> None:
    one = caller(
        {"model": "chat", "aliases": ["fast"], "when": {"max_tokens": {"lt": 80}}},
        {"model": "chat", "aliases": ["good"]},
    )
    found = [route_of(one, name, max_tokens=10) for name in ("chat", "fast", "good")]
    assert found == ["chat s0", "chat s0", "chat s1"]
    assert route_of(one, "fast", max_tokens=100) is None


@pytest.mark.parametrize(
    ("models", "allowed"),
    [
        (("chat",), ["chat", "gpt-4o", "gpt-4o-mini"]),
        (("gpt-4o",), ["gpt-4o"]),
        (("*",), ["claude"]),
        (("claude",), ["claude"]),
        (("*", "gpt-4o"), ["gpt-4o", "claude"]),
        (("gone",), []),
    ],
)
def test_a_key_may_use_the_aliases_of_its_routes(models: tuple[str, ...], allowed: list[str]) -> None:
    one = caller(CHAT, OTHERS, models=models)
    names = ["chat", "gpt-4o", "gpt-4o-mini", "claude"]
    assert [name for name in names if route_of(one, name) is not None] == allowed
    assert models_of(one) == [name for name in allowed if name != "claude"]


def test_a_name_that_a_key_may_not_use_is_not_found() -> None:
    with pytest.raises(ModelNotFound, match=r"no model 'claude' for this key. It may use: 'chat', 'gpt-4o'"):
        require_route(caller(CHAT, OTHERS, models=("chat",)), chat("claude"))


def test_all_names_of_a_route_have_the_same_variant() -> None:
    shares = [("a", 0.5), ("b", 0.5)]
    units = {
        assign("conversation", shares, "t", "chat", "k", chat(name), {}).unit for name in ("chat", "gpt-4o", "gpt-4")
    }
    assert len(units) == 1
    assert assign("conversation", shares, "t", "other", "k", chat("chat"), {}).unit not in units


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"aliases": ["x", "x"]}, "names x twice, or repeats model: remove one of the two"),
        ({"aliases": ["chat"]}, "names chat twice, or repeats model: remove one of the two"),
        ({"aliases": ["a b"]}, "must be 1 to 128 letters, digits or any of . _ : / -, or '*' for every other model"),
        ({"aliases": ["gpt-*"]}, "must be 1 to 128 letters, digits or any of . _ : / -, or '*' for every other model"),
        ({"model_group_alias": {}}, "Extra inputs are not permitted"),
    ],
)
def test_names_are_plain_and_differ(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Route.model_validate({"model": "chat", "mode": "student", "student": "s", **keys}, context=object())
    assert message in str(caught.value)


def issues_of(folder: Path, routes: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(folder)
    for variable in OVERRIDES:
        monkeypatch.delenv(variable, raising=False)
    free = "price: {input_per_1m: 0, output_per_1m: 0}"
    (folder / "config.yaml").write_text(
        f"models:\n  - {{name: small, protocol: openai, api_base: 'http://127.0.0.1:1', {free}}}\n"
    )
    (folder / "policies").mkdir()
    (folder / "policies" / "a.yaml").write_text(f"tenant: a\nroutes:\n{routes}")
    return [str(issue) for issue in check_all(folder / "config.yaml")[2]]


def test_check_reports_names_that_are_never_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert issues_of(
        tmp_path,
        "  - {model: chat, aliases: [x, '*'], mode: student, student: small}\n"
        "  - {model: y, aliases: [z, x], mode: student, student: small}\n"
        "  - {model: '*', mode: student, student: small}\n"
        "  - {model: v, aliases: [z], mode: embeddings, student: small}\n",
        monkeypatch,
    ) == [
        "policies/a.yaml:4: routes[1].aliases[1]: never reached: routes[0] takes every request for x",
        "policies/a.yaml:5: routes[2].model: never reached: routes[0] takes every request for *",
        (
            "policies/a.yaml:6: routes[3].aliases[0]: routes[1] has this name too, and only one of the two makes "
            "embeddings: name them apart"
        ),
    ]


def test_check_accepts_aliases_with_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        issues_of(
            tmp_path,
            "  - {model: chat, aliases: [x], mode: student, student: small, when: {stream: true}}\n"
            "  - {model: x, aliases: [chat], mode: student, student: small}\n"
            "  - {model: '*', mode: student, student: small}\n",
            monkeypatch,
        )
        == []
    )
