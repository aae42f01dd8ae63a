"""Route selection: the first matching route of the model, among those that the key may use."""

from __future__ import annotations

import threading
from typing import Any

import orjson
import pytest

from gateway.errors import ModelNotFound
from gateway.policy.book import Caller
from gateway.policy.routing import choose, find_route, models_of, require_route
from gateway.policy.schema import KeyEntry, TenantPolicy
from gateway.protocol.chat import ChatRequest, parse_chat
from gateway.protocol.embeddings import EmbeddingsRequest, parse_embeddings


def caller(*routes: str | dict[str, Any], models: tuple[str, ...] | None = None) -> Caller:
    """Return routes; a name alone is a route without a condition."""
    full = [{"model": one} if isinstance(one, str) else {"model": "chat", **one} for one in routes]
    listed = [{"mode": "student", "student": f"s{index}", **one} for index, one in enumerate(full)]
    policy = TenantPolicy.model_validate({"tenant": "a", "routes": listed})
    return Caller(policy, KeyEntry(id="k", sha256="f" * 64, models=models))


def chat(model: str = "chat", content: str = "Why?", **more: Any) -> ChatRequest:
    return parse_chat(orjson.dumps({"model": model, "messages": [{"role": "user", "content": content}], **more}))


def test_a_route_is_found_by_the_name_that_was_sent() -> None:
    found = require_route(caller("x", "y"), chat("y"))
    assert (found.model, found.student) == ("y", "s1")
    assert models_of(caller("x", "y")) == ["x", "y"]
    with pytest.raises(ModelNotFound, match=r"no model 'z' for this key. It may use: 'x'\."):
        require_route(caller("x"), chat("z"))


def test_a_key_lists_only_its_allowed_models() -> None:
    only_x = caller("x", "y", models=("x", "gone"))
    assert models_of(only_x) == ["x"]
    with pytest.raises(ModelNotFound, match=r"no model 'y' for this key. It may use: 'x'\."):
        require_route(only_x, chat("y"))
    with pytest.raises(ModelNotFound, match=r"no model 'x' for this key. It may use: none\."):
        require_route(caller("x", models=("gone",)), chat("x"))


def test_a_name_that_several_routes_have_is_listed_once() -> None:
    assert models_of(caller({"when": {"tools": True}}, "x", {}, {"when": {"stream": True}})) == ["chat", "x"]


def test_the_first_matching_route_is_selected() -> None:
    """Later matching routes and routes of other models are ignored."""
    several = caller(
        {"model": "other"},
        {"when": {"max_tokens": {"gte": 80}}},
        {"when": {"max_tokens": {"gte": 40}}},
        {},
    )
    taken = [choose(several, chat(max_tokens=number)).index for number in (100, 80, 50, 10)]
    assert taken == [1, 1, 2, 3]
    assert choose(several, chat()).passed == ((1, "max_tokens is not set"), (2, "max_tokens is not set"))
    assert require_route(several, chat(max_tokens=50)).student == "s2"


def test_a_request_without_a_limit_has_the_routes() -> None:
    """Each route's own default applies."""
    several = caller(
        {"when": {"max_tokens": {"gte": 80}}, "default_max_tokens": 79},
        {"when": {"max_tokens": {"gte": 80}}, "default_max_tokens": 80},
    )
    assert choose(several, chat()).index == 1
    assert choose(several, chat()).passed == ((0, "max_tokens is 79, not at least 80"),)
    assert choose(several, chat(max_completion_tokens=81)).index == 0


def test_an_unmatched_request_gets_the_reasons_without_its_text() -> None:
    several = caller(
        {"when": {"contains": "refund"}},
        {"when": {"header": {"x-team": "blue"}}},
        {"when": {"max_tokens": {"gte": 80}}},
    )
    with pytest.raises(ModelNotFound) as caught:
        require_route(several, chat(content="my s3cret", max_tokens=7), {"x-team": "s3cret-team"})
    assert caught.value.message == (
        "No route for 'chat' takes this request. routes[0]: contains: it is not there; routes[1]: header x-team has "
        "another value; routes[2]: max_tokens is 7, not at least 80."
    )
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")


def test_the_list_of_reasons_is_limited() -> None:
    many = caller(*({"when": {"max_tokens": number}} for number in range(1, 10)))
    with pytest.raises(ModelNotFound, match=r"routes\[4\]: max_tokens is not set; and 4 more\.$"):
        require_route(many, chat())


def test_embeddings_find_their_routes_likewise() -> None:
    vectors = caller(
        {"model": "v", "mode": "embeddings", "when": {"contains": "code"}},
        {"model": "v", "mode": "embeddings", "when": {"prompt_bytes": {"lt": 1000}}},
    )

    def request(given: object) -> EmbeddingsRequest:
        return parse_embeddings(orjson.dumps({"model": "v", "input": given}))

    assert choose(vectors, request(["prose", "Code"])).index == 0
    assert choose(vectors, request([[1, 2]])).index == 1
    assert choose(vectors, request("x" * 1000)).route is None


@pytest.mark.parametrize(("size", "elsewhere"), [(100, False), (20_000, True)])
async def test_long_chats_are_searched_off_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, size: int, *, elsewhere: bool
) -> None:
    """Short chats are matched in the event loop; without a text condition, so are long ones."""
    seen: list[int] = []
    by_words = caller({"when": {"matches": "refund"}}, {})
    snapshot = type(by_words.policy.routes[0].when).mismatch

    def noted(*args: Any) -> str | None:
        seen.append(threading.get_ident())
        return snapshot(*args)

    monkeypatch.setattr("gateway.policy.conditions.RouteCondition.mismatch", noted)
    assert (await find_route(by_words, chat(content="word " * (size // 5)))).student == "s1"
    assert (await find_route(caller({"when": {"tools": True}}, {}), chat(content="x" * size))).student == "s1"
    here = threading.get_ident()
    assert [one == here for one in seen] == [not elsewhere, True]
