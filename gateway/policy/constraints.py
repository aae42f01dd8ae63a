"""Request fields that constrain an answer, and the guidance placements that remain: data, and one check.

An engine applies a constraint to the tokens that it writes. The teacher writes a prefix, so the student's constraint
does not hold there. Guidance in the student's prompt (placements context and input) leaves the whole answer to the
student, and the constraint holds. Some fields exclude guidance from the prompt too. Others leave a prefix if the
teacher has the student's vocabulary and applies the field, too.

docs/reference/request-fields.md shows the tables, with their sources; a test compares.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

API = Literal["chat", "completions"]
APIS: tuple[API, ...] = ("chat", "completions")
Remaining = Literal["prefix", "context", "none"]
Ignored = Literal[
    "empty", "null", "null or empty text", "null or 1", "null or true", "type text", "text alone", "one prompt", "text"
]

FIELD_NOT_KNOWN, CALLER_PREFILL, TOKEN_LIMIT = "field_not_known", "caller_prefill", "token_limit"
"""Reasons that do not depend on a field of the table alone."""
TOKEN_CONSTRAINT, STOP_CONDITION = "token_constraint", "stop_condition"
"""Reasons of the fields that a teacher may apply, too."""
MAX_BAD_WORDS, MAX_BAD_WORD_CHARS = 100, 100
"""Limits for a prefix beside `bad_words`: the gateway searches the end of the guidance for them."""
MIN_TOKENS = 2
"""The shortest answer with guidance: one token of the teacher and one of the student."""


class Constraint(NamedTuple):
    """Fields that exclude guidance for one reason."""

    reason: str  # the value of `x-gkt-unguided` and of a receipt's `unguided`
    placement: Remaining  # the placement that remains; prefix: if the teacher applies the fields too, else context
    ignored: Ignored  # values that constrain nothing
    fields: tuple[str, ...]
    why: str  # the reason in words, for the documentation
    apis: tuple[API, ...] = APIS  # the routes whose requests have the fields


CONSTRAINTS: tuple[Constraint, ...] = (
    Constraint("prompts", "none", "one prompt", ("prompt",),
        "Each prompt needs guidance of its own.", ("completions",)),
    Constraint("token_ids", "none", "text", ("prompt",),
        "The teacher reads text, not the student's token ids.", ("completions",)),
    Constraint("echo", "none", "empty", ("echo",), "The reply begins with the prompt.", ("completions",)),
    Constraint("suffix", "none", "empty", ("suffix",),
        "The answer stands between two texts, and the teacher sees one.", ("completions",)),
    Constraint("tools", "context", "empty", ("tools", "functions"),
        "The answer may be a tool call, which does not begin with text."),
    Constraint("response_format", "context", "type text", ("response_format",),
        "The whole answer must match the format."),
    Constraint("structured_output", "context", "empty",
        ("structured_outputs", "guided_regex", "guided_choice", "guided_grammar", "guided_json_object", "grammar",
         "regex", "ebnf", "structural_tag", "n_indent"),
        "The whole answer must match the grammar."),
    Constraint("structured_output", "context", "null or empty text", ("json_schema", "guided_json", "format"),
        "The whole answer must match the schema; the schema `{}` means any JSON."),
    Constraint(TOKEN_CONSTRAINT, "prefix", "empty", ("logit_bias", "bad_words", "allowed_token_ids"),
        "The engine forbids or forces tokens of its vocabulary."),
    Constraint(TOKEN_CONSTRAINT, "context", "empty",
        ("bad_words_ids", "custom_token_bans", "banned_strings", "logits_processors", "custom_logit_processor",
         "no_repeat_ngram_size", "watermark", "watermarking"),
        "The engine forbids, forces or marks tokens. The teacher's tokens are outside its control."),
    Constraint(STOP_CONDITION, "prefix", "empty", ("stop_token_ids", "ignore_eos", "min_tokens"),
        "The engine decides on the tokens that it writes where the answer ends."),
    Constraint(STOP_CONDITION, "context", "empty",
        ("stop_regex", "stop_words", "stop_sequences", "min_new_tokens", "min_length", "include_stop_str_in_output",
         "no_stop_trim", "repetition_detection"),
        "The engine decides on the tokens that it writes where the answer ends."),
    Constraint("n", "context", "null or 1", ("n",), "All answers would begin alike."),
    Constraint("best_of", "context", "null or 1", ("best_of",), "All candidates would begin alike."),
    Constraint("best_of", "context", "empty", ("use_beam_search",), "All beams would begin alike."),
    Constraint("logprobs", "context", "empty", ("logprobs",),
        "The teacher's tokens have no log-probabilities of the student.", ("chat",)),
    Constraint("logprobs", "context", "null", ("logprobs",),
        "The same; here 0 asks for the log-probabilities of the chosen tokens.", ("completions",)),
    Constraint("logprobs", "context", "empty", ("n_probs", "logprob_token_ids", "top_n_tokens"),
        "The teacher's tokens have no log-probabilities of the student."),
    Constraint("modalities", "context", "text alone", ("modalities",), "An answer in audio has no text to begin with."),
    Constraint("output_detail", "context", "empty",
        ("return_tokens", "return_hidden_states", "return_routed_experts", "moderation"),
        "The reply describes each token, or judges the whole text."),
    Constraint("output_detail", "context", "null", ("web_search_options",),
        "Citations name positions in the answer."),
    Constraint("output_detail", "context", "null or true", ("skip_special_tokens",),
        "The teacher's text has no special tokens."),
    Constraint("prompt_in_reply", "none", "empty",
        ("return_prompt_text", "return_prompt_token_ids", "return_token_ids", "return_full_text", "return_meta_info",
         "decoder_input_details", "verbose"),
        "The reply shows the prompt, with the guidance in it."),
    Constraint("prompt_in_reply", "none", "null", ("prompt_logprobs",),
        "The reply shows the prompt, with the guidance in it."),
    Constraint("prompt_control", "context", "empty", ("chat_template",),
        "The caller's template decides how a begun answer looks."),
    Constraint("prompt_control", "none", "empty",
        ("documents", "input_ids", "prompt_token_ids", "token_data", "prompt_embeds", "image_data", "multi_modal_data",
         "use_raw_prompt", "task", "guideline", "truncate", "truncate_prompt_tokens"),
        "The student reads something else than the messages, or a part of them."),
    Constraint(CALLER_PREFILL, "none", "empty", ("continue_final_message",),
        "The caller begins the answer. So does a last message of role assistant."),
    Constraint(CALLER_PREFILL, "none", "null or true", ("add_generation_prompt",),
        "The student begins no turn of its own."),
)  # fmt: skip
"""In order of precedence: the first matching row gives the reason."""


class NeutralFields(NamedTuple):
    """Fields that do not exclude guidance, and why."""

    fields: tuple[str, ...]
    why: str
    apis: tuple[API, ...] = APIS


READ_BY_GATEWAY = ("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "stop", "stream",
                   "stream_options")  # fmt: skip
NEUTRAL: tuple[NeutralFields, ...] = (
    NeutralFields(READ_BY_GATEWAY,
        "The gateway applies them to the whole answer: limits and stop texts hold across the seam."),
    NeutralFields(
        ("temperature", "top_p", "top_k", "top_a", "min_p", "typical_p", "typ_p", "tfs", "tfs_z", "top_n_sigma",
         "epsilon_cutoff", "eta_cutoff", "smoothing_factor", "dynatemp_range", "dynatemp_exponent", "mirostat",
         "mirostat_mode", "mirostat_tau", "mirostat_eta", "xtc_probability", "xtc_threshold", "adaptive_target",
         "adaptive_decay", "min_keep", "samplers", "backend_sampling", "do_sample", "greed_sampling", "seed",
         "random_seed", "sampling_seed"),
        "Sampling chooses among likely tokens and forbids none for good. The student's tokens follow it."),
    NeutralFields(
        ("presence_penalty", "frequency_penalty", "repetition_penalty", "repeat_penalty", "repeat_last_n",
         "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers",
         "length_penalty", "early_stopping"),
        "Penalties make tokens less likely and forbid none, so no answer breaks them. Whether a prefix counts as text "
        "that was repeated is the engine's rule for prompts. `no_repeat_ngram_size` forbids, and constrains."),
    NeutralFields(
        ("reasoning", "reasoning_effort", "thinking", "enable_thinking", "think", "thinking_budget",
         "thinking_budget_tokens", "thinking_token_budget", "max_thinking_tokens", "reasoning_budget",
         "reasoning_budget_tokens", "include_reasoning", "separate_reasoning", "stream_reasoning", "reasoning_format",
         "verbosity"),
        "A student that reasons first gets the guidance in its prompt, whatever the placement."),
    NeutralFields(("tool_choice", "function_call", "parallel_tool_calls", "tool_prompt"),
        "Without `tools` they mean nothing."),
    NeutralFields(
        ("guided_decoding_backend", "guided_whitespace_pattern", "top_logprobs", "return_tokens_as_token_ids",
         "post_sampling_probs", "audio", "truncation_side"),
        "Without the field that they belong to they mean nothing."),
    NeutralFields(("echo",), "The seam drops what the engine repeats of the guidance.", ("chat",)),
    NeutralFields(("add_special_tokens", "spaces_between_special_tokens", "mm_processor_kwargs", "media_io_kwargs",
                   "lora", "lora_path", "adapter_id", "prediction"),
        "They change how the student reads or works, not what an answer must be."),
    NeutralFields(
        ("user", "user_id", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
         "prompt_cache_retention", "prompt_cache_options", "cache_prompt", "cache_salt", "caching", "extra_key",
         "n_cache_reuse", "n_keep", "n_discard", "id_slot", "keep_alive", "request_id", "rid", "session_id", "priority",
         "provider", "usage", "tags", "litellm_metadata", "custom_labels", "annotations", "agent_hints",
         "extra_fields", "backend_instance_id", "routed_dp_rank", "data_parallel_rank", "ngram_corpus_id",
         "timeout", "num_retries", "drop_params", "t_max_predict_ms", "stream_interval", "sse_ping_interval",
         "timings_per_token", "return_progress", "return_cached_tokens_details"),
        "Accounting, caches, scheduling and transport."),
)  # fmt: skip
HOLDERS = ("extra_body", "nvext", "chat_template_kwargs")
"""Objects whose fields some engines or clients take for fields of the body. They are read one level deep.

Engines pass `chat_template_kwargs` to the chat template beside their own arguments, or in their place."""
MAX_ALLOWED_FIELDS = 64
"""Maximum names that one policy may add."""
MAX_FIELDS = 1024
"""A body with more fields has an unknown one, since there are fewer known names."""
MAX_NAMED_CHARS = 64
"""Maximum characters of an unknown field's name in a receipt and in a header."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


class Placements(NamedTuple):
    """The reason why guidance must not be placed; None: guidance may be placed."""

    prefix: str | None = None  # as the beginning of the answer
    context: str | None = None  # in the student's prompt. What excludes this excludes a prefix.
    shared: tuple[str, ...] = ()  # fields that exclude a prefix unless the teacher applies all of them; () if others do


class ExcludingField(NamedTuple):
    """A field of a request that excludes guidance."""

    field: str
    holder: str | None  # the object that contains it; None: the body itself
    reason: str  # the reason of its row; `field_not_known` without a row
    placement: Remaining
    order: int  # the index of its row; the first row gives the request's reason

    @property
    def path(self) -> str:
        """Return the field's name with its holder's."""
        return self.field if self.holder is None else f"{self.holder}.{self.field}"


UNCONSTRAINED = Placements()


def placements(body: Mapping[str, Any], api: API, allowed: Collection[str] = ()) -> Placements:
    """Return where guidance may be placed, given the fields of a request body.

    Args:
        body: the caller's body. A key whose value is null counts as absent.
        allowed: names of unknown fields that the policy allows.
    """
    if _NEUTRAL_OR_PROMPT[api].issuperset(body) and isinstance(body.get("prompt", ""), str):
        return UNCONSTRAINED
    if len(body) > MAX_FIELDS:
        return Placements(FIELD_NOT_KNOWN, FIELD_NOT_KNOWN)
    excluding = sorted(excluding_fields(body, api, allowed), key=lambda one: one.order)
    if not excluding:
        return UNCONSTRAINED
    context = next((one.reason for one in excluding if one.placement == "none"), None)
    if any(one.placement != "prefix" or one.holder is not None for one in excluding):
        return Placements(excluding[0].reason, context)
    return Placements(excluding[0].reason, context, tuple([one.field for one in excluding]))


def shared_constraints(body: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any] | None:
    """Return the `shared` fields of a body for the teacher; None: it cannot apply them as the student does.

    Before `min_tokens`, vLLM ignores stop strings, which the gateway applies to the whole answer.
    """
    constraints = {name: body[name] for name in fields}
    least, words = constraints.get("min_tokens", 1), constraints.get("bad_words", [])
    if type(least) is not int or least < 1 or ("min_tokens" in constraints and body.get("stop")):
        return None
    if not isinstance(words, list) or len(words) > MAX_BAD_WORDS:
        return None
    return constraints if all(isinstance(word, str) and len(word) <= MAX_BAD_WORD_CHARS for word in words) else None


def excluding_fields(body: Mapping[str, Any], api: API, allowed: Collection[str] = ()) -> Iterator[ExcludingField]:
    """Yield the fields that exclude guidance."""
    yield from _excluding(body, None, _NEUTRAL_OR_HOLDER[api], api, allowed)
    for holder in HOLDERS:
        fields = body.get(holder)
        if isinstance(fields, dict) and len(fields) <= MAX_FIELDS:
            yield from _excluding(fields, holder, _NEUTRAL_HELD[api], api, allowed)
        elif fields is not None:
            yield ExcludingField(holder, None, FIELD_NOT_KNOWN, "none", _LAST)


def unknown_field(body: Mapping[str, Any], api: API, allowed: Collection[str] = ()) -> str | None:
    """Return the name of a body's first unknown field, for a receipt and a header; None if no field is unknown.

    The name is the caller's text: unsafe characters become `?`, and the end of a long name is cut.
    """
    if len(body) > MAX_FIELDS:
        return None
    unknown = (one.path for one in excluding_fields(body, api, allowed) if one.reason == FIELD_NOT_KNOWN)
    name = next(unknown, None)
    return None if name is None else _UNSAFE.sub("?", name[:MAX_NAMED_CHARS])


def known_fields() -> frozenset[str]:
    """Return every field name of the tables."""
    return frozenset(HOLDERS).union(*_NEUTRAL.values(), *_RULES.values())


def _excluding(
    body: Mapping[str, Any], holder: str | None, neutral: frozenset[str], api: API, allowed: Collection[str]
) -> Iterator[ExcludingField]:
    for field, value in body.items():
        if value is None or field in neutral:
            continue
        if (orders := _RULES[api].get(field)) is None:
            if field not in allowed:
                yield ExcludingField(field, holder, FIELD_NOT_KNOWN, "none", _LAST)
            continue
        for order in orders:
            rule = CONSTRAINTS[order]
            if not _IGNORED[rule.ignored](value):
                yield ExcludingField(field, holder, rule.reason, rule.placement, order)


def _rules(api: API) -> dict[str, tuple[int, ...]]:
    """Return the rows of each field, as indexes of CONSTRAINTS."""
    rows: dict[str, tuple[int, ...]] = {}
    for order, rule in enumerate(CONSTRAINTS):
        if api in rule.apis:
            for field in rule.fields:
                rows[field] = (*rows.get(field, ()), order)
    return rows


_IGNORED: dict[Ignored, Callable[[Any], bool]] = {
    "empty": lambda value: not value,
    "null": lambda value: value is None,
    "null or empty text": lambda value: value in (None, ""),
    "null or 1": lambda value: value is None or value == 1,
    "null or true": lambda value: value is None or value is True,
    "type text": lambda value: not value or (isinstance(value, dict) and value.get("type") == "text"),
    "text alone": lambda value: value in (None, ["text"]),
    "one prompt": lambda value: not isinstance(value, list) or len(value) < 2 or isinstance(value[0], int),
    "text": lambda value: not isinstance(value, list) or not value or isinstance(value[0], str),
}
_LAST = len(CONSTRAINTS)
_RULES: dict[API, dict[str, tuple[int, ...]]] = {api: _rules(api) for api in APIS}
_NEUTRAL: dict[API, frozenset[str]] = {
    api: frozenset(field for row in NEUTRAL if api in row.apis for field in row.fields).difference(_RULES[api])
    for api in APIS
}
_NEUTRAL_OR_PROMPT: dict[API, frozenset[str]] = {api: _NEUTRAL[api].union(("prompt",)) for api in APIS}
_NEUTRAL_OR_HOLDER: dict[API, frozenset[str]] = {api: _NEUTRAL[api].union(HOLDERS) for api in APIS}
# The gateway reads these fields only at the top level of a body. In a holder they are unknown.
_NEUTRAL_HELD: dict[API, frozenset[str]] = {api: _NEUTRAL[api].difference(READ_BY_GATEWAY) for api in APIS}
