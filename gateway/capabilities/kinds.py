"""Which kinds of engine there are, and what each can and cannot do: data. docs/engines.md shows it, a test compares.

An engine's kind is read from its address and from what /models says of its owner. It says where to look first, never
what is so: how an engine continues is probed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gateway.capabilities.continuation import NATIVE_MODES, Mode

if TYPE_CHECKING:
    from gateway.protocol.body import Json

Renderer = Literal["vllm", "sglang", "llamacpp", "tgi"]
"""Whose way of turning a chat into a prompt is spoken: `engines/renderers.py`."""


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One kind of engine.

    Attributes:
        name: as docs/engines.md calls it.
        modes: the ways of continuing to probe, in this order.
        echo: whether it is known to repeat what it continues; None: not known, or it depends.
        owners: what its /models says in `owned_by`, in lower case.
        hosts: where the hosted ones are; a name matches its subdomains too.
        renderer: how it renders a chat for mode `completions`; None: it cannot, over HTTP.
        renamed: OpenAI's fields that it knows by another name.
        never_sent: what it refuses, or misreads, and can do without.
        strict: whether it refuses fields that it does not know: then only its own modes are tried.
        stops_within_s: seconds within which it stops generating when its client disconnects; None: it is not known to
            stop, and may generate, and charge for, the whole answer.
    """

    name: str
    modes: tuple[Mode, ...]
    echo: bool | None = None
    owners: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    renderer: Renderer | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    never_sent: frozenset[str] = frozenset()
    strict: bool = False
    stops_within_s: float | None = None

    @property
    def candidates(self) -> tuple[Mode, ...]:
        """The modes to probe, the likeliest first: its own, and, where that can do no harm, the native ones of others.

        A server behind a proxy may be another than it says. What costs more calls, or the engine's work, comes last.
        """
        if self.strict:
            return self.modes
        own = tuple(mode for mode in self.modes if mode in NATIVE_MODES)
        others = tuple(mode for mode in NATIVE_MODES if mode not in own)
        return (*own, *others, *(mode for mode in self.modes if mode not in NATIVE_MODES))

    def adapt(self, body: Json) -> None:
        """Leave out of a body, or call otherwise, in place, what this kind does not know as OpenAI has it."""
        for name in self.never_sent:
            body.pop(name, None)
        for name, own in self.renamed:
            if (value := body.pop(name, None)) is not None:
                body[own] = value


# A server that stops at its next step: some milliseconds, and the time that the news takes.
_NEXT_STEP_S = 0.1

TGI = EngineKind(
    "TGI",
    ("trailing", "completions", "instruct"),
    echo=False,
    renderer="tgi",
    never_sent=frozenset({"presence_penalty"}),  # 0 becomes a repetition penalty of 2 (protocol: it adds 2)
    # An entry whose response channel is closed leaves the batch at its next step (backends/v3/src/backend.rs).
    stops_within_s=_NEXT_STEP_S,
)
_OLD_LIMIT = ("max_completion_tokens", "max_tokens")
UNKNOWN = EngineKind("any other", (*NATIVE_MODES, "instruct"))

KINDS: tuple[EngineKind, ...] = (
    EngineKind(
        "vLLM",
        ("vllm", "completions", "instruct"),
        echo=False,
        owners=("vllm",),
        renderer="vllm",
        stops_within_s=_NEXT_STEP_S,  # with_cancellation aborts the request at once (vllm/entrypoints/utils.py)
    ),
    EngineKind(
        "SGLang",
        ("sglang", "completions", "instruct"),
        echo=False,
        owners=("sglang",),
        renderer="sglang",
        # A stream is aborted after 2 s; any other call is looked at every 4 s (srt/managers/tokenizer_manager.py).
        stops_within_s=4.0,
    ),
    EngineKind(
        "llama.cpp",
        ("trailing", "vllm", "completions", "instruct"),
        owners=("llamacpp",),
        renderer="llamacpp",
        stops_within_s=1.0,  # HTTP_POLLING_SECONDS (tools/server/server-context.cpp)
    ),
    TGI,
    # `max_completion_tokens` is accepted and ignored, and the answer has no end (ollama issue 7125).
    EngineKind(
        "Ollama",
        ("trailing", "instruct"),
        echo=False,
        owners=("library",),
        renamed=(_OLD_LIMIT,),
        stops_within_s=_NEXT_STEP_S,  # the request's context ends the sequence (runner/ollamarunner/runner.go)
    ),
    # The o-series and GPT-5 refuse `max_tokens`; every chat model takes the other (openai-python issue 2046).
    EngineKind(
        "OpenAI",
        ("instruct",),
        hosts=("api.openai.com",),  # not by owner: proxies call every model OpenAI's
        renamed=(("max_tokens", "max_completion_tokens"),),
        strict=True,
    ),
    # Refuses both that are left out here; usage comes with every stream (eca issue 231, anon-kode issue 53).
    EngineKind(
        "Mistral",
        ("prefix", "instruct"),
        echo=True,
        owners=("mistralai",),
        hosts=("api.mistral.ai",),
        renamed=(_OLD_LIMIT, ("seed", "random_seed")),
        never_sent=frozenset({"stream_options"}),
        strict=True,
    ),
    EngineKind(
        "DeepSeek",
        ("prefix", "instruct"),
        echo=False,
        owners=("deepseek",),
        hosts=("api.deepseek.com",),
        renamed=(_OLD_LIMIT,),
        strict=True,
    ),
    EngineKind("Groq", ("trailing", "instruct"), hosts=("api.groq.com",), strict=True),
    EngineKind("OpenRouter", ("trailing", "instruct"), hosts=("openrouter.ai",), strict=True),
    EngineKind(
        "DashScope, Moonshot",
        ("partial", "instruct"),
        owners=("moonshot",),
        hosts=("aliyuncs.com", "api.moonshot.ai", "api.moonshot.cn"),
        strict=True,
    ),
    UNKNOWN,
)


def kind_of(owner: object, host: str) -> EngineKind:
    """The kind at `host`, where /models says that `owner` owns the model, whatever that is."""
    for kind in KINDS:
        if any(host == known or host.endswith("." + known) for known in kind.hosts):
            return kind
    if isinstance(owner, str):
        return next((kind for kind in KINDS if owner.lower() in kind.owners), UNKNOWN)
    return UNKNOWN
