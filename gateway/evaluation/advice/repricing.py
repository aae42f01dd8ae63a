"""The answers of a run at other prices, with the prompt caches of teacher and student."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from gateway.errors import StartupError
from gateway.evaluation.summary import roles_with_cache_reads, summarize
from gateway.pricing import cost_usd, total_usd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gateway.evaluation.record import Example
    from gateway.evaluation.summary import SettingSummary
    from gateway.pricing import Price


class PromptCaching(NamedTuple):
    """Assumptions about prompt caches. They may have the exemplars and the projection, which requests share.

    Attributes:
        hits: The part of their tokens (0 to 1) that is read from the cache. The rest is written to it, unless the part
            is 0: then there is no cache. None: the number of tokens that each answer of the run read.
        min_tokens, student_min_tokens: Fewer tokens are not in the teacher's or in the student's cache.
    """

    hits: Decimal | None = Decimal(1)
    min_tokens: int = 0
    student_min_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Repricing:
    """Costs of the answers to the same questions at `prices`, by role.

    Attributes:
        plain: The teacher alone with the fewest exemplars in the request. Input beyond its input is shared: equal for
            all requests.
        alone: The teacher alone with the callers' requests.
    """

    prices: Mapping[str, Price]
    caching: PromptCaching
    plain: SettingSummary
    alone: SettingSummary

    def examples(self, of: Sequence[Example]) -> Iterator[Example]:
        """Yield the answers of a setting with their costs."""
        cached = [self._cache_tokens(role, of) for role in ("teacher", "student")]
        for one, by_teacher, by_student in zip(of, *cached, strict=True):
            teacher_usd = cost_usd(
                self.prices["teacher"], one.teacher_input_tokens, one.teacher_output_tokens, *by_teacher
            )
            student_usd = cost_usd(
                self.prices["student"], one.student_input_tokens, one.student_output_tokens, *by_student
            )
            yield structs.replace(one, cost_usd=total_usd(teacher_usd, student_usd), teacher_usd=teacher_usd)

    def require_cache_reads(self, among: Sequence[SettingSummary], path: str) -> None:
        """Raise StartupError if an engine reported no cache reads, and they are needed."""
        reported = roles_with_cache_reads([example for one in among for example in one.examples])
        needed = ["teacher", *(["student"] if self._request_is_shared and self._discounts("student") else [])]
        if missing := [role for role in needed if role not in reported]:
            raise StartupError(
                f"{path}: the engine of the {missing[0]} reported no cache reads, so there is no measured rate: give "
                "one like --cache-hits 95%, or measure with --config and an engine of protocol openai that reports "
                "them (llama.cpp; vLLM with --enable-prompt-tokens-details). A teacher of protocol tgi does not"
            )

    def notes(self, among: Sequence[SettingSummary]) -> Iterator[str]:
        """Yield sentences about the cached input of the settings."""
        if not (self._discounts("teacher") or (self._request_is_shared and self._discounts("student"))):
            return
        if self.alone.setting["shots"] and not self._request_is_shared:
            yield (
                "the exemplars of the requests are charged without a prompt cache, since the run has no teacher alone "
                "without exemplars"
            )
        whose, what, where = "the teacher", "the exemplars' tokens, beyond the caller's prompt,", "its prompt cache"
        if self._request_is_shared:
            whose, what, where = "both models", "the exemplars' tokens", "their prompt caches"
        hits = self.caching.hits
        if hits == 0:
            yield "assumed: there is no prompt cache"
        elif hits is not None:
            verb = "read" if self._request_is_shared else "reads"
            yield f"assumed: {whose} {verb} {hits:.0%} of {what} from {where}"
            if not self.caching.min_tokens and (tokens := self._longest_shared(among)):
                yield (
                    f"these are {tokens:.0f} tokens: some providers cache no prompt of less than 1,024 or 4,096 tokens "
                    "(the sheets of `eval recommend --sheets shipped` have such limits): then use --cache-hits 0%"
                )
        else:
            roles = ("teacher", "student") if self._request_is_shared else ("teacher",)
            answers = [(role, one.examples) for role in roles for one in among]
            if shared := sum(sum(self._shared_tokens(*one)) for one in answers):
                read = sum(sum(self._measured_reads(*one)) for one in answers)
                yield f"measured: {whose} read {read / shared:.0%} of {what} from {where}"

    @property
    def _request_is_shared(self) -> bool:
        """Return whether the callers' requests have exemplars, whose tokens are known to be shared."""
        return bool(self.plain.setting["shots"] < self.alone.setting["shots"])

    def _discounts(self, role: str) -> bool:
        return self.prices[role].cached_input_usd != self.prices[role].input_usd

    def _shared_tokens(self, role: str, of: Sequence[Example]) -> Iterator[int]:
        """Yield the shared tokens in the input of each answer; 0 without an answer of the teacher alone.

        The student reads the exemplars of the request, but no projection. Its tokenizer is taken as the teacher's.
        """
        for one, plain, alone in zip(of, self.plain.examples, self.alone.examples, strict=True):
            own = one.teacher_input_tokens if role == "teacher" else one.student_input_tokens
            whole = own if role == "teacher" else alone.teacher_input_tokens
            added = whole - plain.teacher_input_tokens if plain.error is None else 0
            yield min(own, max(0, added))

    def _longest_shared(self, among: Sequence[SettingSummary]) -> float:
        """Return the shared tokens of the teacher's input, the mean of the setting with the most."""
        return max((sum(self._shared_tokens("teacher", one.examples)) / one.n for one in among), default=0.0)

    def _measured_reads(self, role: str, of: Sequence[Example]) -> Iterator[int]:
        """Yield the shared tokens that the engine read from its cache for each answer.

        Reads beyond them are of questions, which a run repeats and other traffic does not.
        """
        for one, shared in zip(of, self._shared_tokens(role, of), strict=True):
            yield min(shared, (one.teacher_cached_tokens if role == "teacher" else one.student_cached_tokens) or 0)

    def _cache_tokens(self, role: str, of: Sequence[Example]) -> Iterator[tuple[int, int]]:
        """Yield the tokens that each answer reads from the cache of the role's engine, and those that it writes."""
        hits = self.caching.hits
        least = self.caching.min_tokens if role == "teacher" else self.caching.student_min_tokens
        for shared, measured in zip(self._shared_tokens(role, of), self._measured_reads(role, of), strict=True):
            read = measured if hits is None else int(shared * hits)
            yield (0, 0) if shared < least or hits == 0 else (read, shared - read)


def repriced(
    candidates: Sequence[SettingSummary], repricing: Repricing, path: str
) -> tuple[list[SettingSummary], list[str]]:
    """Return the settings with new costs, and notes. Raises StartupError if cache reads are needed and missing."""
    if repricing.caching.hits is None:
        repricing.require_cache_reads(candidates, path)
    found = [summarize(one.setting, list(repricing.examples(one.examples))) for one in candidates]
    return found, list(repricing.notes(candidates))
