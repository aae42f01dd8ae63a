"""What text-generation-inference accepts: bodies, limits, and the refusal of everything else.

The order of the checks and their messages are TGI's, so that one body gives one answer here and there.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec

from gateway.local import tgi_errors

if TYPE_CHECKING:
    from gateway.local.llama_client import LlamaClient

MAX_STOP_SEQUENCES = 4
MAX_TOP_N_TOKENS = 5
MAX_BEST_OF = 1
MAX_CLIENT_BATCH_SIZE = 4
LLAMA_SEEDS = 2**32

Body = TypeVar("Body", bound=msgspec.Struct)
Unsigned = Annotated[int, msgspec.Meta(ge=0)]


class TgiGrammar(msgspec.Struct, frozen=True):
    """A constraint on the answer: a JSON schema (also under the older name `json`) or a regular expression."""

    type: Literal["json", "json_schema", "regex"]
    value: Any


class TgiParameters(msgspec.Struct, frozen=True, kw_only=True):
    """`parameters` of a generate body. Sampling is off unless asked for; without any `parameters` it is on."""

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
    """The body of /generate and /generate_stream. `stream` is read by `/` alone."""

    inputs: str
    parameters: TgiParameters = TgiParameters(do_sample=True)
    stream: bool = False


@dataclass(frozen=True, slots=True)
class TgiLimits:
    """Tokens and requests that this server takes, as /info reports them."""

    max_total_tokens: int
    max_concurrent_requests: int

    @property
    def max_input_tokens(self) -> int:
        """One less than the total: an answer has at least one token."""
        return self.max_total_tokens - 1


@dataclass(frozen=True, slots=True)
class TgiJob:
    """A request that passed every check, in llama.cpp's terms.

    `input_ids` is the prompt in the model's tokens; `seed` is None when nothing is left to chance; `settings` are
    llama.cpp's names and values.
    """

    input_ids: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...]
    seed: int | None
    top_n_tokens: int
    settings: dict[str, Any]


def read_body(data: bytes, content_type: str, kind: type[Body]) -> Body:
    """Decode a JSON body into `kind`. Unknown fields are ignored, as TGI ignores them.

    Raises:
        UnreadableBody: 415 for another content type, 400 for broken JSON, 422 for a value of the wrong type.
    """
    if content_type != "application/json":
        raise tgi_errors.UnreadableBody(415, "Expected request with `Content-Type: application/json`")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        text = f"Failed to deserialize the JSON body into the target type: {error}"
        raise tgi_errors.UnreadableBody(422, text) from error
    except msgspec.DecodeError as error:
        raise tgi_errors.UnreadableBody(400, f"Failed to parse the request body as JSON: {error}") from error


async def accept(
    inputs: str, parameters: TgiParameters, limits: TgiLimits, llama: LlamaClient, *, special: bool = True
) -> TgiJob:
    """Check one request and make it ready. With `special` the model's opening token is added to the prompt.

    Raises:
        TgiError: 422 validation.
    """
    check_parameters(parameters, limits)
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


def check_parameters(given: TgiParameters, limits: TgiLimits) -> None:
    """The checks that need no tokenizer, in TGI's order.

    Raises:
        TgiError: 422 validation.
    """
    if given.best_of is not None and given.best_of != MAX_BEST_OF:
        raise tgi_errors.invalid("`best_of` != 1 is not allowed for this endpoint")
    rules = (
        (_or(given.temperature, 1.0) > 0.0, "`temperature` must be strictly positive"),
        (_or(given.repetition_penalty, 1.0) > 0.0, "`repetition_penalty` must be strictly positive"),
        (-2.0 <= _or(given.frequency_penalty, 0.0) <= 2.0, "`frequency_penalty` must be between -2.0 and 2.0"),
        (given.top_p is None or 0.0 < given.top_p < 1.0, "`top_p` must be > 0.0 and < 1.0"),
        (given.typical_p is None or 0.0 < given.typical_p < 1.0, "`typical_p` must be > 0.0 and < 1.0"),
        (given.top_k is None or given.top_k > 0, "`top_k` must be strictly positive"),
        (given.max_new_tokens != 0, "`max_new_tokens` must be strictly positive"),
        (
            len(given.stop) <= MAX_STOP_SEQUENCES,
            f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(given.stop)}",
        ),
        (
            (given.top_n_tokens or 0) <= MAX_TOP_N_TOKENS,
            f"`top_n_tokens` must be >= 0 and <= {MAX_TOP_N_TOKENS}. Given: {given.top_n_tokens}",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise tgi_errors.invalid(message)


def check_stream(given: TgiParameters) -> None:
    """What /generate_stream refuses beyond /generate.

    Raises:
        TgiError: 422 validation.
    """
    if given.best_of is not None and given.best_of > 1:
        raise tgi_errors.invalid("`best_of` != 1 is not supported when streaming tokens")
    if given.decoder_input_details:
        raise tgi_errors.invalid("`decoder_input_details` == true is not supported when streaming tokens")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _samples(given: TgiParameters) -> bool:
    """TGI decodes greedily unless told to sample, or unless a setting only makes sense when sampling."""
    shaping = (given.temperature, 1.0), (given.top_k, 0), (given.top_p, 1.0), (given.typical_p, 1.0)
    return given.do_sample or any(value is not None and value != neutral for value, neutral in shaping)


def _sampling(given: TgiParameters, seed: int, window_tokens: int, *, samples: bool) -> dict[str, Any]:
    return {
        # TGI's order. llama.cpp's own puts the temperature last, which keeps other tokens.
        "samplers": ["penalties", "temperature", "top_k", "top_p", "typ_p"],
        "temperature": _or(given.temperature, 1.0) if samples else 0.0,
        "top_k": given.top_k or 0,
        "top_p": _or(given.top_p, 1.0),
        "typical_p": _or(given.typical_p, 1.0),
        "min_p": 0.0,
        "repeat_penalty": _or(given.repetition_penalty, 1.0),
        "frequency_penalty": _or(given.frequency_penalty, 0.0),
        "presence_penalty": 0.0,
        # TGI punishes repetition of anything in prompt and answer.
        "repeat_last_n": window_tokens,
        "seed": seed % LLAMA_SEEDS,
    }


def _grammar(grammar: TgiGrammar | None) -> dict[str, Any]:
    if grammar is None:
        return {}
    schema = grammar.value
    if grammar.type == "regex":
        raise tgi_errors.invalid("grammar is not supported")
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except msgspec.DecodeError as error:
            raise tgi_errors.invalid(f"grammar is not valid: {error}") from error
    if grammar.type == "json_schema" and isinstance(schema, dict) and "schema" in schema:
        schema = schema["schema"]
    if not isinstance(schema, dict):
        raise tgi_errors.invalid("grammar is not supported")
    if "properties" not in schema:
        raise tgi_errors.invalid("grammar is not valid: Grammar must have a 'properties' field")
    return {"json_schema": schema}
