"""A projection is data: what to ask the teacher, what of its text to keep, and what that is to the student.

The paper's F (section 2) in its three forms (section 4.2), cutoff, concise and hint; `primed`; and users' own, which
stand in files (library.py).
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
"""Where in an introduction the guidance goes."""

Shipped = Literal["cutoff", "concise", "hint", "primed"]
"""The projections that need no file."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A question and how it is to be answered, shown to the teacher alone. No log repeats it: it is content."""

    question: str = field(repr=False)
    answer: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SkipRule:
    """What a teacher may write before it says anything, and nobody is to get.

    patterns: of RE2; each stands for the beginning of a sentence that is dropped (gateway/guidance/skip.py).
    tokens: how many the teacher is asked for beyond the guidance's length, so that there is something behind them.
    """

    patterns: tuple[Pattern, ...]
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """What to ask the teacher, and what to make of its text.

    name: as policies write it.
    instruction: put before the text of the last user message, for the teacher alone; None: ask as the caller did.
    system: put before the system message that the chat begins with, or in its place, for the teacher alone.
    exemplars: turns of a chat that the teacher alone sees before the caller's: it begins as they do.
    skip: the beginning of its text that is dropped; None: nothing is.
    teacher_may_finish: a teacher that ended by itself has answered, so the student is not asked.
    default_placement: where the guidance stands unless a policy says otherwise: "prefix" opens the answer with it,
        "context" puts it into the student's prompt, where the caller does not see it; "input" does so too, without
        an introduction.
    introduction: how placement "context" puts the guidance to the student; `{guidance}` stands for it.

    Raises ValueError when `introduction` does not hold `{guidance}` exactly once.
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
    """What the teacher reads of it with a chat, as UTF-8, the template's words around the turns apart."""

    def __post_init__(self) -> None:
        if self.introduction.count(SLOT) != 1:
            raise ValueError(f"projection {self.name}: introduction must hold {SLOT} exactly once")
        object.__setattr__(self, "shown_bytes", sum(len(one.encode()) for one in self.shown))

    @property
    def shown(self) -> tuple[str, ...]:
        """Every text that it adds to a chat for the teacher, in order."""
        turns = (text for one in self.exemplars for text in (one.question, one.answer))
        return tuple(filter(None, (self.system, *turns, self.instruction)))

    @property
    def turns(self) -> int:
        """The messages that it adds to a chat for the teacher, one for a system text included."""
        return 2 * len(self.exemplars) + (self.system is not None)

    @property
    def skip_tokens(self) -> int:
        """What the teacher is asked for beyond the guidance's length."""
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
"""Every projection that is shipped, by name."""
