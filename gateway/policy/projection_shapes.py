"""What the files beside the policies may say: a projection of one's own, and a list of exemplars."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, RootModel

from gateway.config.scalars import Flag, InvalidValue, Whole
from gateway.config.yaml_source import StrictModel
from gateway.policy.boilerplate import ENGLISH
from gateway.policy.conditions import to_pattern
from gateway.policy.projections import BEGINS_LIKE_THIS, SLOT, Exemplar, Placement, Projection, SkipRule

MAX_EXEMPLARS = 64
MAX_CHARS = 64_000
"""Of one text, and of all that a projection adds to a chat."""
ENGLISH_LIST = "english"
_MAX_INTRODUCTION_CHARS = 4000
_MAX_SKIP_TOKENS = 512


def _joined(value: object) -> object:
    """JSON writes what lies beyond 16 bits in two halves, which YAML leaves apart."""
    if not isinstance(value, str):
        return value
    try:
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise InvalidValue("holds a character that cannot be") from None


def _said(value: str) -> str:
    if not value.strip():
        raise InvalidValue("is empty: write something")
    return value


_Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_CHARS)]
Said: TypeAlias = Annotated[_Text, BeforeValidator(_joined, json_schema_input_type=_Text), AfterValidator(_said)]
"""Text that can be sent."""


class ExemplarRule(StrictModel):
    """A question, and how it is to be answered."""

    question: Said
    """As a caller would ask it."""
    answer: Said
    """As the teacher is to answer: what it begins with is what guidance will hold."""

    def exemplar(self) -> Exemplar:
        return Exemplar(self.question.strip(), self.answer.strip())


_Exemplars: TypeAlias = Annotated[tuple[ExemplarRule, ...], Field(min_length=1, max_length=MAX_EXEMPLARS)]


class ExemplarList(RootModel[_Exemplars]):
    """A file of exemplars."""

    def exemplars(self) -> tuple[Exemplar, ...]:
        return tuple(one.exemplar() for one in self.root)


def _skippable(value: str) -> str:
    if value != ENGLISH_LIST:
        to_pattern(value)
    return value


_Skipped: TypeAlias = Annotated[str, AfterValidator(_skippable)]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class KeepRule(StrictModel):
    """What of the teacher's text is kept."""

    skip: Annotated[
        tuple[_Skipped, ...],
        Field(min_length=1, max_length=32),
        BeforeValidator(_listed, json_schema_input_type=str | tuple[_Skipped, ...]),
    ]
    """Boilerplate before the answer, which is dropped: `english`, the shipped list, or regular expressions of RE2 for
    the beginning of a sentence, or both."""
    skip_tokens: Annotated[Whole, Field(ge=1, le=_MAX_SKIP_TOKENS)] = 24
    """How many tokens the teacher is asked for beyond guidance.tokens, so that there is something behind it."""

    def skipping(self) -> SkipRule:
        """As data, its patterns compiled."""
        texts = [text for one in self.skip for text in (ENGLISH if one == ENGLISH_LIST else (one,))]
        return SkipRule(tuple(map(to_pattern, texts)), self.skip_tokens)


def _with_a_slot(value: str) -> str:
    if value.count(SLOT) != 1:
        raise InvalidValue(f"must hold {SLOT} exactly once: there the guidance goes")
    return value


def _inline(value: object) -> object:
    return None if isinstance(value, str) else value


class ProjectionRule(StrictModel):
    """One file in policies/projections: what to ask the teacher, what to keep, and what that is to the student.

    Policies name it as the file is called, without its ending.
    """

    instruction: Said | None = None
    """Put before the question, for the teacher alone."""
    system: Said | None = None
    """A system text for the teacher alone, before the caller's own."""
    exemplars: Annotated[_Exemplars | None, BeforeValidator(_inline, json_schema_input_type=str | _Exemplars)] = None
    """Turns that the teacher alone sees before the chat: a list of question and answer, or the file of one, from the
    policies folder, like exemplars/arithmetic.yaml."""
    keep: KeepRule | None = None
    """What of its text is kept; None: all of the first guidance.tokens tokens."""
    teacher_may_finish: Flag = True
    """Whether a teacher that ended by itself has answered: not where it writes a hint or a plan."""
    placement: Placement = "prefix"
    """Where the guidance stands, unless a policy says otherwise."""
    introduction: Annotated[Said, Field(max_length=_MAX_INTRODUCTION_CHARS), AfterValidator(_with_a_slot)] = (
        BEGINS_LIKE_THIS
    )
    """How placement context puts the guidance to the student; {guidance} stands for it."""

    def projection(self, name: str, exemplars: tuple[Exemplar, ...]) -> Projection:
        """As data. `exemplars`: of its file, where it names one."""
        return Projection(
            name=name,
            instruction=self.instruction,
            system=self.system,
            exemplars=exemplars or tuple(one.exemplar() for one in self.exemplars or ()),
            skip=self.keep.skipping() if self.keep is not None else None,
            teacher_may_finish=self.teacher_may_finish,
            default_placement=self.placement,
            introduction=self.introduction,
        )
