from __future__ import annotations

import re
from typing import TYPE_CHECKING, get_args
from urllib.parse import urlsplit

import pytest

from gateway.policy.book import check_all
from gateway.protocol.capabilities.continuation import NATIVE_MODES, Mode
from gateway.protocol.capabilities.kinds import KINDS, TGI, UNKNOWN, EngineKind, Renderer, kind_of
from tests.docs.test_docs import page

if TYPE_CHECKING:
    from pathlib import Path


def named(name: str) -> EngineKind:
    return next(kind for kind in KINDS if kind.name == name)


@pytest.mark.parametrize(
    ("owner", "host", "name"),
    [
        ("vllm", "10.0.0.1", "vLLM"),
        ("sglang", "", "SGLang"),
        ("SGLang", "", "SGLang"),
        ("llamacpp", "localhost", "llama.cpp"),
        ("library", "localhost", "Ollama"),
        ("mistralai", "proxy.local", "Mistral"),
        ("openai", "proxy.local", "any other"),  # LiteLLM's proxy reports this owner for all its models
        ("openai", "api.openai.com", "OpenAI"),
        ("Meta", "api.groq.com", "Groq"),
        (None, "api.deepseek.com", "DeepSeek"),
        (None, "dashscope-intl.aliyuncs.com", "DashScope, Moonshot"),
        (None, "notapi.groq.com", "any other"),
        (None, "api.groq.com.evil.example", "any other"),
        ("somebody", "h", "any other"),
        ("", "", "any other"),
        (7, "", "any other"),
        (["vllm"], "", "any other"),
    ],
)
def test_a_kind_is_read_from_the_address_and_then_from_the_owner(owner: object, host: str, name: str) -> None:
    """The server's reported owner may be any value."""
    assert kind_of(owner, host).name == name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_native_modes_are_probed_first_then_raw_prompts_then_an_instruction(kind: EngineKind) -> None:
    """Modes of other kinds are probed only where harmless, and raw prompts only if the engine renders chats."""
    order = [*kind.candidates]
    assert len(set(order)) == len(order)
    own = [mode for mode in kind.modes if mode in NATIVE_MODES]
    assert order[: len(own)] == own
    last = [mode for mode in order if mode not in NATIVE_MODES]
    assert order[len(order) - len(last) :] == last == (["completions"] if kind.renderer else []) + ["instruct"]
    assert kind.strict == (set(NATIVE_MODES) - set(order) != set())


def test_every_mode_and_renderer_is_used() -> None:
    """The table contains each of them."""
    assert {mode for kind in KINDS for mode in kind.modes} == set(get_args(Mode))
    assert {kind.renderer for kind in KINDS} == {*get_args(Renderer), None}
    assert UNKNOWN.candidates == (*NATIVE_MODES, "instruct")


@pytest.mark.parametrize(
    ("name", "sent", "arrives"),
    [
        ("Ollama", {"max_completion_tokens": 5}, {"max_tokens": 5}),
        ("Ollama", {"max_tokens": 5}, {"max_tokens": 5}),
        ("OpenAI", {"max_tokens": 5, "seed": 1}, {"max_completion_tokens": 5, "seed": 1}),
        ("OpenAI", {"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        (
            "Mistral",
            {"max_completion_tokens": 5, "stream_options": {"include_usage": True}, "seed": 1, "stream": True},
            {"max_tokens": 5, "random_seed": 1, "stream": True},
        ),
        ("Mistral", {"max_completion_tokens": None}, {}),
        ("vLLM", {"max_completion_tokens": 5, "seed": 1}, {"max_completion_tokens": 5, "seed": 1}),
    ],
)
def test_a_body_is_adapted_to_its_engine(name: str, sent: dict[str, object], arrives: dict[str, object]) -> None:
    """An ignored limit has no effect, and a rejected field fails the request."""
    body = dict(sent)
    named(name).adapt(body)
    assert body == arrives


def row(kind: EngineKind) -> list[str]:
    """Return the kind's row in docs/engines.md."""
    renamed = [f"`{name}` as `{own}`" for name, own in kind.renamed]
    left_out = [f"no `{name}`" for name in sorted(kind.never_sent)]
    return [
        kind.name,
        ", ".join(f"`{name}`" for name in (*kind.owners, *kind.hosts)),
        ", ".join(f"`{mode}`" for mode in kind.modes),
        {True: "yes", False: "no", None: ""}[kind.echo],
        ", ".join(renamed + left_out),
        "" if kind.stops_within_s is None else f"{kind.stops_within_s:g} s",
        "yes" if kind.strict else "",
    ]


def test_the_documented_table_is_the_table() -> None:
    """Compare docs/engines.md row by row."""
    section = page("docs/engines.md").partition("## Engine kinds")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    assert rows[2:] == [row(kind) for kind in KINDS]


def test_tgi_is_selected_by_its_protocol() -> None:
    """TGI has its own protocol, and reports no owner."""
    assert TGI in KINDS
    assert (TGI.owners, TGI.hosts) == ((), ())


def test_the_documented_configurations_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine of docs/engines.md with a price loads, and its address selects the kind with its name."""
    section = page("docs/engines.md").partition("## Configurations")[2]
    block = next(one for one in re.findall(r"```yaml\n(.*?)```", section, re.DOTALL) if "protocol:" in one)
    for name in re.findall(r"env:(\w+)", block):
        monkeypatch.setenv(name, "sk-test")
    priced = re.sub(r"(    protocol: )", r"    price: {input_per_1m: 0, output_per_1m: 0}\n\1", block)
    (tmp_path / "config.yaml").write_text("models:\n" + priced, "utf-8")
    (tmp_path / "policies").mkdir()
    route = "{model: chat, mode: student, student: vllm}"
    key = "{id: a, sha256: '" + "0" * 64 + "'}"
    (tmp_path / "policies" / "default.yaml").write_text(f"tenant: default\nkeys: [{key}]\nroutes: [{route}]\n", "utf-8")
    settings, _, issues = check_all(tmp_path / "config.yaml")
    assert list(issues) == []
    assert settings is not None
    hosts = {model.name: urlsplit(model.api_base).hostname or "" for model in settings.models}
    kinds = {name: kind_of(None, host).name for name, host in hosts.items()}
    assert [kinds[name] for name in list(kinds)[5:]] == ["OpenAI", "Mistral", "DeepSeek", "Groq"]
