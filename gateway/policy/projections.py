"""Projections as data: the teacher's prompt, the kept part of its text, and its presentation to the student.

Built in are the three forms of the paper's F (sections 2 and 4.2), cutoff, concise and hint, and `primed`. Users add
their own in files (library.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.patterns import Pattern

PRIMER: tuple[tuple[str, str], ...] = (
    (
        (
            "A ferry makes 5 trips a day and carries 18 cars on each. On Sunday it makes 2 trips fewer. "
            "How many cars does it carry on Sunday?"
        ),
        "5 - 2 = 3 trips on Sunday. 3 x 18 = 54. The answer is 54 cars.",
    ),
    (
        "Which of these would you use to measure how warm a bath is?\nA) ruler\nB) thermometer\nC) scales\nD) compass",
        "B) thermometer. It measures temperature; a ruler measures length, scales weight, and a compass direction.",
    ),
    (
        "Why does bread go stale?",
        (
            "Its starch crystallises again as it cools and stands, and pushes water out of the crumb. So the crumb "
            "turns firm and dry, faster in a refrigerator than on the table or in the freezer."
        ),
    ),
    (
        "How do I mend a flat bicycle tyre?",
        (
            "1. Take the wheel off and lift one side of the tyre over the rim.\n"
            "2. Pull out the tube, pump it up and find the hole by the hiss or under water.\n"
            "3. Roughen the spot, spread the glue, wait until it is dull, and press on the patch.\n"
            "4. Look inside the tyre for what made the hole, put tube and tyre back, and pump it up."
        ),
    ),
    (
        "Write a Python function that returns the largest even number of a list, or None.",
        (
            "```python\n"
            "def largest_even(numbers):\n"
            "    return max((number for number in numbers if number % 2 == 0), default=None)\n"
            "```\n"
            "`default=None` answers for a list without an even number."
        ),
    ),
)
"""Questions, each with its answer."""

Placement = Literal["prefix", "context", "input"]

BEGINS_LIKE_THIS = "An expert's answer begins like this:\n{guidance}\n\nGive the whole answer, from its beginning."
SLOT = "{guidance}"
"""Placeholder of the guidance in an introduction."""

Shipped = Literal["cutoff", "concise", "hint", "primed"]
"""Names of the built-in projections."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A question and its answer, shown only to the teacher. It is content and is never logged."""

    question: str = field(repr=False)
    answer: str = field(repr=False)


class SkipRule(NamedTuple):
    """Boilerplate at the beginning of the teacher's text that is dropped (gateway/guidance/keep.py)."""

    patterns: tuple[Pattern, ...]  # RE2 patterns, each for the beginning of a dropped sentence
    tokens: int  # tokens requested in addition to the guidance's length, to make up for the dropped ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """The teacher's prompt, and the use of its text.

    Attributes:
        instruction: inserted before the text of the last user message, only for the teacher; None: nothing.
        system: inserted before the chat's system message, or as one, only for the teacher.
        exemplars: turns inserted before the caller's, only for the teacher, which imitates them.
        default_placement: placement of a policy without one: "prefix" begins the answer with the guidance, "context"
            puts it in the student's prompt, hidden from the caller, and "input" does so without an introduction.
        introduction: text around the guidance for placement "context"; contains `{guidance}`.

    Raises:
        ValueError: `introduction` does not contain `{guidance}` exactly once.
    """

    name: str
    instruction: str | None = field(default=None, repr=False)
    teacher_may_finish: bool = True  # a teacher that stopped by itself has answered, so the student is not called
    default_placement: Placement = "prefix"
    introduction: str = field(default=BEGINS_LIKE_THIS, repr=False)
    exemplars: tuple[Exemplar, ...] = ()
    system: str | None = field(default=None, repr=False)
    skip: SkipRule | None = None  # the beginning of the teacher's text that is dropped; None: nothing
    shown_bytes: int = field(init=False, compare=False)
    """UTF-8 bytes added to the teacher's chat, without the template's text around the turns."""
    introduction_bytes: int = field(init=False, compare=False, repr=False)
    turns: int = field(init=False, compare=False, repr=False)
    """The number of messages added to the teacher's chat, a system message included."""

    def __post_init__(self) -> None:
        if self.introduction.count(SLOT) != 1:
            raise ValueError(f"projection {self.name}: introduction must hold {SLOT} exactly once")
        object.__setattr__(self, "shown_bytes", sum(len(one.encode()) for one in self.shown))
        object.__setattr__(self, "introduction_bytes", len(self.introduction.encode()))
        object.__setattr__(self, "turns", 2 * len(self.exemplars) + (self.system is not None))

    @property
    def shown(self) -> tuple[str, ...]:
        """Return every text that the projection adds to the teacher's chat, in order."""
        turns = (text for one in self.exemplars for text in (one.question, one.answer))
        return tuple(filter(None, (self.system, *turns, self.instruction)))

    @property
    def skip_tokens(self) -> int:
        """Return the tokens requested in addition to the guidance's length."""
        return self.skip.tokens if self.skip is not None else 0


CUTOFF = Projection(name="cutoff")
CONCISE = Projection(
    name="concise",
    instruction="Provide the answer in a brief manner:",
    introduction="An expert's brief answer begins like this:\n{guidance}\n\nGive the whole answer, from its beginning.",
)
HINT = Projection(
    name="hint",
    instruction="Provide a brief hint for the question:",
    teacher_may_finish=False,
    default_placement="context",
    introduction="Hint: {guidance}",
)
PRIMED = Projection(name="primed", exemplars=tuple(Exemplar(question, answer) for question, answer in PRIMER))

PROJECTIONS: Mapping[str, Projection] = MappingProxyType({p.name: p for p in (CUTOFF, CONCISE, HINT, PRIMED)})
"""The built-in projections by name."""
