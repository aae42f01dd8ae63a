"""Projections as data: the teacher's prompt, the kept part of its text, and its presentation to the student.

Built in are the three forms of the paper's F (sections 2 and 4.2), cutoff, concise and hint, and `primed`. Users add
their own in files (library.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from gateway.policy.primer import PRIMER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.conditions import Pattern

Placement = Literal["prefix", "context", "input"]

SLOT = "{guidance}"
"""Placeholder of the guidance in an introduction."""

Shipped = Literal["cutoff", "concise", "hint", "primed"]
"""Names of the built-in projections."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A question and its answer, shown only to the teacher. It is content and is never logged."""

    question: str = field(repr=False)
    answer: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SkipRule:
    """Boilerplate at the beginning of the teacher's text that is dropped (gateway/guidance/keep.py).

    Attributes:
        patterns: RE2 patterns, each for the beginning of a dropped sentence.
        tokens: tokens requested in addition to the guidance's length, to make up for the dropped ones.
    """

    patterns: tuple[Pattern, ...]
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """The teacher's prompt, and the use of its text.

    Attributes:
        name: the name in policies.
        instruction: inserted before the text of the last user message, only for the teacher; None: nothing.
        system: inserted before the chat's system message, or as one, only for the teacher.
        exemplars: turns inserted before the caller's, only for the teacher, which imitates them.
        skip: the beginning of the teacher's text that is dropped; None: nothing.
        teacher_may_finish: a teacher that stopped by itself has answered, so the student is not called.
        default_placement: placement of a policy without one: "prefix" begins the answer with the guidance, "context"
            puts it in the student's prompt, hidden from the caller, and "input" does so without an introduction.
        introduction: text around the guidance for placement "context"; contains `{guidance}`.

    Raises:
        ValueError: `introduction` does not contain `{guidance}` exactly once.
    """

    name: str
    instruction: str | None = field(repr=False)
    teacher_may_finish: bool
    default_placement: Placement
    introduction: str = field(repr=False)
    exemplars: tuple[Exemplar, ...] = ()
    system: str | None = field(default=None, repr=False)
    skip: SkipRule | None = None
    shown_bytes: int = field(init=False, compare=False)
    """UTF-8 bytes added to the teacher's chat, without the template's text around the turns."""

    def __post_init__(self) -> None:
        if self.introduction.count(SLOT) != 1:
            raise ValueError(f"projection {self.name}: introduction must hold {SLOT} exactly once")
        object.__setattr__(self, "shown_bytes", sum(len(one.encode()) for one in self.shown))

    @property
    def shown(self) -> tuple[str, ...]:
        """Return every text that the projection adds to the teacher's chat, in order."""
        turns = (text for one in self.exemplars for text in (one.question, one.answer))
        return tuple(filter(None, (self.system, *turns, self.instruction)))

    @property
    def turns(self) -> int:
        """Return the number of messages added to the teacher's chat, a system message included."""
        return 2 * len(self.exemplars) + (self.system is not None)

    @property
    def skip_tokens(self) -> int:
        """Return the tokens requested in addition to the guidance's length."""
        return self.skip.tokens if self.skip is not None else 0


BEGINS_LIKE_THIS = "An expert's answer begins like this:\n{guidance}\n\nGive the whole answer, from its beginning."

CUTOFF = Projection(
    name="cutoff",
    instruction=None,
    teacher_may_finish=True,
    default_placement="prefix",
    introduction=BEGINS_LIKE_THIS,
)
CONCISE = Projection(
    name="concise",
    instruction="Provide the answer in a brief manner:",
    teacher_may_finish=True,
    default_placement="prefix",
    introduction="An expert's brief answer begins like this:\n{guidance}\n\nGive the whole answer, from its beginning.",
)
HINT = Projection(
    name="hint",
    instruction="Provide a brief hint for the question:",
    teacher_may_finish=False,
    default_placement="context",
    introduction="Hint: {guidance}",
)
PRIMED = Projection(
    name="primed",
    instruction=None,
    teacher_may_finish=True,
    default_placement="prefix",
    introduction=BEGINS_LIKE_THIS,
    exemplars=tuple(Exemplar(question, answer) for question, answer in PRIMER),
)

PROJECTIONS: Mapping[str, Projection] = MappingProxyType({p.name: p for p in (CUTOFF, CONCISE, HINT, PRIMED)})
"""The built-in projections by name."""
