"""The kinds of engines and their features, as data. docs/engines.md shows the table, and a test compares them.

The kind is derived from the engine's address and from `owned_by` of /models. It only orders the probes: how an engine
continues an answer is always probed.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gateway.protocol.capabilities.continuation import NATIVE_MODES, Mode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.protocol.body import Json

Renderer = Literal["vllm", "sglang", "llamacpp", "tgi"]
"""The API that renders a chat to a prompt: `engines/raw_prompts.py`."""


class EngineKind(NamedTuple):
    """A kind of engine.

    `stops_within_s` is the time from a disconnect of the client to the end of generation. A kind with None is not known
    to stop, and may generate, and charge for, the whole answer.
    """

    name: str  # name in docs/engines.md
    modes: tuple[Mode, ...]  # continuation modes to probe, in this order
    echo: bool | None = None  # whether it repeats the text that it continues; None: unknown, or it depends
    owners: tuple[str, ...] = ()  # values of `owned_by` in its /models, in lower case
    hosts: tuple[str, ...] = ()  # host names of hosted services; subdomains match too
    renderer: Renderer | None = None  # API that renders a chat for mode `completions`; None: it has none over HTTP
    renamed: tuple[tuple[str, str], ...] = ()  # OpenAI's fields that it knows by another name
    never_sent: frozenset[str] = frozenset()  # fields that it rejects or misreads, and that can be omitted
    strict: bool = False  # whether it rejects unknown fields; then only its own modes are tried
    stops_within_s: float | None = None
    reports_tokens: bool = False  # whether it returns token ids and running counts if they are requested
    token_fields: Mapping[str, Any] = MappingProxyType({})  # fields of a chat that request the text of each token
    constraints: frozenset[str] = frozenset()  # fields of `policy/constraints.py` that it applies as a teacher, too
    rejects_long_prompts: bool = False  # whether it rejects prompts that exceed its context, instead of cutting them
    reads: frozenset[str] = frozenset()  # fields of `anthropic.py` that it reads
    has_vllm_status: bool = False  # whether it has vLLM's routes /version and, in its development mode, /is_sleeping

    @property
    def candidates(self) -> tuple[Mode, ...]:
        """Return the modes to probe, the most likely first.

        The kind's own modes come first, then the native modes of other kinds, where harmless: a server behind a proxy
        may be of another kind. Modes that cost more calls or tokens come last.
        """
        if self.strict:
            return self.modes
        own = tuple(mode for mode in self.modes if mode in NATIVE_MODES)
        others = tuple(mode for mode in NATIVE_MODES if mode not in own)
        return (*own, *others, *(mode for mode in self.modes if mode not in NATIVE_MODES))

    def adapt(self, body: Json) -> None:
        """Remove or rename, in place, the fields of a body that this kind does not support as OpenAI does."""
        for name in self.never_sent:
            body.pop(name, None)
        for name, own in self.renamed:
            if (value := body.pop(name, None)) is not None:
                body[own] = value


# A server that stops at its next step: some milliseconds, and the delay of the disconnect.
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
_LOCAL = frozenset({"reasoning_content", "top_k"})
_OLD_LIMIT = ("max_completion_tokens", "max_tokens")
UNKNOWN = EngineKind("any other", (*NATIVE_MODES, "instruct"))

KINDS: tuple[EngineKind, ...] = (
    EngineKind(
        "vLLM",
        ("vllm", "completions", "instruct"),
        echo=False,
        owners=("vllm", "vllm-frontend-rs"),  # the latter: the Rust front end (rust/src/server/src/routes/openai)
        renderer="vllm",
        stops_within_s=_NEXT_STEP_S,  # with_cancellation aborts the request at once (vllm/entrypoints/utils.py)
        reports_tokens=True,
        token_fields=MappingProxyType({"logprobs": True, "top_logprobs": 0}),
        constraints=frozenset(
            {"logit_bias", "bad_words", "allowed_token_ids", "stop_token_ids", "min_tokens", "ignore_eos"}
        ),
        rejects_long_prompts=True,
        reads=_LOCAL,
        has_vllm_status=True,
    ),
    EngineKind(
        "SGLang",
        ("sglang", "completions", "instruct"),
        echo=False,
        owners=("sglang",),
        renderer="sglang",
        # A stream is aborted after 2 s; other calls are checked every 4 s (srt/managers/tokenizer_manager.py).
        stops_within_s=4.0,
        reads=_LOCAL,
    ),
    EngineKind(
        "llama.cpp",
        ("trailing", "vllm", "completions", "instruct"),
        owners=("llamacpp",),
        renderer="llamacpp",
        stops_within_s=1.0,  # HTTP_POLLING_SECONDS (tools/server/server-context.cpp)
        # Without the last field llama.cpp sorts the vocabulary at each token.
        token_fields=MappingProxyType({"logprobs": True, "top_logprobs": 1, "post_sampling_probs": True}),
        reads=_LOCAL,
    ),
    TGI,
    # `max_completion_tokens` is accepted and ignored, and the answer is unlimited (ollama issue 7125).
    EngineKind(
        "Ollama",
        ("trailing", "instruct"),
        echo=False,
        owners=("library",),
        renamed=(_OLD_LIMIT,),
        stops_within_s=_NEXT_STEP_S,  # the request's context ends the sequence (runner/ollamarunner/runner.go)
    ),
    # The o-series and GPT-5 reject `max_tokens`; every chat model accepts the other (openai-python issue 2046).
    EngineKind(
        "OpenAI",
        ("instruct",),
        hosts=("api.openai.com",),  # not by owner: proxies report OpenAI as the owner of every model
        renamed=(("max_tokens", "max_completion_tokens"),),
        strict=True,
        constraints=frozenset({"logit_bias"}),
    ),
    # Rejects both removed fields; usage comes with every stream (eca issue 231, anon-kode issue 53).
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
        reads=frozenset({"reasoning_content", "thinking"}),
    ),
    EngineKind("Groq", ("trailing", "instruct"), hosts=("api.groq.com",), strict=True),
    EngineKind(
        "OpenRouter",
        ("trailing", "instruct"),
        hosts=("openrouter.ai",),
        strict=True,
        reads=frozenset({"cache_control", "top_k"}),
    ),
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
    """Return the kind of the engine at `host`, whose /models reports `owner`; any value is allowed for `owner`."""
    for kind in KINDS:
        if any(host == known or host.endswith("." + known) for known in kind.hosts):
            return kind
    if isinstance(owner, str):
        return next((kind for kind in KINDS if owner.lower() in kind.owners), UNKNOWN)
    return UNKNOWN
