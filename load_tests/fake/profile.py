"""Read timing files: times, limits and failure rates of the modeled engine."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from gateway.config.scalars import Duration, Flag, Name, Number, Whole
from gateway.config.yaml_source import StrictModel, load
from gateway.protocol.capabilities.continuation import Mode

TIMINGS = Path(__file__).parents[1] / "timings"
"""The timing files that come with the load tests."""

Dialect = Literal["tgi", "openai"]
Count = Annotated[Whole, Field(ge=1, le=1_000_000)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]  # keys of a table stay text in the YAML reader
Time = Annotated[Duration, Field(ge=0, le=60)]


class PrefillTimes(StrictModel):
    """Duration of a pass over new prompts: `fixed`, plus `per_token` for each token.

    A chunked pass reads at most `max_tokens`, may split a prompt there, and shares its step with decoding. A pass that
    is not chunked reads whole prompts: at least one, and as many as fit `max_tokens`. No other sequence gets a token
    meanwhile.
    """

    fixed_s: Time = Field(0.0, alias="fixed")
    per_token_s: Time = Field(0.0, alias="per_token")
    max_tokens: Count = 4096
    chunked: Flag = False


class Decode(StrictModel):
    """Duration of one step for a batch of n: `fixed` + n times `per_sequence`, or a `table` from n to times.

    Values between entries of the table are interpolated linearly. Outside of the table, the nearest entry applies.
    """

    fixed_s: Time = Field(0.0, alias="fixed")
    per_sequence_s: Time = Field(0.0, alias="per_sequence")
    table: Mapping[Size, Time] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Decode:
        if self.table is not None and (not self.table or self.fixed_s or self.per_sequence_s):
            raise ValueError("needs either fixed and per_sequence or a table with entries")
        return self

    def step_s(self, size: int) -> float:
        """Return the seconds of a step that decodes `size` sequences."""
        if self.table is None:
            return self.fixed_s + self.per_sequence_s * size
        sizes = sorted(self.table)
        above = bisect_left(sizes, size)
        if above in {0, len(sizes)}:
            return self.table[sizes[min(above, len(sizes) - 1)]]
        low, high = sizes[above - 1], sizes[above]
        share = (size - low) / (high - low)
        return self.table[low] + share * (self.table[high] - self.table[low])


class Faults(StrictModel):
    """Fractions of the calls that fail, by fault. The sum is at most 1.

    `fail_424` and `fail_500` return TGI's errors for a failed model at once. `hang` sends no answer and occupies its
    slot until the client disconnects. `break_off` ends the connection halfway through the answer.
    """

    fail_424: Fraction = 0.0
    fail_500: Fraction = 0.0
    hang: Fraction = 0.0
    break_off: Fraction = 0.0

    @model_validator(mode="after")
    def _at_most_all(self) -> Faults:
        if sum(self.model_dump().values()) > 1:
            raise ValueError("the sum of the fractions is more than 1")
        return self


class Profile(StrictModel):
    """Parameters of a modelled engine.

    Without `prefill` and `decode` it has no latency. `answer_tokens` are evenly spaced quantiles of the length at which
    answers end by themselves. Without them, each answer reaches its max_tokens. `jitter` 0.1 varies each pass by up to
    10 %. With the same `seed`, calls get the same lengths and faults in the order of arrival in every run.
    """

    model: Name
    dialect: Dialect
    continuation: Mode | Literal["none"] = "trailing"
    max_concurrent_requests: Count | None = None
    max_batch_size: Count = 128
    max_total_tokens: Count = 4096
    chars_per_token: Annotated[Number, Field(ge=0.1, le=100)] = 4.0
    prefill: PrefillTimes | None = None
    decode: Decode | None = None
    answer_tokens: tuple[Count, ...] = ()
    jitter: Fraction = 0.0
    seed: Whole = 0
    faults: Faults = Faults()

    @model_validator(mode="after")
    def _both_or_neither(self) -> Profile:
        if (self.prefill is None) != (self.decode is None):
            raise ValueError("needs both prefill and decode, or neither for an engine that takes no time")
        return self

    def answer_length(self, drawn: float) -> int | None:
        """Return the tokens after which an answer ends, for a number in [0, 1); None without a limit."""
        if not self.answer_tokens:
            return None
        place = drawn * (len(self.answer_tokens) - 1)
        low = int(place)
        high = min(low + 1, len(self.answer_tokens) - 1)
        return round(self.answer_tokens[low] + (place - low) * (self.answer_tokens[high] - self.answer_tokens[low]))


def read_profile(path: Path) -> Profile:
    """Read a timing file. Raise ValueError that lists every issue with its line."""
    profile, issues = load(path, Profile, context=path)
    if profile is None:
        raise ValueError("\n".join(str(issue) for issue in issues))
    return profile
