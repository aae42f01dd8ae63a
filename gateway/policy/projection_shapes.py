"""Schemas of the files that policies name: custom projections and lists of exemplars."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, RootModel

from gateway.config.scalars import Flag, InvalidValue, Whole
from gateway.config.yaml_source import StrictModel
from gateway.policy.conditions import as_list
from gateway.policy.patterns import to_pattern
from gateway.policy.projections import BEGINS_LIKE_THIS, SLOT, Exemplar, Placement, Projection, SkipRule

# The typographic apostrophe, written below as a backtick.
_APOSTROPHE = "\u2019"
_YES = r"(?:certainly|sure(?: thing)?|of course|absolutely|definitely|gladly|great|okay|ok|all ?right)"
_YES_FIRST = rf"(?:{_YES}[,:!] )?"
_TO_SENTENCE_END = r"\b[^.:!?\n0-9]*"
_WILL = r"(?:[`']ll| will| need to| can| should| must| have to)?"
_BREAK = rf"break{_TO_SENTENCE_END}\b(?:down|steps?|problem|question|information|given)"
_ENGLISH = (
    # "Certainly!", "Great question!"
    rf"{_YES}[!.]",
    r"(?:(?:that[`']s|what) )?(?:an? )?(?:great|good|excellent|interesting) question[!.]",
    # "I'd be happy to explain:", "Sure, I can help you with that!"
    rf"{_YES_FIRST}(?:I[`']d|I would) be (?:happy|glad|delighted) to{_TO_SENTENCE_END}[.:!]",
    rf"{_YES_FIRST}(?:I can|I[`']ll|I will|let me) (?:help|assist|explain|walk|guide|show){_TO_SENTENCE_END}[.:!]",
    # "Sure, here's a step-by-step solution:"
    rf"{_YES_FIRST}here(?:[`']s| is| are){_TO_SENTENCE_END}:",
    # "Let's break this down step by step.", "Let us solve the problem:"
    rf"{_YES_FIRST}let(?:[`']s| us| me) (?:first )?{_BREAK}[.:!]",
    (
        rf"{_YES_FIRST}let(?:[`']s| us| me) (?:first )?(?:solve|work|go|start|begin|think|look|take|tackle|figure|"
        rf"analy[sz]e|calculate|find|determine|consider){_TO_SENTENCE_END}[.:!]"
    ),
    # "To determine how many rolls he sells, we need to follow these steps:"
    (
        rf"{_YES_FIRST}(?:in order )?to (?:determine|find|calculate|compute|solve|answer|figure|work|understand)\b"
        rf"[^!?\n]*?,? (?:we|you|I|let[`']s|let us){_WILL} (?:first )?"
        rf"(?:{_BREAK}|(?:follow|go through|work through|look at|consider|think){_TO_SENTENCE_END})[.:]"
    ),
    # "**Answer:**", "Step-by-step solution:"
    r"(?:#+ |\*\*)?(?:the )?(?:step[- ]by[- ]step )?(?:answer|solution|explanation)(?: is)?:(?:\*\*)?",
)

ENGLISH: tuple[str, ...] = tuple(f"(?i){one.replace('`', _APOSTROPHE)}" for one in _ENGLISH)
"""The built-in list, named `english` in policies."""

MAX_EXEMPLARS = 64
MAX_CHARS = 64_000
"""Maximum size of one text, and of all that a projection adds to a chat."""
ENGLISH_LIST = "english"
_MAX_INTRODUCTION_CHARS = 4000
_MAX_SKIP_TOKENS = 512


def _joined(value: object) -> object:
    """Join surrogate pairs, which JSON escapes contain and YAML does not join."""
    if not isinstance(value, str):
        return value
    try:
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise InvalidValue("contains half of a surrogate pair: remove it") from None


def _not_blank(value: str) -> str:
    if not value.strip():
        raise InvalidValue("must not be blank: add text, or remove the key")
    return value


_Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_CHARS)]
PromptText: TypeAlias = Annotated[
    _Text, BeforeValidator(_joined, json_schema_input_type=_Text), AfterValidator(_not_blank)
]
"""Text that can be sent to an engine."""


class ExemplarRule(StrictModel):
    """A question and its answer."""

    question: PromptText
    """The question, as a caller would write it."""
    answer: PromptText
    """The answer, as the teacher should write it. Guidance resembles its beginning."""

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


class KeepRule(StrictModel):
    """The part of the teacher's text that is kept."""

    skip: Annotated[
        tuple[_Skipped, ...],
        Field(min_length=1, max_length=32),
        BeforeValidator(as_list, json_schema_input_type=str | tuple[_Skipped, ...]),
    ]
    """Boilerplate that is dropped: the built-in list `english`, RE2 regular expressions for the beginning of a
    sentence, or both."""
    skip_tokens: Annotated[Whole, Field(ge=1, le=_MAX_SKIP_TOKENS)] = 24
    """Tokens requested in addition to guidance.tokens, to make up for the dropped text."""

    def skip_rule(self) -> SkipRule:
        """Return the rule with compiled patterns."""
        texts = [text for one in self.skip for text in (ENGLISH if one == ENGLISH_LIST else (one,))]
        return SkipRule(tuple(map(to_pattern, texts)), self.skip_tokens)


def _with_a_slot(value: str) -> str:
    if value.count(SLOT) != 1:
        raise InvalidValue(f"must contain {SLOT} exactly once, where the guidance is inserted")
    return value


def _inline(value: object) -> object:
    return None if isinstance(value, str) else value


class ProjectionRule(StrictModel):
    """A file in policies/projections: the teacher's prompt, the kept text, and its presentation to the student.

    Policies refer to it by the file name without its suffix.
    """

    instruction: PromptText | None = None
    """Text before the question, only for the teacher."""
    system: PromptText | None = None
    """System text before the caller's, only for the teacher."""
    exemplars: Annotated[_Exemplars | None, BeforeValidator(_inline, json_schema_input_type=str | _Exemplars)] = None
    """Turns before the chat, only for the teacher: a list of questions and answers, or a file of them in the policies
    folder, such as exemplars/arithmetic.yaml."""
    keep: KeepRule | None = None
    """The part of the text that is kept; None: all of the first guidance.tokens tokens."""
    teacher_may_finish: Flag = True
    """Whether a teacher that stopped by itself has answered: false for hints and plans."""
    placement: Placement = "prefix"
    """Placement of the guidance, unless a policy sets another."""
    introduction: Annotated[PromptText, Field(max_length=_MAX_INTRODUCTION_CHARS), AfterValidator(_with_a_slot)] = (
        BEGINS_LIKE_THIS
    )
    """Text around the guidance in the student's prompt for placement context; contains {guidance}."""

    def projection(self, name: str, exemplars: tuple[Exemplar, ...]) -> Projection:
        """Return the projection; `exemplars` are those of its file, if it names one."""
        return Projection(
            name=name,
            instruction=self.instruction,
            system=self.system,
            exemplars=exemplars or tuple(one.exemplar() for one in self.exemplars or ()),
            skip=self.keep.skip_rule() if self.keep is not None else None,
            teacher_may_finish=self.teacher_may_finish,
            default_placement=self.placement,
            introduction=self.introduction,
        )
