"""The request bodies of text-generation-inference (TGI), their limits and their validation.

The order of the checks and the messages are TGI's, so that a body has the same answer as from TGI.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec

from gateway.local import tgi_errors
from gateway.local.tgi_regex import to_gbnf

if TYPE_CHECKING:
    from gateway.local.llama_client import LlamaClient

MAX_STOP_SEQUENCES = 4
MAX_TOP_N_TOKENS = 5
MAX_BEST_OF = 2
MAX_CLIENT_BATCH_SIZE = 4
LLAMA_SEEDS = 2**32

Unsigned = Annotated[int, msgspec.Meta(ge=0)]


class TgiGrammar(msgspec.Struct, frozen=True):
    """A constraint on the answer: a JSON schema, alone or in an object with its name, or a regular expression."""

    type: Literal["json", "json_object", "json_schema", "regex"]  # the first two are one
    value: Any

    def __post_init__(self) -> None:
        if self.type == "regex" and not isinstance(self.value, str):
            raise ValueError("invalid type, expected a string")
        if self.type == "json_schema" and not (isinstance(self.value, dict) and "schema" in self.value):
            raise ValueError("missing field `schema`")


class TgiParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The `parameters` of a generate body. Sampling is off by default; without any `parameters` it is on."""

    adapter_id: str | None = None
    best_of: Unsigned | None = None
    decoder_input_details: bool = False
    details: bool = False
    do_sample: bool = False
    frequency_penalty: float | None = None
    grammar: TgiGrammar | None = None
    max_new_tokens: Unsigned | None = None
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    seed: Unsigned | None = None
    stop: list[str] = []
    temperature: float | None = None
    top_k: int | None = None
    top_n_tokens: Unsigned | None = None
    top_p: float | None = None
    truncate: Unsigned | None = None
    typical_p: float | None = None
    watermark: bool = False


class TgiGenerateBody(msgspec.Struct, frozen=True):
    """The body of /generate and /generate_stream. Only `/` reads `stream`."""

    inputs: str
    parameters: TgiParameters = TgiParameters(do_sample=True)
    stream: bool = False


class TgiLimits(NamedTuple):
    """The limits of the server on tokens and requests, as in /info."""

    max_total_tokens: int
    max_concurrent_requests: int

    @property
    def max_input_tokens(self) -> int:
        """The limit on prompt tokens: one less than the total, since an answer has at least one token."""
        return self.max_total_tokens - 1


class TgiJob(NamedTuple):
    """A validated request with the parameters of llama.cpp."""

    input_ids: tuple[int, ...]  # the token ids of the prompt
    max_new_tokens: int
    stop: tuple[str, ...]
    seed: int | None  # the seed; None for greedy decoding
    top_n_tokens: int
    settings: dict[str, Any]  # llama.cpp's sampling parameters


async def accept(
    inputs: str, parameters: TgiParameters, limits: TgiLimits, llama: LlamaClient, *, special: bool
) -> TgiJob:
    """Return the job of a request. `special` adds the model's first token (BOS). Raises TgiError 422 validation."""
    _check_parameters(parameters)
    if not inputs:
        raise tgi_errors.invalid("`inputs` cannot be empty")
    if parameters.truncate is not None and not 0 < parameters.truncate <= limits.max_input_tokens:
        raise tgi_errors.invalid(
            f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. "
            f"Given: {parameters.truncate}"
        )
    ids = [piece.id for piece in await llama.tokenize(inputs, special=special)]
    if parameters.truncate is not None:
        ids = ids[-parameters.truncate :]
    max_new_tokens = parameters.max_new_tokens
    if max_new_tokens is None:
        max_new_tokens = max(0, limits.max_total_tokens - len(ids))
    if len(ids) + max_new_tokens > limits.max_total_tokens:
        raise tgi_errors.invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {len(ids)} `inputs` tokens and {max_new_tokens} `max_new_tokens`"
        )
    if len(ids) > limits.max_input_tokens:
        raise tgi_errors.invalid(f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {len(ids)}")
    seed = parameters.seed if parameters.seed is not None else secrets.randbelow(LLAMA_SEEDS)
    samples = _samples(parameters)
    return TgiJob(
        input_ids=tuple(ids),
        max_new_tokens=max_new_tokens,
        stop=tuple(parameters.stop),
        seed=seed if samples else None,
        top_n_tokens=parameters.top_n_tokens or 0,
        settings=_sampling(parameters, seed, limits.max_total_tokens, samples=samples) | _grammar(parameters.grammar),
    )


def _check_parameters(parameters: TgiParameters) -> None:
    """Check the parameters that need no tokenizer, in TGI's order."""
    several = (parameters.best_of or 1) > 1
    sampling = (parameters.temperature, parameters.top_k, parameters.top_p, parameters.typical_p)
    rules = (
        (
            not several or parameters.do_sample or any(value is not None for value in sampling),
            "you must use sampling when `best_of` is > 1",
        ),
        (_or(parameters.temperature, 1.0) > 0.0, "`temperature` must be strictly positive"),
        (_or(parameters.repetition_penalty, 1.0) > 0.0, "`repetition_penalty` must be strictly positive"),
        (-2.0 <= _or(parameters.frequency_penalty, 0.0) <= 2.0, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        (parameters.top_p is None or 0.0 < parameters.top_p < 1.0, "`top_p` must be > 0.0 and < 1.0"),
        (parameters.typical_p is None or 0.0 < parameters.typical_p < 1.0, "`typical_p` must be > 0.0 and < 1.0"),
        (parameters.top_k is None or parameters.top_k > 0, "`top_k` must be strictly positive"),
        (parameters.max_new_tokens != 0, "`max_new_tokens` must be strictly positive"),
        (
            len(parameters.stop) <= MAX_STOP_SEQUENCES,
            f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(parameters.stop)}",
        ),
        (not several or parameters.seed is None, "`seed` must not be set when `best_of` > 1"),
        (
            (parameters.top_n_tokens or 0) <= MAX_TOP_N_TOKENS,
            f"`top_n_tokens` must be >= 0 and <= {MAX_TOP_N_TOKENS}. Given: {parameters.top_n_tokens}",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise tgi_errors.invalid(message)


def best_of(parameters: TgiParameters) -> int:
    """Return the number of generations of which the best one is returned. Raises TgiError 422 above the limit."""
    count = parameters.best_of or 1
    if count > MAX_BEST_OF:
        raise tgi_errors.invalid(f"`best_of` must be > 0 and <= {MAX_BEST_OF}. Given: {count}")
    return count


def check_stream(parameters: TgiParameters) -> None:
    """Raise TgiError 422 validation for parameters that /generate_stream rejects and /generate accepts."""
    if parameters.best_of is not None and parameters.best_of > 1:
        raise tgi_errors.invalid("`best_of` != 1 is not supported when streaming tokens")
    if parameters.decoder_input_details:
        raise tgi_errors.invalid("`decoder_input_details` == true is not supported when streaming tokens")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _samples(parameters: TgiParameters) -> bool:
    """Return whether TGI samples: on request, or if a parameter applies to sampling only."""
    shaping = (parameters.temperature, 1.0), (parameters.top_k, 0), (parameters.top_p, 1.0), (parameters.typical_p, 1.0)
    return parameters.do_sample or any(value is not None and value != neutral for value, neutral in shaping)


def _sampling(parameters: TgiParameters, seed: int, window_tokens: int, *, samples: bool) -> dict[str, Any]:
    return {
        # TGI's order. llama.cpp's default applies the temperature last, which keeps other tokens.
        "samplers": ["penalties", "temperature", "top_k", "top_p", "typ_p"],
        "temperature": _or(parameters.temperature, 1.0) if samples else 0.0,
        "top_k": parameters.top_k or 0,
        "top_p": _or(parameters.top_p, 1.0),
        "typical_p": _or(parameters.typical_p, 1.0),
        "min_p": 0.0,
        "repeat_penalty": _or(parameters.repetition_penalty, 1.0),
        "frequency_penalty": _or(parameters.frequency_penalty, 0.0),
        "presence_penalty": 0.0,
        # TGI applies the penalty to all tokens of prompt and answer.
        "repeat_last_n": window_tokens,
        "seed": seed % LLAMA_SEEDS,
    }


def _grammar(grammar: TgiGrammar | None) -> dict[str, Any]:
    if grammar is None:
        return {}
    schema = grammar.value
    if grammar.type == "regex":
        try:
            return {"grammar": to_gbnf(schema)}
        except ValueError as error:
            raise tgi_errors.failure("generation", str(error)) from error  # TGI's router does not read it
    if grammar.type == "json_schema":
        schema = schema["schema"]
    elif isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except msgspec.DecodeError as error:
            raise tgi_errors.invalid(f"grammar is not valid: {error}") from error
    if not isinstance(schema, dict):
        raise tgi_errors.invalid("grammar is not supported")
    if "properties" not in schema:
        raise tgi_errors.invalid("grammar is not valid: Grammar must have a 'properties' field")
    return {"json_schema": schema}
