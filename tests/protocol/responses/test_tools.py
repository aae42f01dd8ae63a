"""Tools of /v1/responses become chat tools, and calls get their names back."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.protocol.responses.request import ResponsesRequest, echo, parse_responses
from gateway.protocol.responses.tools import MAX_TOOLS, CalledTool, Toolbox

FUNCTION: dict[str, Any] = {
    "type": "function",
    "name": "f",
    "description": "F",
    "parameters": {"type": "object"},
    "strict": True,
}
PATCH: dict[str, Any] = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Patch files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: LINE"},
}
SPACE: dict[str, Any] = {
    "type": "namespace",
    "name": "mcp__files",
    "description": "Files.",
    "tools": [{"type": "function", "name": "read"}, {"type": "custom", "name": "write"}],
}
SEARCH: dict[str, Any] = {
    "type": "tool_search",
    "execution": "client",
    "description": "Find tools.",
    "parameters": None,
}
WEB: dict[str, Any] = {"type": "web_search", "external_web_access": False}


def parse(tools: Any, **fields: Any) -> ResponsesRequest:
    return parse_responses(orjson.dumps({"model": "chat", "input": "Hi", "tools": tools, **fields}))


def functions(tools: Any, **fields: Any) -> dict[str, dict[str, Any]]:
    chat_tools = parse(tools, **fields).chat().body["tools"]
    assert all(tool["type"] == "function" for tool in chat_tools)
    return {tool["function"]["name"]: tool["function"] for tool in chat_tools}


def test_a_function_keeps_its_fields() -> None:
    """A chat's function has them in an object of its own."""
    assert functions([FUNCTION]) == {
        "f": {"name": "f", "description": "F", "parameters": {"type": "object"}, "strict": True}
    }
    assert functions([{"type": "function", "name": "g"}]) == {
        "g": {"name": "g", "parameters": {"type": "object", "properties": {}}}
    }


def test_a_custom_tool_is_a_function_with_one_text() -> None:
    """The description has the grammar."""
    function = functions([PATCH])["apply_patch"]
    assert function["description"] == "Patch files.\n\nThe input must match this lark grammar:\nstart: LINE"
    assert function["parameters"]["required"] == ["input"]
    assert parse([PATCH]).toolbox.called("apply_patch") == CalledTool("custom", "apply_patch")


def test_tools_of_a_namespace_have_its_name() -> None:
    """A call gets both names back."""
    found = functions([SPACE])
    assert set(found) == {"mcp__files__read", "mcp__files__write"}
    assert found["mcp__files__read"]["description"] == "Files."
    toolbox = parse([SPACE]).toolbox
    assert toolbox.called("mcp__files__read") == CalledTool("function", "read", "mcp__files")
    assert toolbox.called("mcp__files__write") == CalledTool("custom", "write", "mcp__files")
    assert toolbox.called("made_up") == CalledTool("function", "made_up")


def test_codexs_own_namespace_is_no_part_of_names() -> None:
    """A plain tool of the same name gets another one."""
    own = {**SPACE, "name": "functions", "tools": [FUNCTION]}
    assert set(functions([own])) == {"f"}
    assert parse([own]).toolbox.called("f") == CalledTool("function", "f", "functions")
    names = list(functions([own, FUNCTION]))
    assert len(names) == 2
    toolbox = parse([own, FUNCTION]).toolbox
    assert [toolbox.called(name).namespace for name in names] == ["functions", None]


@given(
    st.lists(
        st.tuples(st.text(st.sampled_from("ab_.é"), min_size=1, max_size=90), st.text("ab_", max_size=80)),
        min_size=1,
        max_size=6,
        unique=True,
    )
)
def test_names_are_valid_unique_and_reversible(pairs: list[tuple[str, str]]) -> None:
    """Whatever the names are, also if two of them give the same text."""
    toolbox = Toolbox()
    for name, space in pairs:
        tool = {"type": "function", "name": name}
        toolbox.add([{"type": "namespace", "name": space, "tools": [tool]} if space else tool], "tools")
    names = [toolbox.name_of(name, space or None) for name, space in pairs]
    assert len(set(names)) == len(names) == len(toolbox.chat_tools)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names)
    assert [toolbox.called(name) for name in names] == [CalledTool("function", n, s or None) for n, s in pairs]


def test_a_tool_that_is_declared_again_replaces_the_first() -> None:
    """As a search that finds a tool again."""
    items = [{"type": "additional_tools", "role": "developer", "tools": [{**FUNCTION, "description": "new"}]}]
    found = functions([FUNCTION], input=[{"role": "user", "content": "a"}, *items])
    assert [function["description"] for function in found.values()] == ["new"]


def test_a_search_that_the_client_runs_is_a_function() -> None:
    """Codex loads tools with it."""
    assert functions([SEARCH])["tool_search"]["description"] == "Find tools."
    assert parse([SEARCH]).toolbox.called("tool_search") == CalledTool("tool_search", "tool_search")


@pytest.mark.parametrize(
    "kind",
    ["web_search", "web_search_preview", "file_search", "code_interpreter", "image_generation", "mcp", "computer",
     "computer_use_preview", "local_shell", "shell", "apply_patch", "tool_search", "unknown"],
)  # fmt: skip
def test_a_hosted_tool_is_rejected(kind: str) -> None:
    """The error names the field."""
    with pytest.raises(InvalidRequest, match=f"does not run '{kind}' tools") as refused:
        parse([{"type": kind}])
    assert refused.value.param == "tools[0].type"
    if kind != "image_generation":
        with pytest.raises(InvalidRequest) as refused:
            parse([FUNCTION, {"type": kind}])
        assert refused.value.param == "tools[1].type"


def test_codexs_hosted_tools_are_left_out() -> None:
    """The response lists the tools that the model got. Without tools of the client, they are rejected."""
    request = parse([FUNCTION, WEB, {"type": "image_generation", "output_format": "png"}, SEARCH])
    assert [tool["type"] for tool in echo(request, stored=False)["tools"]] == ["function", "tool_search"]
    assert set(request.toolbox.chat_tools) == {"f", "tool_search"}
    with pytest.raises(InvalidRequest):
        parse([WEB])


def test_the_response_lists_tools_with_all_fields() -> None:
    """OpenAI's schema requires them."""
    shown = echo(parse([{"type": "function", "name": "g"}, SPACE]), stored=False)["tools"]
    function = {"type": "function", "name": "g", "description": None, "parameters": None, "strict": False}
    assert shown[0] == function
    assert shown[1]["tools"] == [{**function, "name": "read"}, {"type": "custom", "name": "write"}]


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{}], "tools[0].type"),
        ([{"type": "function"}], "tools[0].name"),
        ([{"type": "function", "function": {"name": "f"}}], "tools[0].name"),
        ([{"type": "function", "name": "f", "parameters": "{}"}], "tools[0].parameters"),
        ([{"type": "custom", "name": ""}], "tools[0].name"),
        ([{"type": "namespace", "name": "n", "tools": []}], "tools[0].tools"),
        ([{"type": "namespace", "tools": [FUNCTION]}], "tools[0].name"),
        ([{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}], "tools[0].tools[0].type"),
        ([{**SEARCH, "parameters": []}], "tools[0].parameters"),
    ],
)
def test_an_invalid_tool_is_rejected(tools: Any, param: str) -> None:
    """The error names the field."""
    with pytest.raises(InvalidRequest) as refused:
        parse(tools)
    assert refused.value.param == param


def test_tools_are_limited() -> None:
    """The limit includes tools of namespaces and of items. A repeated declaration does not count."""
    tools = [{**FUNCTION, "name": f"f{index}"} for index in range(MAX_TOOLS)]
    assert len(parse([*tools, tools[0]]).toolbox.chat_tools) == MAX_TOOLS
    with pytest.raises(InvalidRequest, match="more than 1024 tools"):
        parse([*tools, SPACE])
    choice = {"type": "allowed_tools", "tools": [{"type": "function", "name": "f"}] * (MAX_TOOLS + 1)}
    with pytest.raises(InvalidRequest, match="at most 1024 tools"):
        parse([FUNCTION], tool_choice=choice).chat()


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "name": "f"}, named("f")),
        ({"type": "custom", "name": "apply_patch"}, named("apply_patch")),
        ({"type": "function", "name": "read", "namespace": "mcp__files"}, named("mcp__files__read")),
    ],
)
def test_the_choice_of_a_tool_is_the_chats(choice: Any, expected: Any) -> None:
    """All tools are sent with it."""
    body = parse([FUNCTION, PATCH, SPACE], tool_choice=choice, parallel_tool_calls=False).chat().body
    assert (body["tool_choice"], body["parallel_tool_calls"], len(body["tools"])) == (expected, False, 4)


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ([{"type": "function", "name": "f"}], ["f"]),
        ([{"type": "custom", "name": "apply_patch"}, {"type": "function", "name": "f"}], ["f", "apply_patch"]),
        ([{"type": "namespace", "name": "mcp__files"}], ["mcp__files__read", "mcp__files__write"]),
        ([{"type": "tool_search"}], ["tool_search"]),
    ],
)
def test_only_allowed_tools_are_sent(tools: Any, expected: list[str]) -> None:
    """Few engines know a list of allowed tools."""
    choice = {"type": "allowed_tools", "mode": "required", "tools": tools}
    body = parse([FUNCTION, PATCH, SPACE, SEARCH], tool_choice=choice).chat().body
    assert body["tool_choice"] == "required"
    assert [tool["function"]["name"] for tool in body["tools"]] == expected


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ("sometimes", "tool_choice"),
        ({"type": "file_search"}, "tool_choice.type"),
        ({"type": "function", "name": "g"}, "tool_choice"),
        ({"type": "function"}, "tool_choice"),
        ({"type": "allowed_tools", "mode": "never", "tools": []}, "tool_choice.mode"),
        ({"type": "allowed_tools"}, "tool_choice.tools"),
        ({"type": "allowed_tools", "tools": [{"type": "function", "name": "g"}]}, "tool_choice"),
    ],
)
def test_an_invalid_choice_is_rejected(choice: Any, param: str) -> None:
    """The error names the field."""
    with pytest.raises(InvalidRequest) as refused:
        parse([FUNCTION], tool_choice=choice).chat()
    assert refused.value.param == param


def test_a_call_cannot_be_required_without_tools() -> None:
    """Any other choice has no effect then."""
    with pytest.raises(InvalidRequest, match="there is no tool"):
        parse([], tool_choice="required").chat()
    assert "tool_choice" not in parse([], tool_choice="none").chat().body


def test_bytes_that_tools_get_on_the_way_to_the_engine_are_counted() -> None:
    """Limits and budgets reserve a token for each byte of a request."""
    space = {"type": "namespace", "name": "n" * 56, "tools": [{"type": "function", "name": f"f{n}"} for n in range(50)]}
    request = parse([space, *({"type": "custom", "name": f"c{n}"} for n in range(50))]).chat()
    assert request.size_bytes >= sum(len(orjson.dumps(tool["function"])) for tool in request.body["tools"])
